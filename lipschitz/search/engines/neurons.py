"""Bounds of subdomains for branch and bound, on plain batched tensor operations.

Children get the cheap bound of :mod:`lipschitz.search.subdomain_bounds.cheap`. A subdomain that has
reached the top of the pool after enough neuron splits is *refined*: CROWN bounds of
pre-activations, cotangents and entries under its splits, and a test whether its splits leave any
input.

Shapes: B subdomains, N neurons, D entries, as in :mod:`lipschitz.search.subdomains`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.feasibility.batched import search_feasible
from lipschitz.bounds.feasibility.by_program import check_leaf
from lipschitz.bounds.lower.attack import Attack
from lipschitz.bounds.native.backward.first_layer import FirstLayer
from lipschitz.bounds.native.backward.norm_bounds import norm_bounds
from lipschitz.bounds.native.interval import Interval, forward_intervals, slope_intervals
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.witness import witness_norms
from lipschitz.problem import LocalProblem
from lipschitz.search.heuristics import Chooser, SplitFacts
from lipschitz.search.interface import Report
from lipschitz.search.splits import closed_halves, implications
from lipschitz.search.subdomain_bounds.cheap import (
    VectorBound,
    preact_ancestors,
    tighten_cotangents,
    tighten_preacts,
    vector_bound,
)
from lipschitz.search.subdomain_bounds.constraints import SplitConstraints
from lipschitz.search.subdomain_bounds.full import DomainBounder
from lipschitz.search.subdomains import NeuronLayout, Subdomains, concatenate

# What the cheap bound of a child costs, in rows of a CROWN pass: an estimate. Recomputing intervals
# costs a row per unstable neuron and entry, so by default it is done after so many splits that both
# cost about the same. Only speed depends on it.
_ROWS_OF_A_CHEAP_BOUND = 15
# Largest number of coefficients (splits times inputs) of one subdomain for which contradictory
# splits are looked for in batches. A choice: beyond it only crossed intervals and the linear
# program of a leaf find them.
_LARGEST_CONSTRAINTS = 10**5


class NeuronSearch:
    """What branch and bound asks of the native engine, for one problem.

    Args:
        problem: The problem.
        root: Its root bounds.
        choose: Picks the variable to split.
        refresh_every: Neuron splits after which a subdomain's intervals are recomputed; 0 never,
            None by cost.
        feasibility_steps: Gradient steps of the batched feasibility test.
        beta_steps: Steps with which multipliers of the splits tighten recomputed intervals; 0
            leaves the splits out of them.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop; what is not recomputed or checked then stays as it is.

    Attributes:
        attack: What looks for large gradients beside the search; None if nothing does.
    """

    def __init__(
        self,
        problem: LocalProblem,
        root: RootBounds,
        choose: Chooser,
        *,
        refresh_every: int | None = None,
        feasibility_steps: int = 60,
        beta_steps: int = 0,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> None:
        self.clock = clock.without_notes()
        self.attack: Attack | None = None
        self._settings: dict[str, Any] = {
            "refresh_every": refresh_every,
            "feasibility_steps": feasibility_steps,
            "beta_steps": beta_steps,
            "memory_budget": memory_budget,
            "clock": clock,
        }
        self.problem, self.root_bounds, self.choose = problem, root, choose
        self.bounder = DomainBounder(
            problem, root, memory_budget=memory_budget, multiplier_steps=beta_steps, clock=clock
        )
        self.plan = self.bounder.plan
        self.layout = NeuronLayout(problem.graph, self.plan.activations)
        self.intervals = forward_intervals(problem.graph, self.bounder.lower, self.bounder.upper)
        self.ancestors = preact_ancestors(self.plan)
        self.first_layer = FirstLayer.of(self.plan, problem.measure)
        self.first = self._root_subdomains()
        first = (self.first.preact_lower[:1], self.first.preact_upper[:1])
        is_open = self.layout.is_open(*first)
        self.constraints = SplitConstraints(
            self.plan,
            self.layout,
            self.bounder.lower,
            self.bounder.upper,
            self.intervals,
            is_open[0],
            None if self.layout.splits_at_zero else first,
        )
        self.tests_feasibility = 0 < self.constraints.size() <= _LARGEST_CONSTRAINTS
        self.table = None
        if self.layout.splits_at_zero and self.constraints.has_small_first_layer():
            self.table = implications(*self.constraints.first_layer(), self.layout.total)
        self.feasibility_steps = feasibility_steps
        if refresh_every is None:
            rows = int(is_open.sum()) + problem.centre.numel()
            refresh_every = max(1, round(rows / _ROWS_OF_A_CHEAP_BOUND))
        self.refresh_every = refresh_every

    def rooted(self, root: RootBounds) -> NeuronSearch:
        """The same search, begun from other bounds of the whole box."""
        other = NeuronSearch(self.problem, root, self.choose, **self._settings)
        other.attack = self.attack
        return other

    def _root_subdomains(self) -> Subdomains:
        problem, root, layout = self.problem, self.root_bounds, self.layout
        count = len(problem.rows)
        like = problem.rows
        huge = torch.finfo(like.dtype).max ** 0.5  # for stable neurons: any number will do

        def cotangents(side: int) -> Tensor:
            default = huge if side else -huge
            parts = {
                i: root.norm.cotangents[i][side]
                if i in root.norm.cotangents
                else like.new_full((1, *shape), default)
                for i, shape in layout.shapes.items()
            }
            return layout.join(parts, count, like)

        index = torch.arange(count, device=like.device)
        preacts = [
            layout.join({i: root.preacts[i][side] for i in layout.slices}, count, like)
            for side in (0, 1)
        ]
        zeros = torch.zeros_like(index)
        entries = [end.reshape(count, -1) for end in root.norm.entries]
        subdomains = Subdomains(
            row=index,
            upper_bound=root.class_upper_bounds,
            preact_lower=preacts[0],
            preact_upper=preacts[1],
            cotangent_lower=cotangents(0),
            cotangent_upper=cotangents(1),
            entry_lower=entries[0],
            entry_upper=entries[1],
            entry_sign=torch.zeros_like(entries[0]),
            choice=zeros - 1,
            stale=zeros,
        )
        return self.evaluate(subdomains)

    def root(self) -> Subdomains:
        """One subdomain per row of the problem: the whole box."""
        return self.first

    def slopes(self, subdomains: Subdomains) -> dict[int, Interval]:
        """Slope interval by activation node, [B, *shape]."""
        return slope_intervals(self.problem.graph, self._preacts(subdomains))

    def _preacts(self, subdomains: Subdomains) -> dict[int, Interval]:
        return {
            i: Interval(
                self.layout.part(subdomains.preact_lower, i),
                self.layout.part(subdomains.preact_upper, i),
            )
            for i in self.layout.slices
        }

    def evaluate(self, subdomains: Subdomains) -> Subdomains:
        """The cheap bound: intervals, upper bound (never above the given one) and next choice."""
        plan, layout = self.plan, self.layout
        subdomains = tighten_preacts(plan, layout, self.ancestors, self.intervals, subdomains)
        slopes = self.slopes(subdomains)
        directions = self.problem.rows[subdomains.row]
        subdomains = tighten_cotangents(
            plan, layout, directions, slopes, subdomains, self.bounder.maxima.windows
        )
        return self._bounded(subdomains, slopes)

    def _vector_bound(self, subdomains: Subdomains, slopes: dict[int, Interval]) -> VectorBound:
        """Upper bound of what is searched: here the norm."""
        directions = self.problem.rows[subdomains.row]
        measure = self.problem.measure
        return vector_bound(
            self.plan,
            self.layout,
            directions,
            slopes,
            subdomains,
            measure,
            first=self.first_layer,
            windows=self.bounder.maxima.windows,
        )

    def _bounded(self, subdomains: Subdomains, slopes: dict[int, Interval]) -> Subdomains:
        lower, upper = subdomains.preact_lower, subdomains.preact_upper
        bound = self._vector_bound(subdomains, slopes)
        measure, curved = self.problem.measure, None
        if measure.is_curved:
            spread = measure.counted(subdomains.entry_upper - subdomains.entry_lower)
            curved = (spread > 0).any(1)
        choice = self.choose(
            SplitFacts(
                bound.coefficient,
                subdomains.cotangent_lower,
                subdomains.cotangent_upper,
                bound.slope_range,
                self.layout.is_open(lower, upper),
                bound.entry_gap,
                curved,
            )
        )
        # A bound that is not a number improves nothing; intervals are widened against rounding,
        # so a crossed one proves that no input is left.
        new = torch.where(bound.upper_bound.isnan(), subdomains.upper_bound, bound.upper_bound)
        new = torch.minimum(new, subdomains.upper_bound)
        new = new.masked_fill((lower > upper).any(1), -torch.inf)
        return subdomains.having(upper_bound=new, choice=choice)

    def children(self, parents: Subdomains) -> Subdomains:
        """Both closed halves of every parent, bounded."""
        if self.layout.splits_at_zero:
            return self.evaluate(closed_halves(parents, self.table))
        points = self.layout.split_points(parents.preact_lower, parents.preact_upper)
        return self.evaluate(closed_halves(parents, points=points))

    def refine(self, subdomains: Subdomains, threshold: float = 0.0) -> Report:
        """CROWN bounds and a feasibility test for subdomains with ``refresh_every`` new splits."""
        due = (subdomains.stale >= self.refresh_every) & (self.refresh_every > 0)
        if not bool(due.any()):
            return self._report(subdomains)
        fresh = self._recomputed(subdomains.take(due))
        points = rows = None
        if self.tests_feasibility:
            test = search_feasible(*self.constraints(fresh), steps=self.feasibility_steps)
            points, rows = self._inputs(test.point[test.found]), fresh.row[test.found]
            fresh = fresh.take(~test.empty)
        return self._report(concatenate([subdomains.take(~due), fresh]), points, rows)

    def _recomputed(self, subdomains: Subdomains) -> Subdomains:
        preacts = self.bounder.refreshed(self._preacts(subdomains))
        batch, like = len(subdomains), subdomains.preact_lower
        join = self.layout.join
        subdomains = subdomains.having(
            preact_lower=join({i: b.lower for i, b in preacts.items()}, batch, like),
            preact_upper=join({i: b.upper for i, b in preacts.items()}, batch, like),
            stale=torch.zeros_like(subdomains.stale),
        )
        slopes = self.slopes(subdomains)
        norm = norm_bounds(
            self.plan,
            self.problem.rows[subdomains.row],
            slopes,
            budget=self.bounder.budget,
            tighten=True,
            measure=self.problem.measure,
            clock=self.clock,
            windows=self.bounder.maxima.windows,
        )
        lower = join({i: norm.cotangents[i].lower for i in self.layout.slices}, batch, like)
        upper = join({i: norm.cotangents[i].upper for i in self.layout.slices}, batch, like)
        return self._bounded(
            subdomains.having(
                cotangent_lower=torch.maximum(subdomains.cotangent_lower, lower),
                cotangent_upper=torch.minimum(subdomains.cotangent_upper, upper),
                entry_lower=torch.maximum(subdomains.entry_lower, norm.entries.lower.flatten(1)),
                entry_upper=torch.minimum(subdomains.entry_upper, norm.entries.upper.flatten(1)),
            ),
            slopes,
        )

    def settle(self, leaves: Subdomains) -> Report:
        """Check the activation regions of leaves: in one batch, then by a linear program each.

        Args:
            leaves: Subdomains whose bound has no gap.

        Returns:
            What is left to search: nothing of an empty leaf; a leaf whose region is relaxed,
            because neurons that its bound does not need are open, with one of them to split.
        """
        if not self.layout.total:  # an affine network is one region
            return self._report(leaves.take(slice(0)), closed=leaves)
        lower, upper = leaves.preact_lower, leaves.preact_upper
        open_neuron = self.layout.is_open(lower, upper)
        points, rows = self._inputs(leaves.entry_lower[:0]), leaves.row[:0]
        empty = attained = torch.zeros_like(leaves.row, dtype=torch.bool)
        if self.tests_feasibility:
            test = search_feasible(*self.constraints(leaves), steps=4 * self.feasibility_steps)
            points, rows = self._inputs(test.point[test.found]), leaves.row[test.found]
            empty, attained = test.empty, test.found & self._attains(leaves, test.point)
        undecided = (~(empty | attained)).nonzero()[:, 0].tolist()
        empty, attained = empty.clone(), attained.clone()
        for index in self.clock.in_time(undecided):
            one = leaves.take(slice(index, index + 1))
            matrix, constant = self.constraints(one)
            verdict = check_leaf(matrix[0], constant[0], self.clock.left)
            empty[index] = verdict.empty
            if verdict.point is not None:
                point = verdict.point.to(matrix)[None]
                points = torch.cat([points, self._inputs(point)])
                rows = torch.cat([rows, one.row])
                attained[index] = self._attains(one, point)[0]
        closed = attained | ~open_neuron.any(1)
        points_of_split = self.layout.split_points(lower, upper)
        width = torch.minimum(points_of_split - lower, upper - points_of_split)
        choice = width.masked_fill(~open_neuron, -torch.inf).argmax(1)
        left = leaves.having(choice=choice).take(~(empty | closed))
        return self._report(left, points, rows, len(undecided), leaves.take(closed & ~empty))

    def _attains(self, leaves: Subdomains, points: Tensor) -> Tensor:
        """Whether the leaf's bound is, up to rounding, a true gradient's norm at the point, [B]."""
        norms = self.witness_norms(self._inputs(points), leaves.row)
        slack = 100 * torch.finfo(norms.dtype).eps
        return norms >= leaves.upper_bound * (1 - slack)

    def _inputs(self, points: Tensor) -> Tensor:
        """Points of [-1, 1]^D as inputs in the box."""
        problem = self.problem
        centre, radius = (problem.lower + problem.upper) / 2, (problem.upper - problem.lower) / 2
        inputs = centre + radius * points.reshape(-1, *problem.centre.shape)
        return torch.minimum(torch.maximum(inputs, problem.lower), problem.upper)

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True gradient norms, see :func:`lipschitz.bounds.witness.witness_norms`."""
        return witness_norms(self.problem, points, rows)

    def _report(
        self,
        subdomains: Subdomains,
        points: Tensor | None = None,
        rows: Tensor | None = None,
        programs: int = 0,
        closed: Subdomains | None = None,
    ) -> Report:
        if points is None or rows is None:
            points, rows = self._inputs(subdomains.entry_lower[:0]), subdomains.row[:0]
        return Report(subdomains, points, rows, programs, closed)
