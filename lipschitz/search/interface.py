"""What a branch-and-bound search is given and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from lipschitz.search.subdomains import Batch


@dataclass(frozen=True)
class Report:
    """What :meth:`Bounding.refine` or :meth:`Bounding.settle` has found out about subdomains.

    Attributes:
        subdomains: Those still open.
        points: Points that may be good witnesses, [P, *input_shape].
        point_rows: The row of the problem each was found for, [P].
        programs: Linear programs solved.
        closed: Subdomains that need no more search although they are not shown to be empty:
            their bound is attained, or they cannot be split any further.
        postponed: Open subdomains that are not to be split now.
    """

    subdomains: Batch
    points: Tensor
    point_rows: Tensor
    programs: int = 0
    closed: Batch | None = None
    postponed: Batch | None = None

    def having(self, **changes: object) -> Report:
        """The same with some fields replaced."""
        return replace(self, **changes)


class Bounding(Protocol):
    """What the search asks of an engine.

    ``root`` gives one bounded subdomain per row; ``children`` splits every subdomain at its choice
    into parts that cover it and bounds them, never above their parents; ``refine`` may tighten
    subdomains that have the largest bounds of the pool, given the value up to which a bound counts
    as closed; ``settle`` checks leaves (choice -1); ``witness_norms`` is the true gradient's norm
    at points. An engine may have an ``attack`` (:mod:`lipschitz.bounds.lower.attack`), which then
    looks for large gradients beside the search.
    """

    def root(self) -> Batch: ...
    def children(self, parents: Batch) -> Batch: ...
    def refine(self, subdomains: Batch, threshold: float = 0.0) -> Report: ...
    def settle(self, leaves: Batch) -> Report: ...
    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        timeout: Seconds since ``begin``.
        tolerance: Relative gap up to which the result is called exact.
        batch_size: Subdomains split per round.
        max_domains: Open subdomains kept; beyond it the weakest are folded into one upper bound.
        begin: ``time.perf_counter()`` at which the clock started; the search's own start if None.
    """

    timeout: float = 60.0
    tolerance: float = 1e-4
    batch_size: int = 512
    max_domains: int = 500_000
    begin: float | None = None


@dataclass(frozen=True)
class Progress:
    """State of a search; upper and lower bounds are certified.

    Attributes:
        seconds: Since the clock started.
        upper_bound, lower_bound: Of the maximum over all rows.
        domains: Subdomains bounded so far.
        open_domains: Subdomains in the pool.
        finished: The search has stopped.
    """

    seconds: float
    upper_bound: float
    lower_bound: float
    domains: int
    open_domains: int
    finished: bool = False


@dataclass(frozen=True)
class SearchResult:
    """Certified bounds when the search stopped.

    Attributes:
        upper_bound, lower_bound: Of the maximum over all rows.
        row_upper_bounds: Upper bound per row, [R]; a row is searched only as long as it may hold
            the maximum, so those of other rows may be loose.
        witness: A point whose gradient attains ``lower_bound``, or None.
        status: ``exact``, ``timeout``, ``domain_limit``, ``interrupted``, or ``bound`` where the
            gap is held open by regions that can be neither split nor shown to be empty.
        domains: Subdomains bounded.
        leaves_checked: Linear programs solved.
    """

    upper_bound: float
    lower_bound: float
    row_upper_bounds: Tensor
    witness: Tensor | None
    status: str
    domains: int
    leaves_checked: int
