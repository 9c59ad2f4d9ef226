"""Bounds of cotangents, of the Jacobian's entries and of its rows' norms, from slope intervals.

Every cotangent ``g`` that meets an uncertain slope is bounded by CROWN through the chords of
``h = g * s``, every Jacobian entry likewise, and the norm by
:mod:`lipschitz.bounds.native.backward.norm_node` (Shi et al. 2022, sections 3.2 and 3.3). What
interval arithmetic already gets exactly, or what no bound depends on, costs no rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.cotangent_pass import cotangent_upper_bound
from lipschitz.bounds.native.backward.first_layer import FirstLayer
from lipschitz.bounds.native.backward.norm_node import norm_node
from lipschitz.bounds.native.interval import (
    Interval,
    intersect,
    product_interval,
)
from lipschitz.bounds.native.lines import Lines, product_lines
from lipschitz.bounds.native.memory.budget import numbers_at_once, take
from lipschitz.bounds.native.memory.depth import cotangent_depth
from lipschitz.bounds.native.memory.effort import cotangent_effort
from lipschitz.bounds.native.memory.tiles import Tiles
from lipschitz.bounds.native.plan import Exactness, Plan
from lipschitz.bounds.native.pool_bounds import (
    WindowFacts,
    comparison_cotangents,
    entries_interval,
    routes_by_maximum,
    shaped,
)
from lipschitz.bounds.native.pool_lines import RoutingLines
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.norms import Measure


@dataclass(frozen=True)
class NormBounds:
    """Bounds of the Jacobian over B boxes (class x subdomain).

    Attributes:
        upper_bound: Upper bound of the norm of ``J(x)^T r``, [B].
        entries: Interval of the Jacobian's entries, [B, *input_shape].
        cotangents: Interval of g by activation node, [B, *shape]; only meant where the slope is
            uncertain.
        coefficients: By activation node, how much the upper bound counts ``h = g * s``,
            [B, *shape]; for branching scores.
    """

    upper_bound: Tensor
    entries: Interval
    cotangents: dict[int, Interval]
    coefficients: dict[int, Tensor]


# Share of the time left that is kept for the bound of the norm itself, a pass of one row per
# output. A choice: without that pass the norm is as loose as the entries' intervals.
_SHARE_OF_NORM = 0.1
STAGE, ENTRIES, NORM = (
    "linear bounds of cotangents",
    "linear bounds of entries",
    "the norm's chords",
)


def cotangent_rows(
    plan: Plan,
    node: int,
    indices: Tensor,
    lines: dict[int, Lines],
    rows: Tensor,
    budget: int,
    clock: Clock = UNLIMITED,
    horizon: int | None = None,
    within: dict[int, Interval] | None = None,
) -> Tensor:
    """CROWN bounds of chosen entries of a node's cotangent.

    Args:
        plan: The graph.
        node: The node; 0 for the Jacobian.
        indices: Flat coordinates, [K].
        lines: Lines of the slope products after the node, [B or 1, ...].
        rows: Output directions [B, C].
        budget: Bytes for rows.
        clock: When to stop.
        horizon, within: Where rows end, and the intervals there; see
            :func:`lipschitz.bounds.native.backward.cotangent_pass.cotangent_upper_bound`.

    Returns:
        Upper bounds of the entries and of their negatives, [2, B, K]; infinity where the time did
        not suffice.
    """
    batch = len(rows)
    bounds = rows.new_full((2, batch, len(indices)), torch.inf)
    numbers = numbers_at_once(budget, rows.element_size())
    tiles = Tiles.of(plan, node, indices, batch, numbers, cotangent_effort, horizon)
    for chunk in clock.in_time(tiles.chunks(), *_stage(plan, node)):
        boxes, part = chunk.boxes, chunk.rows
        result = cotangent_upper_bound(
            plan,
            node,
            tiles.unit_rows(chunk, rows),
            {i: line.take(boxes) for i, line in lines.items()},
            take(rows, boxes),
            horizon=horizon,
            within={
                i: Interval(*(take(end, boxes) for end in known))
                for i, known in (within or {}).items()
                if horizon is not None and i >= horizon
            },
        )
        bounds[0, boxes, part], bounds[1, boxes, part] = result.chunk(2, dim=1)
    return tiles.restored(bounds)


def norm_bounds(
    plan: Plan,
    rows: Tensor,
    slopes: dict[int, Interval],
    *,
    budget: int,
    tighten: bool = False,
    measure: Measure | None = None,
    clock: Clock = UNLIMITED,
    windows: dict[int, WindowFacts] | None = None,
) -> NormBounds:
    """Bounds of the Jacobian and of its rows' norms from the slopes' intervals.

    Args:
        plan: The graph.
        rows: Output directions, [B, C].
        slopes: Slope interval by activation node, [B or 1, *shape].
        budget: Bytes for rows.
        tighten: Intersect CROWN's bounds of g and of the entries with interval arithmetic's;
            plain CROWN does not.
        measure: The norm, of each row; that of Linf if None.
        clock: When to stop. Every layer has its share of the time, by its work, and the norm the
            last; what is not reached keeps interval arithmetic's bounds.
        windows: What is known of the windows of every maximum, [B or 1, ...].

    Returns:
        Bounds for B boxes.
    """
    graph, batch = plan.graph, len(rows)
    routes = routes_by_maximum(plan, slopes, windows)
    several = {i: route.candidates.sum(2) > 1 for i, route in routes.items()}
    behind = {activation: end for end, activation in plan.onward.items()}
    measure = (measure or Measure()).each
    first = FirstLayer.of(plan, measure)
    intervals: dict[int, Interval] = {len(graph.nodes) - 1: Interval(rows, rows)}
    exactness = {len(graph.nodes) - 1: Exactness.CONSTANT}
    cotangents: dict[int, Interval] = {}
    lines: dict[int, Lines] = {}

    row_counts = {i: _open_neurons(slopes[i]) for i in plan.activations if i not in plan.tree}
    for end, some in several.items():
        node = plan.onward.get(end, end)
        row_counts[node] = max(row_counts.get(node, 0), int(some.any(0).sum()))
    row_counts[0] = graph.input_shape.numel()
    inner = clock.part(1 - _SHARE_OF_NORM)
    horizons, work, for_time = cotangent_depth(plan, row_counts, batch, inner)
    for index in horizons if for_time else ():
        clock.miss(*_stage(plan, index))
    nearest = min(horizons.values(), default=len(graph.nodes))
    within: dict[int, Interval] = {}  # of the nodes passed, where rows may end

    def bounded(index: int, mask: Tensor | None) -> Interval:
        """Bounds of a node's cotangent where ``mask`` asks for them (everywhere if None)."""
        found = intervals[index]
        if exactness[index] is not Exactness.LOOSE:
            return found
        if mask is None:
            mask = torch.ones_like(found.lower, dtype=torch.bool)
        indices = needed_indices(mask)
        if not len(indices):
            return found
        share = inner.part(work[index] / sum(work.values())) if work.get(index) else inner
        horizon = horizons.get(index)
        crown = cotangent_rows(plan, index, indices, lines, rows, budget, share, horizon, within)
        crown = place(found, crown, indices, mask)
        found = intersect(found, crown) if tighten or horizon else crown
        if index >= nearest:
            within[index] = found
        return found

    for index in range(len(graph.nodes) - 1, 0, -1):
        if index not in intervals:
            continue
        node, parents = graph.nodes[index], graph.nodes[index].parents
        if index in plan.pools:
            pool, varies = plan.pools[index], several[index]
            parents = (pool.of,)
            if index in plan.onward:  # as the activation behind has found it
                behind_it, found = cotangents[plan.onward[index]], intervals[index]
            else:
                wanted = varies if first is None else torch.ones_like(varies)
                behind_it = found = bounded(index, wanted.unflatten(1, node.shape))
                work.pop(index, None)
            flat = Interval(*(end.flatten(1) for end in found))
            cotangents |= shaped(plan, comparison_cotangents(pool, flat, slopes))
            flat = Interval(*(end.flatten(1) for end in behind_it))
            lines[index] = RoutingLines.of(flat, routes[index])
            contributions = [entries_interval(plan, index, flat, routes[index])]
            # Entries of one window share its cotangent, so they do not vary by themselves.
            after = exactness[index]
            after = max(after, Exactness.EXACT) if bool(varies.any()) else after
        elif node.affine is None:
            slope = slopes[index]
            uncertain = slope.lower != slope.upper
            # FirstLayer, for L2, needs g of every first-layer neuron that may be switched on.
            wanted = uncertain
            if first is not None and index in first.activations:
                wanted = (slope.lower != 0) | (slope.upper != 0)
            if index in behind:  # what a maximum hands on to its entries
                wanted = wanted | several[behind[index]].unflatten(1, node.shape)
            cotangents[index] = bounded(index, wanted)
            work.pop(index, None)
            lines[index] = product_lines(cotangents[index], slope)
            contributions = [product_interval(cotangents[index], slope)]
            certain = not bool(uncertain.any())
            before = exactness[index]
            after = (
                before
                if certain
                else Exactness.INDEPENDENT
                if before is Exactness.CONSTANT
                else Exactness.LOOSE
            )
        else:
            contributions = _pull_back_interval(plan, index, intervals[index])
            after = plan.affine_exactness(index, exactness[index])
        for parent, new in zip(parents, contributions, strict=True):
            if parent in intervals:
                old = intervals[parent]
                intervals[parent] = Interval(old.lower + new.lower, old.upper + new.upper)
                exactness[parent] = exactness[parent].plus(after)
            else:
                intervals[parent], exactness[parent] = new, after
        if index >= nearest:
            within.setdefault(index, intervals[index])
        del intervals[index]

    if 0 not in intervals:  # the output does not depend on the input
        zero = rows.new_zeros(batch, *graph.input_shape)
        return NormBounds(rows.new_zeros(batch), Interval(zero, zero), cotangents, {})
    entries = bounded(0, None)
    if clock.is_over:
        clock.miss(NORM)
        simple = measure.upper_bound(*entries)
        zeros = {i: torch.zeros_like(g.lower) for i, g in cotangents.items()}
        return NormBounds(simple, entries, cotangents, zeros)
    upper_bound, coefficients = norm_node(
        plan, measure, rows, entries, lines, cotangents, slopes, first
    )
    return NormBounds(upper_bound, entries, cotangents, coefficients)


def _stage(plan: Plan, node: int) -> tuple[str, int | None]:
    """What is cut short where rows of a node's cotangent are, and in which layer."""
    return (STAGE, plan.layer(node)) if node else (ENTRIES, None)


def _open_neurons(slope: Interval) -> int:
    """How many neurons of a layer have an uncertain slope in some box."""
    return int((slope.lower != slope.upper).flatten(1).any(0).sum())


def _pull_back_interval(plan: Plan, index: int, bounds: Interval) -> list[Interval]:
    """Interval of each parent's share of the cotangent of an affine node."""
    affine = plan.graph.nodes[index].affine
    if bounds.lower is bounds.upper:  # a point stays one, to the last bit
        return [Interval(c, c) for c in affine.adjoint(bounds.lower)]
    centres = affine.adjoint((bounds.lower + bounds.upper) / 2)
    radii = plan.magnitudes[index].adjoint((bounds.upper - bounds.lower) / 2)
    return [Interval(c - r, c + r) for c, r in zip(centres, radii, strict=True)]
