"""Branch and bound on a linear functional ``w . J(x)^T r`` of the Jacobian instead of its norm.

A functional is linear where the norm is convex, so the norm's bounds carry over with the chords of
``|J_i|`` replaced by the weights ``w``. One entry is a unit vector, a directional derivative is
its direction; the other sign is ``-w``. Splits, refinement and leaves are those of the norm's
searches.

A bound here may be negative, and whether it is above 0 is what searches for a sign ask; so a
bound is never above the path sums of :mod:`lipschitz.bounds.native.backward.path_sums`, which are
free of cancellation, and otherwise carries a margin by their magnitude.

Shapes: Q functionals, B subdomains, D entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.backward.path_sums import PathSums
from lipschitz.bounds.native.interval import (
    Interval,
    forward_intervals,
    jacobian_interval,
    slope_intervals,
)
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.witness import true_entries
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard
from lipschitz.search.engines.inputs import Boxes, InputSearch, in_precision_of_boxes
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.heuristics import Chooser, chooser
from lipschitz.search.subdomain_bounds.cheap import VectorBound, vector_bound
from lipschitz.search.subdomains import Subdomains


def path_sums(graph: Graph) -> PathSums | None:
    """The path sums of a graph; None where it has products, whose signs are not followed."""
    return None if graph.product_nodes else PathSums(graph)


@dataclass(frozen=True)
class Functionals:
    """What is to be bounded: one functional per row of a problem.

    Attributes:
        problem: The box; its row q is the output direction of functional q.
        weights: Weights of the entries, [Q, D].
    """

    problem: LocalProblem
    weights: Tensor

    @staticmethod
    def of_entries(problem: LocalProblem, queries: list[tuple[int, int, int]]) -> Functionals:
        """Signed entries.

        Args:
            problem: The box and its rows.
            queries: Row, flat coordinate of the entry, and sign 1 or -1 of each.
        """
        rows, entries, signs = torch.tensor(queries, device=problem.rows.device).T
        weights = problem.rows.new_zeros(len(queries), problem.centre.numel())
        each = torch.arange(len(queries), device=weights.device)
        weights[each, entries] = signs.to(weights)
        names = tuple(problem.row_names[row] for row, _, _ in queries)
        return Functionals(replace(problem, rows=problem.rows[rows], row_names=names), weights)

    def __len__(self) -> int:
        return len(self.weights)

    def spread(self, root: RootBounds, rows: Tensor) -> RootBounds:
        """Root bounds of the problem with one row per functional.

        Args:
            root: Root bounds of the rows they were made from.
            rows: Which of those each functional has, [Q].
        """
        norm = root.norm
        return replace(
            root,
            class_upper_bounds=torch.full_like(self.weights[:, 0], torch.inf),
            norm=NormBounds(
                norm.upper_bound[rows],
                Interval(*(end[rows] for end in norm.entries)),
                {i: Interval(*(end[rows] for end in g)) for i, g in norm.cotangents.items()},
                {i: c[rows] for i, c in norm.coefficients.items()},
            ),
        )

    def upper_bound(
        self,
        sums: PathSums | None,
        rows: Tensor,
        slopes: dict[int, Interval],
        cotangents: dict[int, Interval],
        entries: Interval,
        other: Tensor | None = None,
    ) -> Tensor:
        """Certified upper bound of each subdomain's functional.

        Args:
            sums: Path sums of the graph; None where it has products.
            rows: Functional of each subdomain, [B].
            slopes: Slope interval by activation node, [B, *shape].
            cotangents: Interval of g by activation node, [B, *shape].
            entries: Intervals of the entries, [B, D].
            other: Another upper bound without margin, [B].

        Returns:
            [B].
        """
        weights = self.weights[rows]
        best = (weights.clamp(min=0) * entries.upper + weights.clamp(max=0) * entries.lower).sum(1)
        if other is not None:
            best = torch.minimum(best, torch.where(other.isnan(), best, other))
        if sums is None:
            size = torch.maximum(entries.lower.abs(), entries.upper.abs())
            return best + guard(best.dtype) * (weights.abs() * size).sum(1)
        reach = sums(self.problem.rows[rows], slopes, cotangents).each(lambda t: t.flatten(1))
        return reach.dot(weights).enclose(Interval(best, best)).upper

    @torch.no_grad()
    def values(self, sums: PathSums | None, points: Tensor, rows: Tensor) -> Tensor:
        """What the functional is at least at points, whatever rounding may have done.

        As in :mod:`lipschitz.bounds.witness`: in float64, from interval arithmetic at the point,
        where a slope that rounding leaves open counts as open. Above 0 it proves that the true
        gradient is.

        Args:
            sums: Path sums of the graph in float64; None where it has products.
            points: Points of the box, [B, *input_shape].
            rows: Functional of each, [B].

        Returns:
            [B]; minus infinity where it is not a number.
        """
        graph, directions = self.problem.graph.double, self.problem.rows[rows].double()
        weights, points = self.weights[rows].double(), points.double()
        if sums is None:
            lower, upper = (end.flatten(1) for end in true_entries(graph, points, directions))
            found = (weights.clamp(min=0) * lower + weights.clamp(max=0) * upper).sum(1)
            return found.nan_to_num(-torch.inf, posinf=-torch.inf)
        bounds = forward_intervals(graph, points, points).bounds
        preacts = {i: bounds[graph.nodes[i].parents[0]] for i in graph.activation_nodes}
        slopes = slope_intervals(graph, preacts)
        lower, upper = (end.flatten(1) for end in jacobian_interval(graph, directions, slopes))
        found = (weights.clamp(min=0) * lower + weights.clamp(max=0) * upper).sum(1)
        reach = sums(directions, slopes).each(lambda t: t.flatten(1)).dot(weights)
        found = reach.enclose(Interval(found, found)).lower
        return found.nan_to_num(-torch.inf, posinf=-torch.inf)


class FunctionalSearch(NeuronSearch):
    """Splits neurons; see :class:`lipschitz.search.engines.neurons.NeuronSearch`.

    Args:
        functionals: What to bound.
        root: Root bounds with one row per functional (:meth:`Functionals.spread`).
        choose: Picks the neuron to split; ``slope`` if None. Entries have no sign left to split.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop.
    """

    def __init__(
        self,
        functionals: Functionals,
        root: RootBounds,
        choose: Chooser | None = None,
        *,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> None:
        graph = functionals.problem.graph
        self.functionals, self.sums = functionals, PathSums(graph)
        self.double_sums = PathSums(graph.double)
        super().__init__(
            functionals.problem,
            root,
            choose or chooser("slope"),
            memory_budget=memory_budget,
            clock=clock,
        )

    def end_with(self, clock: Clock) -> None:
        """Stop with another clock from now on."""
        self.clock = self.bounder.clock = clock.without_notes()

    def _vector_bound(self, subdomains: Subdomains, slopes: dict[int, Interval]) -> VectorBound:
        rows = subdomains.row
        directions, weights = self.problem.rows[rows], self.functionals.weights[rows]
        bound = vector_bound(
            self.plan,
            self.layout,
            directions,
            slopes,
            subdomains,
            None,
            weights,
            windows=self.bounder.maxima.windows,
        )
        entries = Interval(subdomains.entry_lower, subdomains.entry_upper)
        cotangents = {
            i: Interval(
                self.layout.part(subdomains.cotangent_lower, i),
                self.layout.part(subdomains.cotangent_upper, i),
            )
            for i in self.layout.slices
        }
        upper = self.functionals.upper_bound(
            self.sums, rows, slopes, cotangents, entries, bound.upper_bound
        )
        return replace(bound, upper_bound=upper)

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True values, see :meth:`Functionals.values`."""
        return self.functionals.values(self.double_sums, points, rows)


class FunctionalBisection(InputSearch):
    """Cuts the box, for few inputs; see :class:`lipschitz.search.engines.inputs.InputSearch`.

    Args:
        functionals: What to bound.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop.
    """

    def __init__(
        self,
        functionals: Functionals,
        *,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> None:
        asked = functionals.problem
        problem = in_precision_of_boxes(asked)
        self.functionals = Functionals(problem, functionals.weights.to(problem.rows))
        self.sums, self.double_sums = path_sums(problem.graph), path_sums(asked.graph.double)
        super().__init__(asked, memory_budget=memory_budget, clock=clock)

    def end_with(self, clock: Clock) -> None:
        """Stop with another clock from now on."""
        self.clock = clock.without_notes()

    @property
    def _has_trends(self) -> bool:
        return True

    def _weights(self, rows: Tensor) -> Tensor:
        return self.functionals.weights[rows]

    def _direction(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda gradients: self.functionals.weights[rows]

    def _objective(self, boxes: Boxes, slopes: dict[int, Interval], norm: NormBounds) -> Tensor:
        entries = Interval(*(end.flatten(1) for end in norm.entries))
        # Where affine forms are carried forward, what is bounded is the functional itself.
        bound = None if self._curved is None else norm.upper_bound
        return self.functionals.upper_bound(
            self.sums, boxes.row, slopes, norm.cotangents, entries, bound
        )

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True values, see :meth:`Functionals.values`."""
        return self.functionals.values(self.double_sums, points, rows)
