"""Smooth activations: their slopes in a form that does not cancel, and where these are extreme.

``1 - tanh(z)^2`` loses every digit in the tails; written with ``t = exp(-|z|)`` all slopes keep a
relative error of a few units, or are sums of terms that do. Where an elementary function's
argument is rounded, its relative error grows with the argument, which :meth:`slope_scale` counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.activations.base import Activation

# Magnitude that exponents are clamped to, so that nothing overflows: exp(-1000) is 0 in float64.
FAR = 1e3


class Smooth(Activation):
    """Base of activations without kinks: one formula for the slope of all pieces."""

    underflows = True

    def true_slope(self, preact: Tensor) -> Tensor:
        """The derivative, any shape."""
        raise NotImplementedError

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The derivative, whatever the piece."""
        return self.true_slope(preact)

    def one_sided_slope(self, preact: Tensor, *, after: bool) -> Tensor:
        """The derivative."""
        return self.true_slope(preact)

    def slope_scale(self, preact: Tensor) -> Tensor:
        """The slope itself, times the magnitude of the exponent."""
        return self.true_slope(preact).abs() * (1 + preact.abs().clamp(max=FAR))


class Bell(Smooth):
    """Base of S-shaped activations: the slope is even and falls from 0 on; convex, then concave."""

    breakpoints = (0.0,)
    curvatures = (1, -1)

    def half_inverse(self, slope: Tensor) -> Tensor:
        """The ``z >= 0`` of a slope."""
        raise NotImplementedError

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """By symmetry."""
        found = self.half_inverse(slope.clamp(torch.finfo(slope.dtype).tiny, self.slope_range[1]))
        return found if piece else -found


def _hyperbolic_inverse(slope: Tensor) -> Tensor:
    """The ``z >= 0`` with ``1 / cosh(z)^2 = slope``, slopes in (0, 1]."""
    return torch.log((1 + (1 - slope).clamp(min=0).sqrt()) / slope.sqrt())


@dataclass(frozen=True)
class Tanh(Bell):
    """``tanh(z)``."""

    name = "tanh"
    value_range = (-1.0, 1.0)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return torch.tanh(preact)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``1 / cosh(z)^2``."""
        t = torch.exp(-2 * preact.abs().clamp(max=FAR))
        return 4 * t / (1 + t).square()

    def half_inverse(self, slope: Tensor) -> Tensor:
        """The ``z >= 0`` of a slope."""
        return _hyperbolic_inverse(slope)


@dataclass(frozen=True)
class Sigmoid(Bell):
    """``1 / (1 + exp(-z))``."""

    name = "sigmoid"
    slope_range = (0.0, 0.25)
    value_range = (0.0, 1.0)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return torch.sigmoid(preact)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``exp(-|z|) / (1 + exp(-|z|))^2``."""
        t = torch.exp(-preact.abs().clamp(max=FAR))
        return t / (1 + t).square()

    def half_inverse(self, slope: Tensor) -> Tensor:
        """The ``z >= 0`` of a slope."""
        return 2 * _hyperbolic_inverse(4 * slope)


@dataclass(frozen=True)
class Arctan(Bell):
    """``arctan(z)``."""

    name = "arctan"
    value_range = (-1.5707964, 1.5707964)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return torch.atan(preact)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``1 / (1 + z^2)``."""
        return 1 / (1 + preact.square())

    def half_inverse(self, slope: Tensor) -> Tensor:
        """The ``z >= 0`` of a slope."""
        return ((1 - slope) / slope).clamp(min=0).sqrt()

    def slope_scale(self, preact: Tensor) -> Tensor:
        """The slope itself: no exponent is rounded."""
        return self.true_slope(preact)


@dataclass(frozen=True)
class Erf(Bell):
    """The error function."""

    name = "erf"
    slope_range = (0.0, 1.1283792)
    value_range = (-1.0, 1.0)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return torch.erf(preact)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``2 exp(-z^2) / sqrt(pi)``."""
        return 2 / math.sqrt(math.pi) * torch.exp(-preact.clamp(-FAR, FAR).square())

    def half_inverse(self, slope: Tensor) -> Tensor:
        """The ``z >= 0`` of a slope."""
        return (-torch.log(slope * (math.sqrt(math.pi) / 2))).clamp(min=0).sqrt()

    def slope_scale(self, preact: Tensor) -> Tensor:
        """The slope itself, times the magnitude of the exponent."""
        return self.true_slope(preact) * (1 + preact.clamp(-FAR, FAR).square())


@dataclass(frozen=True)
class Softsign(Bell):
    """``z / (1 + |z|)``."""

    name = "softsign"
    value_range = (-1.0, 1.0)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape; its limit at infinity."""
        largest = torch.finfo(preact.dtype).max / 4
        preact = preact.clamp(-largest, largest)
        return preact / (1 + preact.abs())

    def true_slope(self, preact: Tensor) -> Tensor:
        """``1 / (1 + |z|)^2``."""
        return 1 / (1 + preact.abs()).square()

    def half_inverse(self, slope: Tensor) -> Tensor:
        """The ``z >= 0`` of a slope."""
        return slope.rsqrt() - 1

    def slope_scale(self, preact: Tensor) -> Tensor:
        """The slope itself: no exponent is rounded."""
        return self.true_slope(preact)


@dataclass(frozen=True)
class Softplus(Smooth):
    """``log(1 + exp(beta z)) / beta``, convex; or, mirrored, LogSigmoid, concave.

    torch computes ``z`` where ``beta z`` is above ``threshold``, a jump of
    ``exp(-threshold) / beta`` at most, which values are widened by.

    Attributes:
        beta: Sharpness, above 0.
        threshold: From there on the function is ``z``.
        mirrored: ``-softplus(-z)``.
    """

    beta: float = 1.0
    threshold: float = 20.0
    mirrored: bool = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise NotImplementedError(f"a beta of {self.beta}: it must be above 0")
        if not self.threshold >= 20:
            raise NotImplementedError(
                f"a threshold of {self.threshold}, at which the function jumps: it must be at "
                "least 20"
            )

    @property
    def name(self) -> str:
        """LogSigmoid is the mirrored one."""
        return "LogSigmoid" if self.mirrored else "Softplus"

    @property
    def curvatures(self) -> tuple[int, ...]:
        """One piece."""
        return (-1,) if self.mirrored else (1,)

    @property
    def value_range(self) -> tuple[float, float]:
        """Of one sign."""
        return (-math.inf, 0.0) if self.mirrored else (0.0, math.inf)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        if self.mirrored:
            return F.logsigmoid(preact)
        return F.softplus(preact, self.beta, self.threshold)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``sigmoid(beta z)``, 1 where torch computes ``z``."""
        if self.mirrored:
            return torch.sigmoid(-preact)
        scaled = self.beta * preact
        return torch.where(scaled > self.threshold, 1.0, torch.sigmoid(scaled))

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """The logit."""
        found = torch.logit(slope.clamp(0, 1)) / self.beta
        return -found if self.mirrored else found

    def slope_scale(self, preact: Tensor) -> Tensor:
        """The slope itself, times the magnitude of the exponent where that is negative."""
        exponent = self.beta * (preact if self.mirrored else -preact)
        return self.true_slope(preact) * (1 + exponent.clamp(0, FAR))

    def _value_margin(self, preact: Tensor, value: Tensor) -> Tensor:
        jump = 0.0 if self.mirrored else math.exp(-self.threshold) / self.beta
        past = self.beta * preact.abs() >= self.threshold
        return super()._value_margin(preact, value) + jump * past


@dataclass(frozen=True)
class Square(Smooth):
    """``z^2``: its slope has no bound, so it has no global constant."""

    name = "square"
    curvatures = (1,)
    underflows = False
    slope_range = (-math.inf, math.inf)
    value_range = (0.0, math.inf)
    turning_points = (0.0,)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return preact.square()

    def true_slope(self, preact: Tensor) -> Tensor:
        """``2 z``."""
        return 2 * preact

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """Half of it."""
        return slope / 2

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Doubling is exact."""
        return torch.zeros_like(preact)


@dataclass(frozen=True)
class Tanhshrink(Smooth):
    """``z - tanh(z)``: concave, then convex."""

    name = "Tanhshrink"
    breakpoints = (0.0,)
    curvatures = (-1, 1)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return preact - torch.tanh(preact)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``tanh(z)^2``."""
        return torch.tanh(preact).square()

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """Either root."""
        found = torch.atanh(slope.clamp(0, 1).sqrt())
        return found if piece else -found

    def slope_scale(self, preact: Tensor) -> Tensor:
        """The slope itself: no exponent is rounded."""
        return self.true_slope(preact)
