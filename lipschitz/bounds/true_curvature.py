"""Lower bounds of curvature: norms of true Hessians at points of the box.

Points are the centre, random points, random corners, and those that a projected ascent (Rprop:
Riedmiller and Braun 1993) passes through. Of a Hessian H, ``||H t||`` at one direction t is a lower
bound of its norm; what is reported is that of interval arithmetic in float64 at the point, so no
rounding can have made it up. Where a second derivative jumps at a point, the intervals hold the
values on both sides.

Shapes: R rows, D inputs, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.curvature import HessianTerms
from lipschitz.bounds.native.hessian_norms import best_directions
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.true_gradients import GradientNorms, Sampling
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard

STAGE = "sampled Hessians"
# Numbers of all terms, over points, rows and directions, that the first points may take. A choice:
# about a second on one core.
_LARGEST_SAMPLE = 2 * 10**7
# Points that are climbed from for every row, and steps of it, at most; the first step is a quarter
# of the box. Choices: with fewer the lower bound may be lower.
_CLIMBERS, _CLIMB_STEPS, _FIRST_STEP = 4, 40, 0.25
# Steps of the power method from which the first direction comes where time is limited. A choice.
_POWER_STEPS = 3
# Seconds in which a matrix tells its best direction, over the cube of its size. A guess, measured
# on one core; only where time is limited does it matter.
_SECONDS_OF_MATRIX = 2.5e-10


@dataclass(frozen=True)
class TrueCurvature:
    """Hessians at points, as computed and as certified.

    Attributes:
        problem: The problem.
        terms: Of its graph.
        certain: Of its graph in float64.
    """

    problem: LocalProblem
    terms: HessianTerms
    certain: HessianTerms

    @staticmethod
    def of(problem: LocalProblem, terms: HessianTerms) -> TrueCurvature:
        """With the terms in float64."""
        return TrueCurvature(problem, terms, HessianTerms(problem.graph.double, terms.budget))

    @property
    def measure(self) -> Measure:
        """The norm of ``H t``."""
        return Measure(self.problem.norm)

    def matrices(self, points: Tensor, rows: Tensor, clock: Clock = UNLIMITED) -> Tensor:
        """Hessians as computed, [P, D, D]; of the first points only if the time is short.

        Args:
            points: [P, *input_shape].
            rows: Output directions, [P, C].
            clock: When to stop.
        """
        count = points[0].numel()
        unit = torch.eye(count, dtype=points.dtype, device=points.device)
        unit = unit.reshape(count, *points.shape[1:])
        numbers, done = len(points) * count, 0
        found = points.new_empty(numbers, count)
        terms = self.certain if points.dtype == torch.float64 else self.terms
        for part in terms.chunks(numbers, forward=False, clock=clock, stage=STAGE):
            at = torch.arange(numbers, device=points.device)[part]
            point, column = at // count, at % count
            values = terms.values(points[point], rows[point], unit[column])
            found[part], done = values.flatten(1), part.stop
        found = found[: done // count * count].reshape(-1, count, count)
        return (found + found.mT) / 2

    def certified(self, points: Tensor, rows: Tensor, directions: Tensor | None = None) -> Tensor:
        """What the norm of a row's Hessian is at least, [P]; in the problem's precision.

        Args:
            points: Points of the box, [P, *input_shape].
            rows: Rows of the problem, [P] integers.
            directions: In which to look, of norm 1 or less, [P, *input_shape]; found if None.
        """
        points, chosen = points.double(), self.problem.rows[rows].double()
        if directions is None:
            matrices = self.matrices(points, chosen).nan_to_num(0.0, 0.0, 0.0)
            directions = best_directions(self.problem.norm, matrices).reshape(points.shape)
        directions = directions.double()
        found = points.new_empty(len(points))
        for part in self.certain.chunks(len(points), forward=False):
            box = Interval(points[part], points[part])
            entries = self.certain.over(box, chosen[part], directions[part], forward=False).entries
            lower, upper = (end.flatten(1).unsqueeze(1) for end in entries)
            found[part] = self.measure.at_least(lower, upper)[:, 0]
        if self.problem.norm == "2":
            lengths = torch.linalg.vector_norm(directions.flatten(1), dim=1)
            found = found / torch.where(lengths > 0, lengths, 1.0)
        found = (found * (1 - guard(torch.float64) * points[0].numel())).to(self.problem.rows)
        found = found * (1 - guard(found.dtype))
        return found.nan_to_num(-torch.inf, posinf=-torch.inf)


@torch.no_grad()
def sample_curvature(
    true: TrueCurvature, sampling: Sampling | None = None, clock: Clock = UNLIMITED
) -> GradientNorms:
    """The largest certified norms of true Hessians per row, found by sampling and ascent.

    Args:
        true: The problem and its terms.
        sampling: How hard to look.
        clock: When to stop; the centre is looked at in any case.

    Returns:
        Norms [R], 0 at least, and points [R, *input_shape].
    """
    problem, sampling = true.problem, sampling or Sampling()
    count, shape = len(problem.rows), problem.centre.shape
    rows = torch.arange(count, device=problem.rows.device)
    witnesses = problem.centre.expand(count, *shape).clone()
    # With all the time in the world, every column of the Hessian tells the best direction.
    along = _stretched(true, witnesses) if clock.is_limited else None
    best = true.certified(witnesses, rows, along).clamp(min=0)
    if not bool((problem.upper > problem.lower).any()):
        return GradientNorms(best, witnesses)
    points = _points(true, sampling)
    found = []
    parts = points.split(max(1, 256 // count))
    if not clock.allows(_SECONDS_OF_MATRIX * count * len(parts[0]) * shape.numel() ** 3):
        clock.miss(STAGE)
        parts = ()
    for point in parts:
        every = point.repeat_interleave(count, 0), problem.rows.repeat(len(point), 1)
        matrices = true.matrices(*every, clock).nan_to_num(0.0, 0.0, 0.0)
        matrices = matrices[: len(matrices) // count * count]  # of every row
        if not len(matrices):
            break
        directions = best_directions(problem.norm, matrices)
        images = (matrices @ directions.unsqueeze(-1)).squeeze(-1)
        found.append((true.measure.of_rows(images), directions))
    climbers, starts = 1, witnesses
    if found:
        norms = torch.cat([n for n, _ in found]).reshape(-1, count)
        directions = torch.cat([d for _, d in found]).reshape(*norms.shape, -1)
        climbers = min(_CLIMBERS, len(norms))
        order = norms.topk(climbers, dim=0).indices  # [K, R]
        starts = points[order.flatten()]
        along = directions.gather(0, order.unsqueeze(-1).expand(-1, -1, directions.shape[-1]))
        along = along.reshape(starts.shape)
    if clock.is_over:
        return GradientNorms(best, witnesses)
    chosen = rows.repeat(climbers)
    ends, along = _climb(true, starts, chosen, along, sampling.ascent_steps * 2, clock)
    heights = true.certified(ends, chosen, along).reshape(climbers, count)
    height, winner = heights.max(dim=0)
    ends = ends.reshape(climbers, count, *shape)[winner, rows]
    better = height > best
    best = torch.where(better, height, best)
    witnesses[better] = ends[better]
    return GradientNorms(best, witnesses)


def _stretched(true: TrueCurvature, points: Tensor) -> Tensor:
    """Directions that the rows' Hessians stretch much, by a few products, [R, *input_shape].

    Args:
        true: The problem and its terms.
        points: One for every row, [R, *input_shape].
    """
    problem, directions = true.problem, torch.ones_like(points)
    for _ in range(_POWER_STEPS):
        if problem.norm == "1":
            images = true.terms.values(points, problem.rows, directions).abs().flatten(1)
            directions = torch.zeros_like(images).scatter_(1, images.argmax(1, True), 1.0)
            directions = directions.reshape(points.shape)
        else:
            directions = _turned(true, points, problem.rows, directions)
    return directions.nan_to_num(0.0, 0.0, 0.0)


def _points(true: TrueCurvature, sampling: Sampling) -> Tensor:
    """The centre, random points and random corners; fewer for a large network."""
    problem = true.problem
    cost = true.terms.size * len(problem.rows) * problem.centre.numel()
    number = max(1, min(sampling.num_random, _LARGEST_SAMPLE // (2 * cost)))
    generator = torch.Generator().manual_seed(sampling.seed)
    shape = (number, *problem.centre.shape)
    fractions = torch.rand(shape, generator=generator, dtype=torch.float64)
    fractions = torch.cat([fractions, fractions.round()]).to(problem.centre)
    inside = problem.lower + fractions * (problem.upper - problem.lower)
    inside = torch.minimum(torch.maximum(inside, problem.lower), problem.upper)
    return torch.cat([problem.centre[None], inside])


def _climb(
    true: TrueCurvature,
    points: Tensor,
    rows: Tensor,
    directions: Tensor,
    steps: int,
    clock: Clock,
) -> tuple[Tensor, Tensor]:
    """Ascent of ``||H_r(x) t||`` in x, and of t after every step: the best x and t on the way."""
    problem, terms, measure = true.problem, true.terms, true.measure
    chosen, radius = problem.rows[rows], (problem.upper - problem.lower) / 2
    step = (_FIRST_STEP * 2 * radius).expand_as(points).clone()
    last = torch.zeros_like(points)
    best = torch.full_like(chosen[:, 0], -torch.inf)
    found, along = points.clone(), directions.clone()
    for _ in clock.in_time(range(min(steps, _CLIMB_STEPS)), STAGE):
        with torch.enable_grad():
            x = points.requires_grad_()
            images = terms.values(x, chosen, directions)
            heights = measure.of_rows(images.flatten(1))
            if not heights.requires_grad:
                break
            slope = torch.autograd.grad(heights.sum(), x)[0].nan_to_num(0.0, 0.0, 0.0)
        points, heights = points.detach(), heights.detach()
        better = heights > best
        best = torch.where(better, heights, best)
        found[better], along[better] = points[better], directions[better]
        sign = slope.sign()
        agrees = sign * last
        step = torch.where(agrees > 0, 1.2 * step, torch.where(agrees < 0, 0.5 * step, step))
        step = torch.minimum(step, 2 * radius)
        last = sign
        points = points + step * sign
        points = torch.minimum(torch.maximum(points, problem.lower), problem.upper)
        directions = _turned(true, points, chosen, directions)
    return found, along


def _turned(true: TrueCurvature, points: Tensor, rows: Tensor, directions: Tensor) -> Tensor:
    """A direction that the Hessians stretch no less, nearly: a step of the power method."""
    images = true.terms.values(points, rows, directions)
    if true.problem.norm == "inf":
        signs = torch.where(images >= 0, 1.0, -1.0).to(images)
        images = true.terms.values(points, rows, signs)
        return torch.where(images >= 0, 1.0, -1.0).to(images)
    if true.problem.norm == "1":
        return directions
    length = torch.linalg.vector_norm(images.flatten(1), dim=1)
    length = length.reshape(-1, *[1] * (images.dim() - 1))
    return torch.where(length > 0, images / length, directions)
