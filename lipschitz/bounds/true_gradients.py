"""Lower bounds: norms of true gradients at points of the box.

A gradient at any point is a lower bound of the local Lipschitz constant, and its point a witness.
Points are the centre, random points, random corners, and the path of a projected ascent
(:mod:`lipschitz.bounds.lower`). What is reported is always the true gradient's norm at the points
it passes through, as far as rounding leaves no doubt about it
(:func:`lipschitz.bounds.witness.witness_norms`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.lower.ascent import Paces, ascend
from lipschitz.bounds.lower.elites import Elites
from lipschitz.bounds.lower.norms_at import norms_at, numbers_of
from lipschitz.bounds.lower.record import GradientNorms, Record
from lipschitz.bounds.lower.softness import Softness
from lipschitz.bounds.lower.variation import FEW_INPUTS, vary
from lipschitz.bounds.witness import witness_norms
from lipschitz.checks import whole_number
from lipschitz.network.graph import Graph, Node
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard

# A slope that no activation has beside a kink. If a gradient changes when kinks take this slope,
# a kink matters there. Any other unlikely number would do.
_ANOTHER_SLOPE = 0.7390851
# By how much, as a share of its largest entry, a gradient changes then if no kink matters. More
# than rounding by far, since what cancels may be large; what counts is certified afterwards.
_CHANGE = 1e-3

# With few inputs, rounds of random changes, and points of each. Choices.
_CHANGES, _CHANGED = 8, 128
# Climbers: at least, at most, and numbers that their values may take, up to which more of them cost
# little; and their first steps as shares of the box's radius. Choices.
_CLIMBERS, _MOST_CLIMBERS, _NUMBERS_OF_CLIMBERS = 16, 64, 2**15
_FIRST_STEPS = (0.1, 0.6)

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
    ascent_steps: int = 40
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
        change = (pulled_back(_ANOTHER_SLOPE) - gradients).abs().flatten(1).amax(1)
        largest = gradients.abs().flatten(1).amax(1)
        differs = ~(change <= _CHANGE * largest)
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


@torch.no_grad()
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
    looking = _Looking(problem, sampling, clock)
    centre, *others = _start_points(problem, sampling)
    looking.look(centre)
    for points in [*others, *([] if starts is None else [starts])]:
        looking.update(points)
    if bool((problem.upper > problem.lower).any()) and sampling.ascent_steps:
        _climb(problem, looking.record, others[0], sampling, clock)
        if not problem.measure.joint and not clock.is_over:
            # Where one row was climbed for, another one may be larger.
            record = looking.record
            looking.look(record.points[record.norms.argmax()][None])
    return looking.record.found


class _Looking:
    """Gradients of every row at points, as far as there is time."""

    def __init__(self, problem: LocalProblem, sampling: Sampling, clock: Clock) -> None:
        self.problem, self.clock = problem, clock
        self.record = Record(problem, sampling.seed)
        self.at_once = max(1, sampling.points_at_once // len(problem.rows))
        self.seconds_per_point = 0.0

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
        begin, problem = self.clock.now(), self.problem
        norms = gradient_norms(problem.graph, points, problem.rows, problem.measure)
        rows = torch.arange(norms.shape[1], device=norms.device).repeat(len(points))
        self.record.offer(points.repeat_interleave(norms.shape[1], 0), rows, norms.flatten())
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


def _climb(
    problem: LocalProblem, record: Record, points: Tensor, sampling: Sampling, clock: Clock
) -> None:
    """Climb from the best points of the leading rows, the first of them more than once.

    With few inputs the points reached are then changed at random.
    """
    leading = record.norms.topk(min(sampling.ascent_rows, len(record.norms))).indices
    climbers = min(_MOST_CLIMBERS, _NUMBERS_OF_CLIMBERS // numbers_of(problem.graph))
    more = max(0, max(_CLIMBERS, climbers) - len(leading))
    rows = torch.cat([leading, leading.repeat(_MOST_CLIMBERS)[:more]])
    generator = torch.Generator().manual_seed(sampling.seed)
    climbed = ascend(
        problem,
        Softness(problem, points),
        record.points[rows],
        rows,
        Paces.usual(len(leading)).followed_by(Paces.drawn(more, _FIRST_STEPS, generator)),
        sampling.ascent_steps,
        clock,
        STAGE,
    )
    record.offer(climbed.points, rows, climbed.norms)
    if problem.centre.numel() <= FEW_INPUTS and not clock.is_over:
        elites = Elites(problem)
        elites.add(climbed.points, rows, climbed.norms)
        elites.add(record.points[leading], leading, record.norms[leading])
        for _ in clock.in_time(range(_CHANGES), STAGE):
            points, chosen = vary(problem, elites, _CHANGED, generator)
            elites.add(points, chosen, norms_at(problem, points, chosen))
        record.offer(elites.points, elites.rows, elites.norms)
