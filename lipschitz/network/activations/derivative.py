"""An activation's derivative as a unary function itself: intervals, lines, and its own derivative.

On a smooth network the slope ``s = act'(z)`` is a function of the pre-activation, not just a number
in an interval: lines around it in z keep what it has to do with the input, which makes a bound of
the Jacobian second-order accurate. Everything follows from where the next two derivatives change
sign, which is found here once by bisection in float64; that only decides where lines touch and
which pieces are treated as convex, both of which :meth:`Activation.support` evaluates anew.

Where the derivative jumps (ELU with another alpha than 1, Hardswish at -3 and 3, softplus at
torch's threshold), an interval that holds the jump has constant lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from lipschitz.network.activations.base import Activation
from lipschitz.network.activations.jets import HIGHEST, derivative, is_differentiable, jumps
from lipschitz.network.activations.periodic import Sine
from lipschitz.relaxation import LineBounds

# Curved activations are, to the last digit of float64, their limits from here on.
_REACH = 60.0
_GRID = 24_001
# A sign change smaller than this share of the largest magnitude is rounding.
_NOISE = 1e-11
# Steps of the search for where a line touches; the result need not be exact.
_TOUCH_STEPS = 4
_UNITS = 32


@dataclass(frozen=True)
class _Shape:
    """Where a derivative's pieces end, how they bend, which formula they have, where it turns."""

    breakpoints: tuple[float, ...]
    curvatures: tuple[int, ...]
    formulas: tuple[int, ...]
    turning_points: tuple[float, ...]
    jumps: tuple[float, ...]
    largest: float


def _zeros(function: Callable[[Tensor], Tensor], start: float, end: float) -> list[float]:
    """Where a function changes its sign strictly between two points."""
    z = torch.linspace(start, end, _GRID, dtype=torch.float64)
    values = function(z)
    values = torch.where(values.abs() > _NOISE * values.abs().max(), values, 0.0)
    kept = values != 0  # an exact zero on the grid lies between two signs all the same
    z, sign = z[kept], values[kept].sign()
    change = (sign[1:] != sign[:-1]).nonzero()[:, 0]
    lower, upper, rising = z[change], z[change + 1], sign[change + 1]
    for _ in range(60):
        middle = (lower + upper) / 2
        above = function(middle) * rising > 0
        lower, upper = torch.where(above, lower, middle), torch.where(above, middle, upper)
    return ((lower + upper) / 2).tolist()


@lru_cache(maxsize=256)
def _shape(activation: Activation, order: int) -> _Shape:
    ends = [-_REACH, *activation.breakpoints, _REACH]
    breakpoints: list[float] = []
    turning: list[float] = []
    formulas, curvatures, largest = [], [], 0.0
    for piece, (start, end) in enumerate(pairwise(ends)):
        at = lambda n, p=piece: lambda z: derivative(activation, p, n, z)  # noqa: E731
        bends = _zeros(at(order + 2), start, end)
        turning += _zeros(at(order + 1), start, end)
        for left, right in pairwise([start, *bends, end]):
            inside = torch.linspace(left, right, 1001, dtype=torch.float64)[1:-1]
            bend = at(order + 2)(inside)
            formulas.append(piece)
            curvatures.append(int(bend[bend.abs().argmax()].sign()))
        breakpoints += bends if end == _REACH else [*bends, end]
        grid = torch.linspace(start, end, _GRID, dtype=torch.float64)
        largest = max(largest, float(at(order)(grid).abs().max()))
    return _Shape(
        tuple(breakpoints),
        tuple(curvatures),
        tuple(formulas),
        tuple(turning),
        jumps(activation, order),
        largest,
    )


class Derivative(Activation):
    """The derivative of a given order of a curved activation.

    Args:
        activation: The activation.
        order: 1 for its slope, 2 for the slope's slope.
    """

    def __init__(self, activation: Activation, order: int = 1) -> None:
        assert 1 <= order <= HIGHEST - 2
        shape = _shape(activation, order)
        self.activation, self.order, self._shape = activation, order, shape
        self.name = f"{activation}{(chr(39)) * order}"
        self.breakpoints, self.curvatures = shape.breakpoints, shape.curvatures
        self.turning_points = shape.turning_points

    @property
    def derivative(self) -> Derivative:
        """Its own derivative."""
        return Derivative(self.activation, self.order + 1)

    def forward(self, preact: Tensor) -> Tensor:
        """The derivative, any shape; at a jump the one before it."""
        value = derivative(self.activation, 0, self.order, preact)
        for piece, end in enumerate(self.activation.breakpoints, start=1):
            there = derivative(self.activation, piece, self.order, preact)
            value = torch.where(preact > end, there, value)
        return value

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The next derivative, by the formula of the piece."""
        return derivative(self.activation, self._shape.formulas[piece], self.order + 1, preact)

    def _value_margin(self, preact: Tensor, value: Tensor) -> Tensor:
        """Formulas cancel: a few units of the largest value, times the size of the exponent."""
        unit = _UNITS * torch.finfo(value.dtype).eps
        near = preact.abs().clamp(max=_REACH)
        largest = self._shape.largest
        return unit * (value.abs() + largest) * (1 + near)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Image of an interval, rounded outwards, both sides of a jump included."""
        lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        if self.order == 1:
            return self.activation.slope_interval(lower, upper)
        least, most = super().interval(lower, upper)
        for end in self._shape.jumps:
            at = lower.new_full((), end)
            inside = (lower <= end) & (upper >= end)
            for piece in range(len(self.activation.breakpoints) + 1):
                value = derivative(self.activation, piece, self.order, at)
                least = torch.where(inside, torch.minimum(least, value), least)
                most = torch.where(inside, torch.maximum(most, value), most)
        return least, most

    def holds_jump(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Whether an interval holds a point at which the derivative jumps; bool."""
        found = torch.zeros_like(lower, dtype=torch.bool)
        for end in self._shape.jumps:
            found |= (lower <= end) & (end <= upper)
        return found

    def slope_interval(self, preact_lower: Tensor, preact_upper: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of the next derivative's values, which lines may have as slopes."""
        lower = torch.minimum(preact_lower, preact_upper)
        upper = torch.maximum(preact_lower, preact_upper)
        ends = [lower, *(torch.clamp(lower, min=p).minimum(upper) for p in self.breakpoints), upper]
        found = [
            self.piece_slope(piece, z) for piece, both in enumerate(pairwise(ends)) for z in both
        ]
        found = torch.stack(torch.broadcast_tensors(*found))
        return found.amin(0), found.amax(0)

    def touching_point(self, piece: int, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Where on part of a piece the next derivative is ``slope``, by regula falsi."""
        start, end, slope = torch.broadcast_tensors(start, end, slope)
        low, high = start, end
        at_low = self.piece_slope(piece, low) - slope
        at_high = self.piece_slope(piece, high) - slope
        ends = at_low, at_high
        point = low
        for step in range(_TOUCH_STEPS):
            run = at_high - at_low
            share = torch.where(run == 0, 0.5, -at_low / torch.where(run == 0, 1.0, run))
            # Every other step halves, so that a bent piece cannot hold one end for good.
            share = torch.where(share.isfinite(), share, 0.5).clamp(0, 1) if step % 2 == 0 else 0.5
            point = low + share * (high - low)
            at = self.piece_slope(piece, point) - slope
            left = at * at_low > 0
            low, at_low = torch.where(left, point, low), torch.where(left, at, at_low)
            high, at_high = torch.where(left, high, point), torch.where(left, at_high, at)
        share = -at_low / torch.where(at_high == at_low, 1.0, at_high - at_low)
        point = low + torch.where(share.isfinite(), share, 0.5).clamp(0, 1) * (high - low)
        # Where the slope is not met at all, the extreme is at an end.
        bend = self.curvatures[piece]
        point = torch.where(
            bend * ends[0] >= 0, start, torch.where(bend * ends[1] <= 0, end, point)
        )
        return torch.fmax(torch.fmin(point, end), start)

    def support(
        self, slope: Tensor, lower: Tensor, upper: Tensor, side: int
    ) -> tuple[Tensor, Tensor]:
        """As any activation's; the constant that bounds it where the interval holds a jump."""
        intercept, point = super().support(slope, lower, upper, side)
        jump = self.holds_jump(lower, upper)
        if self._shape.jumps and bool(jump.any()):
            least, most = self.interval(lower, upper)
            reach = torch.maximum(slope * lower, slope * upper)
            low = torch.minimum(slope * lower, slope * upper)
            constant = least - reach if side > 0 else most - low
            size = least.abs() + most.abs() + torch.maximum(reach.abs(), low.abs())
            constant = constant - side * _UNITS * torch.finfo(lower.dtype).eps * size
            intercept = torch.where(jump, constant.to(intercept), intercept)
        return intercept, point


class SineDerivative(Derivative):
    """Derivatives of the sine: the sine itself, moved by a quarter of its period each."""

    free_lines = False

    def __init__(self, activation: Sine, order: int = 1) -> None:
        self.activation, self.order = activation, order
        self.name = f"sin{(chr(39)) * order}"

    def _moved(self, z: Tensor) -> Tensor:
        return z + self.order * torch.pi / 2

    @property
    def derivative(self) -> Derivative:
        """Its own derivative."""
        return SineDerivative(self.activation, self.order + 1)

    def forward(self, preact: Tensor) -> Tensor:
        """The derivative, any shape."""
        return derivative(self.activation, 0, self.order, preact)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Image of an interval, rounded outwards."""
        least, most = self.activation.interval(self._moved(lower), self._moved(upper))
        error = self._error(lower, upper)
        return (least - error).clamp(min=-1), (most + error).clamp(max=1)

    @staticmethod
    def _error(lower: Tensor, upper: Tensor) -> Tensor:
        """How far rounding moves a point that is moved by quarters of the period."""
        size = torch.maximum(lower.abs(), upper.abs())
        return 16 * torch.finfo(lower.dtype).eps * (size + 8)

    def lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        """Those of the sine, moved back."""
        found = self.activation.lines(self._moved(lower), self._moved(upper))
        shift, error = self.order * torch.pi / 2, self._error(lower, upper)
        below, above = found.lower_slope, found.upper_slope
        return LineBounds(
            below,
            found.lower_intercept + below * shift - error * (1 + below.abs()),
            above,
            found.upper_intercept + above * shift + error * (1 + above.abs()),
        )


@lru_cache(maxsize=256)
def derivative_of(activation: Activation) -> Derivative | None:
    """The derivative of an activation as a unary function; None if it is made of straight lines."""
    if isinstance(activation, Sine):
        return SineDerivative(activation)
    return Derivative(activation) if is_differentiable(activation) else None
