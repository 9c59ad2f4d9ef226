"""A search that cuts the box, begun before anything costly is known about the network.

Where activations are curved and inputs are few, boxes mostly close the gap before the root's
optimised bounds, which a search by neurons needs, would be ready. So boxes are cut for a while; if
that closes the gap well they go on, else the other search is tried, and the better one is taken.
Where all activations are ReLU or LeakyReLU, boxes are cut and neurons split in one search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from lipschitz.bounds.native.terms.gradient import GradientTerms, has_curves
from lipschitz.network.graph import Graph
from lipschitz.search.engines.inputs import InputSearch
from lipschitz.search.engines.regions import RegionSearch
from lipschitz.search.interface import Limits, Progress, SearchResult
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.state import SearchState
from lipschitz.words import BOUND, EXACT, INTERRUPTED, TIMEOUT

# Seconds for which boxes are cut at first, or this share of the time limit if less.
_SECONDS, _SHARE_OF_TIME = 2.0, 0.2
# Boxes go on if at most the first share of the first gap is left then, or the second share of the
# gap half-way. They stop if more than the third share of the first gap is left, or if there is no
# such progress as the last number; in between the other search is tried. Measured on twelve
# networks of 3 to 32 inputs, tanh, sigmoid, GELU and SiLU, after 1.6 seconds: where boxes were the
# better search in the end, at most 0.37 of the first gap was left, or 0.39 of that half-way; where
# neurons were, at least 0.47 and 0.78.
_SHARE_LEFT, _SHARE_OF_HALF, _LARGEST_SHARE, _LEAST_PROGRESS = 0.4, 0.6, 0.6, 0.01
# Inputs up to which boxes are gone on with in any case, if no slope jumps: whatever a search by
# neurons has reached by then, it is overtaken. Measured on networks of 3 and 4 inputs only.
_FEW_INPUTS = 4
# Inputs up to which boxes and neurons together go on, at least until the other search
# has been tried. Measured: 8 inputs and 494 open neurons (dubinsrejoin) hold it up, 4 inputs and
# 1,056 neurons (linearizenn) do not.
_FEW_IF_MIXED = 5


def can_cut_first(graph: Graph) -> bool:
    """Whether boxes of this network are bounded by affine forms of few inputs."""
    return has_curves(graph) and GradientTerms(graph).is_carried_forward


class BoxesFirst:
    """A search by boxes that can be gone on with.

    Args:
        bounding: The engine.
        lower_bound, witness: A norm attained at a point, and the point.

    Attributes:
        state: The open boxes.
        status: How it stopped.
        seconds: How long it may take to begin.
    """

    def __init__(
        self, bounding: InputSearch | RegionSearch, lower_bound: float, witness: Tensor | None
    ) -> None:
        self.state = SearchState(bounding, lower_bound, witness)
        self.status, self.seconds = TIMEOUT, 0.0
        self._tolerance, self._half = 0.0, self._upper
        inputs = self._inputs = bounding.problem.centre.numel()
        self._splits_neurons = isinstance(bounding, RegionSearch)
        self._is_small = inputs <= _FEW_INPUTS and bounding.is_smooth

    def begin(self, limits: Limits) -> SearchResult:
        """Cut boxes for a while."""
        now = time.perf_counter()
        begin = now if limits.begin is None else limits.begin
        halves = 2 if self._splits_neurons else 1
        self.seconds = min(_SECONDS, _SHARE_OF_TIME * limits.timeout) / halves
        ends = (min(limits.timeout, now - begin + share * self.seconds) for share in (0.5, 1.0))
        first, whole = (replace(limits, timeout=end, begin=begin) for end in ends)
        result = self.go_on(first)
        self._half = self._upper
        if result.status != TIMEOUT or self.is_stuck:
            return result
        return self.go_on(whole)

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
    def is_stuck(self) -> bool:
        """Whether neurons are split as well and still next to nothing of the gap is closed.

        Then the box is too wide for it, and the time is better spent on neurons alone. With up to
        ``_FEW_IF_MIXED`` inputs it is not believed so soon.
        """
        left, _, whole = self._gaps
        many = self._splits_neurons and self._inputs > _FEW_IF_MIXED
        return many and left > (1 - _LEAST_PROGRESS) * whole

    @property
    def is_promising(self) -> bool:
        """Whether much of the gap is closed, or all of it."""
        if self.status in (BOUND, INTERRUPTED):  # boxes cannot close it, or should not
            return False
        if self._is_small:
            return True
        left, half, whole = self._gaps
        return self.status == EXACT or left <= max(_SHARE_LEFT * whole, _SHARE_OF_HALF * half)

    def is_ahead_of(self, other: SearchResult, root_upper: float = math.inf) -> bool:
        """Whether its upper bound is below that of another search, and falls.

        Where neurons are split as well it need not fall, since nothing keeps the gap open. Then it
        is enough if the other search has hardly got below the root's bound, which counts anyway.

        Args:
            other: What the other search has reached.
            root_upper: The optimised bound of the root with which that began.
        """
        if self._splits_neurons:
            stalls = other.upper_bound > (1 - _LEAST_PROGRESS) * root_upper
            return self.status != BOUND and (self._upper < other.upper_bound or stalls)
        left, half, whole = self._gaps
        falls = left <= min((1 - _LEAST_PROGRESS) * half, _LARGEST_SHARE * whole)
        return self.status != BOUND and falls and self._upper < other.upper_bound

    @property
    def _upper(self) -> float:
        return self.state.upper_bound

    @property
    def _gaps(self) -> tuple[float, float, float]:
        """What is to be closed now, half-way through the beginning, and at first."""
        goal = self.state.lower_bound * (1 + self._tolerance)
        root = float(self.state.root_bounds.max())
        return self._upper - goal, self._half - goal, root - goal
