"""Branch and bound on the native engine: when semidefinite programs take part, and how.

Linear bounds come first, for a moment, since many problems need no more. Then programs enter the
search (:mod:`lipschitz.sdp.portfolio`), unless they are so large that the time would be over before
one of every output is certified.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import bab
from lipschitz.native.crown import RootBounds
from lipschitz.native.search import NativeSearch
from lipschitz.problem import INTERRUPTED, TIMEOUT, LocalProblem
from lipschitz.sdp.boxes import programs_at_once, seconds_per_program
from lipschitz.sdp.portfolio import Portfolio
from lipschitz.sdp.search import ProgramSearch
from lipschitz.search_types import Limits, Progress, SearchResult

PROGRAMS = ("auto", "always", "never")
# Share of the time after which programs come.
_FIRST_LINEAR = 0.02


@torch.no_grad()
def combined_search(
    problem: LocalProblem,
    root: RootBounds,
    bounding: NativeSearch,
    best: tuple[float, Tensor | None],
    programs: str,
    limits: Limits,
    watch: Callable[[Progress], None] | None,
) -> SearchResult:
    """Branch and bound, with semidefinite programs where they are wanted and affordable.

    Args:
        problem: What to bound.
        root: Its linear bounds.
        bounding: Bounds and splits by linear relaxation.
        best: A norm attained at a point, and the point.
        programs: ``auto``, ``always`` or ``never``.
        limits: When to stop.
        watch: Called once per round.
    """
    rows = root.class_upper_bounds
    known = SearchResult(float(rows.max()), best[0], rows, best[1], INTERRUPTED, 0, 0)
    last: list[Progress] = []

    def watch_on(progress: Progress) -> None:
        """The first search's end is not the end, unless it turns out to be."""
        if progress.finished:
            last.append(progress)
        elif watch is not None:
            watch(progress)

    try:
        if programs == "never" or problem.norm == "1" or not programs_at_once(problem, root):
            return bab.branch_and_bound(bounding, *best, limits, watch)
        # The maximum is lower only when all that reach above the lower bound are.
        needed = int((rows > best[0]).sum()) * seconds_per_program(problem, root)
        if programs == "auto" and needed > limits.timeout - _elapsed(limits):
            return bab.branch_and_bound(bounding, *best, limits, watch)
        if programs == "auto":
            moment = replace(limits, timeout=_elapsed(limits) + _FIRST_LINEAR * limits.timeout)
            known = bab.branch_and_bound(bounding, *best, moment, watch_on)
            if known.status != TIMEOUT or _elapsed(limits) >= limits.timeout:
                if watch is not None:
                    watch(last[0])
                return known
            best = known.lower_bound, known.witness
        remaining = limits.timeout - _elapsed(limits)
        search = ProgramSearch(bounding, root, time.monotonic() + remaining)
        end = time.perf_counter() + remaining
        state = Portfolio(search, bounding, *best, end=end, linear=programs == "auto", known=known)
        return bab.branch_and_bound(search, *best, limits, watch, state)
    except KeyboardInterrupt:  # between two searches
        return replace(known, status=INTERRUPTED)


def _elapsed(limits: Limits) -> float:
    return time.perf_counter() - limits.begin
