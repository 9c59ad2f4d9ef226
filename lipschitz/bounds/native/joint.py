"""Bounds of the Jacobian that keep what a slope has to do with the input: planes instead of chords.

The chord of ``h = g s`` takes the slope s for any number in its interval. On a smooth network
``s = act'(z)`` and both factors have intervals of width O(eps) over a box of radius eps, so the
planes around their product and the lines around ``act'`` are off by O(eps^2) only, and so is the
whole bound: the excess over the true constant shrinks like eps^2 instead of eps (Laurel et al. 2023
observe this for zonotopes). What a plane says about s goes on through the network to the input.

One row for each output bounds the norm, by the chord of ``|J_i|`` or ``J_i^2``; with few inputs
every entry of the Jacobian has rows of its own besides. The weights of the planes and the slopes of the
lines are optimised for each row; every step is a certified bound, and the least counts, together
with the bounds to start from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.bounds.native.backward.operator_norm import problem_bounds
from lipschitz.bounds.native.crown import RootBounds
from lipschitz.bounds.native.interval import Interval, intersect, slope_intervals
from lipschitz.bounds.native.memory.budget import default_memory_budget, take
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.terms.backward import upper_bound
from lipschitz.bounds.native.terms.intervals import term_intervals
from lipschitz.bounds.native.terms.relaxations import Relaxations, Shares
from lipschitz.network.activations.derivative import derivative_of
from lipschitz.network.derivative import Terms
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem

# Inputs up to which every entry gets rows of its own.
_FEW_INPUTS = 8
# Numbers that autograd keeps for each number of a nonlinear term, measured as peak memory.
_COPIES = 80
# Chunks of rows may be larger than those of one pass: their steps repeat the same work.
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
    """Linear bounds of the gradients of one problem, over its box.

    Args:
        problem: What to bound.
        root: Its bounds by chords.
        search: How to optimise.
        budget: Bytes for rows.
    """

    def __init__(
        self, problem: LocalProblem, root: RootBounds, search: PlaneSearch, budget: int
    ) -> None:
        graph = problem.graph
        self.search, self.budget = search, budget
        self.terms = Terms(graph)
        row = self.terms.constant((graph.num_outputs,))
        self.gradient, cotangents = self.terms.gradient(self.terms.output, row)
        self.constants = {row: problem.rows}
        known = {graph.nodes[a].parents[0]: bounds for a, bounds in root.preacts.items()}
        slopes = slope_intervals(graph, root.preacts)
        for a, bounds in root.norm.cotangents.items():
            # Elsewhere the slope is certain, and the cotangents' intervals are not meant.
            uncertain = slopes[a].lower != slopes[a].upper
            if a in cotangents:
                known[cotangents[a]] = Interval(
                    torch.where(uncertain, bounds.lower, -torch.inf),
                    torch.where(uncertain, bounds.upper, torch.inf),
                )
        lower, upper = problem.lower[None], problem.upper[None]
        self.intervals = term_intervals(self.terms, lower, upper, self.constants, known)
        self.box = ((lower + upper) / 2, (upper - lower) / 2)

    def upper_bounds(self, coefficients: Tensor) -> Tensor:
        """Upper bounds of ``coefficients . gradient``: [B, K, *input_shape] to [B, K]."""
        batch, rows = coefficients.shape[:2]
        sizes = (t.shape.numel() for t in self.terms.terms if t.is_product or t.function)
        numbers = _COPIES * sum(sizes) * coefficients.element_size()
        fit = max(1, _BUDGETS * self.budget // numbers)
        box_step, row_step = max(1, min(batch, fit // rows)), max(1, min(rows, fit))
        bounds = coefficients.new_empty(batch, rows)
        for b in range(0, batch, box_step):
            for k in range(0, rows, row_step):
                part = slice(b, b + box_step), slice(k, k + row_step)
                bounds[part] = self._optimised(part[0], coefficients[part])
        return bounds

    def _optimised(self, boxes: slice, coefficients: Tensor) -> Tensor:
        """The least bounds on the way, [B, K]."""
        intervals = replace(
            self.intervals,
            bounds=[Interval(*(take(end, boxes) for end in i)) for i in self.intervals.bounds],
            rounding=[take(r, boxes) for r in self.intervals.rounding],
        )
        relaxations = Relaxations(self.terms, intervals)
        constants = {i: take(value, boxes) for i, value in self.constants.items()}
        box = tuple(take(end, boxes) for end in self.box)
        shares: Shares = {}
        for index, term in enumerate(self.terms.terms[: self.gradient + 1]):
            if term.is_product or term.function is not None:
                shares |= relaxations.start(index, *coefficients.shape[:2])
        parameters = [share.requires_grad_() for share in shares.values()]
        adam = torch.optim.Adam(parameters, lr=self.search.learning_rate)
        best = coefficients.new_full(coefficients.shape[:2], torch.inf)
        idle = 0
        for step in range(self.search.steps + 1):
            with torch.enable_grad():
                found = upper_bound(
                    relaxations, self.gradient, coefficients, constants, box, shares
                )
                improved = torch.fmin(best, found.detach())
                gained = float((best - improved).sum())
                least = self.search.least_gain * float(improved.abs().sum())
                idle = idle + 1 if gained <= least else 0
                best = improved
                if step == self.search.steps or idle == self.search.patience:
                    break
                adam.zero_grad()
                found.sum().backward()
            adam.step()
            for parameter in parameters:
                parameter.detach().clamp_(0, 1)
        return best


@torch.no_grad()
def with_planes(
    problem: LocalProblem,
    root: RootBounds,
    *,
    search: PlaneSearch | None = None,
    memory_budget: int | None = None,
) -> RootBounds:
    """The bounds of a problem, made tighter by planes where its network has curved activations.

    Args:
        problem: What to bound.
        root: Its bounds by chords.
        search: How weights and slopes are optimised; the default if None.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.

    Returns:
        Bounds never above those of ``root``.
    """
    if not has_curves(problem.graph) or not problem.graph.activation_nodes:
        return root
    budget = memory_budget or default_memory_budget(problem.graph.device)
    joint = JointBound(problem, root, search or PlaneSearch(), budget)
    measure, norm = problem.measure.each, root.norm
    shape, count = problem.graph.input_shape, len(problem.rows)
    entries, row_bounds = norm.entries, norm.upper_bound
    if problem.centre.numel() <= _FEW_INPUTS or measure.norm == "1":
        entries = entry_bounds(joint, entries)
        lower, upper = (end.flatten(1) for end in entries)
        row_bounds = torch.minimum(row_bounds, measure.upper_bound(*entries))
    lower, upper = (end.flatten(1) for end in entries)
    if measure.norm != "1":
        slope, intercept = measure.chord(lower, upper)
        found = joint.upper_bounds(slope.reshape(count, 1, *shape))[:, 0] + intercept.sum(1)
        row_bounds = torch.minimum(row_bounds, measure.close(found, lower, upper))
    norm = replace(norm, entries=entries, upper_bound=row_bounds)
    slopes = slope_intervals(problem.graph, root.preacts)
    plan = Plan(problem.graph)
    bounds = problem_bounds(plan, problem, slopes, row_bounds, entries, norm.cotangents, budget)
    bounds = torch.minimum(bounds, root.class_upper_bounds)
    return replace(root, norm=norm, class_upper_bounds=bounds)


def entry_bounds(joint: JointBound, entries: Interval) -> Interval:
    """Intervals of every entry of the Jacobian by planes, within those known: [R, *input_shape]."""
    count, size = len(entries.lower), entries.lower[0].numel()
    eye = torch.eye(size, dtype=entries.lower.dtype, device=entries.lower.device)
    rows = torch.cat([eye, -eye]).reshape(1, 2 * size, *entries.lower.shape[1:])
    found = joint.upper_bounds(rows.expand(count, *rows.shape[1:]))
    above, below = (end.reshape(entries.lower.shape) for end in found.chunk(2, dim=1))
    return intersect(entries, Interval(-below, above))
