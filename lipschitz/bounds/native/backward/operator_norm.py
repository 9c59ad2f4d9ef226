"""From bounds of every row of the Jacobian to the bounds of a problem in its norm.

Each row by itself is done with once its norm is bounded; the operator norm of several rows
together has more than one bound, and the least counts:

- L1, the largest column sum: from the entries' magnitudes, or columns jointly by
  :mod:`lipschitz.bounds.native.backward.tangents`;
- L2, the largest singular value: of the entries' magnitudes, or of their centres plus their radii;
  the Frobenius norm from the rows' l2 bounds; ``sqrt(||J||_1 ||J||_inf)``; the centres one layer
  earlier plus ``||A||_2`` times their radii (:mod:`lipschitz.bounds.native.backward.first_layer`);
- both: the product of the layers' norms.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.global_norm import global_norm_bound
from lipschitz.bounds.native.backward.norm_node import norm_node
from lipschitz.bounds.native.backward.spectral import spectral_bounds
from lipschitz.bounds.native.backward.tangents import column_sums
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import product_lines
from lipschitz.bounds.native.plan import Plan
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound

STAGE = "operator norms"


def problem_bounds(
    plan: Plan,
    problem: LocalProblem,
    slopes: dict[int, Interval],
    row_bounds: Tensor,
    entries: Interval,
    cotangents: dict[int, Interval],
    budget: int,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Upper bounds of a problem: one per row, or one of all rows together.

    Args:
        plan: The graph.
        problem: What to bound.
        slopes: Slope interval by activation node, [1, *shape].
        row_bounds: Upper bound of every row's norm, [R].
        entries: Intervals of the Jacobian, [R, *input_shape].
        cotangents: Interval of g by activation node, [R, *shape].
        budget: Bytes for rows.
        clock: When to stop; bounds that the time does not suffice for are left out.

    Returns:
        [R] or [1].
    """
    measure = problem.measure
    if measure.norm == "inf":
        return row_bounds
    if clock.is_over:
        clock.miss(STAGE)
        return (
            measure.upper_bound(*(e.flatten(1) for e in entries)) if measure.joint else row_bounds
        )
    everywhere = global_norm_bound(problem.graph, problem.rows, measure)
    if measure.norm == "2" and not clock.is_over:
        around = spectral_bounds(plan, problem, slopes, cotangents)
        everywhere = torch.minimum(everywhere, around)
    if not measure.joint:
        return torch.minimum(row_bounds, everywhere)
    sums, entries = column_sums(plan, problem, measure, slopes, entries, budget, clock.part(0.9))
    bound = torch.minimum(measure.upper_bound(*entries), everywhere)[0]
    if measure.norm == "1":
        return torch.minimum(bound, sums).reshape(1)
    frobenius = raise_upper_bound(torch.linalg.vector_norm(row_bounds))
    lines = {i: product_lines(g, slopes[i]) for i, g in cotangents.items()}
    absolute = replace(measure.each, norm="inf")
    row_sums, _ = norm_node(plan, absolute, problem.rows, entries, lines, cotangents, slopes, None)
    mixed = raise_upper_bound((sums * row_sums.max()).sqrt())
    return torch.minimum(torch.minimum(bound, frobenius), mixed).reshape(1)
