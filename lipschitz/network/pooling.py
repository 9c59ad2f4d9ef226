"""Max pooling as a tree of ``max(a, b) = b + relu(a - b)``.

The identity is exact, so every engine, search and baseline that knows affine maps and ReLU knows
pooling. A neuron of the tree compares two blocks of entries, which is what a search splits. The
tree's last node says besides that it is the maximum of its windows
(:mod:`lipschitz.network.pooled`): the native engine passes from there to the entries by lines for
the maximum as a whole, which are tighter and cheaper than those of the tree.

Padding never wins a maximum, so a window's padded entries are simply left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipschitz.network.affine import AffineMap
from lipschitz.network.pooled import ordered

# Most entries of a window that are compared with each other; larger windows become maxima of
# maxima. A choice: lines for a window hold the square of its entries.
LARGEST_WINDOW = 16


class Selection(AffineMap):
    """Sums of at most two entries of the input with a sign each.

    Args:
        terms: Pairs of a sign, 1 or -1, and the flat positions in the input, one per entry of the
            output; -1 for nothing.
        input_shape, output_shape: Without the batch dimension.
    """

    def __init__(
        self,
        terms: Sequence[tuple[int, Tensor]],
        input_shape: torch.Size,
        output_shape: torch.Size | tuple[int, ...],
    ) -> None:
        super().__init__([input_shape], output_shape)
        size = self.input_shapes[0].numel()
        self.terms = tuple((sign, torch.where(at < 0, size, at)) for sign, at in terms)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Selection:
        """A copy with its positions on this device."""
        return self._having([(sign, at.to(device)) for sign, at in self.terms])

    def _having(self, terms: Sequence[tuple[int, Tensor]]) -> Selection:
        changed = copy.copy(self)
        changed.terms = tuple(terms)
        return changed

    def linear(self, *inputs: Tensor) -> Tensor:
        """The entries of one input [B, *input_shape]."""
        padded = F.pad(inputs[0].flatten(1), (0, 1))
        chosen = sum(sign * padded.index_select(1, at) for sign, at in self.terms)
        return chosen.reshape(len(padded), *self.output_shape)

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        """Adds every entry's cotangent up where it came from."""
        flat, size = cotangent.flatten(1), self.input_shapes[0].numel()
        total = flat.new_zeros(flat.shape[0], size + 1)
        for sign, at in self.terms:
            total = total.index_add(1, at, flat, alpha=sign)
        return (total[:, :size].reshape(len(flat), *self.input_shapes[0]),)

    def magnitude(self) -> Selection:
        """The same with every sign positive."""
        return self._having([(1, at) for _, at in self.terms])

    def of_sign(self, sign: int) -> Selection:
        """Its terms of one sign, as a map of coefficients 0 and 1."""
        size, count = self.input_shapes[0].numel(), self.output_shape.numel()
        kept = [(1, at) for s, at in self.terms if s == sign]
        nothing = torch.full((count,), size, device=self.terms[0][1].device)
        return self._having(kept or [(1, nothing)])


@dataclass(frozen=True)
class Comparison:
    """One level of the tree: ``chosen(x) + placed(relu(difference(x)))``.

    Attributes:
        difference: ``a - b`` of every pair.
        chosen: ``b`` of every pair, and the entry of every window that has no pair left.
        placed: Where the pairs' excess ``relu(a - b)`` belongs.
        pairs: Position of every pair among the differences, [windows, pairs]; -1 for none.
        entries: What every number of the result is the maximum of: flat positions in the first
            level's input, [numbers, entries]; -1 for none.
    """

    difference: Selection
    chosen: Selection
    placed: Selection
    pairs: Tensor
    entries: Tensor


def comparisons(
    windows: Tensor, input_shape: torch.Size, output_shape: torch.Size
) -> list[Comparison]:
    """The tree of levels that ends in the maximum of every window.

    Args:
        windows: Flat positions in the input, [number of windows, entries]; -1 for padding.
        input_shape, output_shape: Without the batch dimension; the output has a place per window.

    Returns:
        The levels, from the entries on; at least one.
    """
    levels: list[Comparison] = []
    # The entries that a window has come first, in their order; places without one (-1) come last.
    windows = ordered(windows)
    current, shape = windows, torch.Size(input_shape)
    while current.shape[1] > 1 or not levels:
        if current.shape[1] % 2:
            current = torch.cat([current, torch.full_like(current[:, :1], -1)], dim=1)
        first, second = current[:, ::2], current[:, 1::2]
        present, paired = first >= 0, second >= 0
        # A pair always has its first entry; where it has no second one, the first is the maximum.
        pairs = torch.cumsum(paired.flatten(), 0).reshape(paired.shape) - 1
        last = current.shape[1] == 2
        after = torch.Size(output_shape) if last else torch.Size((int(present.sum()),))
        middle = torch.Size((int(paired.sum()),))
        pairs = torch.where(paired, pairs, -1)
        excess = pairs[present]
        width = 2 ** (len(levels) + 1)
        blocks = F.pad(windows, (0, first.shape[1] * width - windows.shape[1]), value=-1)
        levels.append(
            Comparison(
                Selection([(1, second[paired]), (-1, first[paired])], shape, middle),
                Selection([(1, first[present])], shape, after),
                Selection([(1, excess)], middle, after),
                pairs,
                blocks.unflatten(1, (-1, width))[present],
            )
        )
        position = torch.cumsum(present.flatten(), 0).reshape(present.shape) - 1
        current, shape = torch.where(present, position, -1), after
    return levels


def _positions(starts: list[range], size: int) -> list[list[int]]:
    """The positions of every window inside ``[0, size)``, -1 for those outside."""
    longest = max(len(window) for window in starts)
    return [
        [p if 0 <= p < size else -1 for p in window] + [-1] * (longest - len(window))
        for window in starts
    ]


def _windows(axes: list[list[list[int]]], input_shape: torch.Size) -> Tensor:
    """Flat positions of all windows, channels first, [windows, entries]."""
    spatial = input_shape[1:]
    flat = torch.zeros(1, 1, dtype=torch.long)
    inside = torch.ones(1, 1, dtype=torch.bool)
    for axis, size in zip(axes, spatial, strict=True):
        own = torch.tensor(axis)  # [outputs, entries]
        flat = (flat[:, None, :, None] * size + own.clamp(min=0)[None, :, None, :]).flatten(0, 1)
        inside = (inside[:, None, :, None] & (own >= 0)[None, :, None, :]).flatten(0, 1)
        flat, inside = flat.flatten(1), inside.flatten(1)
    channel = torch.arange(input_shape[0])[:, None, None] * spatial.numel()
    return torch.where(inside, flat + channel, -1).flatten(0, 1)


def _tuple(value: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def pooling_windows(
    input_shape: torch.Size,
    output_shape: torch.Size,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Windows of ``F.max_pool1d/2d/3d``, [windows, entries], with its arguments.

    Args:
        input_shape, output_shape: [channels, ...]; the latter settles ``ceil_mode``.
        kernel_size, stride, padding, dilation, ceil_mode, return_indices: As torch has them.

    Raises:
        NotImplementedError: Indices are asked for.
    """
    if return_indices:
        raise NotImplementedError("it returns indices")
    count = len(input_shape) - 1
    axes = []
    for size, outputs, kernel, step, pad, gap in zip(
        input_shape[1:],
        output_shape[1:],
        _tuple(kernel_size, count),
        _tuple(stride or kernel_size, count),
        _tuple(padding, count),
        _tuple(dilation, count),
        strict=True,
    ):
        first = [o * step - pad for o in range(outputs)]
        axes.append(_positions([range(f, f + kernel * gap, gap) for f in first], size))
    return _windows(axes, input_shape)


def adaptive_windows(
    input_shape: torch.Size,
    output_shape: torch.Size,
    output_size: object = None,
    return_indices: bool = False,
) -> Tensor:
    """Windows of ``F.adaptive_max_pool1d/2d/3d``, [windows, entries].

    Args:
        input_shape, output_shape: [channels, ...]; the latter settles ``output_size``.
        output_size, return_indices: As torch has them.

    Raises:
        NotImplementedError: Indices are asked for.
    """
    if return_indices:
        raise NotImplementedError("it returns indices")
    axes = [
        _positions([range(o * n // m, -(-(o + 1) * n // m)) for o in range(m)], n)
        for n, m in zip(input_shape[1:], output_shape[1:], strict=True)
    ]
    return _windows(axes, input_shape)


_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def _of_module(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in _OPTIONS}


# Module -> the keyword arguments of its windows.
POOLING_MODULES: dict[type[nn.Module], tuple[Callable[..., Tensor], Callable[[Any], dict]]] = {
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), (pooling_windows, _of_module)),
    **dict.fromkeys(
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        (adaptive_windows, lambda module: {"return_indices": module.return_indices}),
    ),
}

# Called as function(input_shape, output_shape, ...): the remaining arguments of torch's.
POOLING_FUNCTIONS: dict[object, Callable[..., Tensor]] = {
    **dict.fromkeys(
        (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d),
        pooling_windows,
    ),
    **dict.fromkeys(
        (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), adaptive_windows
    ),
}
