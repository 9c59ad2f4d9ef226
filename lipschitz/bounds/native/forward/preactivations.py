"""Pre-activation intervals by CROWN, a row for each neuron that needs one."""

from __future__ import annotations

from torch import Tensor

from lipschitz.bounds.native.forward.value_pass import value_upper_bound
from lipschitz.bounds.native.interval import (
    ForwardIntervals,
    Interval,
)
from lipschitz.bounds.native.lines import Lines, activation_lines
from lipschitz.bounds.native.memory.budget import row_chunks, take
from lipschitz.bounds.native.plan import Exactness, Plan, unit_rows
from lipschitz.bounds.native.rows import needed_indices, place


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


def preactivation_bounds(
    plan: Plan,
    lower: Tensor,
    upper: Tensor,
    intervals: ForwardIntervals,
    *,
    budget: int,
) -> dict[int, Interval]:
    """Pre-activation intervals by CROWN, as auto_LiRPA's plain CROWN has them.

    Neurons that interval arithmetic proves stable keep its bounds; the others get CROWN's alone,
    widened against rounding.

    Args:
        plan: The graph.
        lower, upper: Boxes [B, *input_shape].
        intervals: Interval bounds over the boxes.
        budget: Bytes for rows.

    Returns:
        Interval by activation node, [B, *shape].
    """
    preacts: dict[int, Interval] = {}
    lines: dict[int, Lines] = {}
    for activation in plan.activations:
        node = plan.preact_node(activation)
        bounds = intervals.bounds[node]
        if plan.value_exactness[node] is Exactness.LOOSE:
            mask = plan.graph.nodes[activation].activation.is_open(*bounds)
            indices = needed_indices(mask)
            if len(indices):
                rows = preactivation_rows(plan, activation, indices, lines, lower, upper, budget)
                margin = intervals.rounding[node].flatten(1)[:, indices]
                bounds = place(bounds, rows + margin, indices, mask)
        preacts[activation] = bounds
        lines[activation] = activation_lines(
            plan.graph.nodes[activation].activation, bounds, rounding=intervals.rounding[node]
        )
    return preacts
