"""Differences of the entries of windows, by rows of their own: which can be the largest.

Two rows bound ``x_i - x_j`` for a pair that intervals leave open. Every open entry is compared with
the one that is largest in the middle of the box, and the few largest with each other; the rest
follows from ``x_i - x_j = (x_i - x_r) + (x_r - x_j)``. So a window of n entries takes little more
rows than its tree has neurons.

Shapes: B boxes, W windows of n entries, K pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.forward.value_rows import value_rows
from lipschitz.bounds.native.interval import ForwardIntervals, Interval, intersect
from lipschitz.bounds.native.lines import Lines, activation_lines
from lipschitz.bounds.native.plan import Exactness, Plan
from lipschitz.bounds.native.pool_bounds import (
    WindowFacts,
    candidates_of,
    comparison_intervals,
    interval_excess,
    maximum_lines,
    shaped,
)
from lipschitz.bounds.native.pool_lines import MaximumLines
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.network.pooled import Pooled, gathered

# How many of a window's entries are compared with each other, and not only with the largest. A
# choice: with four, windows of 2 x 2 are known completely.
_LARGEST = 4
STAGE = "linear bounds of maxima"

# Upper bounds of x_a - x_b and of x_b - x_a, [2, B, K], of pairs a, b of flat coordinates, [K].
RowsOf = Callable[[Tensor, Tensor | None], Tensor]


def _open_pairs(
    order: Tensor, candidates: Tensor, done: Tensor, *, star: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows and their pairs of entries that are worth rows.

    Args:
        order: Entries of every window, the largest first, [W, n].
        candidates: [W, n].
        done: Pairs that have been bounded, [W, n, n].
        star: All candidates with the largest; else the few largest with each other.
    """
    entries = order.shape[1]
    ranks = torch.combinations(torch.arange(entries, device=order.device))
    chosen = ranks[:, 0] == 0 if star else ranks[:, 1] < _LARGEST
    first, second = order[:, ranks[chosen, 1]], order[:, ranks[chosen, 0]]
    windows = torch.arange(len(order), device=order.device).unsqueeze(1).expand_as(first)
    wanted = candidates.gather(1, first) & candidates.gather(1, second)
    wanted &= ~done[windows, first, second]
    return windows[wanted], first[wanted], second[wanted]


def narrowed_excess(
    pool: Pooled, value: Interval, excess: Tensor, rounding: Tensor, rows_of: RowsOf
) -> Tensor:
    """Upper bounds of the differences of entries, by rows where others leave them open.

    Args:
        pool: The maximum.
        value: Intervals of the entries' node, [B, *shape].
        excess: What is known of the differences, [B, W, n, n].
        rounding: How far rounding may have moved the entries' node, [B or 1, *shape].
        rows_of: Bounds pairs.

    Returns:
        [B, W, n, n], never above ``excess``.
    """
    middle = gathered(((value.lower + value.upper) / 2).flatten(1), pool.windows).mean(0)
    margins = rounding.flatten(1)
    size = value.lower[0].numel()
    done = torch.zeros(excess.shape[1:], dtype=torch.bool, device=excess.device)
    for star in (True, False):
        candidates = candidates_of(pool, excess).any(0)
        order = middle.masked_fill(~candidates, -torch.inf).argsort(dim=1, descending=True)
        windows, one, other = _open_pairs(order, candidates, done, star=star)
        if not len(windows):
            continue
        done[windows, one, other] = done[windows, other, one] = True
        a, b = pool.windows[windows, one], pool.windows[windows, other]
        # Windows that overlap share pairs.
        turned = a > b
        keys, which = torch.unique(
            torch.minimum(a, b) * size + torch.maximum(a, b), return_inverse=True
        )
        found = rows_of(keys // size, keys % size)
        found = found + margins[:, keys // size] + margins[:, keys % size]
        found = found[:, :, which]
        above = torch.where(turned, found[1], found[0])
        below = torch.where(turned, found[0], found[1])
        batch = max(len(excess), found.shape[1])
        excess = excess.expand(batch, *excess.shape[1:]).clone()
        excess[:, windows, one, other] = torch.fmin(excess[:, windows, one, other], above)
        excess[:, windows, other, one] = torch.fmin(excess[:, windows, other, one], below)
        if star:
            excess = _through(excess, order[:, 0], pool)
    return excess


def narrowed_entries(pool: Pooled, value: Interval, rounding: Tensor, rows_of: RowsOf) -> Interval:
    """Intervals of the entries' node, by rows for entries of windows that are not decided.

    Args:
        pool: The maximum.
        value: Intervals of the node, [B, *shape].
        rounding: How far rounding may have moved it, [B or 1, *shape].
        rows_of: Bounds entries, if its second argument is None.
    """
    candidates = candidates_of(pool, interval_excess(pool, value)).any(0)
    chosen = candidates & (candidates.sum(1, keepdim=True) > 1)
    mask = torch.zeros_like(value.lower[:1], dtype=torch.bool)
    mask.flatten()[pool.windows[chosen]] = True
    indices = needed_indices(mask)
    if not len(indices):
        return value
    found = rows_of(indices, None) + rounding.flatten(1)[:, indices]
    return intersect(value, place(value, found, indices, mask))


def _through(excess: Tensor, reference: Tensor, pool: Pooled) -> Tensor:
    """``U_ij`` cut to ``U_ir + U_rj``, for a reference entry r of every window, [W]."""
    batch, windows, entries, _ = excess.shape
    at = reference.reshape(1, -1, 1, 1)
    to = excess.gather(3, at.expand(batch, windows, entries, 1))
    onward = excess.gather(2, at.expand(batch, windows, 1, entries))
    unit = 2 * torch.finfo(excess.dtype).eps
    path = to + onward + unit * (to.abs() + onward.abs())
    present = pool.windows >= 0
    both = present.unsqueeze(2) & present.unsqueeze(1)
    same = torch.eye(entries, dtype=torch.bool, device=excess.device)
    return torch.where(both & ~same, torch.minimum(excess, path), excess)


def narrowed_facts(
    pool: Pooled, known: WindowFacts, value: Interval, rounding: Tensor, rows_of: RowsOf
) -> WindowFacts:
    """What is known of windows, narrowed by rows.

    Args:
        pool: The maximum.
        known: What is known.
        value: Intervals of the entries' node, [B, *shape].
        rounding: How far rounding may have moved it, [B or 1, *shape].
        rows_of: Bounds entries and pairs of them.
    """
    value = narrowed_entries(pool, value, rounding, rows_of)
    excess = torch.minimum(known.excess, interval_excess(pool, value))
    excess = narrowed_excess(pool, value, excess, rounding, rows_of)
    facts = WindowFacts.of(pool, value, rounding, excess)
    return facts._replace(
        lower=torch.maximum(facts.lower, known.lower), upper=torch.minimum(facts.upper, known.upper)
    )


def entries_of(
    plan: Plan, end: int, intervals: ForwardIntervals, preacts: dict[int, Interval]
) -> Interval:
    """Intervals of a maximum's entries, as an activation's own bounds narrow them."""
    of = plan.pools[end].of
    value, node = intervals.bounds[of], plan.graph.nodes[of]
    if of in preacts:
        value = intersect(value, Interval(*node.activation.interval(*preacts[of])))
    return value


def window_facts(
    plan: Plan,
    end: int,
    value: Interval,
    rounding: Tensor,
    lines: dict[int, Lines | MaximumLines],
    lower: Tensor,
    upper: Tensor,
    *,
    budget: int,
    clock: Clock = UNLIMITED,
    horizon: int = 0,
    within: Sequence[Interval] = (),
) -> WindowFacts:
    """What is known of the windows of a maximum by intervals and CROWN.

    Args:
        plan: The graph.
        end: The maximum's node.
        value: Intervals of its entries' node, [B, *shape].
        rounding: How far rounding may have moved that node, [B or 1, *shape].
        lines: Lines of the earlier activations and maxima.
        lower, upper: Boxes, [B, *input_shape].
        budget: Bytes for rows.
        clock: When to stop.
        horizon, within: Where rows end, and the intervals there.

    Returns:
        What is known of its windows.
    """
    pool = plan.pools[end]

    def rows_of(first: Tensor, second: Tensor | None) -> Tensor:
        stage = STAGE, plan.layer(end)
        return value_rows(
            plan,
            pool.of,
            first,
            lines,
            lower,
            upper,
            budget,
            clock,
            stage,
            horizon,
            within,
            second,
        )

    if plan.value_exactness[pool.of] is Exactness.LOOSE:
        value = narrowed_entries(pool, value, rounding, rows_of)
    excess = narrowed_excess(pool, value, interval_excess(pool, value), rounding, rows_of)
    return WindowFacts.of(pool, value, rounding, excess)


def settle_maximum(
    plan: Plan,
    end: int,
    facts: WindowFacts,
    intervals: ForwardIntervals,
    preacts: dict[int, Interval],
    lines: dict[int, Lines | MaximumLines],
) -> Tensor:
    """Add a maximum's lines, and its tree's intervals and lines, to those of earlier nodes.

    Args:
        plan: The graph.
        end: The maximum's node.
        facts: What is known of its windows.
        intervals: Interval bounds over the boxes.
        preacts, lines: What is known by node; changed.

    Returns:
        Entries that can be the largest, [B, W, n].
    """
    nodes, candidates = plan.graph.nodes, candidates_of(plan.pools[end], facts.excess)
    for activation, found in shaped_comparisons(plan, end, facts.excess).items():
        node = plan.preact_node(activation)
        preacts[activation] = intersect(intervals.bounds[node], found)
        lines[activation] = activation_lines(
            nodes[activation].activation, preacts[activation], rounding=intervals.rounding[node]
        )
    lines[end] = maximum_lines(facts, candidates)
    return candidates


def shaped_comparisons(plan: Plan, end: int, excess: Tensor) -> dict[int, Interval]:
    """Intervals of a tree's pre-activations from differences, by activation node, [B, *shape]."""
    return shaped(plan, comparison_intervals(plan.pools[end], excess))
