"""Free slopes of the lines around curved activations, one pair for every row that is bounded.

A ReLU has one free slope, that of the line below it; a curved activation has two, each anywhere
in its slope interval, and the intercept follows from the slope
(:meth:`lipschitz.network.activations.Activation.support`). By the envelope theorem the derivative
of an intercept by its slope is minus the point where the line touches, so the derivative of a row's
bound is its coefficient times how far the attaining value is from there.

Shapes: B boxes, K rows, as in :mod:`lipschitz.bounds.native.forward.value_pass`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import Lines
from lipschitz.network.activations import Activation

# Sides of a function on which lines lie: below and above.
SIDES = (1, -1)


class CurveSlopes:
    """The slopes of one activation, as shares of the way through its slope interval.

    Args:
        activation: The activation.
        preact: Its pre-activations inside the rows' window, [B or 1, 1, ...].
        rounding: How far rounding may have moved these, [B or 1, 1, ...].
        start: Lines to start from, cut to the window.
        batch, rows: B and K.

    Attributes:
        shares: For each side a share in [0, 1] of every row's neurons, [B, K, ...]; changed by
            whoever optimises them.
    """

    def __init__(
        self,
        activation: Activation,
        preact: Interval,
        rounding: Tensor,
        start: Lines,
        batch: int,
        rows: int,
    ) -> None:
        lower, upper = torch.minimum(*preact), torch.maximum(*preact)
        self.activation, self.preact, self.rounding = activation, Interval(lower, upper), rounding
        self.least, most = activation.slope_interval(lower, upper)
        self.width = most - self.least
        tiny = torch.finfo(lower.dtype).tiny
        slopes = (start.lower_slope, start.lower_slope + start.slope_gap)
        self.shares: dict[int, Tensor] = {
            side: ((slope - self.least) / self.width.clamp(min=tiny))
            .clamp(0, 1)
            .expand(batch, rows, *lower.shape[2:])
            .contiguous()
            for side, slope in zip(SIDES, slopes, strict=True)
        }
        self._touching: dict[int, Tensor] = {}

    def lines(self) -> Lines:
        """The lines that the shares stand for; intercepts [B, K, N]."""
        slopes, intercepts = [], []
        for side in SIDES:
            slope = self.least + self.shares[side] * self.width
            intercept, self._touching[side] = self.activation.support(slope, *self.preact, side)
            slopes.append(slope)
            intercepts.append((intercept - side * slope.abs() * self.rounding).flatten(2))
        below, above = intercepts
        return Lines(slopes[0], slopes[1] - slopes[0], below, above - below, is_cut=True)

    def gradients(self, coefficients: Tensor, values: Tensor) -> dict[int, Tensor]:
        """Derivative of every row's upper bound by the shares of both sides.

        Args:
            coefficients: Of the rows at the activation, [B or 1, K, ...].
            values: Pre-activations at which the rows attain their bounds, [B, K, ...].
        """
        counted = {1: coefficients.clamp(max=0), -1: coefficients.clamp(min=0)}
        return {
            side: counted[side] * (values - self._touching.get(side, values)) * self.width
            for side in SIDES
        }
