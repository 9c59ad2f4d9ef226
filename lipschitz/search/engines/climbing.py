"""Points of large gradients, by projected ascent on curved networks.

A search by boxes ends when its lower bound is near the largest gradient too. Centres of boxes come
near it only as fast as the boxes shrink; a few steps uphill from the best of them arrive at once.
The slope of the norm ``|J_r(x)|`` is ``H_r(x) v``, v the direction in which J counts: its signs,
itself over its length, or its largest entry. Steps are those of Rprop (Riedmiller and Braun 1993).

Nothing here is certified: what a point is worth is for whoever asks to find out.

Shapes: P points, D inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipschitz.bounds.native.curvature import HessianTerms
from lipschitz.norms import Measure

# Steps, and the length of the first as a share of the box's radius. A step is longer after one of
# the same sign and shorter after one of the other. The factors are those of Rprop's authors.
_STEPS, _FIRST_STEP = 30, 0.1
_LONGER, _SHORTER = 1.2, 0.5


def steepest(measure: Measure) -> Callable[[Tensor], Tensor]:
    """The direction in which a gradient counts, by gradients [P, D]: [P, D]."""

    def direction(gradients: Tensor) -> Tensor:
        counted = measure.counted(gradients)
        if measure.norm == "inf":
            return measure.counted(counted.sign())
        if measure.norm == "2":
            return torch.nn.functional.normalize(counted, dim=1)
        largest = counted.abs().argmax(1, keepdim=True)
        return torch.zeros_like(counted).scatter(1, largest, counted.gather(1, largest).sign())

    return direction


def climb(
    terms: HessianTerms,
    rows: Tensor,
    points: Tensor,
    lower: Tensor,
    upper: Tensor,
    direction: Callable[[Tensor], Tensor],
) -> Tensor:
    """The highest points on the way up from given ones, [P, *input_shape].

    Args:
        terms: Of the network's Hessians.
        rows: Output directions, [P, C].
        points: Where to begin, [P, *input_shape].
        lower, upper: The box, [*input_shape].
        direction: Of gradients [P, D], the direction v in which they count.
    """
    shape, radius = points.shape, (upper - lower).flatten() / 2
    step, last = _FIRST_STEP * radius.expand(len(points), -1), torch.zeros_like(points.flatten(1))
    best, highest = points, torch.full_like(rows[:, 0], -torch.inf)
    for _ in range(_STEPS):
        gradients = terms.graph.gradients(points, rows).flatten(1)
        v = direction(gradients)
        value = (v * gradients).sum(1)
        better = value > highest
        highest = torch.where(better, value, highest)
        best = torch.where(better.reshape(-1, *[1] * (points.dim() - 1)), points, best)
        uphill = terms.values(points, rows, v.reshape(shape)).flatten(1).sign()
        turn = uphill * last
        step = torch.where(turn > 0, _LONGER * step, torch.where(turn < 0, _SHORTER * step, step))
        step, last = torch.minimum(step, radius), uphill
        moved = points + (uphill * step).reshape(shape)
        points = torch.minimum(torch.maximum(moved, lower), upper)
    return best
