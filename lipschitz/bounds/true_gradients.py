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

from lipschitz.bounds.witness import witness_norms
from lipschitz.checks import whole_number
from lipschitz.network.graph import Graph, Node
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard

# No activation has it on either side of a kink, so taking it there shows whether the kink matters.
_ANOTHER_SLOPE = 0.7390851


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


def sample_gradients(
    problem: LocalProblem, sampling: Sampling | None = None, starts: Tensor | None = None
) -> GradientNorms:
    """Largest true gradient norm per row found by sampling and projected ascent.

    Args:
        problem: The box and the rows.
        sampling: How hard to look.
        starts: More points of the box to look at and to climb from, [P, *input_shape].

    The norms are lowered by the rounding guard, so that they hold for the network in real
    arithmetic as far as the upper bounds do.
    """
    sampling = sampling or Sampling()
    with torch.no_grad():
        best = _Best(problem)
        for points in [*_start_points(problem, sampling), *([] if starts is None else [starts])]:
            best.update(points, sampling.points_at_once)
    if bool((problem.upper > problem.lower).any()):
        _ascend(problem, best, sampling)
    norms = best.norms.clamp(min=0) * (1 - guard(problem.graph.dtype))
    return GradientNorms(norms, best.points)


class _Best:
    """Best norm and point so far, per row."""

    def __init__(self, problem: LocalProblem) -> None:
        self.problem = problem
        rows = problem.rows[:1] if problem.measure.joint else problem.rows
        self.norms = torch.full_like(rows[:, 0], float("-inf"))
        self.points = problem.centre.expand(len(rows), *problem.centre.shape).clone()

    def update(self, points: Tensor, points_at_once: int) -> None:
        """Take note of every row's gradient at every point, points [P, *input_shape]."""
        rows = self.problem.rows
        for part in points.split(max(1, points_at_once // len(rows))):
            norms = gradient_norms(self.problem.graph, part, rows, self.problem.measure)
            norms, winner = norms.max(dim=0)
            better = (norms > self.norms).nonzero()[:, 0]
            if not len(better):
                continue
            chosen = part[winner[better]]
            norms = witness_norms(self.problem, chosen, better)
            certain = norms > self.norms[better]
            better = better[certain]
            self.norms[better], self.points[better] = norms[certain], chosen[certain]


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


def _ascend(problem: LocalProblem, best: _Best, sampling: Sampling) -> None:
    """Climb the smoothed norm of the leading rows from their best points."""
    graph, measure = problem.graph, problem.measure
    leading = best.norms.topk(min(sampling.ascent_rows, len(best.norms))).indices
    # Rows of the Jacobian at each of the points: one, or all of them at the only point.
    rows = problem.rows if measure.joint else problem.rows[leading]
    each = len(rows) // len(leading)
    points = best.points[leading].clone()
    radius = (problem.upper - problem.lower) / 2
    for step in range(sampling.ascent_steps):
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
            best.update(points, sampling.points_at_once)
