"""Free weights of the line below a maximum, one set for every row that is bounded.

Any weights of the entries that sum to 1 are right
(:mod:`lipschitz.bounds.native.pool_lines`), as any slope is below a ReLU. They are optimised as
numbers p in [0, 1], one for every entry of a window, with weights ``p_i / sum p``.

Shapes: B boxes, K rows, m windows of n entries.
"""

from __future__ import annotations

from torch import Tensor

from lipschitz.bounds.native.memory.windows import Window
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_lines import MaximumLines, own_shape, placement

# Part of the first line in every line, so that the numbers p may all be 0.
_FIRST = 1e-3


class MaximumShares:
    """The weights below one maximum.

    Args:
        plan: The graph.
        end: The maximum's node.
        window: Coefficients of the rows there, [B or 1, K, ...].
        lines: Lines to start from.
        candidates: Entries that can be the largest, [B or 1, W, n].
        batch: B.

    Attributes:
        parameters: The numbers p, [B, K, m, n]; changed by whoever optimises them.
    """

    def __init__(
        self,
        plan: Plan,
        end: int,
        window: Window,
        lines: MaximumLines,
        candidates: Tensor,
        batch: int,
    ) -> None:
        self.place = placement(plan, end, own_shape(window), forward=False)
        self.start = lines.at(self.place)
        self.free = self.place.of(candidates, 1).unsqueeze(1)
        first = self.start.lower
        shape = (batch, window.values.shape[1], *first.shape[2:])
        self.parameters = first.expand(shape).contiguous()
        self._weights = self.parameters

    def lines(self) -> MaximumLines:
        """The lines that the numbers stand for."""
        first, start = self.start.lower, self.start
        total = self.parameters.sum(3, keepdim=True) + _FIRST
        self._weights = (self.parameters + _FIRST * first) / total
        return MaximumLines(self._weights, start.upper, start.gap, start.margin, True)

    def gradient(self, window: Window, entries: Tensor) -> Tensor:
        """Derivative of every row's upper bound by the numbers, [B, K, m, n].

        Args:
            window: Coefficients of the rows at the maximum.
            entries: Where the rows attain their bounds, [B, K, m, n].
        """
        counted = own_shape(window).flat().clamp(max=0).unsqueeze(3)
        middle = (entries * self._weights).sum(3, keepdim=True)
        total = self.parameters.sum(3, keepdim=True) + _FIRST
        return (counted * (entries - middle) / total).masked_fill(~self.free, 0)
