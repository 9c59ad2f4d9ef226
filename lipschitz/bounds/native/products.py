"""Bounds of networks with products of two values: attention, gates, norms, closed loops.

Their slopes are values of the network themselves, so there is no pass of their own: values and
derivatives are one graph (:mod:`lipschitz.network.derivative`), and planes around its products are
all that is needed (:mod:`lipschitz.bounds.native.joint`).

Everything is computed in float64. On small boxes rounding guards of float32 are as large as the
intervals, and every product multiplies them: on a vision transformer of two blocks, pixels within
1/2550, the bound was up to 1.8 times that of float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.joint import JointBound
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.native.terms.linear import ONE_PASS, PlaneSearch
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound, rounded_up


@torch.no_grad()
def product_bounds(
    problem: LocalProblem,
    *,
    search: PlaneSearch = ONE_PASS,
    memory_budget: int | None = None,
    clock: Clock = UNLIMITED,
) -> RootBounds:
    """Upper bound of the problem's norm over the box, for every row or all together, by planes.

    Args:
        problem: What to bound.
        search: How weights and slopes are optimised.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop. What was not reached then is as loose as interval arithmetic.

    Returns:
        The bounds, in the dtype of the problem; never above those of interval arithmetic.

    Raises:
        InputError: A function's argument may reach where the function is not defined.
    """
    exact, dtype = problem.to(torch.float64), problem.rows.dtype
    joint = JointBound(
        exact.graph,
        exact.rows,
        exact.lower[None],
        exact.upper[None],
        {},
        {},
        search,
        memory_budget or default_memory_budget(exact.graph.device),
        clock,
    )
    norm = joint.norm(exact.measure.each)
    bounds = joint.intervals.bounds
    preacts = {a: _rounded(i, dtype) for a, i in joint.source.preacts(bounds).items()}
    rows = NormBounds(
        raise_upper_bound(rounded_up(norm.upper_bound, dtype)),
        _rounded(norm.entries, dtype),
        {a: _rounded(i, dtype) for a, i in norm.cotangents.items()},
        {},
    )
    together = raise_upper_bound(rounded_up(_of_all_rows(exact, norm), dtype))
    return RootBounds(together, preacts, rows, joint=joint)


def _of_all_rows(problem: LocalProblem, norm: NormBounds) -> Tensor:
    """What bounds of the rows make of the problem, [R], or [1] of all rows together."""
    if not problem.measure.joint:
        return norm.upper_bound
    bound = problem.measure.upper_bound(*norm.entries)
    if problem.norm == "2":
        frobenius = raise_upper_bound(torch.linalg.vector_norm(norm.upper_bound))
        bound = torch.minimum(bound, frobenius)
    return bound


def _rounded(interval: Interval, dtype: torch.dtype) -> Interval:
    """The same or a wider interval in another dtype."""
    return Interval(-rounded_up(-interval.lower, dtype), rounded_up(interval.upper, dtype))
