"""Branch and bound on the native engine: when semidefinite programs take part, and how.

Linear bounds alone come first, for a small share of the time, since many problems need no more.
Then the search begins anew with programs (:mod:`lipschitz.search.engines.programs`), unless these
are so large that the time would be over before each output has one certified program. Where the gap
is still wide, it begins with pre-activation intervals that keep the neurons of a layer together
(:mod:`lipschitz.bounds.coupled`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.coupled.root import coupled_root
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.sdp.boxes import programs_at_once, seconds_per_program
from lipschitz.problem import LocalProblem
from lipschitz.rounding import rounded_down
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.engines.programs import ProgramSearch
from lipschitz.search.interface import Limits, Progress, SearchResult
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.state import SearchState
from lipschitz.words import INTERRUPTED, TIMEOUT

# Share of the time limit for linear bounds alone. It is doubled, up to the second number, as long
# as a doubling leaves at most ``_FAST`` of the gap between upper and lower bound: linear bounds may
# then close it soon. The three numbers are choices; the search that they make is "bab --sdp auto"
# in benchmarks/results/wide.md.
_FIRST_LINEAR, _MOST_LINEAR = 0.01, 0.08
_FAST = 0.6
# Upper bounds above this multiple of the lower bound get coupled pre-activation bounds, for at most
# this share of the time left. Choices: they pay on deep networks and wide boxes.
_WORTH_COUPLING, _SHARE_OF_COUPLED = 1.05, 0.5


@torch.no_grad()
def combined_search(
    problem: LocalProblem,
    root: RootBounds,
    bounding: NeuronSearch,
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
    try:
        if programs == "never" or problem.norm == "1" or not programs_at_once(problem, root):
            return branch_and_bound(bounding, *best, limits, watch)
        # To lower the maximum, every row with a linear bound above the lower bound needs a program.
        above = int((rows > rounded_down(best[0], rows.dtype)).sum())
        needed = above * seconds_per_program(problem, root)
        if programs == "auto" and needed > limits.timeout - _elapsed(limits):
            return branch_and_bound(bounding, *best, limits, watch)
        if programs == "auto":
            known = _linear_first(bounding, best, limits, watch)
            if known.status != TIMEOUT or _elapsed(limits) >= limits.timeout:
                return known
        clock = Clock.of(limits.timeout - _elapsed(limits))
        if known.upper_bound > _WORTH_COUPLING * known.lower_bound:
            coupled = coupled_root(problem, root, clock=clock.part(_SHARE_OF_COUPLED))
            if coupled is not root:
                root, bounding = coupled, bounding.rooted(coupled)
        search = ProgramSearch(bounding, root, clock, always=programs == "always")
        found = branch_and_bound(
            search, known.lower_bound, known.witness, limits, _going_on(known, watch)
        )
        return replace(
            found,
            upper_bound=min(known.upper_bound, found.upper_bound),
            row_upper_bounds=known.row_upper_bounds.minimum(found.row_upper_bounds),
            domains=known.domains + found.domains,
            leaves_checked=known.leaves_checked + found.leaves_checked,
        )
    except KeyboardInterrupt:  # between two searches
        return replace(known, status=INTERRUPTED)


def _linear_first(
    bounding: NeuronSearch,
    best: tuple[float, Tensor | None],
    limits: Limits,
    watch: Callable[[Progress], None] | None,
) -> SearchResult:
    """Branch and bound with linear bounds alone, in slices of the time that double."""
    last: list[Progress] = []

    def watch_on(progress: Progress) -> None:
        """Hold back the last report of a slice: the search may go on after it."""
        if progress.finished:
            last.append(progress)
        elif watch is not None:
            watch(progress)

    state = SearchState(bounding, *best)
    begin, share, gap = _elapsed(limits), _FIRST_LINEAR, float("inf")
    while True:
        moment = replace(limits, timeout=min(begin + share * limits.timeout, limits.timeout))
        known = branch_and_bound(bounding, *best, moment, watch_on, state)
        before, gap = gap, known.upper_bound - known.lower_bound
        if known.status != TIMEOUT or share >= _MOST_LINEAR or gap > _FAST * before:
            break
        share *= 2
    if watch is not None and (known.status != TIMEOUT or _elapsed(limits) >= limits.timeout):
        watch(last[-1])
    return known


def _going_on(
    known: SearchResult, watch: Callable[[Progress], None] | None
) -> Callable[[Progress], None] | None:
    """``watch`` for a second search, whose reports include what the first has found."""
    if watch is None:
        return None

    def watch_on(progress: Progress) -> None:
        upper_bound = min(progress.upper_bound, known.upper_bound)
        domains = progress.domains + known.domains
        watch(replace(progress, upper_bound=upper_bound, domains=domains))

    return watch_on


def _elapsed(limits: Limits) -> float:
    return time.perf_counter() - limits.begin
