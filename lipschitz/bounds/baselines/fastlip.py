"""Fast-Lip: interval bounds of the Jacobian from Fast-Lin's bounds of the neurons.

Method card
    Needs: activations whose slope has an interval over the box; MLPs, convolutions, branches.
    Returns: an upper bound of the local Lipschitz constant per row.
    Idea: linear bounds (two parallel lines per unstable neuron) say which neurons keep their sign
        on the box. Their slopes are known; every other slope is an interval. The Jacobian is
        bounded by interval arithmetic from the output back, the part that passes known slopes
        only staying a number.
    Sound: yes. Exact: no. Never above interval arithmetic, whose stable neurons stay stable.
    Reference: Weng et al., ICML 2018, section 3.4 (Fast-Lip), section 3.3 (Fast-Lin).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.forward.preactivations import preactivation_rows
from lipschitz.bounds.native.interval import (
    ForwardIntervals,
    Interval,
    forward_intervals,
    jacobian_interval,
    slope_intervals,
)
from lipschitz.bounds.native.lines import Lines, activation_lines
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Exactness, Plan
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.network.activations import Activation
from lipschitz.problem import LocalProblem


def parallel_lines(activation: Activation, preact: Interval) -> Lines:
    """Fast-Lin's lines: for ReLU the chord above, and its parallel through the origin below.

    For other activations the line above that leaves the least area, and its parallel below.

    Args:
        activation: The activation.
        preact: Interval [1, *shape].
    """
    lines = activation_lines(activation, preact)
    chord = lines.lower_slope + lines.slope_gap
    return activation_lines(activation, preact, lower_slope=chord)


def fastlin_preactivations(
    plan: Plan, lower: Tensor, upper: Tensor, intervals: ForwardIntervals, budget: int
) -> dict[int, Interval]:
    """Pre-activation intervals by Fast-Lin.

    Neurons that interval arithmetic proves stable keep its bounds.

    Args:
        plan: The graph.
        lower, upper: The box, [1, *input_shape].
        intervals: Interval bounds over the box.
        budget: Bytes for rows.

    Returns:
        Interval by activation node, [1, *shape].
    """
    preacts: dict[int, Interval] = {}
    lines: dict[int, Lines] = {}
    for activation in plan.activations:
        node = plan.preact_node(activation)
        bounds = intervals.bounds[node]
        own = plan.graph.nodes[activation].activation
        mask = own.is_open(*bounds)
        indices = needed_indices(mask)
        if len(indices) and plan.value_exactness[node] is Exactness.LOOSE:
            rows = preactivation_rows(plan, activation, indices, lines, lower, upper, budget)
            margin = intervals.rounding[node].flatten(1)[:, indices]
            bounds = place(bounds, rows + margin, indices, mask)
        preacts[activation] = bounds
        lines[activation] = parallel_lines(own, bounds)
    return preacts


@torch.no_grad()
def fastlip_bound(problem: LocalProblem, *, memory_budget: int | None = None) -> Tensor:
    """Upper bound of the problem's norm over the box for every row, [R], or all together, [1].

    Args:
        problem: What to bound.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
    """
    graph = problem.graph
    plan = Plan(graph)
    budget = memory_budget or default_memory_budget(graph.device)
    lower, upper = problem.lower[None], problem.upper[None]
    intervals = forward_intervals(graph, lower, upper)
    slopes = slope_intervals(graph, fastlin_preactivations(plan, lower, upper, intervals, budget))
    entries = jacobian_interval(graph, problem.rows, slopes)
    return problem.measure.upper_bound(*entries)
