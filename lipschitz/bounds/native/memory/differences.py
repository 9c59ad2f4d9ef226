"""Rows ``e_a - e_b`` of pairs of one node's entries, in chunks of neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.memory.tiles import Chunk, Tiles
from lipschitz.bounds.native.memory.windows import Place, Window, hull, unit_window


@dataclass(frozen=True)
class Differences:
    """Pairs of entries, as :class:`~.tiles.Tiles` has single ones.

    Attributes:
        tiles: Of each pair's first entry a.
        others: Flat coordinates of the second one b, in the order of the tiles.
    """

    tiles: Tiles
    others: Tensor

    @staticmethod
    def of(tiles: Tiles, others: Tensor) -> Differences:
        """The pairs of what the tiles were asked for, in that order, and others [K]."""
        return Differences(tiles, others[tiles.order])

    def chunks(self) -> Iterator[Chunk]:
        """All pairs of all boxes, cut into blocks that fit."""
        return self.tiles.chunks()

    def restored(self, bounds: Tensor) -> Tensor:
        """Bounds [2, B, K] in the order that was asked for."""
        return self.tiles.restored(bounds)

    def unit_rows(self, chunk: Chunk, like: Tensor) -> Window:
        """Rows ``e_a - e_b`` then ``e_b - e_a`` of a chunk."""
        shape, others = self.tiles.shape, self.others[chunk.rows]
        place = hull(chunk.place, _place(others, shape))
        first, second = (unit_window(i, place, shape, like) for i in (chunk.indices, others))
        return first.having(first.values - second.values)


def _place(indices: Tensor, shape: torch.Size) -> Place:
    starts, sizes, here = [], [], indices
    for extent in reversed(shape[1:]):
        low, high = (int(end) for end in (here % extent).aminmax())
        starts.insert(0, low)
        sizes.insert(0, high - low + 1)
        here = here // extent
    return tuple(starts), tuple(sizes)
