"""Branch and bound on the native engine: when semidefinite programs take part, and how.

Linear bounds come first, for a moment, since many problems need no more. Small programs then enter
the search itself (:mod:`lipschitz.sdp.portfolio`). Large ones are solved for the whole box only,
step by step (:mod:`lipschitz.sdp.bound`), and what time is left goes to splitting.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import bab
from lipschitz.lower_bound import GradientNorms
from lipschitz.native.crown import RootBounds
from lipschitz.native.search import NativeSearch
from lipschitz.problem import INTERRUPTED, TIMEOUT, LocalProblem
from lipschitz.sdp.bound import LARGEST_IN_BATCH, SdpOptions, tightened
from lipschitz.sdp.boxes import largest_size, programs_at_once, seconds_per_step
from lipschitz.sdp.portfolio import Portfolio
from lipschitz.sdp.search import ProgramSearch
from lipschitz.search_types import Limits, Progress, SearchResult

PROGRAMS = ("auto", "always", "never")
# Share of the time after which programs come.
_FIRST_LINEAR = 0.02
# Large programs get this share of the time, if so many steps fit into it: with fewer, the first
# is not below the linear bound yet.
_SHARE_OF_LARGE = 0.75
_FEWEST_STEPS = 8


def combined_search(
    problem: LocalProblem,
    root: RootBounds,
    bounding: NativeSearch,
    best: tuple[float, Tensor | None],
    found: GradientNorms,
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
        found: The largest true gradient norms known, row by row.
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
        if programs == "auto":
            moment = replace(limits, timeout=_elapsed(limits) + _FIRST_LINEAR * limits.timeout)
            known = bab.branch_and_bound(bounding, *best, moment, watch_on)
            if known.status != TIMEOUT or _elapsed(limits) >= limits.timeout:
                if watch is not None:
                    watch(last[0])
                return known
            best = known.lower_bound, known.witness
            if largest_size(problem, root) > LARGEST_IN_BATCH:
                return _after_large_programs(problem, root, bounding, known, found, limits, watch)
        remaining = limits.timeout - _elapsed(limits)
        search = ProgramSearch(bounding, time.monotonic() + remaining)
        end = time.perf_counter() + remaining
        state = Portfolio(search, bounding, *best, end=end, linear=programs == "auto", known=known)
        return bab.branch_and_bound(search, *best, limits, watch, state)
    except KeyboardInterrupt:  # between two searches
        return replace(known, status=INTERRUPTED)


def _after_large_programs(
    problem: LocalProblem,
    root: RootBounds,
    bounding: NativeSearch,
    known: SearchResult,
    sampled: GradientNorms,
    limits: Limits,
    watch: Callable[[Progress], None] | None,
) -> SearchResult:
    """Programs of the whole box if a few steps of them fit, then splits by linear bounds."""
    lower_bound, witness, rows = known.lower_bound, known.witness, known.row_upper_bounds
    seconds = _SHARE_OF_LARGE * (limits.timeout - _elapsed(limits))
    if _FEWEST_STEPS * seconds_per_step(problem, root) <= seconds:
        deadline = time.monotonic() + seconds
        outcome = tightened(problem, root, deadline, SdpOptions(), found=sampled)
        rows = torch.minimum(rows, outcome.class_upper_bounds)
        best = int(outcome.found.norms.argmax())
        if float(outcome.found.norms[best]) > lower_bound:
            lower_bound = float(outcome.found.norms[best])
            witness = outcome.found.witnesses[best]
        known = replace(
            known,
            upper_bound=float(rows.max()),
            row_upper_bounds=rows,
            lower_bound=lower_bound,
            witness=witness,
        )
        if outcome.status == INTERRUPTED:
            return replace(known, status=INTERRUPTED)
    try:
        first = bounding.first
        tighter = torch.minimum(first.upper_bound, rows[first.row])
        bounding.first = first.having(upper_bound=tighter)
        found = bab.branch_and_bound(bounding, lower_bound, witness, limits, watch)
    except KeyboardInterrupt:
        return replace(known, status=INTERRUPTED)
    return replace(
        found,
        upper_bound=min(found.upper_bound, known.upper_bound),
        row_upper_bounds=torch.minimum(found.row_upper_bounds, rows),
        domains=found.domains + known.domains,
        leaves_checked=found.leaves_checked + known.leaves_checked,
    )


def _elapsed(limits: Limits) -> float:
    return time.perf_counter() - limits.begin
