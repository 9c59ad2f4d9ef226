"""A search that cuts the box, begun before anything costly is known about the network.

Where activations are curved and inputs are few, boxes mostly close the gap before the root's
optimised bounds, which a search by neurons needs, would be ready. So boxes are cut for a while; if
that closes the gap well they go on, else the other search is tried, and the better one is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from lipschitz.bounds.native.terms.gradient import GradientTerms, has_curves
from lipschitz.network.graph import Graph
from lipschitz.search.interface import Bounding, Limits, Progress, SearchResult
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.state import SearchState
from lipschitz.words import BOUND, EXACT, TIMEOUT

# Seconds for which boxes are cut at first, or this share of the time limit if less. Choices: with
# too short a time the slower search may be picked.
_SECONDS, _SHARE_OF_TIME = 2.0, 0.1
# The share of the gap of the whole box's bound that may be left then. Measured on seven networks of
# 10 to 32 inputs, tanh, sigmoid, GELU and SiLU, six seconds each: where boxes were the better
# search, at most 0.3 of it was left in the end; where neurons were, 0.4 and more.
_LARGEST_SHARE_LEFT = 0.33


def can_cut_first(graph: Graph) -> bool:
    """Whether boxes of this network are bounded by affine forms of few inputs."""
    return has_curves(graph) and GradientTerms(graph).is_carried_forward


class BoxesFirst:
    """A search by boxes that can be gone on with.

    Args:
        bounding: The engine.
        lower_bound, witness: A norm attained at a point, and the point.
    """

    def __init__(self, bounding: Bounding, lower_bound: float, witness: Tensor | None) -> None:
        self.state = SearchState(bounding, lower_bound, witness)
        self.status = TIMEOUT
        self._tolerance = 0.0

    def begin(self, limits: Limits) -> SearchResult:
        """Cut boxes for a while."""
        now = time.perf_counter()
        seconds = min(_SECONDS, _SHARE_OF_TIME * limits.timeout)
        begin = now if limits.begin is None else limits.begin
        end = min(limits.timeout, now - begin + seconds)
        return self.go_on(
            Limits(end, limits.tolerance, limits.batch_size, limits.max_domains, begin)
        )

    def go_on(
        self, limits: Limits, watch: Callable[[Progress], None] | None = None
    ) -> SearchResult:
        """Search on until other limits."""
        state, self._tolerance = self.state, limits.tolerance
        result = branch_and_bound(
            state.bounding, state.lower_bound, state.witness, limits, watch, state
        )
        self.status = result.status
        return result

    @property
    def is_promising(self) -> bool:
        """Whether much of the gap is closed, or all of it."""
        if self.status == BOUND:  # boxes that are cut cannot close it
            return False
        goal = self.state.lower_bound * (1 + self._tolerance)
        left, whole = self.state.upper_bound - goal, float(self.state.root_bounds.max()) - goal
        return self.status == EXACT or left <= _LARGEST_SHARE_LEFT * whole

    def is_ahead_of(self, other: SearchResult) -> bool:
        """Whether its upper bound is below that of another search, and can be lowered further."""
        return self.status != BOUND and self.state.upper_bound < other.upper_bound
