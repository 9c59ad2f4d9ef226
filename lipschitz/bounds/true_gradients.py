"""Lower bounds: norms of true gradients at points of the box.

A gradient at any point is a lower bound of the local Lipschitz constant, and its point a witness.
Points are the centre, random points, random corners, and the path of a projected ascent. The
gradient of a piecewise linear network is piecewise constant, so the ascent climbs a smooth
stand-in, whose kinks, if there are any, are spread out and gradually sharpened; what is reported
is always the true gradient's norm at the points it passes through, as far as rounding leaves no
doubt about it (:func:`lipschitz.bounds.witness.witness_norms`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.witness import witness_norms
from lipschitz.checks import whole_number
from lipschitz.network.graph import Graph, Node
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard

# A slope that no activation has beside a kink. If a gradient changes when kinks take this slope,
# a kink matters there. Any other unlikely number would do.
_ANOTHER_SLOPE = 0.7390851

STAGE = "sampled gradients"


@dataclass(frozen=True)
class Sampling:
    """How hard to look for large gradients.

    Attributes:
        num_random: Random points, and as many random corners.
        ascent_steps: Steps of projected ascent.
        ascent_rows: Only that many rows, those of the largest gradients so far, are climbed.
        points_at_once: Point-row pairs evaluated in one batch.
        seed: Seed of the random points.

    Raises:
        InputError: Numbers that make no sense.
    """

    num_random: int = 64
    ascent_steps: int = 20
    ascent_rows: int = 16
    points_at_once: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("num_random", 1),
            ("ascent_steps", 0),
            ("ascent_rows", 1),
            ("points_at_once", 1),
            ("seed", 0),
        ):
            whole_number(name, getattr(self, name), least=least)


@dataclass(frozen=True)
class GradientNorms:
    """The largest true gradient norms found.

    Attributes:
        norms: One lower bound of the row's norm per row, [R], or of the norm of all rows together,
            [1]; 0 where no point was usable.
        witnesses: The points, [R or 1, *input_shape].
    """

    norms: Tensor
    witnesses: Tensor


def gradient_norms(
    graph: Graph, points: Tensor, rows: Tensor, measure: Measure | None = None
) -> Tensor:
    """Norm of the true gradient of every row at every point.

    Args:
        graph: The network.
        points: [P, *input_shape].
        rows: [R, C].
        measure: The norm, that of Linf if None.

    Returns:
        [P, R], or [P, 1] of all rows together; minus infinity where a kink makes the gradient at
        the point ambiguous.
    """
    num_points, num_rows = len(points), len(rows)
    values = graph.values(points)
    directions = rows.repeat(num_points, 1)

    def pulled_back(slope_at_kink: float | None) -> Tensor:
        def slope(node: Node, preact: Tensor) -> Tensor:
            return node.activation.slope(preact, slope_at_kink).repeat_interleave(num_rows, 0)

        return graph.pull_back(values, directions, slope)

    gradients = pulled_back(None)
    measure = measure or Measure()
    norms = measure(gradients.reshape(num_points, num_rows, -1))
    kinks = [
        graph.nodes[i].activation.at_kink(values[graph.nodes[i].parents[0]]).flatten(1).any(1)
        for i in graph.activation_nodes
    ]
    if kinks and bool(torch.stack(kinks).any()):
        # The slope at a kink may not matter (a dead neuron); where it does, the point is no
        # witness: a product of one-sided slopes need not be a limit of gradients.
        differs = (pulled_back(_ANOTHER_SLOPE) != gradients).flatten(1).any(1)
        differs = differs.reshape(num_points, num_rows)
        if measure.joint:
            differs = differs.any(1, keepdim=True)
        norms = norms.masked_fill(differs, float("-inf"))
    return norms


def gradients_at(problem: LocalProblem, points: Tensor) -> GradientNorms:
    """The largest norm of every row at some points, as far as rounding leaves no doubt about it.

    Args:
        problem: The problem; its rows are measured one by one.
        points: Points of the box, [P, *input_shape].
    """
    count = len(problem.rows)
    rows = torch.arange(count, device=points.device).repeat(len(points))
    norms = witness_norms(problem, points.repeat_interleave(count, 0), rows)
    norms, winner = norms.reshape(len(points), count).clamp(min=0).max(dim=0)
    return GradientNorms(norms * (1 - guard(problem.graph.dtype)), points[winner])


def sample_gradients(
    problem: LocalProblem,
    sampling: Sampling | None = None,
    starts: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> GradientNorms:
    """Largest true gradient norm per row found by sampling and projected ascent.

    Args:
        problem: The box and the rows.
        sampling: How hard to look.
        starts: More points of the box to look at and to climb from, [P, *input_shape].
        clock: When to stop; the centre is looked at in any case.

    The norms are lowered by the rounding guard, so that they hold for the network in real
    arithmetic as far as the upper bounds do.
    """
    sampling = sampling or Sampling()
    with torch.no_grad():
        best = _Best(problem, sampling.points_at_once, clock)
        centre, *others = _start_points(problem, sampling)
        best.look(centre)
        for points in [*others, *([] if starts is None else [starts])]:
            best.update(points)
    if bool((problem.upper > problem.lower).any()):
        _ascend(problem, best, sampling, clock)
    norms = best.norms.clamp(min=0) * (1 - guard(problem.graph.dtype))
    return GradientNorms(norms, best.points)


class _Best:
    """Best norm and point so far, per row."""

    def __init__(self, problem: LocalProblem, points_at_once: int, clock: Clock) -> None:
        self.problem, self.clock = problem, clock
        self.at_once = max(1, points_at_once // len(problem.rows))
        self.seconds_per_point = 0.0
        rows = problem.rows[:1] if problem.measure.joint else problem.rows
        self.norms = torch.full_like(rows[:, 0], float("-inf"))
        self.points = problem.centre.expand(len(rows), *problem.centre.shape).clone()

    def update(self, points: Tensor) -> None:
        """Look at points [P, *input_shape], at as many as there is time for."""
        while len(points):
            count, left = self.at_once, self.clock.left
            if left < count * self.seconds_per_point:  # less at a time, to be sure of some of them
                count = int(left / 2 / self.seconds_per_point)
            if count < 1 or not left:
                self.clock.miss(STAGE)
                return
            self.look(points[:count])
            points = points[count:]

    def look(self, points: Tensor) -> None:
        """Take note of every row's gradient at every point, points [P, *input_shape]."""
        begin = self.clock.now()
        norms = gradient_norms(self.problem.graph, points, self.problem.rows, self.problem.measure)
        norms, winner = norms.max(dim=0)
        better = (norms > self.norms).nonzero()[:, 0]
        if len(better):
            chosen = points[winner[better]]
            norms = witness_norms(self.problem, chosen, better)
            certain = norms > self.norms[better]
            better = better[certain]
            self.norms[better], self.points[better] = norms[certain], chosen[certain]
        self.seconds_per_point = (self.clock.now() - begin) / len(points)


def _start_points(problem: LocalProblem, sampling: Sampling) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sampling.seed)
    shape = (sampling.num_random, *problem.centre.shape)
    fractions = torch.rand(shape, generator=generator, dtype=torch.float64)
    width = problem.upper - problem.lower
    points = []
    for fraction in (fractions, fractions.round()):
        inside = problem.lower + fraction.to(width) * width
        points.append(torch.minimum(torch.maximum(inside, problem.lower), problem.upper))
    return [problem.centre[None], *points]


def _ascend(problem: LocalProblem, best: _Best, sampling: Sampling, clock: Clock) -> None:
    """Climb the smoothed norm of the leading rows from their best points."""
    graph, measure = problem.graph, problem.measure
    leading = best.norms.topk(min(sampling.ascent_rows, len(best.norms))).indices
    # Rows of the Jacobian at each of the points: one, or all of them at the only point.
    rows = problem.rows if measure.joint else problem.rows[leading]
    each = len(rows) // len(leading)
    points = best.points[leading].clone()
    radius = (problem.upper - problem.lower) / 2
    for step in clock.in_time(range(sampling.ascent_steps), STAGE):
        remaining = 1 - step / sampling.ascent_steps

        def smooth(node: Node, preact: Tensor, sharpness: float = 0.3 * remaining) -> Tensor:
            scale = preact.detach().abs().mean().clamp(min=torch.finfo(preact.dtype).tiny)
            return node.activation.smooth_slope(preact, sharpness * scale)

        points.requires_grad_()
        with torch.enable_grad():
            repeated = points.repeat_interleave(each, 0)
            gradients = graph.pull_back(graph.values(repeated), rows, smooth)
            surrogate = measure(gradients.reshape(len(points), each, -1)).sum()
            if not surrogate.requires_grad:  # an affine network has one gradient everywhere
                return
            direction = torch.autograd.grad(surrogate, points)[0].sign()
        with torch.no_grad():
            points = points + 0.5 * remaining * radius * direction
            points = torch.minimum(torch.maximum(points, problem.lower), problem.upper)
            best.update(points)
