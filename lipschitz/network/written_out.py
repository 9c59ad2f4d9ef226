"""Softmax and normalisation written out by hand, recognised when their last product is recorded.

``exp(z) / sum(exp(z))``, with or without the largest logit subtracted, is a softmax whatever its
steps; ``x * rsqrt(mean(x^2) + eps)`` is a value over its root mean square. The bounds of both are
far closer as what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from lipschitz.network.activations import Exponential, Power, Square
from lipschitz.network.affine import Combination
from lipschitz.network.affine.layout import Centre
from lipschitz.network.graph import Node


def softmax_of(nodes: Sequence[Node], first: int, second: int) -> tuple[int, int] | None:
    """The logits and the dimension that a product of two nodes is a softmax of, or None."""
    for numerator, rest in ((first, second), (second, first)):
        reciprocal = _unspread(nodes, rest)
        is_reciprocal = nodes[reciprocal].activation == Power(-1.0)
        if not is_reciprocal or not isinstance(nodes[numerator].activation, Exponential):
            continue
        total = nodes[nodes[reciprocal].parents[0]]
        dims = total.affine.summed if total.affine is not None else None
        if dims is None or len(dims) != 1 or not _is_same(nodes, numerator, total.parents[0]):
            continue
        return _without_shift(nodes, nodes[numerator].parents[0], dims[0]), dims[0]
    return None


def norm_of(nodes: Sequence[Node], first: int, second: int) -> tuple[int, int] | None:
    """The values and the reciprocal root of their mean square that are multiplied, or None."""
    for values, rest in ((first, second), (second, first)):
        factor = _unspread(nodes, rest)
        root = nodes[factor].activation
        if not isinstance(root, Power) or (root.exponent, root.factor) != (-0.5, 1.0):
            continue
        mean = nodes[nodes[factor].parents[0]]
        last = len(nodes[values].shape) - 1
        if not root.positive or mean.affine is None or mean.affine.averaged != (last,):
            continue
        square = nodes[mean.parents[0]]
        if isinstance(square.activation, Square) and _is_same(nodes, values, square.parents[0]):
            return square.parents[0], factor
    return None


def _is_same(nodes: Sequence[Node], first: int, second: int) -> bool:
    """Whether two nodes are one value, perhaps computed twice."""
    one, other = nodes[first], nodes[second]
    if first == second or one.parents != other.parents:
        return first == second
    if isinstance(one.affine, Centre) and isinstance(other.affine, Centre):
        return one.affine.dims == other.affine.dims
    return one.activation is not None and one.activation == other.activation


def _unspread(nodes: Sequence[Node], index: int) -> int:
    """The node that one repeats along dimensions of size 1, or itself."""
    node = nodes[index]
    is_spread = node.affine is not None and node.affine.is_spread
    return node.parents[0] if is_spread else index


def _without_shift(nodes: Sequence[Node], index: int, dim: int) -> int:
    """The logits before the same number, say their largest, is subtracted from all of them."""
    node = nodes[index]
    if not isinstance(node.affine, Combination) or node.affine.signs != (1, -1):
        return index
    shift = nodes[node.parents[1]]
    is_spread = shift.affine is not None and shift.affine.is_spread
    same = is_spread and shift.affine.input_shapes[0][dim] == 1
    return node.parents[0] if same else index
