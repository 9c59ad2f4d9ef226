"""An activation's derivative as a unary function itself: intervals, lines, and its own derivative.

On a smooth network the slope ``s = act'(z)`` is a function of the pre-activation, not just a number
in an interval: lines around it in z keep what it has to do with the input, which makes a bound of
the Jacobian second-order accurate. All of it follows from how the derivative bends
(:mod:`lipschitz.network.activations.curves`); that only decides where a line touches, and what the
line is at is evaluated anew.

Where the derivative jumps (ELU with another alpha than 1, SELU, Hardswish at -3 and 3) lines hold
the values on both sides, and there is no derivative of it. As with slopes of activations, an
interval that only touches a jump has the values of its own side; a point there has both. Softplus
as torch computes it, ``z`` above a threshold, is within ``exp(-threshold)`` of the true one, which
bounds are widened by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.network.activations.base import Activation
from lipschitz.network.activations.curves import curve, touching
from lipschitz.network.activations.jets import (
    HIGHEST,
    formula_ends,
    is_differentiable,
    jet,
)
from lipschitz.network.activations.one_piece import (
    by_pieces,
    curvature_of,
    on_one_piece,
    tangent_and_chord,
)
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import ELU
from lipschitz.network.activations.smooth import Softplus
from lipschitz.relaxation import LineBounds, chord_slope

# Units in the last place of the largest value by which formulas may be off: of the derivative that
# is bounded, and of its slope, the next derivative. Measured were 3 and 8; tests hold all curved
# activations to 4 and, at the third derivative, 10, in float32 on 40,002 points up to +-60.
_VALUE_UNITS, _SLOPE_UNITS = 8, 16
# Further steps towards the line of least area, over intervals that reach into several pieces. After
# two of them gaps were within 0.01 % of what they converge to; on which intervals is not on record.
# Fewer make lines looser, never wrong.
_LINE_STEPS = 2
# Ends beyond it count as infinite: products with them might overflow.
_FAR = {dtype: torch.finfo(dtype).max ** 0.5 for dtype in (torch.float32, torch.float64)}
# Rise of the steepest tangent over an interval, in multiples of the largest value, up to which its
# lines are a tangent and a chord. A choice: both ways are sound.
_WIDEST = 2.0
# How far one step of Newton's method may go, in z times the activation's scale. A choice: a worse
# touching point makes lines looser, never wrong.
_LONGEST_STEP = 0.5


@dataclass(frozen=True)
class _Ends:
    """Intervals and what lines of every slope over them need.

    Attributes:
        lower, upper: The intervals, in order; 0 where one is near infinity or not a number.
        at_lower, at_upper: Values there, from inside the interval.
        low, high: Where the leftmost begins and the rightmost ends.
        margin: Rounding of values and tangents; that of slope times z comes on top.
        finite: Which intervals are finite; None if all are.
    """

    lower: Tensor
    upper: Tensor
    at_lower: Tensor
    at_upper: Tensor
    low: float
    high: float
    margin: Tensor
    finite: Tensor | None


def _ordered(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(lower, upper), torch.maximum(lower, upper)


class Derivative(Activation):
    """The derivative of a given order of a curved activation.

    Args:
        activation: The activation.
        order: 1 for its slope, 2 for the slope's slope.
    """

    def __init__(self, activation: Activation, order: int = 1) -> None:
        if order > HIGHEST - 2:
            raise NotImplementedError(
                f"derivative number {order} of {activation}: only {HIGHEST - 2} are bounded"
            )
        self.activation, self.order, self.curve = activation, order, curve(activation, order)
        self.name = f"{activation}{chr(39) * order}"
        pieces = self.curve.pieces
        self.breakpoints = tuple(p.start for p in pieces[1:])
        self.curvatures = tuple(p.curvature for p in pieces)
        self.kinks = tuple(b.point for b in self.curve.breaks)
        self.turning_points = tuple(z for z, _ in self.curve.turning)
        self.value_range, self.slope_range = self.curve.value_range, self.curve.slope_range

    @property
    def derivative(self) -> Derivative:
        """Its own derivative.

        Raises:
            NotImplementedError: It jumps, or there is no formula.
        """
        if self.curve.jumps:
            raise NotImplementedError(f"the slope of {self.activation} has no derivative: it jumps")
        return Derivative(self.activation, self.order + 1)

    # -- values ------------------------------------------------------------------------------------

    def forward(self, preact: Tensor) -> Tensor:
        """The derivative, any shape; at a jump the one before it."""
        value = self._by_formula(preact, self.order, after=False)
        activation = self.activation
        if isinstance(activation, Softplus) and not activation.mirrored:
            past = activation.beta * preact > activation.threshold
            value = torch.where(past, float(self.order == 1), value)
        return value

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The next derivative, by the formula of the piece."""
        return jet(self.activation, self.curve.pieces[piece].formula, preact)(self.order + 1)

    def _by_formula(self, preact: Tensor, order: int, *, after: bool) -> Tensor:
        value = jet(self.activation, 0, preact)(order)
        for formula, end in enumerate(formula_ends(self.activation), start=1):
            here = preact >= end if after else preact > end
            value = torch.where(here, jet(self.activation, formula, preact)(order), value)
        return value

    def _cut(self, upper: Tensor) -> Tensor | float:
        """By how much torch's softplus jumps below the end of an interval."""
        activation = self.activation
        if not isinstance(activation, Softplus) or activation.mirrored:
            return 0.0
        jump = 1.01 * math.exp(-activation.threshold) * activation.beta ** (self.order - 1)
        return jump * (activation.beta * upper > 0.999 * activation.threshold)

    def _size(self, values: tuple[Tensor, Tensor]) -> Tensor | float:
        """Magnitude that rounding is in proportion to, given the values at an interval's ends."""
        return self.curve.value_size or torch.maximum(values[0].abs(), values[1].abs())

    # -- intervals ---------------------------------------------------------------------------------

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Image of an interval, rounded outwards; all values where an end is not a number."""
        lower, upper = _ordered(lower, upper)
        if self.order == 1:
            least, most = self.activation.slope_interval(lower, upper)
            if isinstance(self.activation, ELU) and self.activation.scale != 1:
                # SELU: its largest slopes are multiples of a scale that float32 cannot represent.
                unit = torch.finfo(lower.dtype).eps
                least, most = least * (1 - unit), most * (1 + unit)
            return least, most
        extremes = [
            *self.curve.turning,
            *((b.point, value) for b in self.curve.breaks for value in b.values),
        ]
        ends = self._ends(lower, upper, self.order)
        margin = _VALUE_UNITS * torch.finfo(lower.dtype).eps * self._size(ends) + self._cut(upper)
        least, most = self._hull(lower, upper, ends, extremes)
        return self._within(self.value_range, least - margin, most + margin)

    def slope_interval(self, preact_lower: Tensor, preact_upper: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of the next derivative's values, which lines may have as slopes.

        It is not rounded outwards: lines hold whatever their slope is.
        """
        lower, upper = _ordered(preact_lower, preact_upper)
        extremes = [
            *self.curve.bends,
            *((b.point, slope) for b in self.curve.breaks for slope in b.slopes),
        ]
        found = self._hull(lower, upper, self._ends(lower, upper, self.order + 1), extremes)
        return self._within(self.slope_range, *found)

    def _ends(self, lower: Tensor, upper: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """The derivative of an order at an interval's ends, from its inside."""
        return (
            self._by_formula(lower, order, after=True),
            self._by_formula(upper, order, after=False),
        )

    @staticmethod
    def _hull(
        lower: Tensor,
        upper: Tensor,
        ends: tuple[Tensor, Tensor],
        extremes: list[tuple[float, float]],
    ) -> tuple[Tensor, Tensor]:
        least, most = torch.minimum(*ends), torch.maximum(*ends)
        for point, value in extremes:
            inside = _holds(lower, upper, point)
            least = torch.where(inside, least.clamp(max=value), least)
            most = torch.where(inside, most.clamp(min=value), most)
        return least, most

    # -- lines -------------------------------------------------------------------------------------

    def touching_point(self, piece: int, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Where on part of a curved piece the next derivative is ``slope``, or the nearer end.

        By a table, and one step of Newton's method.
        """
        this = self.curve.pieces[piece]
        table = touching(self.activation, self.order, this, start.device, start.dtype)
        z = torch.clamp(table.near(slope), start, end)
        at = jet(self.activation, this.formula, z)
        # The sign of the second derivative is the piece's curvature, even where its value rounds to
        # zero; so the direction of the step is right there too.
        step = this.curvature * (slope - at(self.order + 1)) / at(self.order + 2).abs()
        longest = _LONGEST_STEP / self.curve.scale
        return torch.clamp(z + step.nan_to_num(0.0).clamp(-longest, longest), start, end)

    def support(
        self, slope: Tensor, lower: Tensor, upper: Tensor, side: int
    ) -> tuple[Tensor, Tensor]:
        """Intercept of a line of any slope on one side of the function, and where it touches.

        As :meth:`Activation.support`. Over an infinite interval, or one that is not a number, only
        a constant has a finite intercept.
        """
        ends = self._measured(*_ordered(lower, upper))
        gap, point = self._touch(slope, ends, side)
        intercept = side * (gap - self._margin(slope, ends))
        if ends.finite is not None:
            constant = self.interval(lower, upper)[0 if side > 0 else 1]
            bound = torch.where(slope == 0, constant, -side * math.inf)
            intercept = torch.where(ends.finite, intercept, bound)
        return intercept, point

    def _measured(self, lower: Tensor, upper: Tensor) -> _Ends:
        low, high = (float(lower.min()), float(upper.max())) if lower.numel() else (0.0, 0.0)
        finite = None
        far = _FAR[lower.dtype]
        if not (low > -far and high < far):
            finite = (lower > -far) & (upper < far)
            lower, upper = torch.where(finite, lower, 0.0), torch.where(finite, upper, 0.0)
            low, high = -math.inf, math.inf
        values = self._ends(lower, upper, self.order)
        tangents = _SLOPE_UNITS * self.curve.slope_size * (upper - lower)
        rounding = torch.finfo(lower.dtype).eps * (_VALUE_UNITS * self._size(values) + tangents)
        return _Ends(lower, upper, *values, low, high, rounding + self._cut(upper), finite)

    @staticmethod
    def _margin(slope: Tensor, ends: _Ends) -> Tensor:
        size = torch.maximum(ends.lower.abs(), ends.upper.abs())
        return ends.margin + 8 * torch.finfo(size.dtype).eps * slope.abs() * size

    def _touch(self, slope: Tensor, ends: _Ends, side: int) -> tuple[Tensor, Tensor]:
        """The least of ``side (f(z) - slope z)``, without rounding, and where it is.

        It is at an end, where two formulas meet, or on a piece on which ``side f`` is convex; there
        the tangent at any point lies below it, and a point that is not quite where ``f' = slope``
        costs tightness only.
        """
        lower, upper = ends.lower, ends.upper
        at_lower = side * (ends.at_lower - slope * lower)
        at_upper = side * (ends.at_upper - slope * upper)
        best = torch.minimum(at_lower, at_upper)
        point = torch.where(at_lower <= at_upper, lower, upper)

        def offer(gap: Tensor, z: Tensor | float) -> None:
            nonlocal best, point
            point = torch.where(gap < best, z, point)
            best = torch.minimum(gap, best)

        for there in self.curve.breaks:
            value = min(there.values) if side > 0 else max(there.values)
            gap = side * (value - slope * there.point)
            offer(torch.where(_holds(lower, upper, there.point), gap, math.inf), there.point)
        for index, piece in enumerate(self.curve.pieces):
            is_met = ends.low < piece.end and ends.high > piece.start
            if side * piece.curvature <= 0 or not is_met:
                continue
            # The part of [lower, upper] on this piece; where there is none, one of the two ends.
            start = lower if ends.low >= piece.start else lower.clamp(min=piece.start).min(upper)
            end = upper if ends.high <= piece.end else upper.clamp(max=piece.end).max(lower)
            z = self.touching_point(index, slope, start, end)
            at = jet(self.activation, piece.formula, z)
            excess = side * (at(self.order + 1) - slope)
            gap = side * (at(self.order) - slope * z)
            gap = gap + torch.minimum(excess * (start - z), excess * (end - z))
            if self.curve.breaks:  # outside the piece its formula does not hold
                gap = torch.where((lower < piece.end) & (upper > piece.start), gap, math.inf)
            offer(gap, z)
        return best, point

    def lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        """Lines around the function over ``[lower, upper]`` that leave the least area."""
        lower, upper = _ordered(lower, upper)
        far = _FAR[lower.dtype]
        whole = on_one_piece(lower, upper, self.breakpoints, self.kinks)
        whole &= (lower > -far) & (upper < far)
        if self.curve.value_size:  # over a wider interval a constant may be nearer than a tangent
            whole &= self.curve.slope_size * (upper - lower) <= _WIDEST * self.curve.value_size
        if isinstance(cut := self._cut(upper), Tensor):  # constants may be nearer than tangents
            whole &= cut == 0
        return by_pieces(lower, upper, whole, self._piece_lines, self._hull_lines)

    def _piece_lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        far = _FAR[lower.dtype]
        ends = self._measured(lower.clamp(-far / 2, far / 2), upper.clamp(-far / 2, far / 2))
        middle = ends.lower + (ends.upper - ends.lower) / 2
        return tangent_and_chord(
            ends.lower,
            ends.upper,
            (ends.at_lower, self._by_formula(middle, self.order, after=True), ends.at_upper),
            self._by_formula(middle, self.order + 1, after=True),
            curvature_of(lower, self.breakpoints, self.curvatures),
            lambda slope: self._margin(slope, ends),
        )

    def _hull_lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        ends = self._measured(lower, upper)
        slopes, values = self.slope_interval(lower, upper), self.interval(lower, upper)
        steps = 1
        cuts = [p.start for p in self.curve.pieces[1:] if ends.low < p.start < ends.high]
        if any(bool(((lower < cut) & (upper > cut)).any()) for cut in cuts):
            steps += _LINE_STEPS
        below, above = (
            self._nearest(ends, side, slopes, value, steps)
            for side, value in zip((1, -1), values, strict=True)
        )
        return LineBounds(*below, *above)

    def _nearest(
        self, ends: _Ends, side: int, slopes: tuple[Tensor, Tensor], value: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """The line on one side that is nearest in the middle: slope and intercept.

        Tried are a constant, the tangent at the middle, and the chord of the interval, whose ends
        then give way to the points touched: two points of the convex hull that close in on its edge
        above the middle. Over a piece of one curvature, the first two or the chord are the answer.
        """
        left, right, at_left, at_right = ends.lower, ends.upper, ends.at_lower, ends.at_upper
        middle = left + (right - left) / 2
        best, slope, intercept = side * value, torch.zeros_like(value), value
        trial = self._by_formula(middle, self.order + 1, after=True).clamp(*slopes)
        for _ in range(1 + steps):
            gap, point = self._touch(trial, ends, side)
            found = side * (gap - self._margin(trial, ends))
            height = side * (found + trial * middle)
            if ends.finite is not None:
                height = torch.where(ends.finite, height, -math.inf)
            better = height > best
            slope = torch.where(better, trial, slope)
            intercept = torch.where(better, found, intercept)
            best = torch.where(better, height, best)
            touched = side * gap + trial * point
            closer, nearer = (point > left) & (point <= middle), (point < right) & (point >= middle)
            left, at_left = torch.where(closer, point, left), torch.where(closer, touched, at_left)
            right = torch.where(nearer, point, right)
            at_right = torch.where(nearer, touched, at_right)
            chord = chord_slope(at_right - at_left, right - left)
            trial = torch.where(right > left, chord, slope).clamp(*slopes)
        return slope, intercept


def _holds(lower: Tensor, upper: Tensor, point: float) -> Tensor:
    """Whether a point is inside an interval, or is all of it; bool."""
    return ((lower < point) & (upper > point)) | ((lower == point) & (upper == point))


class SineDerivative(Derivative):
    """Derivatives of the sine: the sine itself, moved by a quarter of its period each."""

    free_lines = False
    value_range = slope_range = (-1.0, 1.0)

    def __init__(self, activation: Sine, order: int = 1) -> None:
        self.activation, self.order = activation, order
        self.name = ("sin", "cos", "-sin", "-cos")[order % 4]

    def _moved(self, z: Tensor) -> Tensor:
        return z + self.order * math.pi / 2

    @property
    def derivative(self) -> Derivative:
        """Its own derivative."""
        return SineDerivative(self.activation, self.order + 1)

    def forward(self, preact: Tensor) -> Tensor:
        """The derivative, any shape."""
        return jet(self.activation, 0, preact)(self.order)

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The next derivative."""
        return jet(self.activation, 0, preact)(self.order + 1)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Image of an interval, rounded outwards."""
        least, most = self.activation.interval(self._moved(lower), self._moved(upper))
        error = self._error(lower, upper)
        return self._within(self.value_range, least - error, most + error)

    def slope_interval(self, preact_lower: Tensor, preact_upper: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of the next derivative."""
        return self.derivative.interval(preact_lower, preact_upper)

    def _error(self, lower: Tensor, upper: Tensor) -> Tensor:
        """How far rounding moves a point that is moved by quarters of the period."""
        size = torch.maximum(lower.abs(), upper.abs())
        return 16 * torch.finfo(lower.dtype).eps * (size + 2 * (self.order + 3))

    def lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        """Those of the sine, moved back; constants where rounding moves them too far."""
        found = self.activation.lines(self._moved(lower), self._moved(upper))
        shift, error = self.order * math.pi / 2, self._error(lower, upper)
        ends = self.interval(lower, upper)
        near = error < 1e-2
        moved = []
        for side, slope, intercept, end in zip((-1, 1), found[::2], found[1::2], ends, strict=True):
            slack = side * error * (1 + slope.abs())
            moved.append(torch.where(near, slope, 0.0))
            moved.append(torch.where(near, intercept + slope * shift + slack, end))
        return LineBounds(*moved)

    def support(
        self, slope: Tensor, lower: Tensor, upper: Tensor, side: int
    ) -> tuple[Tensor, Tensor]:
        """There is none: the sine has lines of least area only."""
        raise NotImplementedError(
            f"{self.name} has no lines of any slope, which this method needs: use method crown, "
            "alpha, joint or ibp"
        )


def cosine() -> Activation:
    """``cos(z)``, an activation like any other."""
    return SineDerivative(Sine())


def derivative_of(activation: Activation) -> Activation | None:
    """The derivative of an activation as a unary function; None if it is made of straight lines."""
    if activation.derivative is not None:
        return activation.derivative
    if isinstance(activation, Sine):
        return SineDerivative(activation)
    return Derivative(activation) if is_differentiable(activation) else None
