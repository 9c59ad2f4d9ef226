"""Rows of bounds: which neurons get one, in what chunks, and where the results go."""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.memory import row_chunks, take
from lipschitz.bounds.native.passes import Lines, cotangent_upper_bound, value_upper_bound
from lipschitz.bounds.native.plan import Plan, unit_rows
from lipschitz.bounds.native.windows import by_tiles


def intersect(first: Interval, second: Interval) -> Interval:
    """The values in both intervals."""
    return Interval(
        torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper)
    )


def needed_indices(mask: Tensor) -> Tensor:
    """Flat coordinates that some box needs, by place: mask [B, *shape] to indices [K]."""
    return by_tiles(mask.flatten(1).any(0).nonzero()[:, 0], mask.shape[1:])


def place(base: Interval, bounds: Tensor, indices: Tensor, mask: Tensor) -> Interval:
    """Put row bounds where they are needed.

    Args:
        base: Interval [B or 1, *shape].
        bounds: Upper bounds [2, B or 1, K] of the rows and of the negated rows.
        indices: Flat coordinates of the rows, [K].
        mask: Where to use them, [B or 1, *shape].
    """
    batch = max(bounds.shape[1], len(base.lower), len(mask))
    shape = base.lower.shape[1:]
    ends = []
    for old, new in ((base.lower, -bounds[1]), (base.upper, bounds[0])):
        old = old.expand(batch, *shape).flatten(1)
        chosen = mask.expand(batch, *shape).flatten(1)[:, indices]
        merged = torch.where(chosen, new, old[:, indices])
        ends.append(old.index_copy(1, indices, merged).reshape(batch, *shape))
    return Interval(*ends)


def preactivation_rows(
    plan: Plan,
    activation: int,
    indices: Tensor,
    lines: dict[int, Lines],
    lower: Tensor,
    upper: Tensor,
    budget: int,
) -> Tensor:
    """CROWN bounds of chosen pre-activations.

    Args:
        plan: The graph.
        activation: The activation node.
        indices: Flat coordinates, [K].
        lines: Lines of the earlier activations, [B or 1, ...].
        lower, upper: Boxes, [B or 1, *input_shape].
        budget: Bytes for rows.

    Returns:
        Upper bounds of z and of -z, [2, B, K].
    """
    node = plan.preact_node(activation)
    shape = plan.graph.nodes[node].shape
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    batch = max(len(lower), *(len(line.intercept_gap) for line in lines.values()), 1)
    bounds = lower.new_empty(2, batch, len(indices))
    for boxes, chunk in row_chunks(batch, len(indices), plan.largest, budget, lower.element_size()):
        result = value_upper_bound(
            plan,
            node,
            unit_rows(indices[chunk], shape, lower),
            {i: line.take(boxes) for i, line in lines.items()},
            take(centre, boxes),
            take(radius, boxes),
        )
        bounds[0, boxes, chunk], bounds[1, boxes, chunk] = result.chunk(2, dim=1)
    return bounds


def cotangent_rows(
    plan: Plan, node: int, indices: Tensor, lines: dict[int, Lines], rows: Tensor, budget: int
) -> Tensor:
    """CROWN bounds of chosen entries of a node's cotangent.

    Args:
        plan: The graph.
        node: The node; 0 for the Jacobian.
        indices: Flat coordinates, [K].
        lines: Lines of the slope products after the node, [B or 1, ...].
        rows: Output directions [B, C].
        budget: Bytes for rows.

    Returns:
        Upper bounds of the entries and of their negatives, [2, B, K].
    """
    batch = len(rows)
    bounds = rows.new_empty(2, batch, len(indices))
    for boxes, chunk in row_chunks(batch, len(indices), plan.largest, budget, rows.element_size()):
        result = cotangent_upper_bound(
            plan,
            node,
            unit_rows(indices[chunk], plan.graph.nodes[node].shape, rows),
            {i: line.take(boxes) for i, line in lines.items()},
            take(rows, boxes),
        )
        bounds[0, boxes, chunk], bounds[1, boxes, chunk] = result.chunk(2, dim=1)
    return bounds
