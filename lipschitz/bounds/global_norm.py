"""The global bound: the product of layer norms.

Method card
    Needs: activations whose slope is bounded, and nothing but the weights; the box does not matter.
    Returns: an upper bound of the Lipschitz constant everywhere, in Linf, L1 or L2.
    Idea: the operator norm of every affine map, multiplied along the network; branches that are
        added add their constants. For L2 the largest singular value; of a map too large for that
        the square root of its Linf norm times its L1 norm.
    Sound: yes. Exact: no, usually loose by orders of magnitude.
    Reference: Szegedy et al. 2014 (section 4.3); Shi et al. 2022 compare with it as "Global".
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lipschitz.errors import InputError
from lipschitz.network.affine import AffineMap, Combination, Reshape, Scale
from lipschitz.network.graph import Graph
from lipschitz.norms import Measure, spectral_norm_bound
from lipschitz.rounding import raise_upper_bound

# Largest dense matrix of a map, in numbers, whose largest singular value is computed (32 MB in
# float64). A choice: larger maps get the looser square root of L1 norm times Linf norm.
_LARGEST_MATRIX = 2**22
# Maps with one term per output coordinate: for these that square root is the L2 norm itself.
_COORDINATEWISE = (Reshape, Scale, Combination)

# What :func:`layer_norms` has found, by graph and norm: the box does not change it.
_KNOWN: WeakKeyDictionary[Graph, dict[str, list[list[float]]]] = WeakKeyDictionary()


def _ones(shape: torch.Size, graph: Graph) -> Tensor:
    return torch.ones(1, *shape, dtype=graph.dtype, device=graph.device)


def _slot_norms(affine: AffineMap, graph: Graph, norm: str) -> list[float]:
    """Operator norm of an affine map in each of its inputs, in L1 or L2."""
    magnitude = affine.magnitude()
    columns = [float(c.max()) for c in magnitude.adjoint(_ones(affine.output_shape, graph))]
    if norm == "1":
        return columns
    found = []
    for slot, (shape, column) in enumerate(zip(affine.input_shapes, columns, strict=True)):
        row = float(magnitude.linear_from(slot, _ones(shape, graph)).max())
        best, inputs = (row * column) ** 0.5, shape.numel()
        small = inputs * affine.output_shape.numel() <= _LARGEST_MATRIX
        if small and not isinstance(affine, _COORDINATEWISE):
            basis = torch.eye(inputs, dtype=graph.dtype, device=graph.device)
            matrix = affine.linear_from(slot, basis.reshape(inputs, *shape)).reshape(inputs, -1)
            best = min(best, float(spectral_norm_bound(matrix)))
        found.append(best)
    return found


@torch.no_grad()
def layer_norms(graph: Graph, norm: str) -> list[list[float]]:
    """Operator norms, in L1 or L2, of every node's affine map in each of its inputs.

    Activations have an empty list.
    """
    known = _KNOWN.setdefault(graph, {})
    if norm not in known:
        known[norm] = [
            [] if node.affine is None else _slot_norms(node.affine, graph, norm)
            for node in graph.nodes
        ]
    return known[norm]


def _steepest(graph: Graph) -> dict[int, float]:
    """Largest magnitude of the slope of every activation, anywhere."""
    nodes = graph.nodes
    return {i: max(map(abs, nodes[i].activation.slope_range)) for i in graph.activation_nodes}


def check_bounded_slopes(graph: Graph) -> None:
    """Refuse a network that has no global constant.

    Raises:
        InputError: An activation whose slope has no bound, by name.
    """
    for index, steepest in _steepest(graph).items():
        if not math.isfinite(steepest):
            raise InputError(
                f"global: the slope of {graph.nodes[index].activation} (at "
                f"{graph.nodes[index].name!r}) has no bound, so no global constant exists: use a "
                "method that looks at the box, such as crown or ibp"
            )


def _constants(graph: Graph, norm: str) -> list[float]:
    """Lipschitz constant of every node's value as a function of the input, everywhere."""
    slots = None if norm == "inf" else layer_norms(graph, norm)
    constants = [1.0]
    for index, node in enumerate(graph.nodes[1:], start=1):
        inputs = [constants[p] for p in node.parents]
        if node.affine is None:
            constants.append(inputs[0] * max(abs(s) for s in node.activation.slope_range))
        elif slots is None:
            reach = [
                _ones(shape, graph) * constant
                for shape, constant in zip(node.affine.input_shapes, inputs, strict=True)
            ]
            constants.append(float(node.affine.magnitude().linear(*reach).max()))
        else:
            constants.append(sum(s * c for s, c in zip(slots[index], inputs, strict=True)))
    return constants


@torch.no_grad()
def global_norm_bound(graph: Graph, rows: Tensor, measure: Measure | None = None) -> Tensor:
    """Upper bound of the Jacobian's norm over all x.

    The true operator norm of each map is used, for Linf ``max over outputs of the sum of
    |coefficients|``, found by applying the map's magnitude to ones; so stride and padding are
    accounted for. The maps after the last activation are joined with the rows, as a last layer.

    Args:
        graph: The network.
        rows: Output directions [R, C].
        measure: The norm, that of Linf if None. Inputs that do not count are counted all the same
            wherever the input has passed a layer.

    Returns:
        [R], or [1] of all rows together; infinity if the slope of an activation has no bound.
    """
    if any(not math.isfinite(s) for s in _steepest(graph).values()):
        return torch.full_like(rows[:1, 0] if measure and measure.joint else rows[:, 0], math.inf)
    measure = measure or Measure()
    constants = _constants(graph, measure.norm)
    inner = Measure(measure.norm, measure.joint)
    total = torch.zeros_like(rows[:, 0] if not measure.joint else rows[:1, 0])
    cotangents: list[Tensor | None] = [None] * len(graph.nodes)
    cotangents[-1] = rows
    for index in range(len(graph.nodes) - 1, -1, -1):
        node, cotangent = graph.nodes[index], cotangents[index]
        if cotangent is None:
            continue
        if node.affine is None:
            here = measure if index == 0 else inner
            total = total + here.upper_bound(cotangent, cotangent) * constants[index]
            continue
        for parent, new in zip(node.parents, node.affine.adjoint(cotangent), strict=True):
            old = cotangents[parent]
            cotangents[parent] = new if old is None else old + new
    return raise_upper_bound(total)
