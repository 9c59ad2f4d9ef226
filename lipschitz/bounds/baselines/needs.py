"""What a method needs of a network, checked before it starts."""

from __future__ import annotations

from lipschitz.errors import InputError
from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.graph import Graph


def require_relu(graph: Graph, method: str) -> None:
    """Refuse activations other than ReLU and LeakyReLU.

    Args:
        graph: The network.
        method: Whose formulas know no others.

    Raises:
        InputError: With the activation's name and what to use instead.
    """
    for index in graph.activation_nodes:
        node = graph.nodes[index]
        if not isinstance(node.activation, PiecewiseLinear):
            raise InputError(
                f"{method} is for ReLU and LeakyReLU, and {node.name!r} is {node.activation}: use "
                "crown, alpha, recurjac or branch and bound (--bab)"
            )
