"""Rows of one node in chunks: neighbours in space together, as many as fit.

The rows of a chunk share a window at every node that they pass, so rows far from each other would
carry zeros along, while a chunk of few rows wastes the time that its calls take. The tile, a square
of positions whose rows go together, is the one for which all rows are expected to take least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.memory.budget import blocks
from lipschitz.bounds.native.memory.effort import Effort, Estimate, Extent
from lipschitz.bounds.native.memory.windows import Place, Window, unit_window
from lipschitz.bounds.native.plan import Plan


@dataclass(frozen=True)
class Chunk:
    """Some rows of some boxes.

    Attributes:
        boxes: Which boxes.
        rows: Which of the rows in the order of :class:`Tiles`.
        indices: Flat coordinates of these rows, [K].
        place: A window that holds them all.
    """

    boxes: slice
    rows: slice
    indices: Tensor
    place: Place


@dataclass(frozen=True)
class Tiles:
    """All rows of a node, in an order in which chunks are neighbours.

    Attributes:
        order: The rows' position among those asked for, [K].
        indices: Their flat coordinates in that order, [K].
        ends: Where each tile ends, and the next one begins.
        effort: Of one pass with the rows of a tile.
        shape: Shape of the node.
        batch: Boxes.
        at_once: Rows of both signs, counted over boxes, that fit in memory.
    """

    order: Tensor
    indices: Tensor
    ends: tuple[int, ...]
    effort: Effort
    shape: torch.Size
    batch: int
    at_once: int

    @staticmethod
    def of(
        plan: Plan,
        node: int,
        indices: Tensor,
        batch: int,
        numbers: float,
        estimate: Estimate,
        horizon: int | None = None,
    ) -> Tiles:
        """The tiles that are expected to take least time.

        Args:
            plan: The graph.
            node: Where the rows start.
            indices: Flat coordinates, [K].
            batch: Boxes, each with rows of both signs.
            numbers: How many may be in a pass's largest tensor.
            estimate: The effort of a pass from there.
            horizon: Where the pass ends, see :mod:`.depth`.
        """
        shape, count = plan.graph.nodes[node].shape, len(indices)
        space = tuple(shape[1:])
        sizes = [1]
        while space and sizes[-1] < max(space):
            sizes.append(2 * sizes[-1])
        best: tuple[float, Tensor, Effort, int] | None = None
        for size in sizes:
            tile = tuple(min(size, s) for s in space)
            middle = tuple((s - t) // 2 for s, t in zip(space, tile, strict=True))
            effort = estimate(plan, node, Extent.at(shape, (middle, tile)), horizon)
            keys = _tile_of(indices, space, size)
            held = torch.unique(keys, return_counts=True)[1]
            at_once = max(1, int(numbers // (2 * effort.peak)))
            passes = int((-(-held * batch // at_once)).sum())
            passed = effort.per_pass + min(batch, at_once) * effort.per_box
            time = passes * passed + 2 * batch * count * effort.per_row
            if best is None or time < best[0]:
                best = (time, keys, effort, at_once)
        _, keys, effort, at_once = best
        order = keys.argsort(stable=True)
        ends = torch.unique(keys, return_counts=True)[1].cumsum(0).tolist()
        return Tiles(order, indices[order], tuple(ends), effort, shape, batch, at_once)

    def chunks(self) -> Iterator[Chunk]:
        """All rows of all boxes, cut into blocks that fit."""
        here, begin = self.indices.cpu(), 0
        for end in self.ends:
            for boxes, part in blocks(self.batch, end - begin, self.at_once):
                rows = slice(begin + part.start, min(end, begin + part.stop))
                yield Chunk(boxes, rows, self.indices[rows], _hull(here[rows], self.shape))
            begin = end

    def restored(self, bounds: Tensor) -> Tensor:
        """Bounds [2, B, K] in the order that was asked for."""
        found = torch.empty_like(bounds)
        found[:, :, self.order] = bounds
        return found

    def unit_rows(self, chunk: Chunk, like: Tensor) -> Window:
        """Rows ``+e_k`` then ``-e_k`` of a chunk."""
        return unit_window(chunk.indices, chunk.place, self.shape, like)


def _tile_of(indices: Tensor, space: tuple[int, ...], size: int) -> Tensor:
    """Number of the tile in which each flat coordinate lies, [K]."""
    key, stride, here = torch.zeros_like(indices), 1, indices
    for extent in reversed(space):
        key = key + here % extent // size * stride
        stride *= -(-extent // size)
        here = here // extent
    return key


def _hull(indices: Tensor, shape: torch.Size) -> Place:
    """The smallest window that holds flat coordinates (on the CPU)."""
    starts, sizes, here = [], [], indices
    for extent in reversed(shape[1:]):
        along = here % extent
        low, high = int(along.min()), int(along.max())
        starts.insert(0, low)
        sizes.insert(0, high - low + 1)
        here = here // extent
    return tuple(starts), tuple(sizes)
