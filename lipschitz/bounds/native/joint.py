"""Bounds of the Jacobian that keep how a slope depends on the input: planes instead of chords.

The chord of ``h = g s`` lets the slope s be any number in its interval, independent of x. On a
smooth network ``s = act'(z)`` and both factors have intervals of width O(eps) over a box of radius
eps, so the planes around their product and the lines around ``act'`` are off by O(eps^2) only, and
so is the whole bound: the excess over the true constant shrinks like eps^2 instead of eps (Laurel
et al. 2023 observe this for zonotopes). What a plane says about s goes on through the network to
the input.

One row for each output bounds the norm, by the chord of ``|J_i|`` or ``J_i^2``; with few inputs
every entry of the Jacobian has rows of its own besides. The weights of the planes and the slopes of
the lines are optimised for each row; every step is a certified bound, and the least counts,
together with the bounds to start from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.backward.operator_norm import problem_bounds
from lipschitz.bounds.native.crown import RootBounds
from lipschitz.bounds.native.interval import Interval, intersect, slope_intervals
from lipschitz.bounds.native.memory.budget import default_memory_budget, take
from lipschitz.bounds.native.plan import Plan, unit_rows
from lipschitz.bounds.native.terms.backward import upper_bound
from lipschitz.bounds.native.terms.intervals import term_intervals
from lipschitz.bounds.native.terms.relaxations import Relaxations, Shares
from lipschitz.network.activations.derivative import derivative_of
from lipschitz.network.derivative import Terms
from lipschitz.network.graph import Graph
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem

# What is noted where the time did not suffice.
STAGE = "planes"
# Inputs up to which every entry gets rows of its own. A choice: the rows grow with the number of
# inputs, and without them the bound of the norm is somewhat looser.
_FEW_INPUTS = 8
# Cotangents of a layer get rows of their own up to this product of boxes, neurons and numbers of
# nonlinear terms. A choice: about a second on one core.
_LARGEST_TIGHTENING = 10**8
# Numbers that autograd keeps for each number of a nonlinear term. Measured as peak memory; on which
# network is not on record. It only decides how many rows are bounded at once.
_COPIES = 80
# Chunks of rows may take so many times the memory budget of a single pass, since the steps of the
# optimisation use the same chunk again and again. A choice.
_BUDGETS = 16


@dataclass(frozen=True)
class PlaneSearch:
    """How weights and slopes are optimised.

    Attributes:
        steps: Largest number of Adam steps; 0 takes them as they are.
        learning_rate: Step length, of shares in [0, 1].
        patience: Steps in a row without the least gain after which it stops.
        least_gain: Share of the bound.
    """

    steps: int = 20
    learning_rate: float = 0.05
    patience: int = 5
    least_gain: float = 1e-4


def has_curves(graph: Graph) -> bool:
    """Whether an activation's slope depends on more than the side of its kinks."""
    kinds = (graph.nodes[i].activation for i in graph.activation_nodes)
    return any(derivative_of(kind) is not None for kind in kinds)


class JointBound:
    """Linear bounds of gradients over boxes, one output direction each.

    Args:
        graph: The network.
        rows: Output directions, [B, C].
        lower, upper: Boxes, [B or 1, *input_shape].
        preacts: Pre-activation interval by activation node, [B or 1, *shape].
        cotangents: Interval of g by activation node, [B, *shape]; meant where a slope is uncertain.
        search: How to optimise.
        budget: Bytes for rows.
        clock: When to stop; rows not reached are left at infinity.
    """

    def __init__(
        self,
        graph: Graph,
        rows: Tensor,
        lower: Tensor,
        upper: Tensor,
        preacts: dict[int, Interval],
        cotangents: dict[int, Interval],
        search: PlaneSearch,
        budget: int,
        clock: Clock = UNLIMITED,
    ) -> None:
        self.search, self.budget, self.clock = search, budget, clock
        self.terms = Terms(graph)
        row = self.terms.constant((graph.num_outputs,))
        self.gradient, at_nodes = self.terms.gradient(self.terms.output, row)
        self.constants = {row: rows}
        known = {graph.nodes[a].parents[0]: bounds for a, bounds in preacts.items()}
        slopes = slope_intervals(graph, preacts)
        for a, bounds in cotangents.items():
            uncertain = slopes[a].lower != slopes[a].upper
            if a in at_nodes:
                known[at_nodes[a]] = Interval(
                    torch.where(uncertain, bounds.lower, -torch.inf),
                    torch.where(uncertain, bounds.upper, torch.inf),
                )
        self.intervals = term_intervals(self.terms, lower, upper, self.constants, known)
        self.box = ((lower + upper) / 2, (upper - lower) / 2)
        self._size = sum(t.shape.numel() for t in self.terms.terms if t.is_product or t.function)
        if search.steps:
            for a in reversed(graph.activation_nodes):
                if at_nodes.get(a) in known and self._tighten(at_nodes[a], known):
                    self.intervals = term_intervals(self.terms, lower, upper, self.constants, known)

    def _tighten(self, index: int, known: dict[int, Interval]) -> bool:
        """Bound a cotangent by planes, in ``known``; False if that costs too much to pay."""
        bounds = self.intervals.bounds[index]
        count, size = len(bounds.lower), bounds.lower[0].numel()
        if count * size * self._size > _LARGEST_TIGHTENING or self.clock.is_over:
            return False
        found = self.upper_bounds(_every_number(bounds.lower), index, steps=0)
        above, below = (end.reshape(bounds.lower.shape) for end in found.chunk(2, dim=1))
        known[index] = intersect(known[index], Interval(-below, above))
        return True

    def upper_bounds(
        self, coefficients: Tensor, start: int | None = None, steps: int | None = None
    ) -> Tensor:
        """Upper bounds of ``coefficients . value of a term`` over all boxes.

        Args:
            coefficients: [B, K, *shape of the term].
            start: The term, the gradient if None.
            steps: Of the optimisation, those of the search if None.

        Returns:
            [B, K]; infinity where the time did not suffice.
        """
        start = self.gradient if start is None else start
        steps = self.search.steps if steps is None else steps
        batch, rows = coefficients.shape[:2]
        copies = _COPIES if steps else _COPIES // 8
        numbers = copies * self._size * coefficients.element_size()
        fit = max(1, _BUDGETS * self.budget // numbers)
        box_step, row_step = max(1, min(batch, fit // rows)), max(1, min(rows, fit))
        bounds = coefficients.new_full((batch, rows), torch.inf)
        parts = [
            (slice(b, b + box_step), slice(k, k + row_step))
            for b in range(0, batch, box_step)
            for k in range(0, rows, row_step)
        ]
        for part in self.clock.in_time(parts, STAGE):
            bounds[part] = self._optimised(part[0], coefficients[part], start, steps)
        return bounds

    def _optimised(self, boxes: slice, coefficients: Tensor, start: int, steps: int) -> Tensor:
        """The least bounds on the way, [B, K]."""
        intervals = replace(
            self.intervals,
            bounds=[Interval(*(take(end, boxes) for end in i)) for i in self.intervals.bounds],
            rounding=[take(r, boxes) for r in self.intervals.rounding],
        )
        relaxations = Relaxations(self.terms, intervals)
        constants = {i: take(value, boxes) for i, value in self.constants.items()}
        box = tuple(take(end, boxes) for end in self.box)
        arguments = (relaxations, start, coefficients, constants, box)
        if not steps:
            return upper_bound(*arguments)
        shares: Shares = {}
        for index, term in enumerate(self.terms.terms[: start + 1]):
            if term.is_product or term.function is not None:
                shares |= relaxations.start(index, *coefficients.shape[:2])
        parameters = [share.requires_grad_() for share in shares.values()]
        adam = torch.optim.Adam(parameters, lr=self.search.learning_rate)
        best = coefficients.new_full(coefficients.shape[:2], torch.inf)
        idle = 0
        for step in self.clock.without_notes().in_time(range(steps + 1)):
            with torch.enable_grad():
                found = upper_bound(*arguments, shares)
                improved = torch.fmin(best, found.detach())
                gained = float((best - improved).sum())
                least = self.search.least_gain * float(improved.abs().sum())
                idle = idle + 1 if gained <= least else 0
                best = improved
                if step == steps or idle == self.search.patience:
                    break
                adam.zero_grad()
                found.sum().backward()
            adam.step()
            for parameter in parameters:
                parameter.detach().clamp_(0, 1)
        return best


@torch.no_grad()
def norm_by_planes(
    graph: Graph,
    rows: Tensor,
    box: Interval,
    preacts: dict[int, Interval],
    norm: NormBounds,
    measure: Measure,
    *,
    search: PlaneSearch,
    budget: int,
    clock: Clock = UNLIMITED,
) -> NormBounds:
    """Bounds of the Jacobian over boxes, made tighter by planes.

    Args:
        graph: The network.
        rows: Output directions, [B, C].
        box: Boxes, [B or 1, *input_shape].
        preacts: Pre-activation interval by activation node, [B or 1, *shape].
        norm: Bounds by chords, B boxes.
        measure: The norm, of each row.
        search: How weights and slopes are optimised.
        budget: Bytes for the rows of one chunk.
        clock: When to stop.

    Returns:
        Bounds never above the given ones.
    """
    joint = JointBound(graph, rows, *box, preacts, norm.cotangents, search, budget, clock=clock)
    entries, row_bounds = norm.entries, norm.upper_bound
    if graph.input_shape.numel() <= _FEW_INPUTS or measure.norm == "1":
        entries = entry_bounds(joint, entries)
        row_bounds = torch.minimum(row_bounds, measure.upper_bound(*entries))
    if measure.norm != "1":
        lower, upper = (end.flatten(1) for end in entries)
        slope, intercept = measure.chord(lower, upper)
        found = joint.upper_bounds(slope.reshape(len(rows), 1, *graph.input_shape))[:, 0]
        found = measure.close(found + intercept.sum(1), lower, upper)
        row_bounds = torch.minimum(row_bounds, found)
    return replace(norm, entries=entries, upper_bound=row_bounds)


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
    norm = norm_by_planes(
        graph,
        problem.rows,
        Interval(problem.lower[None], problem.upper[None]),
        root.preacts,
        root.norm,
        problem.measure.each,
        search=search or PlaneSearch(),
        budget=budget,
        clock=clock,
    )
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


def entry_bounds(joint: JointBound, entries: Interval) -> Interval:
    """Intervals of every entry of the Jacobian by planes, within those known: [B, *input_shape]."""
    found = joint.upper_bounds(_every_number(entries.lower))
    above, below = (end.reshape(entries.lower.shape) for end in found.chunk(2, dim=1))
    return intersect(entries, Interval(-below, above))


def _every_number(like: Tensor) -> Tensor:
    """Rows that pick each number of a tensor [B, *shape], then their negatives: [B, 2N, *shape]."""
    shape = like.shape[1:]
    rows = unit_rows(torch.arange(shape.numel(), device=like.device), shape, like)
    return rows.expand(len(like), *rows.shape[1:])
