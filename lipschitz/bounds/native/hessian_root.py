"""Bounds of a problem's Hessians over its whole box, before any branching.

First-order intervals come from the engine of gradients, optimised; the terms of the second order
from affine forms and backward rows, as far as their counted cost allows. What is too costly is left
out, down to interval arithmetic, and nothing is ever looser for what was tried.

Shapes: R rows, V directions, D inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.curvature import HessianTerms, nonlinear_nodes
from lipschitz.bounds.native.hessian_matrices import matrix_bound
from lipschitz.bounds.native.hessian_norms import symmetric
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.terms.linear import ONE_PASS, PlaneSearch
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem

STAGE = "bounds of the Hessian"
# Numbers that affine forms and backward rows of one problem may take. Choices: up to half a minute
# on one core each.
_LARGEST_FORWARD, _LARGEST_ROWS = 10**9, 10**9
# Affine forms take so many times what interval arithmetic does, at least. A guess, as measured on
# small networks.
_TIMES_OF_FORMS = 10
# Inputs up to which affine forms of whole matrices are looked at together. A choice: their numbers
# grow with its cube.
_LARGEST_MATRIX = 128
# Numbers of rows whose weights are optimised, which costs about a hundred times as much.
_LARGEST_OPTIMISED = 2 * 10**6


def first_order(
    problem: LocalProblem, terms: HessianTerms, *, optimize: bool, clock: Clock = UNLIMITED
) -> dict[int, Interval]:
    """Intervals of pre-activations and cotangents by term, [1 or R, *shape]."""
    budget = terms.budget
    if optimize:  # the norm of the gradient is not asked for
        root = native_alpha(problem, memory_budget=budget, clock=clock, planes=False)
    else:
        root = native_crown(problem, memory_budget=budget, clock=clock)
    return terms.first.known(root.preacts, root.norm.cotangents)


class RootProducts:
    """Bounds of ``H_r(x) v`` over the box of a problem.

    Args:
        problem: What to bound.
        terms: Of its graph; None if the network is affine.
        known: First-order intervals by term, [1 or R, *shape].
        clock: When to stop; what was not reached is infinity.
        optimize: Optimise weights and slopes where that is cheap.
    """

    def __init__(
        self,
        problem: LocalProblem,
        terms: HessianTerms,
        known: dict[int, Interval],
        *,
        clock: Clock = UNLIMITED,
        optimize: bool = True,
    ) -> None:
        self.problem, self.terms, self.known = problem, terms, known
        self.clock, self.optimize = clock, optimize
        self.box = Interval(problem.lower[None], problem.upper[None])

    def _search(self, rows: int) -> PlaneSearch:
        few = rows * self.terms.size <= _LARGEST_OPTIMISED
        return PlaneSearch() if self.optimize and few else ONE_PASS

    def _known(self, rows: Tensor) -> dict[int, Interval]:
        """The first-order intervals of chosen rows."""
        return {
            i: Interval(*(end if len(end) == 1 else end[rows] for end in bounds))
            for i, bounds in self.known.items()
        }

    def entries(self, directions: Tensor) -> Interval:
        """Intervals of every entry of every product, [R, V, *input_shape].

        Where time is limited, interval arithmetic comes first; what it does not reach is infinity.

        Args:
            directions: [V, *input_shape].
        """
        problem, terms, shape = self.problem, self.terms, self.problem.centre.shape
        count, many = len(problem.rows), len(directions)
        total, each = count * many, 2 * problem.centre.numel()
        forward = total * terms.forward_cost() <= _LARGEST_FORWARD
        backward = total * each * terms.size <= _LARGEST_ROWS
        search = self._search(total * each)
        at = torch.arange(total, device=directions.device)
        ends = [directions.new_full((total, *shape), end) for end in (-torch.inf, torch.inf)]
        passes, first = [(forward, backward)], self.clock.is_limited and (forward or backward)
        if first:
            passes.insert(0, (False, False))
            begin = self.clock.now()
        for by_forms, by_rows in passes:
            if first and by_forms:
                least = _TIMES_OF_FORMS * (self.clock.now() - begin)
                if not self.clock.allows(least):
                    self.clock.miss(STAGE)
                    break
            for part in terms.chunks(total, forward=by_forms, clock=self.clock, stage=STAGE):
                row, direction = at[part] // many, at[part] % many
                arguments = (problem.rows[row], directions[direction], self._known(row))
                found = terms.over(self.box, *arguments, forward=by_forms)
                lower, upper = (
                    found.linear_entries(search, self.clock) if by_rows else found.entries
                )
                ends[0][part] = torch.fmax(ends[0][part], lower)
                ends[1][part] = torch.fmin(ends[1][part], upper)
        return Interval(*(end.reshape(count, many, *shape) for end in ends))

    def hessians(self) -> Interval:
        """Intervals of every entry of every row's Hessian, [R, D, D]."""
        shape = self.problem.centre.shape
        count = shape.numel()
        unit = torch.eye(count, dtype=self.problem.rows.dtype, device=self.problem.rows.device)
        found = self.entries(unit.reshape(count, *shape))
        return Interval(*symmetric(*(end.flatten(2) for end in found)))

    def norms(self, rows: Tensor, directions: Tensor, measure: Measure) -> Tensor:
        """Upper bounds of the norm of ``H_r(x) v`` for pairs of a row and a direction, [B].

        Args:
            rows: Rows of the problem, [B] integers.
            directions: [B, *input_shape].
            measure: The norm.
        """
        terms, total = self.terms, len(rows)
        forward = total * terms.forward_cost() <= _LARGEST_FORWARD
        search = self._search(total)
        bounds = directions.new_full((total,), torch.inf)
        for part in terms.chunks(total, forward=forward, clock=self.clock, stage=STAGE):
            arguments = (self.problem.rows[rows[part]], directions[part], self._known(rows[part]))
            found = terms.over(self.box, *arguments, forward=forward)
            bounds[part] = found.norm(measure, found.entries, search, self.clock)
        return bounds

    def matrices(self) -> Tensor:
        """Upper bounds of the norm of every row's Hessian, from all entries at once, [R].

        Infinity where that is too costly or the time did not suffice. Norms ``2`` and ``inf``.
        """
        problem, terms = self.problem, self.terms
        count, inputs = len(problem.rows), problem.centre.numel()
        bounds = problem.rows.new_full((count,), torch.inf)
        if inputs * terms.forward_cost() * count > _LARGEST_FORWARD or inputs > _LARGEST_MATRIX:
            return bounds
        rows = torch.arange(count, device=bounds.device)
        step = max(1, terms.at_once(forward=True) // inputs)
        for part in self.clock.growing(count, 1, step, STAGE):
            arguments = (self.box, problem.rows[part], self._known(rows[part]))
            bounds[part] = matrix_bound(terms, problem.norm, *arguments)[0]
        return bounds


def is_affine(problem: LocalProblem) -> bool:
    """Whether the output is an affine function of the input, so that every Hessian is zero."""
    return not nonlinear_nodes(problem.graph)
