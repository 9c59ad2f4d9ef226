"""Pre-activation intervals by CROWN, a row for each neuron that needs one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.forward.maxima import entries_of, settle_maximum, window_facts
from lipschitz.bounds.native.forward.value_rows import value_rows
from lipschitz.bounds.native.interval import (
    ForwardIntervals,
    Interval,
    forward_intervals,
    intersect,
)
from lipschitz.bounds.native.lines import Lines, activation_lines
from lipschitz.bounds.native.memory.depth import value_depth
from lipschitz.bounds.native.plan import Exactness, Plan
from lipschitz.bounds.native.pool_bounds import WindowFacts
from lipschitz.bounds.native.pool_lines import MaximumLines
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.network.activations import PiecewiseLinear

STAGE = "linear bounds"


def preactivation_rows(
    plan: Plan,
    activation: int,
    indices: Tensor,
    lines: dict[int, Lines],
    lower: Tensor,
    upper: Tensor,
    budget: int,
    clock: Clock = UNLIMITED,
    horizon: int = 0,
    within: Sequence[Interval] = (),
) -> Tensor:
    """CROWN bounds of chosen pre-activations.

    Args:
        plan: The graph.
        activation: The activation node.
        indices: Flat coordinates, [K].
        lines: Lines of the earlier activations, [B or 1, ...].
        lower, upper: Boxes, [B or 1, *input_shape].
        budget: Bytes for rows.
        clock: When to stop.
        horizon, within: Where rows end, and the intervals there; see
            :func:`lipschitz.bounds.native.forward.value_pass.value_upper_bound`.

    Returns:
        Upper bounds of z and of -z, [2, B, K]; infinity where the time did not suffice.
    """
    node, stage = plan.preact_node(activation), (STAGE, plan.layer(activation))
    return value_rows(
        plan, node, indices, lines, lower, upper, budget, clock, stage, horizon, within
    )


def preactivation_bounds(
    plan: Plan,
    lower: Tensor,
    upper: Tensor,
    intervals: ForwardIntervals,
    *,
    budget: int,
    clock: Clock = UNLIMITED,
    windows: dict[int, WindowFacts] | None = None,
) -> dict[int, Interval]:
    """Pre-activation intervals by CROWN, as auto_LiRPA's plain CROWN has them.

    Neurons that interval arithmetic proves stable keep its bounds; the others get CROWN's alone,
    widened against rounding. Where activations are curved the narrower of the two counts.

    Args:
        plan: The graph.
        lower, upper: Boxes [B, *input_shape].
        intervals: Interval bounds over the boxes.
        budget: Bytes for rows.
        clock: When to stop. Earlier layers come first, as all later ones gain by them; what is not
            reached keeps interval arithmetic's bounds, taken from what has been.
        windows: If given, receives what is known of the windows of every maximum.

    Returns:
        Interval by activation node, [B, *shape].
    """
    preacts: dict[int, Interval] = {}
    open_neurons = {
        a: int(plan.graph.nodes[a].activation.is_open(*intervals.bounds[n]).flatten(1).any(0).sum())
        for a in plan.activations
        for n in (plan.preact_node(a),)
        if plan.value_exactness[n] is Exactness.LOOSE
    }
    depth = value_depth(plan, open_neurons, len(lower), clock)
    horizons = depth.horizons
    for activation in horizons if depth.for_time else ():
        clock.miss(STAGE, plan.layer(activation))
    lines: dict[int, Lines | MaximumLines] = {}
    for activation in plan.activations:
        if activation in preacts:  # of a maximum's tree
            continue
        if activation in plan.tree:
            end = plan.tree[activation]
            value, margin = entries_of(plan, end, intervals, preacts), intervals.rounding
            horizon, within = horizons.get(activation, 0), []
            if horizon:
                around = forward_intervals(plan.graph, lower, upper, preacts, last=horizon)
                within = around.bounds
            facts = window_facts(
                plan,
                end,
                value,
                margin[plan.pools[end].of],
                lines,
                lower,
                upper,
                budget=budget,
                clock=clock,
                horizon=horizon,
                within=within,
            )
            settle_maximum(plan, end, facts, intervals, preacts, lines)
            if windows is not None:
                windows[end] = facts
            continue
        node = plan.preact_node(activation)
        bounds, horizon, within = intervals.bounds[node], horizons.get(activation, 0), []
        if preacts and (clock.missed or horizon):  # at least from what has been reached so far
            within = forward_intervals(plan.graph, lower, upper, preacts, last=node).bounds
            bounds = intersect(bounds, within[node])
        if plan.value_exactness[node] is Exactness.LOOSE:
            kind = plan.graph.nodes[activation].activation
            mask = kind.is_open(*bounds)
            indices = needed_indices(mask)
            if len(indices):
                rows = preactivation_rows(
                    plan,
                    activation,
                    indices,
                    lines,
                    lower,
                    upper,
                    budget,
                    clock,
                    horizon,
                    within[: horizon + 1],
                )
                margin = intervals.rounding[node].flatten(1)[:, indices]
                found = place(bounds, rows + margin, indices, mask)
                # Lines of a curve may leave the range of its values, and rows that end early may be
                # looser than intervals from the same place.
                keeps = isinstance(kind, PiecewiseLinear) and not horizon
                bounds = found if keeps else intersect(bounds, found)
        preacts[activation] = bounds
        lines[activation] = activation_lines(
            plan.graph.nodes[activation].activation, bounds, rounding=intervals.rounding[node]
        )
    return preacts
