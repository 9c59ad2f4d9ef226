"""Branch and bound with programs and with linear bounds, each for as long as it gains more.

Two searches cover the box: one solves a semidefinite program for every subdomain that reaches the
top, the other splits with linear bounds. Both bound the same maximum, so the smaller of their upper
bounds holds, and they share every witness. The programs begin, since near the root they are better
by factors. The linear search then sets out from the subdomains that the programs have left open,
with the bounds they have there, so nothing that has been ruled out is looked at again. From then on
the time goes to whichever is expected to have the smaller bound in the end: best-first searches
gain a little less in every doubling of their time, so each is extrapolated from its latest one.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right

from torch import Tensor

from lipschitz.native.search import NativeSearch
from lipschitz.sdp.search import ProgramSearch
from lipschitz.search_state import SearchState
from lipschitz.search_types import Progress, SearchResult

# Share of the time that the programs get before the linear search sets out.
_FIRST_SHARE = 0.05
# What a search gains in a doubling of its time over what it gained in the one before, as measured
# on MLPs of width 64 and 128 (0.6 to 0.75 for both searches).
_DECAY = 0.7
# Neither search gets less than this share of the time, lest an early guess decides: the linear one
# may be slow to set out, while programs show soon what they can do.
_LEAST_SHARES = (0.1, 0.25)
# The programs go on until this multiple of what the root's have taken, to see what splits gain.
_AFTER_ROOT = 1.3
_SHORTEST = 1e-3  # seconds


class _Course:
    """Upper bound of one search against the time it has had."""

    def __init__(self, upper_bound: float) -> None:
        self.seconds = 0.0
        self.times, self.bounds = [0.0], [upper_bound]

    def forget(self) -> None:
        """Leave out what came before: it says nothing about what comes."""
        self.times, self.bounds = self.times[-1:], self.bounds[-1:]

    def note(self, seconds: float, upper_bound: float) -> None:
        """The search has run for some more time and its bound is now this."""
        self.seconds += seconds
        self.times.append(self.seconds)
        self.bounds.append(upper_bound)

    def expected(self, remaining: float) -> float:
        """Its bound if it gets all the remaining time."""
        first = max(bisect_right(self.times, self.seconds / 2) - 1, 0)
        begin, now = max(self.times[first], _SHORTEST), max(self.seconds, _SHORTEST)
        if now <= begin:
            return self.bounds[-1]
        per_doubling = (self.bounds[first] - self.bounds[-1]) / min(math.log2(now / begin), 1.0)
        doublings = math.log2((now + remaining) / now)
        return self.bounds[-1] - per_doubling * _DECAY * (1 - _DECAY**doublings) / (1 - _DECAY)


class Portfolio:
    """The state of both searches, with the interface of :class:`SearchState`.

    Args:
        programs: The search by programs.
        native: The linear one.
        lower_bound, witness: A norm attained at a point, and the point.
        end: ``time.perf_counter()`` at which time is up.
        linear: Whether linear bounds may take over.
        known: What a search before has found out, or None.
    """

    def __init__(
        self,
        programs: ProgramSearch,
        native: NativeSearch,
        lower_bound: float,
        witness: Tensor | None,
        *,
        end: float,
        linear: bool = True,
        known: SearchResult | None = None,
    ) -> None:
        self.by_programs = SearchState(programs, lower_bound, witness)
        self.by_splits: SearchState | None = None
        self.native, self.may_split = native, linear
        self.end, self.known = end, known
        self.first_seconds = _FIRST_SHARE * max(end - time.perf_counter(), 0.0)
        self.courses = [_Course(self.by_programs.upper_bound)]
        self.root_is_solved = False

    @property
    def _states(self) -> list[SearchState]:
        return [s for s in (self.by_programs, self.by_splits) if s is not None]

    @property
    def upper_bound(self) -> float:
        """Certified upper bound of the maximum over all rows."""
        known = float("inf") if self.known is None else self.known.upper_bound
        return min(known, *(state.upper_bound for state in self._states))

    @property
    def lower_bound(self) -> float:
        """Largest norm attained at a point."""
        return max(state.lower_bound for state in self._states)

    @property
    def domains(self) -> int:
        """Subdomains bounded by either, and before."""
        known = 0 if self.known is None else self.known.domains
        return known + sum(state.domains for state in self._states)

    def progress(self, seconds: float, *, finished: bool = False) -> Progress:
        """The state for whoever watches."""
        open_ = sum(len(state.pool) for state in self._states)
        return Progress(seconds, self.upper_bound, self.lower_bound, self.domains, open_, finished)

    def is_over(self, threshold: float) -> bool:
        """Whether nothing is left to do.

        Regions that one search can neither split nor show to be empty the other cannot either; but
        where it has given up subdomains for want of room, the other may still do better.
        """
        over = [state for state in self._states if state.is_over(threshold)]
        final = any(state.folded < state.closed_bound for state in over)
        return final or len(over) == len(self._states)

    @property
    def folded(self) -> float:
        """Upper bound of what the search that is ahead has given up."""
        return min(self._states, key=lambda state: state.upper_bound).folded

    def round(self, count: int, threshold: float) -> None:
        """One round of the search that is expected to be ahead in the end."""
        begin = time.perf_counter()
        which = self._next(begin)
        if self._states[which].is_over(threshold):
            which = 1 - which
        state = self._states[which]
        state.round(count, threshold)
        self.courses[which].note(time.perf_counter() - begin, state.upper_bound)
        best = max(self._states, key=lambda s: s.lower_bound)
        for other in self._states:
            other.lower_bound, other.witness = best.lower_bound, best.witness

    def fold(self, max_domains: int) -> None:
        """Give up the weakest subdomains of each search beyond the limit."""
        for state in self._states:
            state.fold(max_domains)

    def _next(self, now: float) -> int:
        """0 for programs, 1 for linear bounds."""
        programs = self.courses[0]
        if not self.root_is_solved and self._strongest_is_solved():
            self.root_is_solved = True
            programs.forget()
            self.first_seconds = max(self.first_seconds, _AFTER_ROOT * programs.seconds)
        if not (self.may_split and self.root_is_solved) or programs.seconds < self.first_seconds:
            return 0
        if self.by_splits is None:
            self.by_splits = self._set_out()
            self.courses.append(_Course(self.by_splits.upper_bound))
        remaining = max(self.end - now, 0.0)
        total = sum(course.seconds for course in self.courses)
        for which in (1, 0):
            if self.courses[which].seconds < _LEAST_SHARES[which] * total:
                return which
        expected = [course.expected(remaining) for course in self.courses]
        return int(expected[1] <= expected[0])

    def _strongest_is_solved(self) -> bool:
        """Whether the bound is that of a program: at first, whether the root's are all done."""
        pool = self.by_programs.pool
        return bool(pool.read(pool.strongest(1, float("-inf"))).solved.all())

    def _set_out(self) -> SearchState:
        """The linear search on the subdomains that the programs have left open."""
        state = self.by_programs
        slots = state.pool.strongest(len(state.pool), float("-inf"))
        search: ProgramSearch = state.bounding
        other = SearchState(
            self.native,
            state.lower_bound,
            state.witness,
            search.linear(state.pool.read(slots)),
        )
        other.root_bounds, other.closed_rows = state.root_bounds, state.closed_rows.clone()
        other.folded = state.folded
        return other

    def result(self, status: str) -> SearchResult:
        """The certified bounds reached so far, row by row the smallest."""
        # Ctrl-C may come before one search has told the other of its witness.
        best = max(self._states, key=lambda state: state.lower_bound)
        results = [state.result(status) for state in self._states]
        results += [] if self.known is None else [self.known]
        rows = results[0].row_upper_bounds
        for result in results[1:]:
            rows = rows.minimum(result.row_upper_bounds)
        return SearchResult(
            self.upper_bound,
            best.lower_bound,
            rows,
            best.witness,
            status,
            self.domains,
            sum(result.leaves_checked for result in results),
        )
