"""Bounds of the Jacobian that keep how a slope depends on the input: planes instead of chords.

The chord of ``h = g s`` lets the slope s be any number in its interval, independent of x. On a
smooth network ``s = act'(z)`` and both factors have intervals of width O(eps) over a box of radius
eps, so the planes around their product and the lines around ``act'`` are off by O(eps^2) only, and
so is the whole bound: the excess over the true constant shrinks like eps^2 instead of eps (Laurel
et al. 2023 observe this for zonotopes). What a plane says about s goes on through the network to
the input.

With few inputs, affine forms carried forward come first
(:mod:`lipschitz.bounds.native.terms.forward`): they bound every value and every cotangent. Then
rows go back. One row for each output bounds the norm, by the chord of ``|J_i|`` or ``J_i^2``; with
few inputs every entry of the Jacobian has rows of its own besides. The weights of the planes and
the slopes of the lines are optimised for each row; every step is a certified bound, and the least
counts, together with the bounds to start from.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.backward.operator_norm import problem_bounds
from lipschitz.bounds.native.interval import Interval, intersect, slope_intervals
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.native.terms.forward import Form, forward_forms, norm_upper_bound
from lipschitz.bounds.native.terms.gradient import GradientTerms, has_curves
from lipschitz.bounds.native.terms.intervals import TermIntervals, term_intervals
from lipschitz.bounds.native.terms.linear import ONE_PASS, STAGE, LinearBounds, PlaneSearch
from lipschitz.bounds.native.terms.relaxations import Relaxations
from lipschitz.network.graph import Graph
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem

# Inputs up to which every entry gets rows of its own. A choice: the rows grow with the number of
# inputs, and without them the bound of the norm is somewhat looser.
_FEW_INPUTS = 8
# Cotangents of a layer get rows of their own up to this product of boxes, neurons and numbers of
# nonlinear terms. A choice: about a second on one core.
_LARGEST_TIGHTENING = 10**8
# Most of the time left that rows from values and cotangents may take where there are products. A
# choice: without the rows of the norm after them the bound is that of intervals.
_SHARE_OF_INTERVALS = 0.9
# A step of the optimisation costs about as much as three passes. A guess.
_PASSES_OF_STEP = 3


class JointBound:
    """Linear bounds of gradients over boxes, one output direction each.

    Args:
        graph: The network, or the terms of its gradients.
        rows: Output directions, [B, C].
        lower, upper: Boxes, [B or 1, *input_shape].
        preacts: Pre-activation interval by activation node, [B or 1, *shape]; those known.
        cotangents: Interval of g by activation node, [B, *shape]; those known. Meant where a slope
            is uncertain.
        search: How to optimise.
        budget: Bytes for rows.
        clock: When to stop; rows not reached are left at infinity.

    Attributes:
        intervals: Of all terms.
        form: Affine forms around the gradients where they were carried forward, or None.
    """

    def __init__(
        self,
        graph: Graph | GradientTerms,
        rows: Tensor,
        lower: Tensor,
        upper: Tensor,
        preacts: dict[int, Interval],
        cotangents: dict[int, Interval],
        search: PlaneSearch,
        budget: int,
        clock: Clock = UNLIMITED,
    ) -> None:
        source = graph if isinstance(graph, GradientTerms) else GradientTerms(graph)
        self.source, self.search, self.budget, self.clock = source, search, budget, clock
        self.terms, self.gradient = source.terms, source.gradient
        self.constants = {source.row: rows}
        self._box = lower, upper
        known = source.known(preacts, cotangents)
        self.form: Form | None = None
        arguments = (self.terms, lower, upper, self.constants, known)
        has_products = bool(source.graph.product_nodes)
        if source.is_carried_forward:
            self.intervals, forms = forward_forms(*arguments, kept=(self.gradient,))
            self.form = forms[self.gradient]
            known = dict(enumerate(self.intervals.bounds))
        elif not has_products:
            self.intervals = term_intervals(*arguments)
        if has_products:
            self.intervals = self._narrowed(known)
        elif search.steps:
            for a in reversed(source.graph.activation_nodes):
                if source.at_nodes.get(a) in known and self._tighten(source.at_nodes[a], known):
                    again = term_intervals(self.terms, lower, upper, self.constants, known)
                    self.intervals = replace(again, lines=self.intervals.lines)

    def _narrowed(self, known: dict[int, Interval]) -> TermIntervals:
        """Intervals by rows from all that products and functions read."""
        narrowing, batch = self.source.narrowing, len(self.constants[self.source.row])
        rows = narrowing.value_rows + batch * narrowing.cotangent_rows
        steps = self.search.cotangent_steps
        if rows * self.source.size * (1 + _PASSES_OF_STEP * steps) > _LARGEST_TIGHTENING:
            steps = 0
        search = replace(self.search, steps=steps) if steps else ONE_PASS
        clock = self.clock.part(_SHARE_OF_INTERVALS)
        return narrowing.intervals(*self._box, self.constants, known, self.budget, search, clock)

    def _tighten(self, index: int, known: dict[int, Interval]) -> bool:
        """Bound a cotangent by planes, in ``known``; False if that costs too much to pay."""
        bounds, steps = self.intervals.bounds[index], self.search.cotangent_steps
        numbers = len(bounds.lower) * bounds.lower[0].numel() * self.source.size
        if numbers * (1 + _PASSES_OF_STEP * steps) > _LARGEST_TIGHTENING:
            steps = 0
        if numbers > _LARGEST_TIGHTENING or self.clock.is_over:
            return False
        search = replace(self.search, steps=steps) if steps else ONE_PASS
        known[index] = self.linear.numbers(index, bounds, search, self.clock)
        return True

    @property
    def linear(self) -> LinearBounds:
        """Rows backward over the intervals of now."""
        relaxations = Relaxations(self.terms, self.intervals)
        return LinearBounds(relaxations, self.constants, *self._box, self.budget)

    def upper_bounds(self, coefficients: Tensor, search: PlaneSearch | None = None) -> Tensor:
        """Upper bounds of ``coefficients . J(x)^T r`` over all boxes.

        Args:
            coefficients: [B, K, *input_shape].
            search: How to optimise; as for everything else if None.

        Returns:
            [B, K]; infinity where the time did not suffice.
        """
        return self.linear.upper_bounds(
            self.gradient, coefficients, search or self.search, self.clock
        )

    @property
    def entries(self) -> Interval:
        """Intervals of the gradients without rows of their own, [B, *input_shape]."""
        rows = self.constants[self.source.row]
        shape = (len(rows), *self.source.graph.input_shape)
        return Interval(*(end.expand(shape) for end in self.intervals.bounds[self.gradient]))

    def norm(self, measure: Measure, known: NormBounds | None = None) -> NormBounds:
        """Bounds of the gradients' norms.

        Args:
            measure: The norm, of each row.
            known: Bounds by chords, B boxes; those of the terms' intervals if None.

        Returns:
            Bounds never above the given ones.
        """
        if known is None:
            cotangents = self.source.cotangents(self.intervals.bounds)
            bound = measure.upper_bound(*self.entries)
            known = NormBounds(bound, self.entries, cotangents, {})
        entries, bound = intersect(known.entries, self.entries), known.upper_bound
        if self.form is not None:
            bound = torch.minimum(bound, norm_upper_bound(self.form, entries, measure))
        inputs = self.source.graph.input_shape.numel()
        linear, arguments = self.linear, (self.search, self.clock)
        if inputs <= _FEW_INPUTS or measure.norm == "1":
            entries = linear.numbers(self.gradient, entries, *arguments)
            bound = torch.minimum(bound, measure.upper_bound(*entries))
        if inputs > 1 and measure.norm != "1":  # of one input, the norm is that entry's magnitude
            found = linear.norms(self.gradient, entries, measure, *arguments)
            bound = torch.minimum(bound, found)
        return replace(known, entries=entries, upper_bound=bound)


@torch.no_grad()
def with_planes(
    problem: LocalProblem,
    root: RootBounds,
    *,
    search: PlaneSearch | None = None,
    memory_budget: int | None = None,
    clock: Clock = UNLIMITED,
) -> RootBounds:
    """The bounds of a problem, made tighter by planes where its network has curved activations.

    Args:
        problem: What to bound.
        root: Its bounds by chords.
        search: How weights and slopes are optimised; the default if None.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop.

    Returns:
        Bounds never above those of ``root``.
    """
    graph = problem.graph
    if not has_curves(graph):
        return root
    if clock.is_over:
        clock.miss(STAGE)
        return root
    budget = memory_budget or default_memory_budget(graph.device)
    joint = JointBound(
        graph,
        problem.rows,
        problem.lower[None],
        problem.upper[None],
        root.preacts,
        root.norm.cotangents,
        search or PlaneSearch(),
        budget,
        clock=clock,
    )
    norm = joint.norm(problem.measure.each, root.norm)
    slopes = slope_intervals(graph, root.preacts)
    bounds = problem_bounds(
        Plan(graph),
        problem,
        slopes,
        norm.upper_bound,
        norm.entries,
        norm.cotangents,
        budget,
        clock=clock,
    )
    bounds = torch.minimum(bounds, root.class_upper_bounds)
    return replace(root, norm=norm, class_upper_bounds=bounds)
