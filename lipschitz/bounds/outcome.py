"""What a method returns that finds more than upper bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.global_norm import global_norm_bound
from lipschitz.bounds.native.interval import interval_norm_bound
from lipschitz.bounds.true_gradients import GradientNorms
from lipschitz.problem import BOUND, INTERRUPTED, LocalProblem
from lipschitz.rounding import raise_upper_bound


@dataclass(frozen=True)
class Outcome:
    """Bounds of every row of a problem, and how they came about.

    Attributes:
        class_upper_bounds: Certified upper bound per row, [R]; infinity from a method that
            certifies none.
        found: True gradients that the method found, or None if it does not look for any.
        root_upper_bounds: What they were before any search, [R]; the same if None.
        status: ``bound``, ``timeout``, ``domain_limit``, ``interrupted`` or
            ``lower_bound_only``; whether the bounds meet is for the caller to see.
        domains: Subproblems bounded.
        leaves_checked: Activation regions checked by a linear program.
        solver_gap: How far, relatively, the largest bound may be above the optimum of the program
            that it is from; None where there is no such program.
    """

    class_upper_bounds: Tensor
    found: GradientNorms | None = None
    root_upper_bounds: Tensor | None = None
    status: str = BOUND
    domains: int = 0
    leaves_checked: int = 0
    solver_gap: float | None = None


def better(first: GradientNorms, second: GradientNorms) -> GradientNorms:
    """The larger norm of each row with its witness."""
    wins = second.norms > first.norms
    shape = (-1, *[1] * (first.witnesses.dim() - 1))
    return GradientNorms(
        torch.where(wins, second.norms, first.norms),
        torch.where(wins.reshape(shape), second.witnesses, first.witnesses),
    )


def nothing_found(problem: LocalProblem) -> GradientNorms:
    """Where no gradient has been computed yet: norms of 0, which nobody has to attain."""
    rows, shape = problem.rows, problem.centre.shape
    return GradientNorms(torch.zeros_like(rows[:, 0]), problem.centre.expand(len(rows), *shape))


@torch.no_grad()
def interrupted_at_once(problem: LocalProblem, *, everywhere: bool) -> Outcome:
    """The certified bounds of what Ctrl-C ended before it had any of its own.

    Args:
        problem: What to bound.
        everywhere: They have to hold for all inputs: the product of norms. In the box alone they
            are those of interval arithmetic.
    """
    if everywhere:
        bounds = global_norm_bound(problem.graph, problem.rows, problem.measure)
    else:
        bounds = interval_norm_bound(
            problem.graph, problem.lower, problem.upper, problem.rows, problem.measure
        )
    return Outcome(raise_upper_bound(bounds), nothing_found(problem), status=INTERRUPTED)
