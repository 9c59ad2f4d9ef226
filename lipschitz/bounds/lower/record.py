"""The largest certified gradient of every row, with its point.

A point on a kink that matters is no witness. A neighbour inside the box that lies on none mostly is
one, and its gradient is one of those that meet in the kink, so neighbours are tried then.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.lower.norms_at import inside, norms_at
from lipschitz.bounds.witness import witness_norms
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard

# A certified norm below this share of the computed one tells of a kink.
_OF_COMPUTED = 1 - 1e-3
# Candidates of a row that are looked at before the rest is left, and a point's neighbours: how
# many, and how far they are, as shares of the box's width. Choices.
_TRIES = 3
_NEIGHBOURS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-6, 1e-5, 1e-4, 1e-3)


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


class Record:
    """Best norm and point so far.

    Args:
        problem: The problem.
        seed: Of the neighbours.

    Attributes:
        norms: Certified, [R], or [1] of all rows together; minus infinity at first.
        points: Where, [R or 1, *input_shape].
    """

    def __init__(self, problem: LocalProblem, seed: int = 0) -> None:
        self.problem = problem
        rows = problem.rows[:1] if problem.measure.joint else problem.rows
        self.norms = torch.full_like(rows[:, 0], -torch.inf)
        self.points = problem.centre.expand(len(rows), *problem.centre.shape).clone()
        self._generator = torch.Generator().manual_seed(seed)

    @staticmethod
    def of(problem: LocalProblem, found: GradientNorms, seed: int = 0) -> Record:
        """What is known already."""
        record = Record(problem, seed)
        record.norms, record.points = found.norms.clone(), found.witnesses.clone()
        return record

    @property
    def found(self) -> GradientNorms:
        """The same of every row, lowered by the rounding guard; 0 where nothing was found."""
        norms = self.norms.clamp(min=0) * (1 - guard(self.norms.dtype))
        return GradientNorms(norms, self.points)

    @property
    def largest(self) -> float:
        """The largest norm, lowered by the rounding guard as the upper bounds are raised."""
        return float(self.found.norms.max())

    def offer(
        self, points: Tensor, rows: Tensor, norms: Tensor, *, largest_only: bool = False
    ) -> None:
        """Take in what is certified of some candidates.

        Args:
            points: [P, *input_shape].
            rows: Row of each, [P].
            norms: Their norms as computed, [P].
            largest_only: Only what exceeds the largest norm of all rows is of interest.
        """
        norms = norms.clone()
        for _ in range(_TRIES):
            known = self.norms.amax().expand_as(norms) if largest_only else self.norms[rows]
            open_ = norms > known
            if not bool(open_.any()):
                return
            of_row = torch.full_like(self.norms, -torch.inf)
            of_row = of_row.scatter_reduce(0, rows, norms, "amax")
            chosen = (open_ & (norms == of_row[rows])).nonzero()[:, 0]
            computed = norms[chosen]
            found, certified = self._certified(points[chosen], rows[chosen], computed)
            # Several points of a row may be alike; the last one that is better stays.
            for i in (certified > self.norms[rows[chosen]]).nonzero()[:, 0].tolist():
                row = rows[chosen[i]]
                if certified[i] > self.norms[row]:
                    self.norms[row], self.points[row] = certified[i], found[i]
            norms[chosen] = -torch.inf
            if bool((certified >= _OF_COMPUTED * computed).all()):
                return

    def _certified(self, points: Tensor, rows: Tensor, computed: Tensor) -> tuple[Tensor, Tensor]:
        """Points, or their neighbours where these are on kinks, and certified norms."""
        norms = witness_norms(self.problem, points, rows)
        problem = self.problem
        at_kink = (norms < _OF_COMPUTED * computed).nonzero()[:, 0]
        if not len(at_kink) or not bool((problem.upper > problem.lower).any()):
            return points, norms
        near = [self._near(points[at_kink], share) for share in _NEIGHBOURS]
        there = torch.stack([norms_at(problem, p, rows[at_kink]) for p in near])
        winner = there.argmax(0)
        index = torch.arange(len(at_kink), device=winner.device)
        chosen = torch.stack(near)[winner, index]
        certified = witness_norms(problem, chosen, rows[at_kink])
        better = certified > norms[at_kink]
        points, norms = points.clone(), norms.clone()
        points[at_kink[better]], norms[at_kink[better]] = chosen[better], certified[better]
        return points, norms

    def _near(self, points: Tensor, share: float) -> Tensor:
        uniform = torch.rand(points.shape, generator=self._generator, dtype=torch.float64)
        width = self.problem.upper - self.problem.lower
        return inside(self.problem, points + share * (2 * uniform - 1).to(points) * width)
