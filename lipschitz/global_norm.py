"""The global bound: the product of layer norms.

Method card
    Needs: activations whose slope is bounded, and nothing but the weights; the box does not matter.
    Returns: an upper bound of the Lipschitz constant everywhere.
    Idea: the Linf -> Linf operator norm of every affine map, multiplied along the network; branches
        that are added add their constants.
    Sound: yes. Exact: no, usually loose by orders of magnitude.
    Reference: Szegedy et al. 2014 (section 4.3); Shi et al. 2022 compare with it as "Global".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipschitz.graph import Graph
from lipschitz.rounding import raise_upper_bound
from utils import InputError


@torch.no_grad()
def global_norm_bound(graph: Graph, rows: Tensor) -> Tensor:
    """Upper bound of ``||J(x)^T r||_1`` over all x, per row.

    The true operator norm of each map is used, ``max over outputs of the sum of |coefficients|``,
    found by applying the map's magnitude to ones; so stride and padding are accounted for. The
    maps after the last activation are joined with the row, as a last layer of one output.

    Args:
        graph: The network.
        rows: Output directions [R, C].

    Returns:
        [R].

    Raises:
        InputError: An activation whose slope has no bound.
    """
    for index in graph.activation_nodes:
        if not math.isfinite(max(map(abs, graph.nodes[index].activation.slope_range))):
            raise InputError(
                f"global: the slope of {graph.nodes[index].activation} (at "
                f"{graph.nodes[index].name!r}) has no bound, so no global constant exists: use a "
                "method that looks at the box, such as crown or ibp"
            )
    constants: list[float] = [1.0]
    for node in graph.nodes[1:]:
        inputs = [constants[p] for p in node.parents]
        if node.affine is None:
            constants.append(inputs[0] * max(abs(s) for s in node.activation.slope_range))
            continue
        reach = [
            torch.full((1, *shape), constant, dtype=graph.dtype, device=graph.device)
            for shape, constant in zip(node.affine.input_shapes, inputs, strict=True)
        ]
        constants.append(float(node.affine.magnitude().linear(*reach).max()))
    total = torch.zeros_like(rows[:, 0])
    cotangents: list[Tensor | None] = [None] * len(graph.nodes)
    cotangents[-1] = rows
    for index in range(len(graph.nodes) - 1, -1, -1):
        node, cotangent = graph.nodes[index], cotangents[index]
        if cotangent is None:
            continue
        if node.affine is None:
            total = total + cotangent.abs().flatten(1).sum(1) * constants[index]
            continue
        for parent, new in zip(node.parents, node.affine.adjoint(cotangent), strict=True):
            old = cotangents[parent]
            cotangents[parent] = new if old is None else old + new
    return raise_upper_bound(total)
