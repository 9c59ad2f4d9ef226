"""The best points so far, kept apart from each other, to go on from."""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.problem import LocalProblem

# Norms of one row that are as near as this, relatively, count as one region's. A choice.
_SAME = 1e-6
# At most one of so many points is of the same row, since rows that begin low may end high.
_ROWS = 2


class Elites:
    """At most ``most`` points with their rows and norms, the largest norms first.

    Attributes:
        points: [K, *input_shape].
        rows: [K].
        norms: [K], as computed.
    """

    def __init__(self, problem: LocalProblem, most: int = 64) -> None:
        self.most = most
        self.points = problem.centre[None][:0]
        self.norms = problem.rows[:0, 0]
        self.rows = torch.zeros(0, dtype=torch.long, device=problem.rows.device)

    def __len__(self) -> int:
        return len(self.norms)

    def add(self, points: Tensor, rows: Tensor, norms: Tensor) -> None:
        """Take in points, of which only one is kept for each row and norm."""
        self.points = torch.cat([self.points, points.detach().to(self.points)])
        self.rows = torch.cat([self.rows, rows])
        self.norms = torch.cat([self.norms, norms.to(self.norms)])
        order = self.norms.argsort(descending=True, stable=True)
        norms, rows = self.norms[order], self.rows[order]
        same = (norms[1:] >= norms[:-1] * (1 - _SAME)) & (rows[1:] == rows[:-1])
        kept = torch.cat([torch.ones_like(same[:1]), ~same]) if len(same) else norms == norms
        order = order[kept & norms.isfinite()]
        order = order[self._places(self.rows[order]) < self.most // _ROWS][: self.most]
        self.points, self.rows, self.norms = self.points[order], self.rows[order], self.norms[order]

    @staticmethod
    def _places(rows: Tensor) -> Tensor:
        """Place of every point among those of its row."""
        alike = rows[:, None] == rows
        return alike.tril().sum(1) - 1

    def only(self, keep: Tensor) -> None:
        """Forget all but those of the rows [R] that are kept, bool."""
        chosen = keep[self.rows]
        self.points, self.rows = self.points[chosen], self.rows[chosen]
        self.norms = self.norms[chosen]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers of ``count`` of them, the better ones more often."""
        share = torch.rand(count, generator=generator).square()
        return (share * len(self)).long().clamp(max=len(self) - 1).to(self.rows.device)
