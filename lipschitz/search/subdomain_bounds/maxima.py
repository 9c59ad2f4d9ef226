"""Maxima over windows in subdomains: what splits of their comparisons leave of the candidates.

Bounds of the windows' entries hold on the whole box, so they hold in every subdomain; a split of a
comparison takes the losing block's entries out.

Shapes: B subdomains, W windows of n entries.
"""

from __future__ import annotations

from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_bounds import (
    WindowFacts,
    candidates_of,
    maximum_lines,
    narrowed_candidates,
    surviving,
)
from lipschitz.bounds.native.pool_lines import MaximumLines


class SubdomainMaxima:
    """Lines of maxima under the splits of subdomains.

    Args:
        plan: The graph.
        windows: What the whole box says about the windows of every maximum, B = 1.
    """

    def __init__(self, plan: Plan, windows: dict[int, WindowFacts]) -> None:
        self.plan, self.windows = plan, windows
        self.ends = {plan.pools[end].last: end for end in windows}
        self._whole: dict[int, tuple[Tensor, MaximumLines]] = {}
        for end, facts in windows.items():
            candidates = candidates_of(plan.pools[end], facts.excess)
            self._whole[end] = candidates, maximum_lines(facts, candidates)

    def add_lines(
        self, activation: int, preacts: dict[int, Interval], lines: dict[int, object]
    ) -> None:
        """Add the lines of the maximum whose tree ends with an activation, if one does.

        Args:
            activation: The activation node that has just been reached.
            preacts: Pre-activation intervals up to there, [B, *shape].
            lines: By node; changed.
        """
        if activation not in self.ends:
            return
        end = self.ends[activation]
        pool, nodes = self.plan.pools[end], self.plan.graph.nodes
        slopes = {
            level.activation: Interval(
                *nodes[level.activation].activation.slope_interval(*preacts[level.activation])
            )
            for level in pool.levels
        }
        candidates = narrowed_candidates(self._whole[end][0], surviving(pool, slopes))
        lines[end] = maximum_lines(self.windows[end], candidates, self._whole[end])
