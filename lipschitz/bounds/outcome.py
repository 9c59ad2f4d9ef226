"""What a method returns that finds more than upper bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.global_norm import global_norm_bound
from lipschitz.bounds.native.terms.jacobian import interval_bound
from lipschitz.bounds.true_gradients import GradientNorms
from lipschitz.errors import InputError
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound
from lipschitz.words import BOUND, INTERRUPTED, LOWER_BOUND_ONLY, TIMEOUT


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
        not_reached: What the time did not suffice for, in words.
    """

    class_upper_bounds: Tensor
    found: GradientNorms | None = None
    root_upper_bounds: Tensor | None = None
    status: str = BOUND
    domains: int = 0
    leaves_checked: int = 0
    solver_gap: float | None = None
    not_reached: tuple[str, ...] = ()


# Bounds one problem: upper bound per row, [R], or of all rows together, [1]; or these and what else
# the method found.
Bounder = Callable[[LocalProblem], "Tensor | Outcome"]


def in_time(class_upper_bounds: Tensor, clock: Clock) -> Outcome:
    """Bounds of a method that finds nothing else, with what its clock has noted."""
    status = TIMEOUT if clock.missed else BOUND
    return Outcome(class_upper_bounds, status=status, not_reached=clock.not_reached)


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
        bounds = interval_bound(
            problem.graph, problem.lower, problem.upper, problem.rows, problem.measure
        )
    return Outcome(raise_upper_bound(bounds), nothing_found(problem), status=INTERRUPTED)


def run_bounder(bounder: Bounder, problem: LocalProblem) -> Outcome:
    """What a method finds, refused if its upper bounds are not numbers.

    Raises:
        InputError: A bound is NaN, or infinite from a method that should certify one.
    """
    found = bounder(problem)
    outcome = found if isinstance(found, Outcome) else Outcome(found)
    bounds = outcome.class_upper_bounds
    lower_only = outcome.status == LOWER_BOUND_ONLY and not bool(bounds.isnan().any())
    if not lower_only and not bool(torch.isfinite(bounds).all()):
        raise InputError(
            "the bound is not a finite number: the network's values overflow on this box; "
            "use --dtype float64 or a smaller eps"
        )
    return outcome


def class_upper_bounds(bounder: Bounder, problem: LocalProblem) -> Tensor:
    """A method's upper bounds [R], refused if they are not numbers.

    Raises:
        InputError: As :func:`run_bounder`.
    """
    return run_bounder(bounder, problem).class_upper_bounds
