"""A network as a chain: matrices with activations between, around the centre of a box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.plan import Plan
from lipschitz.network.activations import Activation
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem

# Most numbers of one layer's matrix. A choice: about the products of a second on one core.
_LARGEST_MATRIX = 2 * 10**6


@dataclass(frozen=True)
class Layer:
    """An activation and the affine map before it, in float64.

    With the deviations ``eta`` of the layer before from its values at the centre, the
    pre-activation is ``centre + matrix eta``. For the first layer ``eta`` is the point's place in
    the box, every coordinate in [-1, 1].

    Attributes:
        node: The activation node.
        activation: What is applied.
        shape: Shape of its values; N is their number.
        matrix: [N, M].
        centre: Pre-activation at the centre of the box, [N].
    """

    node: int
    activation: Activation
    shape: torch.Size
    matrix: Tensor
    centre: Tensor

    def values(self, preact: Tensor) -> Tensor:
        """The activation of pre-activations [..., N]."""
        found = self.activation.forward(preact.unflatten(-1, self.shape))
        return found.flatten(preact.dim() - 1)


def read_chain(problem: LocalProblem, plan: Plan) -> list[Layer] | None:
    """The layers of a network in which every one reads the layer before and nothing else.

    Args:
        problem: The network and the box.
        plan: Of its graph.

    Returns:
        A layer for each activation that the output reads; None for other networks, and where a
        matrix is too large for what is done with it.
    """
    if plan.pools or not plan.activations:
        return None
    graph, layers = problem.graph.double, []
    lower, upper = problem.lower.double(), problem.upper.double()
    values = graph.values(((lower + upper) / 2)[None])
    before, scale = 0, (upper - lower).flatten() / 2
    for node in plan.activations:
        preact = plan.preact_node(node)
        numbers = graph.nodes[preact].shape.numel() * graph.nodes[before].shape.numel()
        if numbers > _LARGEST_MATRIX or _sources(graph, preact) != {before}:
            return None
        matrix = _matrix(graph, before, preact)
        layers.append(
            Layer(
                node,
                graph.nodes[node].activation,
                graph.nodes[node].shape,
                matrix * scale if before == 0 else matrix,
                values[preact].flatten(),
            )
        )
        before = node
    return layers


def _sources(graph: Graph, node: int) -> set[int]:
    """The input and the activations that a value is an affine function of."""
    if node == 0 or graph.nodes[node].affine is None:
        return {node}
    return set().union(*(_sources(graph, parent) for parent in graph.nodes[node].parents))


def _matrix(graph: Graph, first: int, last: int) -> Tensor:
    """The linear part of what leads from one node to another, [N, M]."""
    size = graph.nodes[first].shape.numel()
    identity = torch.eye(size, dtype=graph.dtype, device=graph.device)
    values: dict[int, Tensor] = {first: identity.reshape(size, *graph.nodes[first].shape)}
    for index in range(first + 1, last + 1):
        node = graph.nodes[index]
        if node.affine is not None and all(parent in values for parent in node.parents):
            values[index] = node.affine.linear(*(values[parent] for parent in node.parents))
    return values[last].flatten(1).T.contiguous()
