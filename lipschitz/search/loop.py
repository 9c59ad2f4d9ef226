"""Best-first branch and bound over all output rows at once, exact and anytime.

The largest gradient norm over rows and box is a maximum over subdomains, so one pool holds the
open subdomains of every row and the search always works on the largest upper bounds. At any moment
the certified upper bound is the largest of: the open subdomains' bounds, those of subdomains
closed or given up, and the lower bound. Bounding is passed in (:class:`Bounding`), so that the
same loop runs on any engine and with any splitting rule.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from lipschitz.search.interface import Bounding, Limits, Progress, SearchResult
from lipschitz.search.state import SearchState
from lipschitz.words import BOUND, DOMAIN_LIMIT, EXACT, INTERRUPTED, TIMEOUT


def branch_and_bound(
    bounding: Bounding,
    lower_bound: float,
    witness: Tensor | None,
    limits: Limits | None = None,
    watch: Callable[[Progress], None] | None = None,
    state: SearchState | None = None,
) -> SearchResult:
    """Search until the bounds meet or a limit is reached.

    Ctrl-C ends the search like a limit: parents leave the pool only after their children are in.

    Args:
        bounding: The engine's bounds and splits.
        lower_bound, witness: A norm attained at a point, and the point.
        limits: When to stop.
        watch: Called once per round with the state so far, and once at the end.
        state: Where to go on from; a new search of ``bounding`` if None.
    """
    limits = limits or Limits()
    begin = time.perf_counter() if limits.begin is None else limits.begin
    with torch.no_grad():
        search = state or SearchState(bounding, lower_bound, witness)
        count, status = limits.batch_size, INTERRUPTED
        try:
            while True:
                now = time.perf_counter() - begin
                upper = search.upper_bound
                if watch is not None:
                    watch(search.progress(now))
                if upper <= search.lower_bound * (1 + limits.tolerance):
                    status = EXACT
                    break
                threshold = search.threshold(limits.tolerance)
                if search.is_over(threshold):
                    status = DOMAIN_LIMIT if search.folded >= upper else BOUND
                    break
                if now >= limits.timeout:
                    status = TIMEOUT
                    break
                search.round(count, threshold)
                search.fold(limits.max_domains)
                if time.perf_counter() - begin - now > 0.1 * limits.timeout:
                    count = max(1, count // 2)  # a round must not outlast the time that is left
        except KeyboardInterrupt:
            pass
        if watch is not None:
            watch(search.progress(time.perf_counter() - begin, finished=True))
        return search.result(status)
