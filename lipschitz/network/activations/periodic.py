"""The sine, whose pieces never end: intervals are moved to one period first.

Moving an interval by a multiple of ``2 pi`` is rounded in proportion to where it was, so slopes are
widened by that much too, and an interval too wide or too far out has all slopes from -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.network.activations.smooth import Smooth
from lipschitz.relaxation import LineBounds

_PERIOD = 2 * math.pi


@dataclass(frozen=True)
class _Period(Smooth):
    """The sine on ``[0, 4 pi]``."""

    name = "sin"
    breakpoints = (math.pi, 2 * math.pi, 3 * math.pi)
    curvatures = (-1, 1, -1, 1)
    turning_points = (math.pi / 2, 3 * math.pi / 2, 5 * math.pi / 2, 7 * math.pi / 2)
    slope_range = (-1.0, 1.0)
    value_range = (-1.0, 1.0)

    def forward(self, preact: Tensor) -> Tensor:
        return torch.sin(preact)

    def true_slope(self, preact: Tensor) -> Tensor:
        return torch.cos(preact)

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        angle = torch.acos(slope.clamp(-1, 1))
        return piece // 2 * _PERIOD + (angle if piece % 2 == 0 else _PERIOD - angle)

    def slope_scale(self, preact: Tensor) -> Tensor:
        return torch.ones_like(preact)


@dataclass(frozen=True)
class Sine(Smooth):
    """``sin(z)``."""

    name = "sin"
    slope_range = (-1.0, 1.0)
    value_range = (-1.0, 1.0)
    free_lines = False
    _period = _Period()

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return torch.sin(preact)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``cos(z)``."""
        return torch.cos(preact)

    @staticmethod
    def _moved(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ends within one period, how far rounding may have moved these, and where that holds."""
        shift = (lower / _PERIOD).floor() * _PERIOD
        reach = torch.maximum(lower.abs(), upper.abs())
        error = 8 * torch.finfo(lower.dtype).eps * (reach + _PERIOD)
        near = (upper - lower < _PERIOD) & (error < 1e-2)
        start = torch.where(near, lower - shift, 0.0)
        return start, torch.where(near, start + (upper - lower), _PERIOD), error, near

    def slope_interval(self, preact_lower: Tensor, preact_upper: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of cosines; see the base class."""
        return self._enclosed(preact_lower, preact_upper, self._period.slope_interval)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Image of an interval, rounded outwards."""
        return self._enclosed(lower, upper, self._period.interval)

    def _enclosed(
        self,
        lower: Tensor,
        upper: Tensor,
        interval: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """An interval of the period's, widened by the rounding of the move."""
        lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        *moved, error, near = self._moved(lower, upper)
        least, most = interval(*moved)
        least = torch.where(near, least - error, -1.0)
        most = torch.where(near, most + error, 1.0)
        return self._within((-1.0, 1.0), least, most)

    def lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        """Lines of the period, moved back; constants where the interval holds a whole period."""
        lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        start, end, error, near = self._moved(lower, upper)
        lines = self._period.lines(start, end)
        shift = torch.where(near, lower - start, 0.0)
        moved = []
        for side, slope, intercept in zip((-1, 1), lines[::2], lines[1::2], strict=True):
            slack = side * error * (1 + slope.abs())
            moved.append(torch.where(near, slope, 0.0))
            moved.append(torch.where(near, intercept - slope * shift + slack, float(side)))
        return LineBounds(*moved)
