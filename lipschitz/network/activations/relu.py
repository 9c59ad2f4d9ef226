"""ReLU and LeakyReLU: two lines that meet at 0, the second with slope 1.

Everything here is the closed form of what :mod:`lipschitz.network.activations.base` finds by
search, and the engines have shorter ways for these two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.activations.base import Activation


@dataclass(frozen=True)
class PiecewiseLinear(Activation):
    """``max(z, negative_slope * z)``: ReLU (negative slope 0) and LeakyReLU.

    Attributes:
        negative_slope: Slope for ``z < 0``; between 0 and 1, so the function is convex.
    """

    negative_slope: float = 0.0

    breakpoints = kinks = (0.0,)
    curvatures = (0, 0)

    def __post_init__(self) -> None:
        if not 0.0 <= self.negative_slope < 1.0:
            raise NotImplementedError(
                f"a negative slope of {self.negative_slope}: it must be at least 0 and below 1"
            )

    def __str__(self) -> str:
        return "ReLU" if self.negative_slope == 0 else f"LeakyReLU({self.negative_slope:g})"

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        if self.negative_slope == 0:
            return F.relu(preact)
        return F.leaky_relu(preact, self.negative_slope)

    def slope(self, preact: Tensor, slope_at_kink: float | None = None) -> Tensor:
        """Derivative at ``preact``, any shape.

        Args:
            preact: Pre-activations z.
            slope_at_kink: The slope to take where z is exactly 0; None takes autograd's choice,
                the negative slope.
        """
        one = torch.ones((), dtype=preact.dtype, device=preact.device)
        slope = torch.where(preact > 0, one, one * self.negative_slope)
        if slope_at_kink is not None:
            slope = torch.where(preact == 0, one * slope_at_kink, slope)
        return slope

    def at_kink(self, preact: Tensor) -> Tensor:
        """Where the derivative is not unique; bool, the shape of ``preact``."""
        return preact == 0

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The slope left of 0 (piece 0) and right of it."""
        return preact.new_full((), 1.0 if piece else self.negative_slope)

    @property
    def slope_range(self) -> tuple[float, float]:
        """Smallest and largest slope anywhere."""
        return self.negative_slope, 1.0

    def slope_interval(self, preact_lower: Tensor, preact_upper: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of slopes over ``[preact_lower, preact_upper]``, each of the given shape.

        A neuron that is never negative has slope 1 and one that is never positive the negative
        slope; a point interval at the kink has every slope of the Clarke derivative.
        """
        at_zero = (preact_lower == 0) & (preact_upper == 0)
        active = (preact_lower >= 0) & ~at_zero
        inactive = (preact_upper <= 0) & ~at_zero
        one = torch.ones_like(preact_lower)
        slope_lower = torch.where(active, one, one * self.negative_slope)
        slope_upper = torch.where(inactive, one * self.negative_slope, one)
        return slope_lower, slope_upper

    def smooth_slope(self, preact: Tensor, width: Tensor) -> Tensor:
        """A differentiable stand-in for :meth:`slope`: the kink is spread over ``width``.

        Used only to steer the search for large gradients, never in a bound.
        """
        step = torch.sigmoid(preact / width)
        return self.negative_slope + (1 - self.negative_slope) * step

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Image of an interval; the function is increasing."""
        return self.forward(lower), self.forward(upper)
