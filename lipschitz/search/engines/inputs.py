"""Branch and bound by cutting the input box itself, for networks with few inputs.

A subdomain is a smaller box, bounded from scratch by CROWN, where activations are curved by planes.
The relaxations vanish with the box.

With few inputs and curved activations affine forms take CROWN's place
(:mod:`lipschitz.search.engines.curved_boxes`). That search computes in float64, whatever the
network's precision: in float32 the margins for rounding alone hold a gap of 1e-4 open. A few boxes
of every round are tested for inputs along which the norm only rises or falls
(:mod:`lipschitz.search.engines.trends`), and now and then the best points are climbed from
(:mod:`lipschitz.search.engines.climbing`).

Boxes get small only if there are few inputs, so beyond a handful of them splitting neurons and
entries (:mod:`lipschitz.search.engines.neurons`) is the better search. A box on which the bound
depends on no open slope is a leaf: its gradient is the same everywhere, so the bound is attained.

Shapes: B boxes, D inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.lower.attack import Attack
from lipschitz.bounds.native.backward.norm_bounds import NormBounds, norm_bounds
from lipschitz.bounds.native.forward.preactivations import preactivation_bounds
from lipschitz.bounds.native.interval import Interval, forward_intervals, slope_intervals
from lipschitz.bounds.native.joint import JointBound
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_bounds import WindowFacts
from lipschitz.bounds.native.terms.gradient import GradientTerms, has_curves
from lipschitz.bounds.native.terms.linear import ONE_PASS
from lipschitz.bounds.witness import witness_norms
from lipschitz.problem import LocalProblem
from lipschitz.search.engines.climbing import climb, steepest
from lipschitz.search.engines.curved_boxes import BoxBounds, CurvedBoxes
from lipschitz.search.engines.trends import Effort, Trends, hessian_terms
from lipschitz.search.interface import Report
from lipschitz.search.subdomains import Batch, concatenate

# Boxes of a round whose centres are climbed from. A choice; only speed depends on it.
_CLIMBERS = 4


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


def in_precision_of_boxes(problem: LocalProblem) -> LocalProblem:
    """The problem as boxes are bounded: in float64 where affine forms are carried forward."""
    if not _has_planes(problem) or not GradientTerms(problem.graph).is_carried_forward:
        return problem
    return problem if problem.graph.dtype == torch.float64 else problem.to(torch.float64)


def _has_planes(problem: LocalProblem) -> bool:
    return bool(problem.graph.product_nodes) or has_curves(problem.graph)


class InputSearch:
    """What branch and bound asks of an engine, by bisection of the input box.

    Args:
        problem: The problem.
        known: Upper bounds of the whole box that are known, [R]; none if None.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop; what is not reached in a box is as loose as interval arithmetic, or as
            its parent.

    Attributes:
        asked: The problem as it was given; points are of its precision.
        problem: The problem in the precision in which boxes are bounded.
        attack: What looks for large gradients beside the search; None if nothing does.
    """

    def __init__(
        self,
        problem: LocalProblem,
        known: Tensor | None = None,
        *,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> None:
        self.asked, self.clock = problem, clock.without_notes()
        self.attack: Attack | None = None
        self.problem = problem = in_precision_of_boxes(problem)
        graph = problem.graph
        self.plan = None if graph.product_nodes else Plan(graph)
        self._terms = GradientTerms(graph) if _has_planes(problem) else None
        self.budget = memory_budget or default_memory_budget(graph.device)
        self._curved: CurvedBoxes | None = None
        self._trends: Trends | None = None
        self._effort, self._rounds = Effort(), 0
        if self._terms is not None and self._terms.is_carried_forward:
            self._curved = CurvedBoxes(self._terms, problem.measure.each, self.budget)
            self._hessians = hessian_terms(graph, self.budget)
            if self._hessians is not None and self._has_trends:
                whole = problem.lower.flatten(), problem.upper.flatten()
                weights = self._weights(torch.arange(len(problem.rows), device=graph.device))
                self._trends = Trends(self._hessians, whole, problem.measure.each, weights)
        else:
            self._hessians = None
        if known is None:
            known = torch.full_like(problem.rows[:, 0], torch.inf)
        self.first = self._bounded(whole_boxes(problem, known.to(problem.rows)))

    def root(self) -> Boxes:
        """One subdomain per row of the problem: the whole box."""
        return self.first

    @property
    def is_smooth(self) -> bool:
        """Whether affine forms bound the boxes and no slope jumps, so that every gap closes."""
        return self._hessians is not None

    @property
    def _has_trends(self) -> bool:
        """Whether what is searched is a linear functional, or one where entries keep their sign."""
        return self.problem.norm == "inf"

    def _weights(self, rows: Tensor) -> Tensor | None:
        """Weights of the functional that is searched instead of the norm, [B, D]."""
        return None

    def _direction(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Of gradients [P, D], the direction in which they count."""
        return steepest(self.problem.measure.each)

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.problem.graph.input_shape)

    def _bounded(self, boxes: Boxes) -> Boxes:
        if self._curved is None:
            return self._bounded_at_once(boxes)
        share = (boxes.upper - boxes.lower) / self._edges
        found = boxes.having(choice=_chosen(boxes, share), upper_bound=boxes.upper_bound.clone())
        for part in self.clock.growing(len(boxes), self._curved.at_first, self._curved.at_once):
            new = self._bounded_at_once(boxes.take(part))
            found.upper_bound[part], found.choice[part] = new.upper_bound, new.choice
        return found

    @property
    def _edges(self) -> Tensor:
        """Of the whole box, [D], never 0."""
        width = (self.problem.upper - self.problem.lower).flatten()
        return torch.where(width > 0, width, 1.0)

    def _bounded_at_once(self, boxes: Boxes) -> Boxes:
        rows = self.problem.rows[boxes.row]
        lower, upper = self._shaped(boxes.lower), self._shaped(boxes.upper)
        if self._curved is not None:
            weights = self._weights(boxes.row)
            weights = None if weights is None else self._shaped(weights)
            found = self._curved(rows, lower, upper, self.clock, weights)
        else:
            bounded = self._by_chords if self._terms is None else self._by_planes
            found = BoxBounds(*bounded(rows, lower, upper))
        slopes = slope_intervals(self.problem.graph, found.preacts)
        bound = self._objective(boxes, slopes, found.norm)
        bound = torch.where(bound.isnan(), boxes.upper_bound, bound)
        width = boxes.upper - boxes.lower
        weight = found.influence(width / self._edges)
        if weight is None:
            # Score of an input: the edge of the box times how far the entries vary, its own counted
            # twice. It is 0 where no entry varies, which is a leaf: one gradient everywhere.
            spread = (found.norm.entries.upper - found.norm.entries.lower).flatten(1)
            weight = width * (spread.sum(1, keepdim=True) + spread)
        return boxes.having(
            upper_bound=torch.minimum(bound, boxes.upper_bound), choice=_chosen(boxes, weight)
        )

    def _by_chords(
        self, rows: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[dict[int, Interval], NormBounds]:
        """Pre-activation intervals and bounds of the Jacobian by CROWN."""
        graph, plan = self.problem.graph, self.plan
        intervals = forward_intervals(graph, lower, upper)
        windows: dict[int, WindowFacts] = {}
        preacts = preactivation_bounds(
            plan,
            lower,
            upper,
            intervals,
            budget=self.budget,
            clock=self.clock.part(0.5),
            windows=windows,
        )
        norm = norm_bounds(
            plan,
            rows,
            slope_intervals(graph, preacts),
            budget=self.budget,
            tighten=True,
            measure=self.problem.measure,
            clock=self.clock,
            windows=windows,
        )
        return preacts, norm

    def _by_planes(
        self, rows: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[dict[int, Interval], NormBounds]:
        """The same by planes, after CROWN where there are no products."""
        source, known = self._terms, None
        preacts: dict[int, Interval] = {}
        if self.plan is not None:
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
        """Both closed halves of every box, or the side of it that matters, bounded."""
        sides, parents = self._on_sides(parents)
        return self._bounded(concatenate([*sides, halves(parents)]))

    def _on_sides(self, parents: Boxes) -> tuple[list[Boxes], Boxes]:
        """Of the first boxes, the sides that hold their largest values; and all the others."""
        sides, others = [], parents

        def test(count: int) -> int:
            nonlocal others
            first = parents.take(slice(0, count))
            directions = self.problem.rows[first.row]
            lower, upper, empty = self._trends.sides(
                first.row, directions, first.lower, first.upper
            )
            shorter = empty | ((lower != first.lower) | (upper != first.upper)).any(1)
            sides.append(first.having(lower=lower, upper=upper).take(shorter & ~empty))
            others = concatenate([first.take(~shorter), parents.take(slice(count, None))])
            return int(shorter.sum())

        if self._trends is not None and not self.clock.is_over:
            self._effort.run(len(parents), test)
        return sides, others

    def refine(self, subdomains: Boxes, threshold: float = 0.0) -> Report:
        """Centres, and points uphill from them, as candidates for witnesses.

        Boxes are as tight as they get.
        """
        points, rows = self._centres(subdomains), subdomains.row
        self._rounds += 1
        if self._hessians is not None and self._rounds & (self._rounds - 1) == 0:
            first = subdomains.take(slice(0, _CLIMBERS))
            ends = self.problem.lower, self.problem.upper
            start = self._shaped((first.lower + first.upper) / 2)
            directions = self.problem.rows[first.row]
            found = climb(self._hessians, directions, start, *ends, self._direction(first.row))
            points = torch.cat([points, found.to(points)])
            rows = torch.cat([rows, first.row])
        return Report(subdomains, points, rows)

    def settle(self, leaves: Boxes) -> Report:
        """Leaves are attained at their centres, or too small to divide."""
        return Report(leaves.take(slice(0, 0)), self._centres(leaves), leaves.row, 0, leaves)

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True gradient norms, see :func:`lipschitz.bounds.witness.witness_norms`."""
        return witness_norms(self.asked, points, rows)

    def _centres(self, boxes: Boxes) -> Tensor:
        return self._shaped((boxes.lower + boxes.upper) / 2).to(self.asked.centre)


def _chosen(boxes: Boxes, weight: Tensor) -> Tensor:
    """The input of the largest weight [B, D] that can be divided, -1 if there is none."""
    middle = (boxes.lower + boxes.upper) / 2
    divisible = (middle > boxes.lower) & (middle < boxes.upper)
    best, choice = weight.masked_fill(~divisible, 0).max(dim=1)
    return choice.masked_fill(best <= 0, -1)
