"""Branch and bound on the largest entry of the Jacobian: the L1 norm of every row by itself.

In L1 the norm of a row is its largest magnitude of an entry. Every ``J_i`` and every ``-J_i`` is a
linear functional, and one pool of them is searched for the largest. Those whose root bound is above
the lower bound take part, the largest first, as many as there is room for. All others keep their
root bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.root import RootBounds
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound, rounded_down
from lipschitz.search.engines.functionals import Functionals, FunctionalSearch


class EntrySearch(FunctionalSearch):
    """Splits neurons for the largest entry of any row.

    Args:
        problem: The problem, in norm 1.
        root: Its root bounds.
        lower_bound: Entries that stay below it are left out.
        largest: How many entries there is room for.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop.

    Attributes:
        left_out: Upper bound of the entries left out, [R].
    """

    def __init__(
        self,
        problem: LocalProblem,
        root: RootBounds,
        lower_bound: float,
        *,
        largest: int,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> None:
        measure = problem.measure
        ends = [raise_upper_bound(measure.counted(end.flatten(1))) for end in root.norm.entries]
        reach = torch.stack([ends[1], -ends[0]], dim=2)  # [R, D, 2], of J_i and of -J_i
        threshold = rounded_down(lower_bound, reach.dtype)
        chosen = ((reach > threshold) | (reach == reach.max())).nonzero()
        chosen = chosen[reach[tuple(chosen.T)].argsort(descending=True)[:largest]]
        rest = reach.clone()
        rest[tuple(chosen.T)] = 0
        self.left_out = torch.minimum(rest.flatten(1).amax(1), root.class_upper_bounds)
        self.rows = chosen[:, 0]
        queries = [(row, entry, -1 if side else 1) for row, entry, side in chosen.tolist()]
        functionals = Functionals.of_entries(problem, queries)
        super().__init__(
            functionals,
            functionals.spread(root, self.rows),
            memory_budget=memory_budget,
            clock=clock,
        )

    def row_bounds(self, bounds: Tensor) -> Tensor:
        """Bounds of the problem's rows from those of the functionals, [Q] to [R]."""
        return self.left_out.scatter_reduce(0, self.rows, bounds, "amax")
