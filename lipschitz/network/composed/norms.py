"""Normalisation by statistics of the input: its mean and variance written out.

``(x - mean) / sqrt(var + eps)``: the centred values are affine, their mean square is never below 0,
so the reciprocal root is bounded by ``1 / sqrt(eps)`` whatever the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipschitz.network.activations import Absolute, Power
from lipschitz.network.activations.piecewise import Hardtanh
from lipschitz.network.affine import Branch
from lipschitz.network.composed.writer import Nodes, Writer
from lipschitz.network.graph import Closed
from lipschitz.network.ranges import Within


def normalised(
    write: Writer, x: Branch, dims: Sequence[int], eps: float, *, centred: bool = True
) -> Branch:
    """Values over the root of their mean square, which ``eps`` is added to.

    Args:
        write: Adds the steps.
        x: The values.
        dims: Dimensions over which is averaged, without the batch.
        eps: Above 0.
        centred: Subtract the mean first.

    Raises:
        NotImplementedError: eps is not above 0.
    """
    if not eps > 0:
        raise NotImplementedError(f"its eps is {eps}: it must be above 0")
    x = write.centre(x, dims) if centred else x
    mean_square = write.sum(write.square(x), dims, mean=True)
    factor = write.function(mean_square, Power(-0.5, shift=eps, positive=True))
    y = write.product(x, factor)
    if [dim % len(x.shape) for dim in dims] == [len(x.shape) - 1]:
        mark_normalised(write.nodes, y, x.index, factor.index)
    return y


def mark_normalised(nodes: Nodes, y: Branch, values: int, factor: int) -> None:
    """Note of a product that it is values over the root of their mean square.

    Of n values over that, none is above the root of n.
    """
    most = math.sqrt(y.shape[-1])
    nodes.mark(y, closed=Closed("norm", (values, factor)), range=Within(-most, most))


def affine_after(write: Writer, y: Branch, weight: Tensor | None, bias: Tensor | None) -> Branch:
    """Times a weight, plus a bias; either may be missing."""
    if weight is None and bias is None:
        return y
    return write.scale(y, torch.ones(()) if weight is None else weight, bias)


def layer_norm(
    write: Writer,
    x: Branch,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    centred: bool = True,
) -> Branch:
    """``F.layer_norm``, and without centring ``F.rms_norm``, over the last dimensions."""
    dims = range(-len(tuple(shape)), 0)
    return affine_after(write, normalised(write, x, dims, eps, centred=centred), weight, bias)


def group_norm(
    write: Writer,
    x: Branch,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Branch:
    """``F.group_norm``: channels first, in groups."""
    grouped = write.reshape(x, [groups, x.shape.numel() // groups])
    y = write.reshape(normalised(write, grouped, [-1], eps), x.shape)
    per_channel = (-1, *[1] * (len(x.shape) - 1))
    weight, bias = (p if p is None else p.reshape(per_channel) for p in (weight, bias))
    return affine_after(write, y, weight, bias)


def instance_norm(
    write: Writer, x: Branch, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Branch:
    """``F.instance_norm`` with the statistics of its input: every channel by itself."""
    if len(x.shape) < 2:
        raise NotImplementedError("it needs a batch, channels and positions")
    return group_norm(write, x, x.shape[0], weight, bias, eps)


def variance(
    write: Writer, x: Branch, dims: Sequence[int], correction: float, keep: bool
) -> Branch:
    """``torch.var``."""
    count = math.prod(x.shape[dim] for dim in dims)
    if not count > correction:
        raise NotImplementedError(f"its {count} entries are no more than its correction")
    squares = write.square(write.centre(x, dims))
    if correction == 0:
        return write.sum(squares, dims, keep=keep, mean=True)
    return write.scale(write.sum(squares, dims, keep=keep), 1 / (count - correction))


def vector_norm(write: Writer, x: Branch, dims: Sequence[int], order: float, keep: bool) -> Branch:
    """The norm of vectors of order 1 or larger.

    Raises:
        NotImplementedError: An order below 1.
    """
    if order == 1:
        return write.sum(write.function(x, Absolute()), dims, keep=keep)
    if order == 2:
        total = write.sum(write.square(x), dims, keep=keep)
        return write.function(total, Power(0.5, positive=True))
    if order == math.inf:
        return write.extreme(write.function(x, Absolute()), dims, keep=keep)
    if not order > 1:
        raise NotImplementedError(f"a norm of order {order}: only those from 1 on")
    powers = write.function(write.function(x, Absolute()), Power(order, positive=True))
    total = write.sum(powers, dims, keep=keep)
    return write.function(total, Power(1 / order, positive=True))


def scaled_to_norm(write: Writer, x: Branch, dim: int, order: float, eps: float) -> Branch:
    """``F.normalize``: values over their norm, or over ``eps`` if that is more."""
    length = vector_norm(write, x, [dim], order, keep=True)
    return write.quotient(x, write.function(length, Hardtanh(eps, math.inf)))
