"""Which neurons get a row of their own, and where its bounds go."""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.memory.windows import by_tiles


def needed_indices(mask: Tensor) -> Tensor:
    """Flat coordinates that some box needs, neighbours together: mask [B, *shape] to [K]."""
    return by_tiles(mask.flatten(1).any(0).nonzero()[:, 0], mask.shape[1:])


def place(base: Interval, bounds: Tensor, indices: Tensor, mask: Tensor) -> Interval:
    """Put row bounds where they are needed.

    Args:
        base: Interval [B or 1, *shape].
        bounds: Upper bounds [2, B or 1, K] of the rows and of the negated rows; infinite ones, of
            rows that were not reached, change nothing.
        indices: Flat coordinates of the rows, [K].
        mask: Where to use them, [B or 1, *shape].
    """
    batch = max(bounds.shape[1], len(base.lower), len(mask))
    shape = base.lower.shape[1:]
    ends = []
    for old, new in ((base.lower, -bounds[1]), (base.upper, bounds[0])):
        old = old.expand(batch, *shape).flatten(1)
        chosen = mask.expand(batch, *shape).flatten(1)[:, indices] & ~new.isinf()
        merged = torch.where(chosen, new, old[:, indices])
        ends.append(old.index_copy(1, indices, merged).reshape(batch, *shape))
    return Interval(*ends)
