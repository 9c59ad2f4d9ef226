"""Rows of coefficients that are zero outside a spatial window.

A row that starts at one pixel, or at one neuron of a convolution, touches a small window of every
convolutional layer on its way. :class:`Window` keeps only that part. A chunk of rows shares one
window, so every operation stays one dense torch call on a smaller tensor; an operation without a
rule here gets the whole tensor back. This changes no number except by the order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.affine import AffineMap, Combination, Convolution, Linear, Reshape, Scale


@dataclass(frozen=True)
class Window:
    """Rows [B, K, *shape] of a node, cut to a box of their spatial positions.

    Attributes:
        values: [B, K, channels, *sizes], or [B, K, N] without spatial dimensions.
        shape: Shape of the node.
        layout: Shape in which the window is cut: that of the node, or of the node it flattens.
        starts: First position of the window in each spatial dimension (``layout[1:]``).
    """

    values: Tensor
    shape: torch.Size
    layout: torch.Size
    starts: tuple[int, ...]

    @staticmethod
    def whole(values: Tensor) -> Window:
        """All of the rows [B, K, *shape]."""
        shape = values.shape[2:]
        return Window(values, shape, shape, (0,) * (len(shape) - 1))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Extent of the window in each spatial dimension."""
        return tuple(self.values.shape[3:])

    @property
    def is_whole(self) -> bool:
        """Whether nothing has been cut off."""
        return self.sizes == tuple(self.layout[1:])

    def full(self) -> Tensor:
        """The rows in the node's shape, [B, K, *shape]."""
        values = self.values
        if not self.is_whole:
            values = F.pad(values, _padding(self.starts, self.sizes, self.layout[1:]))
        return values.reshape(*values.shape[:2], *self.shape)

    def flat(self) -> Tensor:
        """The rows inside the window, [B, K, n]."""
        return self.values.reshape(*self.values.shape[:2], -1)  # of a number too

    def cut(self, tensor: Tensor) -> Tensor:
        """The part of a tensor [..., *shape] that lies in the window, [..., *window]."""
        lead = tensor.shape[: tensor.dim() - len(self.shape)]
        tensor = tensor.reshape((*lead, *self.layout))
        for dim, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            tensor = tensor.narrow(dim - len(self.starts), start, size)
        return tensor

    def cut_flat(self, tensor: Tensor) -> Tensor:
        """The same for tensors [B, N] with the node's shape flattened: [B, n]."""
        if self.is_whole:  # the layout flattens to the same order
            return tensor
        return self.cut(tensor.reshape(len(tensor), *self.shape)).flatten(1)

    def having(self, values: Tensor) -> Window:
        """The same window with other values in it."""
        return replace(self, values=values)

    def within(self, starts: tuple[int, ...], sizes: tuple[int, ...]) -> Window:
        """The same rows in a window around this one."""
        if (starts, sizes) == (self.starts, self.sizes):
            return self
        offsets = tuple(a - b for a, b in zip(self.starts, starts, strict=True))
        values = F.pad(self.values, _padding(offsets, self.sizes, sizes))
        return replace(self, values=values, starts=starts)

    def __add__(self, other: Window) -> Window:
        if self.layout != other.layout:
            return Window.whole(self.full() + other.full())
        both = hull((self.starts, self.sizes), (other.starts, other.sizes))
        mine, others = self.within(*both), other.within(*both)
        return mine.having(mine.values + others.values)


# First positions and sizes of a window.
Place = tuple[tuple[int, ...], tuple[int, ...]]


def hull(first: Place, second: Place) -> Place:
    """The smallest window around two."""
    starts = tuple(map(min, first[0], second[0]))
    ends = (max(a + n, b + m) for a, n, b, m in zip(*first, *second, strict=True))
    return starts, tuple(e - s for s, e in zip(starts, ends, strict=True))


def crop(rows: Tensor) -> Window:
    """The smallest window that holds all non-zero entries of rows [B, K, *shape]."""
    window = Window.whole(rows)
    for dim in range(3, rows.dim()):
        others = [d for d in range(window.values.dim()) if d != dim]
        hit = (window.values != 0).sum(others).nonzero()[:, 0]
        start, end = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, 1)
        starts = list(window.starts)
        starts[dim - 3] = start
        window = replace(
            window, values=window.values.narrow(dim, start, end - start), starts=tuple(starts)
        )
    return window


def as_window(rows: Tensor | Window) -> Window:
    """Rows [B, K, *shape] in the smallest window that holds them, unless they are in one."""
    return rows if isinstance(rows, Window) else crop(rows)


def unit_window(indices: Tensor, place: Place, shape: torch.Size, like: Tensor) -> Window:
    """Rows ``+e_k`` then ``-e_k``, as :func:`lipschitz.bounds.native.plan.unit_rows` has them.

    Args:
        indices: Flat coordinates k, [K].
        place: A window that holds them all.
        shape: Shape of the node.
        like: Has the dtype and device.
    """
    starts, sizes = place
    here, inside, stride = indices, torch.zeros_like(indices), 1
    for size, start, extent in zip(
        reversed(shape),
        (*reversed(starts), 0)[: len(shape)],
        (*reversed(sizes), *shape[:1]),
        strict=True,
    ):
        inside = inside + (here % size - start) * stride
        here, stride = here // size, stride * extent
    count = len(indices)
    rows = torch.zeros(2, count, stride, dtype=like.dtype, device=like.device)
    rows[0].scatter_(1, inside.unsqueeze(1), 1)
    rows[1].scatter_(1, inside.unsqueeze(1), -1)
    return Window(rows.reshape(1, 2 * count, *shape[:1], *sizes), shape, shape, starts)


def by_tiles(indices: Tensor, shape: torch.Size, tile: int = 4) -> Tensor:
    """Reorder flat coordinates so that neighbours in space are neighbours in the list."""
    if len(shape) < 2:
        return indices
    space = math.prod(shape[1:])
    place, key, stride = indices % space, torch.zeros_like(indices), 1
    for size in reversed(shape[1:]):
        key = key + (place % size) // tile * stride
        stride *= -(-size // tile)
        place = place // size
    return indices[key.argsort(stable=True)]


def _padding(starts: tuple[int, ...], sizes: tuple[int, ...], whole: torch.Size) -> list[int]:
    """Arguments of ``F.pad`` that put a window back: last dimension first, before and after."""
    padding: list[int] = []
    for start, size, extent in reversed(list(zip(starts, sizes, whole, strict=True))):
        padding += [start, extent - start - size]
    return padding


def geometry(affine: Convolution) -> list[tuple[int, int, int]]:
    """Stride, padding and reach (extent of the kernel) of a convolution in each dimension."""
    kernel = affine.weight.shape[2:]
    return [
        (s, p, d * (k - 1) + 1)
        for s, p, d, k in zip(affine.stride, affine.padding, affine.dilation, kernel, strict=True)
    ]


_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _apply(operation: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    output = operation(rows.flatten(0, 1))
    return output.reshape(*rows.shape[:2], *output.shape[1:])


def region(values: Tensor, starts: list[int], first: list[int], last: list[int]) -> Tensor:
    """Positions ``first <= p < last`` of rows [M, C, ...] that begin at ``starts``, else zero."""
    sizes = values.shape[2:]
    pads: list[int] = []
    for start, size, low, high in zip(starts, sizes, first, last, strict=True):
        pads = [max(start - low, 0), max(high - start - size, 0), *pads]
    values = F.pad(values, pads) if any(pads) else values
    for dim, (start, low, high) in enumerate(zip(starts, first, last, strict=True), start=2):
        values = values.narrow(dim, max(low - start, 0), high - low)
    return values


def _convolve(affine: Convolution, window: Window) -> Window:
    """Linear part of a convolution on a window: the outputs that the window reaches."""
    starts, sizes = reached(affine, (window.starts, window.sizes))
    first, last = _region_read(affine, starts, sizes)
    values = _apply(lambda rows: convolve_region(affine, rows, window, first, last), window.values)
    return Window(values, affine.output_shape, affine.output_shape, starts)


def reached(affine: Convolution, place: Place) -> Place:
    """The outputs of a convolution that a window of its inputs reaches."""
    starts, sizes = [], []
    for (stride, padding, reach), start, size, extent in zip(
        geometry(affine), *place, affine.output_shape[1:], strict=True
    ):
        low = min(max(0, -(-(start + padding - reach + 1) // stride)), extent - 1)
        high = min(max(low, (start + size - 1 + padding) // stride), extent - 1)
        starts.append(low)
        sizes.append(high - low + 1)
    return tuple(starts), tuple(sizes)


def _region_read(
    affine: Convolution, starts: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """First position, and the one behind the last, that outputs in a window read; with padding."""
    first, last = [], []
    for (stride, padding, reach), start, size in zip(geometry(affine), starts, sizes, strict=True):
        first.append(start * stride - padding)
        last.append((start + size - 1) * stride - padding + reach)
    return first, last


def read(affine: Convolution, place: Place) -> Place:
    """The inputs of a convolution that a window of its outputs reads."""
    starts, sizes = [], []
    for low, high, extent in zip(
        *_region_read(affine, *place), affine.input_shapes[0][1:], strict=True
    ):
        start = min(max(low, 0), extent - 1)
        starts.append(start)
        # One position of zeros if all is padding.
        sizes.append(max(min(high, extent), start + 1) - start)
    return tuple(starts), tuple(sizes)


def convolve_region(
    affine: Convolution, rows: Tensor, window: Window, first: list[int], last: list[int]
) -> Tensor:
    """Convolution, without bias, of positions ``first`` to ``last`` of rows in a window."""
    return _CONVOLVE[len(first)](
        region(rows, list(window.starts), first, last),
        affine.weight,
        None,
        affine.stride,
        0,
        affine.dilation,
        affine.groups,
    )


def _convolve_back(affine: Convolution, window: Window) -> Window:
    """Adjoint of a convolution on a window: the inputs that the window reads."""
    begin, _ = _region_read(affine, window.starts, window.sizes)
    starts, sizes = read(affine, (window.starts, window.sizes))
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    values = _apply(
        lambda rows: region(
            _TRANSPOSE[len(starts)](
                rows, affine.weight, None, affine.stride, 0, 0, affine.groups, affine.dilation
            ),
            begin,
            list(starts),
            ends,
        ),
        window.values,
    )
    shape = affine.input_shapes[0]
    return Window(values, shape, shape, starts)


def linear_from(affine: AffineMap, slot: int, window: Window) -> Window:
    """Linear part of a map applied to input ``slot`` alone."""
    if isinstance(affine, Combination):
        return window if affine.signs[slot] > 0 else window.having(-window.values)
    if not window.is_whole:
        if isinstance(affine, Convolution) and window.layout == window.shape:
            return _convolve(affine, window)
        if isinstance(affine, Reshape):
            return _relabelled(window, affine.output_shape)
        if isinstance(affine, Scale):
            return window.having(window.values * _factor(affine, window))
        if isinstance(affine, Linear) and len(window.shape) == 1:
            weight = window.cut_flat(affine.weight)
            return Window.whole(window.flat() @ weight.T)
    return Window.whole(_apply(lambda rows: affine.linear_from(slot, rows), window.full()))


def adjoint(affine: AffineMap, window: Window) -> tuple[Window, ...]:
    """Adjoint of a map's linear part, one window per input."""
    if isinstance(affine, Combination):
        return tuple(window if s > 0 else window.having(-window.values) for s in affine.signs)
    if not window.is_whole:
        if isinstance(affine, Convolution) and window.layout == window.shape:
            return (_convolve_back(affine, window),)
        if isinstance(affine, Reshape):
            return (_relabelled(window, affine.input_shapes[0]),)
        if isinstance(affine, Scale):
            return (window.having(window.values * _factor(affine, window)),)
    rows = window.full()
    found = affine.adjoint(rows.flatten(0, 1))
    return tuple(Window.whole(f.reshape(*rows.shape[:2], *f.shape[1:])) for f in found)


def _factor(affine: Scale, window: Window) -> Tensor:
    return window.cut(affine.factor.expand(1, *affine.output_shape).reshape(window.shape))


def _relabelled(window: Window, shape: torch.Size) -> Window:
    """A reshape: only the node's shape changes, if it is a flattening or its reverse."""
    if len(shape) == 1 or shape == window.layout:
        return replace(window, shape=shape)
    return Window.whole(window.full().reshape(*window.values.shape[:2], *shape))
