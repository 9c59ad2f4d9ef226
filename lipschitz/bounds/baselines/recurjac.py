"""RecurJac: recursive bounds of the entries of the Jacobian.

Method card
    Needs: activations whose slope has an interval over the box; MLPs, convolutions, branches.
    Returns: an upper bound of the local Lipschitz constant per row.
    Idea: bounds of the Jacobian of the last layers give bounds of that of one layer more. Where a
        cotangent ``g`` has a fixed sign, its product with an uncertain slope lies between two
        lines through the origin, and the term is carried on into the next recursion; where its
        sign is open, the product is replaced by its worst case, two constants. The norm is the sum
        of the largest magnitudes of the entries.
    Sound: yes. Exact: no. Between interval arithmetic and CROWN on the Jacobian: the constants hold
        the chords of CROWN, and pre-activation bounds are the same. (On the same boxes this is a
        theorem: each relaxation contains the next.)
    Reference: Zhang, Zhang and Hsieh, AAAI 2019, section 3.3; as the special case of linear bound
        propagation that Shi et al. 2022 (section 3.4) describe.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.backward.norm_bounds import cotangent_rows
from lipschitz.bounds.native.forward.preactivations import preactivation_bounds
from lipschitz.bounds.native.interval import (
    Interval,
    forward_intervals,
    product_interval,
    slope_intervals,
)
from lipschitz.bounds.native.lines import Lines
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.problem import LocalProblem
from lipschitz.relaxation import slope_product_lines


def fixed_sign_lines(cotangent: Interval, slope: Interval) -> Lines:
    """RecurJac's lines around ``h = g * s``: through the origin, or constants.

    Args:
        cotangent: Interval of g, [R, *shape]; ignored where the slope is certain.
        slope: Interval of s, [1, *shape].
    """
    bounds = slope_product_lines(*cotangent, *torch.broadcast_tensors(*slope))
    worst = product_interval(cotangent, slope)
    is_open = (cotangent.lower < 0) & (cotangent.upper > 0) & (slope.lower != slope.upper)
    zero = torch.zeros_like(worst.lower)
    lower_slope = torch.where(is_open, zero, bounds.lower_slope)
    upper_slope = torch.where(is_open, zero, bounds.upper_slope)
    lower = torch.where(is_open, worst.lower, bounds.lower_intercept)
    upper = torch.where(is_open, worst.upper, bounds.upper_intercept)
    return Lines(
        lower_slope.unsqueeze(1),
        (upper_slope - lower_slope).unsqueeze(1),
        lower.flatten(1),
        (upper - lower).flatten(1),
    )


def jacobian_entries(
    plan: Plan, rows: Tensor, slopes: dict[int, Interval], budget: int
) -> Interval:
    """RecurJac's interval of ``J(x)^T rows``.

    Args:
        plan: The graph.
        rows: Output directions, [R, C].
        slopes: Slope interval by activation node, [1, *shape].
        budget: Bytes for rows.

    Returns:
        Interval [R, *input_shape].
    """
    lines: dict[int, Lines] = {}
    for activation in reversed(plan.activations):
        slope = slopes[activation]
        zero = rows.new_zeros(len(rows), *slope.lower.shape[1:])
        cotangent = Interval(zero, zero)
        uncertain = slope.lower != slope.upper
        indices = needed_indices(uncertain)
        if len(indices):
            bounds = cotangent_rows(plan, activation, indices, lines, rows, budget)
            cotangent = place(cotangent, bounds, indices, uncertain)
        lines[activation] = fixed_sign_lines(cotangent, slope)
    shape = plan.graph.input_shape
    indices = torch.arange(shape.numel(), device=rows.device)
    bounds = cotangent_rows(plan, 0, indices, lines, rows, budget)
    lower, upper = (b.reshape(len(rows), *shape) for b in (-bounds[1], bounds[0]))
    return Interval(lower, upper)


@torch.no_grad()
def recurjac_bound(problem: LocalProblem, *, memory_budget: int | None = None) -> Tensor:
    """Upper bound of the problem's norm over the box for every row, [R], or all together, [1].

    Args:
        problem: What to bound.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
    """
    plan = Plan(problem.graph)
    budget = memory_budget or default_memory_budget(problem.graph.device)
    lower, upper = problem.lower[None], problem.upper[None]
    intervals = forward_intervals(problem.graph, lower, upper)
    preacts = preactivation_bounds(plan, lower, upper, intervals, budget=budget)
    slopes = slope_intervals(problem.graph, preacts)
    entries = jacobian_entries(plan, problem.rows, slopes, budget)
    return problem.measure.upper_bound(*entries)
