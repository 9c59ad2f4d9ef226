"""Projected ascent on the norm of the gradient, many climbers at once.

Every climber moves by the signs of a running mean of its slopes (a step as in the fast gradient
sign method with momentum, Dong et al. 2018): single steps are shared by thousands of inputs, and
the mean carries it over small regions that end an ascent without it. Kinks are spread out
(:mod:`lipschitz.bounds.lower.softness`) and sharpened on the way. What is kept of the way is the
point where the true gradient is largest.

Shapes: P climbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.lower.norms_at import inside, norms_of
from lipschitz.bounds.lower.softness import Softness
from lipschitz.problem import LocalProblem

# What paces are drawn between.
_NARROWEST, _WIDEST = 0.6, 12.0
_SHORTEST_MEMORY, _LONGEST_MEMORY = 0.75, 0.92
_SHARPEST, _BLUNTEST = 0.03, 0.2
# The pace that serves most networks.
_STEP, _WIDTH, _MEMORY, _LAST = 0.3, 6.0, 0.8, 0.15


@dataclass(frozen=True)
class Paces:
    """How climbers go, one number each, [P].

    Attributes:
        step: Length of the first step, as a share of the box's radius.
        width: How far kinks are spread at first, in variations of the neuron.
        memory: Share of the running mean that is kept in a step.
        last: What steps and widths have shrunk to at the end, as a share of the first.
    """

    step: Tensor
    width: Tensor
    memory: Tensor
    last: Tensor

    @staticmethod
    def usual(count: int) -> Paces:
        """The one that serves most networks, for as many climbers."""
        return Paces(*(torch.full((count,), p) for p in (_STEP, _WIDTH, _MEMORY, _LAST)))

    def followed_by(self, other: Paces) -> Paces:
        """These and others."""
        return Paces(
            torch.cat([self.step, other.step]),
            torch.cat([self.width, other.width]),
            torch.cat([self.memory, other.memory]),
            torch.cat([self.last, other.last]),
        )

    @staticmethod
    def drawn(count: int, first: tuple[float, float], generator: torch.Generator) -> Paces:
        """Different ones, since no pace is the best one everywhere.

        Args:
            count: How many.
            first: Range of the first steps.
            generator: Of random numbers.
        """
        uniform = torch.rand(4, count, generator=generator)
        least, most = first
        return Paces(
            least * (most / least) ** uniform[0],
            _NARROWEST * (_WIDEST / _NARROWEST) ** uniform[1],
            _SHORTEST_MEMORY + (_LONGEST_MEMORY - _SHORTEST_MEMORY) * uniform[2],
            _SHARPEST * (_BLUNTEST / _SHARPEST) ** uniform[3],
        )


@dataclass(frozen=True)
class Climbed:
    """The best of every climber's way.

    Attributes:
        points: [P, *input_shape].
        norms: Norm of the gradient there, as computed, [P].
    """

    points: Tensor
    norms: Tensor


def ascend(
    problem: LocalProblem,
    softness: Softness,
    points: Tensor,
    rows: Tensor,
    paces: Paces,
    steps: int,
    clock: Clock = UNLIMITED,
    stage: str | None = None,
) -> Climbed:
    """Climb from points [P, *input_shape], each for its row [P].

    Args:
        problem: The problem.
        softness: How far its kinks are spread.
        points: Where to begin.
        rows: Row of every climber; ignored where the norm is of all rows together.
        paces: How they go.
        steps: How many steps.
        clock: When to stop.
        stage: What is noted on the clock if it stops them.
    """
    shape = (-1, *[1] * (points.dim() - 1))
    paces = Paces(*(p.to(points) for p in (paces.step, paces.width, paces.memory, paces.last)))
    step, memory = paces.step.reshape(shape), paces.memory.reshape(shape)
    radius = (problem.upper - problem.lower) / 2
    best, highest = points, torch.full_like(paces.step, -torch.inf)
    mean = torch.zeros_like(points)
    for k in clock.in_time(range(steps + 1), stage):
        share = k / max(1, steps)
        uphill, norms = _slope_and_norm(
            problem, softness, points, rows, paces.width * paces.last**share
        )
        better = norms > highest
        highest = torch.where(better, norms, highest)
        best = torch.where(better.reshape(shape), points, best)
        if uphill is None or k == steps:
            break
        size = uphill.flatten(1).abs().mean(1).clamp(min=torch.finfo(points.dtype).tiny)
        mean = memory * mean + uphill / size.reshape(shape)
        points = inside(
            problem, points + step * paces.last.reshape(shape) ** share * radius * mean.sign()
        )
    return Climbed(best, highest)


def _slope_and_norm(
    problem: LocalProblem, softness: Softness, points: Tensor, rows: Tensor, width: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Slopes of the spread-out norm at points, None if it is constant, and the true norms, [P]."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        values = problem.graph.values(points)
        soft = norms_of(problem, values, rows, softness.slopes(width))
        uphill = None
        if soft.requires_grad:  # else an affine network, with one gradient everywhere
            uphill = torch.autograd.grad(soft.sum(), points, allow_unused=True)[0]
    if softness.is_smooth:
        return uphill, soft.detach()
    with torch.no_grad():
        norms = norms_of(problem, [value.detach() for value in values], rows)
    return None if uphill is None else uphill.nan_to_num(), norms
