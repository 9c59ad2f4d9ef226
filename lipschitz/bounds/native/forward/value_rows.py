"""Rows for chosen values of a node, or for differences of them, in chunks that fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.forward.value_pass import value_upper_bound
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import Lines
from lipschitz.bounds.native.memory.budget import numbers_at_once, take
from lipschitz.bounds.native.memory.differences import Differences
from lipschitz.bounds.native.memory.effort import value_effort
from lipschitz.bounds.native.memory.tiles import Tiles
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_lines import MaximumLines


def value_rows(
    plan: Plan,
    node: int,
    first: Tensor,
    lines: dict[int, Lines | MaximumLines],
    lower: Tensor,
    upper: Tensor,
    budget: int,
    clock: Clock = UNLIMITED,
    stage: tuple[str, int] | tuple[()] = (),
    horizon: int = 0,
    within: Sequence[Interval] = (),
    second: Tensor | None = None,
) -> Tensor:
    """CROWN bounds of chosen values of a node, or of differences of two of them.

    Args:
        plan: The graph.
        node: The node.
        first, second: Flat coordinates a and b, [K]; without b the values ``x_a`` themselves are
            bounded, else ``x_a - x_b``.
        lines: Lines of the earlier activations and maxima, [B or 1, ...].
        lower, upper: Boxes, [B or 1, *input_shape].
        budget: Bytes for rows.
        clock: When to stop.
        stage: What to note then, and the layer.
        horizon, within: Where rows end, and the intervals there; see
            :func:`lipschitz.bounds.native.forward.value_pass.value_upper_bound`.

    Returns:
        Upper bounds of the values and of their negatives, [2, B, K]; infinity where the time did
        not suffice.
    """
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    batch = max(len(lower), *(len(line.intercept_gap) for line in lines.values()), 1)
    bounds = lower.new_full((2, batch, len(first)), torch.inf)
    numbers = numbers_at_once(budget, lower.element_size())
    tiles = Tiles.of(plan, node, first, batch, numbers, value_effort, horizon)
    pieces = tiles if second is None else Differences.of(tiles, second)
    for chunk in clock.in_time(pieces.chunks(), *stage):
        boxes, rows = chunk.boxes, chunk.rows
        result = value_upper_bound(
            plan,
            node,
            pieces.unit_rows(chunk, lower),
            {i: line.take(boxes) for i, line in lines.items()},
            take(centre, boxes),
            take(radius, boxes),
            horizon=horizon,
            within=[Interval(*(take(end, boxes) for end in known)) for known in within],
        )
        bounds[0, boxes, rows], bounds[1, boxes, rows] = result.chunk(2, dim=1)
    return pieces.restored(bounds)
