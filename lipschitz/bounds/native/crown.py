"""CROWN bounds of the Jacobian's norm, batched over classes and boxes.

The relaxation is that of Shi et al. 2022 (sections 3.2 and 3.3): pre-activations by CROWN (Zhang
et al. 2018), every cotangent ``g`` that meets an uncertain slope by CROWN through the chords of
``h = g * s``, every Jacobian entry likewise, and the l1 norm by the chords of ``|J_i|``. What
interval arithmetic already gets exactly, or what no bound depends on, costs no rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipschitz.bounds.native.first_layer import FirstLayer
from lipschitz.bounds.native.interval import (
    ForwardIntervals,
    Interval,
    forward_intervals,
    product_interval,
    slope_intervals,
)
from lipschitz.bounds.native.memory import default_memory_budget
from lipschitz.bounds.native.norm_node import norm_node
from lipschitz.bounds.native.operator_norm import problem_bounds
from lipschitz.bounds.native.passes import Lines, activation_lines, product_lines
from lipschitz.bounds.native.plan import Exactness, Plan
from lipschitz.bounds.native.rows import (
    cotangent_rows,
    intersect,
    needed_indices,
    place,
    preactivation_rows,
)
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem


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


@dataclass(frozen=True)
class RootBounds:
    """Bounds of a whole problem, before any branching.

    Attributes:
        class_upper_bounds: Upper bound per row of the problem, [R]; [1] of all rows together.
        preacts: Pre-activation interval by activation node, [1, *shape].
        rounding: Widening against rounding that these intervals contain, by activation node,
            [1, *shape].
        norm: The bounds of the Jacobian, B = R.
    """

    class_upper_bounds: Tensor
    preacts: dict[int, Interval]
    norm: NormBounds
    rounding: dict[int, Tensor] = field(default_factory=dict)


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


def norm_bounds(
    plan: Plan,
    rows: Tensor,
    slopes: dict[int, Interval],
    *,
    budget: int,
    tighten: bool = False,
    measure: Measure | None = None,
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

    Returns:
        Bounds for B boxes.
    """
    graph, batch = plan.graph, len(rows)
    measure = (measure or Measure()).each
    first = FirstLayer.of(plan, measure)
    intervals: dict[int, Interval] = {len(graph.nodes) - 1: Interval(rows, rows)}
    exactness = {len(graph.nodes) - 1: Exactness.CONSTANT}
    cotangents: dict[int, Interval] = {}
    lines: dict[int, Lines] = {}

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
        crown = place(
            found, cotangent_rows(plan, index, indices, lines, rows, budget), indices, mask
        )
        return intersect(found, crown) if tighten else crown

    for index in range(len(graph.nodes) - 1, 0, -1):
        if index not in intervals:
            continue
        node = graph.nodes[index]
        if node.affine is None:
            slope = slopes[index]
            uncertain = slope.lower != slope.upper
            # The l2 norm looks at the first layer's cotangents themselves.
            wanted = uncertain
            if first is not None and index in first.activations:
                wanted = (slope.lower != 0) | (slope.upper != 0)
            cotangents[index] = bounded(index, wanted)
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
        for parent, new in zip(node.parents, contributions, strict=True):
            if parent in intervals:
                old = intervals[parent]
                intervals[parent] = Interval(old.lower + new.lower, old.upper + new.upper)
                exactness[parent] = exactness[parent].plus(after)
            else:
                intervals[parent], exactness[parent] = new, after
        del intervals[index]

    if 0 not in intervals:  # the output does not depend on the input
        zero = rows.new_zeros(batch, *graph.input_shape)
        return NormBounds(rows.new_zeros(batch), Interval(zero, zero), cotangents, {})
    entries = bounded(0, None)
    upper_bound, coefficients = norm_node(
        plan, measure, rows, entries, lines, cotangents, slopes, first
    )
    return NormBounds(upper_bound, entries, cotangents, coefficients)


def _pull_back_interval(plan: Plan, index: int, bounds: Interval) -> list[Interval]:
    """Interval of each parent's share of the cotangent of an affine node."""
    affine = plan.graph.nodes[index].affine
    if bounds.lower is bounds.upper:  # a point stays one, to the last bit
        return [Interval(c, c) for c in affine.adjoint(bounds.lower)]
    centres = affine.adjoint((bounds.lower + bounds.upper) / 2)
    radii = plan.magnitudes[index].adjoint((bounds.upper - bounds.lower) / 2)
    return [Interval(c - r, c + r) for c, r in zip(centres, radii, strict=True)]


@torch.no_grad()
def native_crown(problem: LocalProblem, *, memory_budget: int | None = None) -> RootBounds:
    """Upper bound of the problem's norm over the box, for every row or all together, by CROWN.

    For Linf it equals the bounds of Shi et al. 2022 without slope optimisation and without
    branching.

    Args:
        problem: What to bound.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.

    Returns:
        The bounds, in the dtype of the problem.
    """
    plan = Plan(problem.graph)
    budget = memory_budget or default_memory_budget(problem.graph.device)
    lower, upper = problem.lower[None], problem.upper[None]
    intervals = forward_intervals(problem.graph, lower, upper)
    preacts = preactivation_bounds(plan, lower, upper, intervals, budget=budget)
    rounding = {i: intervals.rounding[plan.preact_node(i)] for i in plan.activations}
    return root_bounds(plan, problem, preacts, rounding, budget=budget)


def root_bounds(
    plan: Plan,
    problem: LocalProblem,
    preacts: dict[int, Interval],
    rounding: dict[int, Tensor],
    *,
    budget: int,
    tighten: bool = False,
) -> RootBounds:
    """The bounds of a problem that pre-activation intervals amount to.

    Args:
        plan: The graph.
        problem: What to bound.
        preacts: Pre-activation interval by activation node, [1, *shape].
        rounding: Widening that these contain, [1, *shape].
        budget: Bytes for rows.
        tighten: As in :func:`norm_bounds`.
    """
    slopes = slope_intervals(problem.graph, preacts)
    norm = norm_bounds(
        plan, problem.rows, slopes, budget=budget, tighten=tighten, measure=problem.measure
    )
    bounds = problem_bounds(
        plan, problem, slopes, norm.upper_bound, norm.entries, norm.cotangents, budget
    )
    return RootBounds(bounds, preacts, norm, rounding)
