"""Exponential, logarithm and powers: what attention, normalisation and quotients are written with.

Each family holds its own derivatives: the exponential is its own, those of the logarithm and of
powers are powers. All are convex or concave on either side of 0, so tangents and chords are their
closest lines. Powers that are no whole numbers, and the logarithm, need arguments above 0, negative
powers ones other than 0; an interval that reaches there has any value, and the bounds built on it
are refused by name (:attr:`Activation.needs`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.network.activations.base import Activation
from lipschitz.relaxation import LineBounds

# Units in the last place by which values may be off; torch's own functions are within 4.
_VALUE_UNITS = 8
_NAMES = {-1.0: "reciprocal", 0.5: "sqrt", -0.5: "rsqrt"}


class _Elementary(Activation):
    """Base: relative rounding alone, and intervals cut to where arguments are known to lie."""

    underflows = True

    def known(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The part of an interval in which the argument is known to lie, in order."""
        return torch.minimum(lower, upper), torch.maximum(lower, upper)

    def _value_margin(self, preact: Tensor, value: Tensor) -> Tensor:
        information = torch.finfo(value.dtype)
        return _VALUE_UNITS * information.eps * value.abs() + information.tiny

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Image of an interval, rounded outwards."""
        lower, upper = self.known(lower, upper)
        bad = self.is_undefined(lower, upper)
        least, most = super().interval(lower, upper)
        first, last = self.value_range
        return torch.where(bad, first, least), torch.where(bad, last, most)

    def slope_interval(self, preact_lower: Tensor, preact_upper: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of slopes, rounded outwards."""
        lower, upper = self.known(preact_lower, preact_upper)
        bad = self.is_undefined(lower, upper)
        least, most = super().slope_interval(lower, upper)
        first, last = self.slope_range
        return torch.where(bad, first, least), torch.where(bad, last, most)

    def support(
        self, slope: Tensor, lower: Tensor, upper: Tensor, side: int
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Activation.support`; infinite where the function is not defined."""
        lower, upper = self.known(lower, upper)
        intercept, point = super().support(slope, lower, upper, side)
        bad = self.is_undefined(lower, upper)
        return torch.where(bad, -side * math.inf, intercept), torch.where(bad, lower, point)

    def lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        """Lines of least area; constants where the function is not defined."""
        lower, upper = self.known(lower, upper)
        bad, constants = self.is_undefined(lower, upper), self.interval(lower, upper)
        found = super().lines(lower, upper)
        slopes = (torch.where(bad, 0.0, slope) for slope in found[::2])
        values = (
            torch.where(bad, constant, intercept)
            for constant, intercept in zip(constants, found[1::2], strict=True)
        )
        (below, above), (low, high) = slopes, values
        return LineBounds(below, low, above, high)


@dataclass(frozen=True)
class Exponential(_Elementary):
    """``exp(z)``."""

    name = "exp"
    curvatures = (1,)
    slope_range = (0.0, math.inf)
    value_range = (0.0, math.inf)

    @property
    def derivative(self) -> Activation:
        """Itself."""
        return self

    def forward(self, preact: Tensor) -> Tensor:
        """The function itself, any shape."""
        return torch.exp(preact)

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """Its own value."""
        return self.forward(preact)

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """The logarithm."""
        return torch.log(slope)


@dataclass(frozen=True)
class Logarithm(_Elementary):
    """``log(z)``, z above 0."""

    name = "log"
    curvatures = (-1,)
    slope_range = (0.0, math.inf)
    needs = "above 0"

    @property
    def derivative(self) -> Activation:
        """The reciprocal, of arguments above 0."""
        return Power(-1.0, positive=True)

    def is_undefined(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Whether an interval reaches 0; bool."""
        return ~(lower > 0)

    def forward(self, preact: Tensor) -> Tensor:
        """The function itself, any shape."""
        return torch.log(preact)

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The reciprocal."""
        return preact.reciprocal()

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """The reciprocal."""
        return slope.reciprocal()


@dataclass(frozen=True)
class Power(_Elementary):
    """``factor (z + shift)^exponent``.

    Attributes:
        exponent: Any number; one that is not whole needs ``z + shift > 0``, a negative one
            ``z + shift != 0``.
        factor: Not 0.
        shift: At least 0, and above 0 only if z is known not to be negative.
        positive: Whether z is known not to be negative, by what it is computed from: a sum of
            squares, or of exponentials. Intervals are cut to that.
    """

    exponent: float
    factor: float = 1.0
    shift: float = 0.0
    positive: bool = False

    @property
    def name(self) -> str:
        """Its usual one."""
        if self.factor == 1 and self.exponent in _NAMES:
            return _NAMES[self.exponent]
        return f"power {self.exponent:g}" + ("" if self.factor == 1 else f" times {self.factor:g}")

    @property
    def _is_whole(self) -> bool:
        return self.exponent == round(self.exponent)

    @property
    def _is_one_sided(self) -> bool:
        """Whether only arguments of one sign count."""
        return self.positive or not self._is_whole

    @property
    def needs(self) -> str:
        """Where the argument must stay."""
        if self.shift > 0 or (self._is_whole and self.exponent >= 0):
            return ""
        return "above 0" if self._is_one_sided else "on one side of 0"

    def is_undefined(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Whether an interval reaches 0, or below where only arguments above it count; bool."""
        if not self.needs:
            return super().is_undefined(lower, upper)
        above = lower > 0
        return ~above if self._is_one_sided else ~(above | (upper < 0))

    def known(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Without what is below 0 if the argument is not."""
        lower, upper = super().known(lower, upper)
        if self.positive:
            return lower.clamp(min=0), upper.clamp(min=0)
        return lower, upper

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """0 if the function bends the other way there, or has a pole."""
        bends = self._is_whole and (self.exponent < 0 or (self.exponent % 2 and self.exponent > 1))
        return (0.0,) if bends and not self._is_one_sided else ()

    @property
    def curvatures(self) -> tuple[int, ...]:
        """By the sign of the second derivative on either side of 0."""
        bend = self.factor * self.exponent * (self.exponent - 1)
        right = int(bend > 0) - int(bend < 0)
        if not self.breakpoints:
            return (right,)
        return (right if self.exponent % 2 == 0 else -right, right)

    @property
    def turning_points(self) -> tuple[float, ...]:
        """0 of an even power."""
        even = self._is_whole and self.exponent > 0 and self.exponent % 2 == 0
        return (0.0,) if even and not self._is_one_sided else ()

    @property
    def value_range(self) -> tuple[float, float]:
        """Of one sign, where the power is; within the value at the least argument."""
        return self._range(self.factor, self.exponent)

    @property
    def slope_range(self) -> tuple[float, float]:
        """The same of the slope."""
        return self._range(self.factor * self.exponent, self.exponent - 1)

    def _range(self, factor: float, exponent: float) -> tuple[float, float]:
        if factor == 0 or exponent == 0:
            return tuple(sorted((0.0, factor * (1 + 1e-6))))
        if not self._is_one_sided and exponent % 2:
            return -math.inf, math.inf
        ends = [0.0, math.inf * factor]
        if self.shift > 0 and exponent < 0:
            ends[1] = factor * self.shift**exponent * (1 + 1e-6)
        elif self.shift > 0:
            ends[0] = factor * self.shift**exponent * (1 - 1e-6)
        return tuple(sorted(ends))

    @property
    def derivative(self) -> Activation:
        """The power one below."""
        return replace(self, exponent=self.exponent - 1, factor=self.factor * self.exponent)

    def forward(self, preact: Tensor) -> Tensor:
        """The function itself, any shape."""
        return self._power(preact, self.factor, self.exponent)

    def _power(self, preact: Tensor, factor: float, exponent: float) -> Tensor:
        if self.positive:
            preact = preact.clamp(min=0)
        base = preact + self.shift if self.shift else preact
        if exponent == 0 or factor == 0:
            return torch.full_like(base, factor)
        value = base.rsqrt() if exponent == -0.5 else base.pow(exponent)
        return value if factor == 1 else factor * value

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The power one below."""
        return self._power(preact, self.factor * self.exponent, self.exponent - 1)

    def one_sided_slope(self, preact: Tensor, *, after: bool) -> Tensor:
        """The same on every piece."""
        return self.piece_slope(0, preact)

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """The root, of the sign of the piece."""
        ratio, order = slope / (self.factor * self.exponent), self.exponent - 1
        root = ratio.abs().pow(1 / order)
        if self.breakpoints:
            root = root if piece else -root
        elif not self._is_one_sided:
            root = root * ratio.sign()
        return root - self.shift
