"""What a tree of ``max(a, b) = b + relu(a - b)`` amounts to: the largest entry of every window.

The last node of such a tree carries this beside its own step, so that whoever has lines for a
maximum as a whole passes from it to the entries at once, and everybody else reads the tree. What
one knows carries over to the other: a neuron of the tree compares two blocks of a window's entries,
and a block that has lost holds no maximum.

Shapes: W windows of at most n entries each; B boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One level of the tree.

    At level k (from 0 on) the pair j compares the entries ``(2j+1) 2^k ... (2j+2) 2^k - 1`` of its
    window (a) with those ``2^k`` before them (b); its neuron is ``max of a - max of b``.

    Attributes:
        activation: Node of the level's ``relu(a - b)``.
        pairs: Position of every pair among that node's neurons, [W, pairs of a window]; -1 where
            the window has no such pair.
    """

    activation: int
    pairs: Tensor


@dataclass(frozen=True)
class Pooled:
    """That a node's value is the largest entry of every window.

    Attributes:
        of: The node that has the entries.
        windows: Their flat positions in its value, [W, n]; -1, at the end, for none.
        levels: The tree, from the entries on.
    """

    of: int
    windows: Tensor
    levels: tuple[Level, ...]

    @property
    def last(self) -> int:
        """The tree's last activation."""
        return self.levels[-1].activation

    def renumbered(self, place: Callable[[int], int]) -> Pooled:
        """The same where nodes have other indices, which ``place`` gives."""
        levels = tuple(replace(k, activation=place(k.activation)) for k in self.levels)
        return replace(self, of=place(self.of), levels=levels)

    def to(self, device: torch.device | str) -> Pooled:
        """The same with its positions on this device."""
        levels = tuple(replace(level, pairs=level.pairs.to(device)) for level in self.levels)
        return replace(self, windows=self.windows.to(device), levels=levels)


def ordered(windows: Tensor) -> Tensor:
    """Windows [W, n] with their entries first, in their order, and places without one (-1) last."""
    order = (windows < 0).to(torch.int8).argsort(dim=1, stable=True)
    return windows.gather(1, order)


def gathered(flat: Tensor, positions: Tensor, nothing: float = 0.0) -> Tensor:
    """Entries ``positions`` (any shape P, -1 for none) of the last dimension: [..., *P]."""
    padded = F.pad(flat, (0, 1), value=nothing)
    size = flat.shape[-1]
    found = padded.index_select(-1, torch.where(positions < 0, size, positions).flatten())
    return found.reshape(*flat.shape[:-1], *positions.shape)


def largest_of(windows: Tensor, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """The function from a value [B, ...] to the maximum of every window, [B, *shape]."""

    def function(value: Tensor) -> Tensor:
        entries = gathered(value.flatten(1), windows.to(value.device), -torch.inf)
        return entries.amax(2).reshape(len(value), *shape)

    return function
