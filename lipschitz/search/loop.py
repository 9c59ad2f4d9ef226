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
        count, status, needed = limits.batch_size, INTERRUPTED, 0.0
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
                # A round for fewer subdomains rather than one that is not done in time.
                left = limits.timeout - now
                if left <= 0 or (count == 1 and needed > left):
                    status = TIMEOUT
                    break
                if needed > left:
                    count = max(1, int(count * left / needed))
                search.round(count, threshold)
                search.fold(limits.max_domains)
                search.climb()
                needed = time.perf_counter() - begin - now
                # A round of over a tenth of the time limit: half as many subdomains in the next.
                if needed > 0.1 * limits.timeout:
                    needed *= max(1, count // 2) / count
                    count = max(1, count // 2)
        except KeyboardInterrupt:
            pass
        if watch is not None:
            watch(search.progress(time.perf_counter() - begin, finished=True))
        return search.result(status)
