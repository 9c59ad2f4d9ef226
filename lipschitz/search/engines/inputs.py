"""Branch and bound by cutting the input box itself, for networks with few inputs.

A subdomain is a smaller box, bounded from scratch by CROWN. Where activations are curved planes
bound it, over intervals from affine forms carried forward if that costs less; their weights are not
optimised, since both factors' intervals shrink with the box, and time is better spent on another
bisection. The relaxations vanish with the box.

Boxes get small only if there are few inputs, so beyond a handful of them splitting neurons and
entries (:mod:`lipschitz.search.engines.neurons`) is the better search. A box on which the bound
depends on no open slope is a leaf: its gradient is the same everywhere, so the bound is attained.

Shapes: B boxes, D inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.norm_bounds import NormBounds, norm_bounds
from lipschitz.bounds.native.forward.preactivations import preactivation_bounds
from lipschitz.bounds.native.interval import Interval, forward_intervals, slope_intervals
from lipschitz.bounds.native.joint import JointBound
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.terms.gradient import GradientTerms, has_curves
from lipschitz.bounds.native.terms.linear import ONE_PASS
from lipschitz.bounds.witness import witness_norms
from lipschitz.problem import LocalProblem
from lipschitz.search.interface import Report
from lipschitz.search.subdomains import Batch, concatenate


@dataclass(frozen=True)
class Boxes(Batch):
    """B boxes.

    Attributes:
        lower, upper: Their corners, [B, D].
    """

    lower: Tensor
    upper: Tensor


def whole_boxes(problem: LocalProblem, bounds: Tensor) -> Boxes:
    """The whole box of a problem, once for every bound [S]; what is cut is to be chosen."""
    row = torch.arange(len(bounds), device=bounds.device)
    lower, upper = (
        end.flatten().expand(len(bounds), -1).clone() for end in (problem.lower, problem.upper)
    )
    return Boxes(row, bounds, row, lower, upper)


def halves(parents: Boxes) -> Boxes:
    """Both closed halves of every box, cut at its choice; they still have their parents' bounds."""
    both = concatenate([parents, parents])
    count = len(parents)
    at = torch.arange(count, device=parents.row.device)
    middle = ((parents.lower + parents.upper) / 2)[at, parents.choice]
    both.upper[at, parents.choice] = middle
    both.lower[at + count, parents.choice] = middle
    return both


class InputSearch:
    """What branch and bound asks of an engine, by bisection of the input box.

    Args:
        problem: The problem.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop; what is not reached in a box is as loose as interval arithmetic.
    """

    def __init__(
        self,
        problem: LocalProblem,
        *,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> None:
        self.problem, self.plan = problem, Plan(problem.graph)
        self.clock = clock.without_notes()
        self._terms = GradientTerms(problem.graph) if has_curves(problem.graph) else None
        self.budget = memory_budget or default_memory_budget(problem.graph.device)
        unknown = torch.full_like(problem.rows[:, 0], torch.inf)
        self.first = self._bounded(whole_boxes(problem, unknown))

    def root(self) -> Boxes:
        """One subdomain per row of the problem: the whole box."""
        return self.first

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.problem.graph.input_shape)

    def _bounded(self, boxes: Boxes) -> Boxes:
        rows = self.problem.rows[boxes.row]
        lower, upper = self._shaped(boxes.lower), self._shaped(boxes.upper)
        bounded = self._by_chords if self._terms is None else self._by_planes
        preacts, norm = bounded(rows, lower, upper)
        slopes = slope_intervals(self.problem.graph, preacts)
        bound = self._objective(boxes, slopes, norm)
        # Score of an input: the edge of the box times how far the entries vary, its own counted
        # twice. It is 0 where no entry varies, which is a leaf: one gradient everywhere.
        spread = (norm.entries.upper - norm.entries.lower).flatten(1)
        width = boxes.upper - boxes.lower
        weight = width * (spread.sum(1, keepdim=True) + spread)
        middle = (boxes.lower + boxes.upper) / 2
        divisible = (middle > boxes.lower) & (middle < boxes.upper)
        best, choice = weight.masked_fill(~divisible, 0).max(dim=1)
        bound = torch.where(bound.isnan(), boxes.upper_bound, bound)
        return boxes.having(
            upper_bound=torch.minimum(bound, boxes.upper_bound),
            choice=choice.masked_fill(best <= 0, -1),
        )

    def _by_chords(
        self, rows: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[dict[int, Interval], NormBounds]:
        """Pre-activation intervals and bounds of the Jacobian by CROWN."""
        graph, plan = self.problem.graph, self.plan
        intervals = forward_intervals(graph, lower, upper)
        preacts = preactivation_bounds(
            plan, lower, upper, intervals, budget=self.budget, clock=self.clock.part(0.5)
        )
        norm = norm_bounds(
            plan,
            rows,
            slope_intervals(graph, preacts),
            budget=self.budget,
            tighten=True,
            measure=self.problem.measure,
            clock=self.clock,
        )
        return preacts, norm

    def _by_planes(
        self, rows: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[dict[int, Interval], NormBounds]:
        """The same by planes, and by affine forms instead of CROWN where these cost less."""
        source, known = self._terms, None
        preacts: dict[int, Interval] = {}
        if not source.is_carried_forward:
            preacts, known = self._by_chords(rows, lower, upper)
            if self.clock.is_over:
                return preacts, known
        cotangents = {} if known is None else known.cotangents
        joint = JointBound(
            source, rows, lower, upper, preacts, cotangents, ONE_PASS, self.budget, self.clock
        )
        norm = joint.norm(self.problem.measure.each, known)
        return source.preacts(joint.intervals.bounds), norm

    def _objective(self, boxes: Boxes, slopes: dict[int, Interval], norm: NormBounds) -> Tensor:
        """Upper bound of what is searched, [B]: here the norm."""
        return norm.upper_bound

    def children(self, parents: Boxes) -> Boxes:
        """Both closed halves of every box, bounded."""
        return self._bounded(halves(parents))

    def refine(self, subdomains: Boxes, threshold: float = 0.0) -> Report:
        """The centres as candidates for witnesses; boxes are as tight as they get."""
        return Report(subdomains, self._centres(subdomains), subdomains.row)

    def settle(self, leaves: Boxes) -> Report:
        """Leaves are attained at their centres, or too small to divide."""
        return Report(leaves.take(slice(0, 0)), self._centres(leaves), leaves.row, 0, leaves)

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True gradient norms, see :func:`lipschitz.bounds.witness.witness_norms`."""
        return witness_norms(self.problem, points, rows)

    def _centres(self, boxes: Boxes) -> Tensor:
        return self._shaped((boxes.lower + boxes.upper) / 2)
