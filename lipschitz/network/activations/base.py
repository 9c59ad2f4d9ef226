"""What bound propagation must know about an activation, and what follows from it for all of them.

The backward pass multiplies by the activation's slope ``act'(z)``, so it needs the interval of
slopes over a pre-activation interval ``[l, u]``; the forward pass needs the image of ``[l, u]`` and
two lines around the function (Zhang et al. 2018). All of it is derived here from how an activation
is built: *breakpoints* cut the real line into *pieces* on each of which the slope rises, falls or
stays. So the extreme slopes over ``[l, u]`` are at its ends or at breakpoints inside, and the
extremes of ``f(z) - k z`` at ends, breakpoints, or where ``f' = k`` on a curved piece.

Rounding: slopes and values are widened by a few units in the last place of the terms they are
computed from (:meth:`Activation.slope_scale`), and cut to the range over all reals. Breakpoints of
smooth activations are rounded to the dtype, which moves a critical slope only in second order.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from lipschitz.network.activations.one_piece import (
    by_pieces,
    curvature_of,
    on_one_piece,
    tangent_and_chord,
)
from lipschitz.relaxation import LineBounds, chord_slope

# Units in the last place by which a computed slope or value may be off; elementary functions of
# torch are within 2 to 4 of them.
_SLOPE_UNITS, _VALUE_UNITS = 16, 8
# What is added to a slope's margin where factors may have underflowed, in smallest normal numbers
# of the dtype. Chosen large; no derivation or measurement of it is on record.
_UNDERFLOW = 1e6
# Steps towards the line that leaves the least area; each at least halves the distance left. A
# choice: with fewer the lines are looser, never wrong.
_LINE_STEPS = 4


class Activation:
    """Base of all activations; a subclass writes :meth:`forward` and :meth:`piece_slope`.

    Attributes:
        name: For messages.
        breakpoints: Ends of the pieces, ascending.
        curvatures: For each piece 1 (slope rises), -1 (falls) or 0 (stays).
        kinks: The breakpoints at which the slope may jump.
        turning_points: Where the function changes its direction.
        slope_range: Smallest and largest slope anywhere, rounded outwards; infinite if unbounded.
        value_range: The same of the function itself.
        rounds: Whether computing the function rounds at all.
        underflows: Whether slopes come near 0 without being 0.
        free_lines: Whether :meth:`support` serves any interval in tensors of any layout.
        needs: Where its argument must stay for the function and its slope to be finite, in words;
            '' if it may be any number.
    """

    name: str = "activation"
    breakpoints: tuple[float, ...] = ()
    curvatures: tuple[int, ...] = (0,)
    kinks: tuple[float, ...] = ()
    turning_points: tuple[float, ...] = ()
    slope_range: tuple[float, float] = (0.0, 1.0)
    value_range: tuple[float, float] = (-math.inf, math.inf)
    rounds: bool = True
    underflows: bool = False
    free_lines: bool = True
    needs: str = ""

    def __str__(self) -> str:
        return self.name

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Activation:
        """A copy whose parameters have this device and dtype; itself if it has none."""
        return self

    def is_undefined(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where an interval reaches beyond what the function :attr:`needs`; bool."""
        return torch.zeros_like(lower, dtype=torch.bool)

    @property
    def derivative(self) -> Activation | None:
        """The slope as a unary function itself; None where that is known elsewhere, or a step."""
        return None

    @property
    def splits_at_zero(self) -> bool:
        """Whether it consists of two lines that meet at 0."""
        return self.breakpoints == (0.0,) and self.curvatures == (0, 0)

    # -- what a subclass says about itself ---------------------------------------------------------

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        raise NotImplementedError

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The slope on a piece, its ends included; any number elsewhere."""
        raise NotImplementedError

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """Where on a curved piece the slope is ``slope``.

        It need not be exact, nor a number: a line is only looser for it.
        """
        raise NotImplementedError

    def touching_point(self, piece: int, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Where on part of a curved piece the slope is ``slope``, or the nearer end.

        It need not be exact: a line is only looser for it.
        """
        return torch.fmax(torch.fmin(self.inverse_slope(piece, slope), end), start)

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Magnitude of the terms that the slope is computed from; 0 where that is exact."""
        return self.one_sided_slope(preact, after=True).abs()

    # -- slopes ------------------------------------------------------------------------------------

    def one_sided_slope(self, preact: Tensor, *, after: bool) -> Tensor:
        """Slope just after, or just before, ``preact``; they differ at kinks only."""
        slope = self.piece_slope(0, preact)
        for piece, end in enumerate(self.breakpoints, start=1):
            here = preact >= end if after else preact > end
            slope = torch.where(here, self.piece_slope(piece, preact), slope)
        return slope

    def slope(self, preact: Tensor, slope_at_kink: float | None = None) -> Tensor:
        """Derivative at ``preact``, any shape.

        Args:
            preact: Pre-activations z.
            slope_at_kink: The slope to take at a kink; None takes the one before it.
        """
        slope = self.one_sided_slope(preact, after=False)
        if slope_at_kink is not None and self.kinks:
            slope = torch.where(self.at_kink(preact), slope_at_kink, slope)
        return slope

    def at_kink(self, preact: Tensor) -> Tensor:
        """Where the derivative is not unique; bool, the shape of ``preact``."""
        found = torch.zeros_like(preact, dtype=torch.bool)
        for kink in self.kinks:
            found |= preact == kink
        return found

    def smooth_slope(self, preact: Tensor, width: Tensor) -> Tensor:
        """A differentiable stand-in for :meth:`slope`: the mean slope within ``width``.

        Used only to steer the search for large gradients, never in a bound.
        """
        if not self.kinks:
            return self.slope(preact)
        return (self.forward(preact + width) - self.forward(preact - width)) / (2 * width)

    def slope_interval(self, preact_lower: Tensor, preact_upper: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of slopes over ``[preact_lower, preact_upper]``, each of the given shape.

        An interval that only touches a kink has the slopes of its own side; a point interval at a
        kink has every slope of the Clarke derivative. Bounds that have crossed are taken in order,
        and what is not a number may have any slope.
        """
        lower = torch.minimum(preact_lower, preact_upper)
        upper = torch.maximum(preact_lower, preact_upper)
        after = self.one_sided_slope(lower, after=True)
        before = self.one_sided_slope(upper, after=False)
        smallest, largest = torch.minimum(after, before), torch.maximum(after, before)
        margin = torch.maximum(self.slope_scale(lower), self.slope_scale(upper))
        for piece, end in enumerate(self.breakpoints):
            inside = (lower < end) & (upper > end)
            if end in self.kinks:
                inside |= (lower == end) & (upper == end)
            at = lower.new_full((), end)
            for slope in (self.piece_slope(piece, at), self.piece_slope(piece + 1, at)):
                smallest = torch.where(inside, torch.minimum(smallest, slope), smallest)
                largest = torch.where(inside, torch.maximum(largest, slope), largest)
            margin = torch.where(inside, torch.maximum(margin, self.slope_scale(at)), margin)
        information = torch.finfo(lower.dtype)
        tiny = _UNDERFLOW * information.tiny * ((margin > 0) | self.underflows)
        margin = _SLOPE_UNITS * information.eps * margin + tiny
        smallest = torch.where(lower.isnan(), lower, smallest)
        largest = torch.where(lower.isnan(), lower, largest)
        return self._within(self.slope_range, smallest - margin, largest + margin)

    @staticmethod
    def _within(
        overall: tuple[float, float], lower: Tensor, upper: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Bounds cut to what holds everywhere, which also replaces what is not a number."""
        least, most = overall
        return (
            torch.where(lower.isnan(), least, lower.clamp(least, most)),
            torch.where(upper.isnan(), most, upper.clamp(least, most)),
        )

    # -- splits ------------------------------------------------------------------------------------

    def is_open(self, preact_lower: Tensor, preact_upper: Tensor) -> Tensor:
        """Neurons whose slope is worth narrowing down, and that can be split; bool."""
        if self.splits_at_zero:
            return (preact_lower < 0) & (preact_upper > 0)
        unit = 64 * torch.finfo(preact_lower.dtype).eps
        lower, upper = self.slope_interval(preact_lower, preact_upper)
        spread = upper - lower > unit * torch.maximum(lower.abs(), upper.abs()).clamp(min=unit)
        point = self.split_points(preact_lower, preact_upper)
        long = preact_upper - preact_lower > unit * torch.maximum(
            preact_lower.abs(), preact_upper.abs()
        )
        return spread & long & (preact_lower < point) & (point < preact_upper)

    def split_points(self, preact_lower: Tensor, preact_upper: Tensor) -> Tensor:
        """Where to split open neurons: the kink nearest to the middle if one is inside, else it."""
        middle = (preact_lower + preact_upper) / 2
        best, distance = middle, torch.full_like(middle, torch.inf)
        for kink in self.kinks:
            inside = (preact_lower < kink) & (kink < preact_upper)
            nearer = inside & ((middle - kink).abs() < distance)
            distance = torch.where(nearer, (middle - kink).abs(), distance)
            best = torch.where(nearer, kink, best)
        return best

    # -- the function's image and lines around it --------------------------------------------------

    def _value_margin(self, preact: Tensor, value: Tensor) -> Tensor:
        """How far a computed value may be off; functions that cancel do so by z, below 1."""
        if not self.rounds:
            return torch.zeros_like(value)
        return (
            _VALUE_UNITS * torch.finfo(value.dtype).eps * (value.abs() + preact.abs().clamp(max=1))
        )

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Image of an interval, rounded outwards."""
        ends = [(z, self.forward(z)) for z in (lower, upper)]
        margins = [self._value_margin(z, value) for z, value in ends]
        smallest = torch.minimum(ends[0][1] - margins[0], ends[1][1] - margins[1])
        largest = torch.maximum(ends[0][1] + margins[0], ends[1][1] + margins[1])
        for point in self.turning_points:
            inside = (lower < point) & (upper > point)
            at = lower.new_full((), point)
            value = self.forward(at)
            margin = self._value_margin(at, value)
            smallest = torch.where(inside, torch.minimum(smallest, value - margin), smallest)
            largest = torch.where(inside, torch.maximum(largest, value + margin), largest)
        return self._within(self.value_range, smallest, largest)

    def support(
        self, slope: Tensor, lower: Tensor, upper: Tensor, side: int
    ) -> tuple[Tensor, Tensor]:
        """Intercept of a line of any slope on one side of the function, and where it touches.

        On a piece where ``side * f`` is convex, its tangent at any point z lies below it, and the
        tangent's own extreme is at an end of the piece; so a point that is not quite where
        ``f' = slope`` costs tightness only. Elsewhere the extreme is at the end of a piece.

        Args:
            slope: Slope of the line, broadcastable with the interval.
            lower, upper: The interval.
            side: 1 for a line below the function, -1 for one above.

        Returns:
            The intercept, rounding included, and the z of the extreme.
        """
        ends = [lower, *(torch.clamp(lower, min=p).minimum(upper) for p in self.breakpoints), upper]
        values = [self.forward(end) for end in ends]
        gaps = [side * (value - slope * end) for value, end in zip(values, ends, strict=True)]
        points = [end.expand_as(gap) for end, gap in zip(ends, gaps, strict=True)]
        for piece, (start, end) in enumerate(pairwise(ends)):
            if side * self.curvatures[piece] <= 0:
                continue
            z = self.touching_point(piece, slope, start, end)
            excess = side * (self.piece_slope(piece, z) - slope)
            drop = torch.minimum(excess * (start - z), excess * (end - z)).clamp(max=0)
            gaps.append(side * (self.forward(z) - slope * z) + drop)
            points.append(z)
        best, which = torch.stack(gaps).min(dim=0)
        point = torch.stack(points).gather(0, which.unsqueeze(0)).squeeze(0)
        size = torch.maximum(lower.abs(), upper.abs())
        largest = torch.stack([value.abs() for value in values]).amax(0)
        margin = _VALUE_UNITS * torch.finfo(size.dtype).eps * (largest + slope.abs() * size)
        margin = margin + self._value_margin(size, largest)
        return side * (best - margin), point

    def _least_area(self, lower: Tensor, upper: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """The line on one side of the function that leaves the least area: slope and intercept.

        That line is highest in the middle of the interval. From the chord on, the point where the
        line touches replaces the end of its side, so that two points of the function's convex hull
        close in on the edge or tangent above the middle.
        """
        least, most = self.slope_interval(lower, upper)
        middle = (lower + upper) / 2
        # Over a piece of one curvature the tangent at the middle is the answer.
        slope = self.one_sided_slope(middle, after=True).clamp(least, most)
        intercept, point = self.support(slope, lower, upper, side)
        best = side * (intercept + slope * middle)
        left, right = torch.minimum(lower, upper), torch.maximum(lower, upper)
        # A straight function's hull has as many corners as it has breakpoints.
        corners = len(self.breakpoints) + 1
        for _ in range(_LINE_STEPS if len(set(self.curvatures)) > 1 else corners):
            trial = chord_slope(self.forward(right) - self.forward(left), right - left)
            trial = torch.where(right > left, trial, slope).clamp(least, most)
            found, point = self.support(trial, lower, upper, side)
            height = side * (found + trial * middle)
            better = height > best
            slope = torch.where(better, trial, slope)
            intercept = torch.where(better, found, intercept)
            best = torch.where(better, height, best)
            left = torch.where(point <= middle, torch.maximum(left, point), left)
            right = torch.where(point >= middle, torch.minimum(right, point), right)
        return slope, intercept

    def lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        """Lines around the function over ``[lower, upper]`` that leave the least area.

        For a convex function the chord above and the tangent at the middle below; for an S-shaped
        one the tangents through an end where there are such (Zhang et al. 2018).
        """
        lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        if not self.free_lines:
            return self._hull_lines(lower, upper)
        whole = on_one_piece(lower, upper, self.breakpoints)
        return by_pieces(lower, upper, whole, self._piece_lines, self._hull_lines)

    def _piece_lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        middle = lower + (upper - lower) / 2
        values = self.forward(lower), self.forward(middle), self.forward(upper)
        size = torch.maximum(lower.abs(), upper.abs())
        largest = torch.maximum(values[0].abs(), values[2].abs())
        eps = torch.finfo(size.dtype).eps
        rounding = self._value_margin(size, largest) + _VALUE_UNITS * eps * largest
        return tangent_and_chord(
            lower,
            upper,
            values,
            self.one_sided_slope(middle, after=True),
            curvature_of(lower, self.breakpoints, self.curvatures),
            lambda slope: rounding + _VALUE_UNITS * eps * slope.abs() * size,
        )

    def _hull_lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        below, above = (self._least_area(lower, upper, side) for side in (1, -1))
        return LineBounds(*below, *above)
