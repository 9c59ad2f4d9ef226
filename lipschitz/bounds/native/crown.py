"""CROWN bounds of a problem, batched over classes: the paper's bound on the native engine.

The relaxation is that of Shi et al. 2022 (sections 3.2 and 3.3): pre-activations by CROWN (Zhang
et al. 2018), then the Jacobian and its norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.norm_bounds import norm_bounds
from lipschitz.bounds.native.backward.operator_norm import problem_bounds
from lipschitz.bounds.native.forward.preactivations import preactivation_bounds
from lipschitz.bounds.native.interval import (
    Interval,
    forward_intervals,
    slope_intervals,
)
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_bounds import WindowFacts
from lipschitz.bounds.native.products import product_bounds
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.native.terms.jacobian import interval_bound
from lipschitz.problem import LocalProblem

# Share of the time left that bounds of single rows may take, in L1 and L2, where bounds of the
# whole Jacobian come after them. A choice: it matters only where the limit is too short for both.
_SHARE_OF_ROWS = 0.6


@torch.no_grad()
def native_crown(
    problem: LocalProblem, *, memory_budget: int | None = None, clock: Clock = UNLIMITED
) -> RootBounds:
    """Upper bound of the problem's norm over the box, for every row or all together, by CROWN.

    For Linf it equals the bounds of Shi et al. 2022 without slope optimisation and without
    branching.

    Args:
        problem: What to bound.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop. What was not reached then is as loose as interval arithmetic, and the
            bounds are never above those of interval arithmetic.

    Returns:
        The bounds, in the dtype of the problem.
    """
    if problem.graph.product_nodes:
        return product_bounds(problem, memory_budget=memory_budget, clock=clock)
    plan = Plan(problem.graph)
    budget = memory_budget or default_memory_budget(problem.graph.device)
    lower, upper = problem.lower[None], problem.upper[None]
    intervals = forward_intervals(problem.graph, lower, upper)
    windows: dict[int, WindowFacts] = {}
    preacts = preactivation_bounds(
        plan, lower, upper, intervals, budget=budget, clock=clock.part(0.5), windows=windows
    )
    rounding = {i: intervals.rounding[plan.preact_node(i)] for i in plan.activations}
    return root_bounds(
        plan, problem, preacts, rounding, budget=budget, clock=clock, windows=windows
    )


def root_bounds(
    plan: Plan,
    problem: LocalProblem,
    preacts: dict[int, Interval],
    rounding: dict[int, Tensor],
    *,
    budget: int,
    tighten: bool = False,
    clock: Clock = UNLIMITED,
    windows: dict[int, WindowFacts] | None = None,
) -> RootBounds:
    """The bounds of a problem that pre-activation intervals amount to.

    Args:
        plan: The graph.
        problem: What to bound.
        preacts: Pre-activation interval by activation node, [1, *shape].
        rounding: Widening that these contain, [1, *shape].
        budget: Bytes for rows.
        tighten: As in :func:`norm_bounds`.
        clock: When to stop; with a note in it, interval arithmetic alone is asked as well, as it
            is wherever that cannot meet an argument that an activation is not defined for.
        windows: What is known of the windows of every maximum, B = 1.
    """
    slopes = slope_intervals(problem.graph, preacts)
    norm = norm_bounds(
        plan,
        problem.rows,
        slopes,
        budget=budget,
        tighten=tighten,
        measure=problem.measure,
        clock=clock.part(_SHARE_OF_ROWS) if problem.measure.norm != "inf" else clock,
        windows=windows,
    )
    bounds = problem_bounds(
        plan, problem, slopes, norm.upper_bound, norm.entries, norm.cotangents, budget, clock
    )
    # Cut short, or in deep networks, linear bounds may be looser than interval arithmetic alone.
    everywhere = not any(problem.graph.nodes[i].activation.needs for i in plan.activations)
    if clock.missed or everywhere:
        bounds = torch.fmin(bounds, interval_bounds(problem))
    return RootBounds(bounds, preacts, norm, rounding, windows or {})


def interval_bounds(problem: LocalProblem) -> Tensor:
    """What interval arithmetic alone makes of a problem, [R] or [1]."""
    return interval_bound(
        problem.graph, problem.lower, problem.upper, problem.rows, problem.measure
    )
