"""The state of a branch-and-bound search, and one round of it.

At any moment the certified upper bound is the largest of: the open subdomains' bounds, those of
subdomains closed or given up, and the lower bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.lower.attack import Attack
from lipschitz.rounding import guard, rounded_down
from lipschitz.search.interface import Bounding, Progress, Report, SearchResult
from lipschitz.search.pool import DomainPool
from lipschitz.search.subdomains import Batch


class SearchState:
    """Open subdomains, best lower bound, and the upper bounds of subdomains no longer searched.

    Args:
        bounding: The engine's bounds and splits.
        lower_bound, witness: A norm attained at a point, and the point.
        first: Subdomains to begin with; the bounding's root if None.
    """

    def __init__(
        self,
        bounding: Bounding,
        lower_bound: float,
        witness: Tensor | None,
        first: Batch | None = None,
    ) -> None:
        self.bounding = bounding
        self.lower_bound, self.witness = lower_bound, witness
        first = bounding.root() if first is None else first
        self.root_bounds = first.upper_bound.clone()
        self.pool = DomainPool(first)
        self.closed_rows = torch.full_like(self.root_bounds, -torch.inf)  # pruned or attained
        self.folded = float("-inf")  # largest upper bound given up for want of memory
        self.domains = self.programs = 0
        self.attack: Attack | None = getattr(bounding, "attack", None)

    @property
    def upper_bound(self) -> float:
        """Certified upper bound of the maximum over all rows."""
        return max(self.pool.largest(), self.closed_bound, self.lower_bound)

    @property
    def closed_bound(self) -> float:
        """Largest upper bound that no further search can lower."""
        return float(self.closed_rows.max())

    def threshold(self, tolerance: float) -> float:
        """Lower bound plus tolerance, rounded down in the pool's dtype: what counts as closed."""
        return rounded_down(self.lower_bound * (1 + tolerance), self.root_bounds.dtype)

    def is_over(self, threshold: float) -> bool:
        """Whether no open subdomain can change the upper bound, given :meth:`threshold`."""
        return self.pool.largest() <= max(threshold, self.closed_bound)

    def progress(self, seconds: float, *, finished: bool = False) -> Progress:
        """The state for whoever watches."""
        return Progress(
            seconds,
            self.upper_bound,
            self.lower_bound,
            self.domains,
            len(self.pool),
            finished,
        )

    def close(self, subdomains: Batch) -> None:
        """Keep the upper bounds of subdomains that are not searched any further."""
        self.closed_rows.scatter_reduce_(0, subdomains.row, subdomains.upper_bound, "amax")

    def look(self, report: Report) -> Batch:
        """Close what a report has closed, try its points as witnesses; returns what is left open.

        Raises:
            ArithmeticError: A true gradient is above the certified bound by more than rounding
                explains, which means that a bound is wrong.
        """
        self.programs += report.programs
        if report.closed is not None:
            self.close(report.closed)
        if len(report.points):
            norms = self.bounding.witness_norms(report.points, report.point_rows)
            best = int(norms.argmax())
            norm = float(norms[best]) * (1 - guard(norms.dtype))
            if self._take_in(norm, report.points[best]) and self.attack is not None:
                self.attack.learn(self.witness, int(report.point_rows[best]), norm)
        return report.subdomains

    def _take_in(self, norm: float, point: Tensor) -> bool:
        """A true gradient's norm and its point; whether it is the largest so far."""
        self._check(norm)
        better = norm > self.lower_bound
        if better:
            self.lower_bound, self.witness = norm, point.clone()
        return better

    def _check(self, norm: float) -> None:
        """Refuse bounds of all subdomains that are below a true gradient's norm."""
        unit = guard(self.root_bounds.dtype)
        if norm > max(self.pool.largest(), self.closed_bound) * (1 + 50 * unit):
            raise ArithmeticError(
                f"a true gradient has norm {norm:.9g}, above the certified bound "
                f"{self.upper_bound:.9g}: the bounds cannot be trusted; try --dtype float64"
            )

    def climb(self) -> None:
        """Let what looks for large gradients beside the search have its share of the time.

        Raises:
            ArithmeticError: As :meth:`look`, of the largest of all gradients found.
        """
        attack = self.attack
        if attack is None:
            return
        if attack.seconds_due(self.upper_bound) > 0:
            rows = self.pool.row_upper_bounds(len(self.root_bounds))
            attack.turn(self.upper_bound, torch.maximum(rows, self.closed_rows))
        if attack.lower_bound > self.lower_bound:
            self._take_in(attack.lower_bound, attack.witness)
        self._check(self.lower_bound)

    def round(self, count: int, threshold: float) -> None:
        """Replace the strongest subdomains above :meth:`threshold` by their children."""
        slots = self.pool.strongest(count, threshold)
        parents = self.pool.read(slots)
        cut = float(parents.upper_bound.min())
        report = self.bounding.refine(parents, threshold)
        parents = self.look(report)
        if report.postponed is not None:
            self._store(report.postponed, threshold)
        is_leaf = parents.choice < 0
        if bool(is_leaf.any()):
            left = self.look(self.bounding.settle(parents.take(is_leaf)))
            self._store(left, threshold)
            parents = parents.take(~is_leaf)
        # Parents whose bound refining has lowered below the rest of the batch go back to the pool.
        weak = parents.upper_bound < cut
        self._store(parents.take(weak), threshold)
        parents = parents.take(~weak)
        if len(parents):
            children = self.bounding.children(parents)
            self.domains += len(children)
            self._store(children, threshold)
        self.pool.drop(slots)

    def _store(self, subdomains: Batch, threshold: float) -> None:
        keep = subdomains.upper_bound > threshold
        self.close(subdomains.take(~keep))
        self.pool.add(subdomains.take(keep))

    def fold(self, max_domains: int) -> None:
        """Give up the weakest subdomains beyond the limit, keeping their upper bounds."""
        excess = len(self.pool) - max_domains
        if excess > 0:
            # A tenth more than necessary, so that this is not needed in every round.
            slots = self.pool.weakest(excess + max_domains // 10)
            given_up = self.pool.read(slots)
            self.folded = max(self.folded, float(given_up.upper_bound.max()))
            self.close(given_up)
            self.pool.drop(slots)

    def result(self, status: str) -> SearchResult:
        """The certified bounds reached so far."""
        rows = torch.maximum(self.pool.row_upper_bounds(len(self.root_bounds)), self.closed_rows)
        return SearchResult(
            self.upper_bound,
            self.lower_bound,
            torch.minimum(rows.clamp(min=0), self.root_bounds),
            self.witness,
            status,
            self.domains,
            self.programs,
        )
