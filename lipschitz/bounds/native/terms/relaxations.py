"""Lines around unary functions and planes around products, with their free parameters.

A product ``h = v g`` of values in ``[v_l, v_u]`` and ``[g_l, g_u]`` lies below both of

    v_u g + g_l v - v_u g_l,     v_l g + g_u v - v_l g_u

and above two such planes with the signs changed (McCormick 1976), hence below any convex
combination: one free weight in [0, 1] for every product, row and sign. Over intervals of width
O(eps) each is off by O(eps^2). With the weight ``g_u / (g_u - g_l)`` the upper plane is the chord
in g, which does not depend on v (Shi et al. 2022).

Shapes: coefficients are [B, K, *shape] with B boxes and K rows each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.terms.intervals import TermIntervals
from lipschitz.network.activations import Activation
from lipschitz.network.derivative import Step, Terms
from lipschitz.relaxation import LineBounds
from lipschitz.rounding import guard

# Free parameters of every row, each as a share in [0, 1] of the way through its range. Keys are the
# term and which parameter: the "weight" of a plane, or the slope of the line "below" or "above".
Shares = dict[tuple[int, str], Tensor]


class _Support(torch.autograd.Function):
    """Intercept of a supporting line as a function of its slope.

    Its derivative is minus the point that the line touches (envelope theorem).
    """

    @staticmethod
    def forward(  # type: ignore[override]
        context: object, slope: Tensor, function: Activation, ends: Interval, side: int
    ) -> Tensor:
        intercept, point = function.support(slope, *ends, side)
        context.save_for_backward(point)
        return intercept

    @staticmethod
    def backward(context: object, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (point,) = context.saved_tensors
        return -gradient * point, None, None, None


@dataclass
class Relaxations:
    """How every nonlinear term is replaced, for B boxes of K rows.

    Args:
        terms: The graph.
        intervals: Of its terms.
    """

    terms: Terms
    intervals: TermIntervals
    _lines: dict[int, LineBounds] = field(default_factory=dict)
    _slope_ranges: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def lines(self, index: int) -> LineBounds:
        """Lines of least area around a unary term, set apart by the rounding of its argument."""
        if index not in self._lines:
            term = self.terms.terms[index]
            found = self.intervals.lines.get(index)
            if found is None:
                found = term.function.lines(*self.intervals.bounds[term.parents[0]])
                self.intervals.lines[index] = found
            rounding = self.intervals.rounding[term.parents[0]]
            self._lines[index] = found._replace(
                lower_intercept=found.lower_intercept - found.lower_slope.abs() * rounding,
                upper_intercept=found.upper_intercept + found.upper_slope.abs() * rounding,
            )
        return self._lines[index]

    def take(self, boxes: slice) -> Relaxations:
        """The same of some boxes."""
        if boxes == slice(None):
            return self
        return Relaxations(self.terms, self.intervals.take(boxes))

    def middle_weight(self, index: int) -> Tensor:
        """Weights of planes that treat both factors alike, [B or 1, *shape].

        One half, but where the first factor is a slope that jumps: it has no lines, so only the
        chord, which leaves it out, keeps what the second factor has to do with the input.
        """
        second = self.intervals.bounds[self.terms.terms[index].parents[1]]
        first = self.terms.terms[self.terms.terms[index].parents[0]]
        if isinstance(first.function, Step):
            return _chord_weight(second)
        return torch.full_like(second.lower, 0.5)

    def start(self, index: int, batch: int, rows: int) -> Shares:
        """The shares of a term to begin with, [B, K, *shape] each; none if nothing is free."""
        term = self.terms.terms[index]
        if term.is_product:
            chord = _chord_weight(self.intervals.bounds[term.parents[1]])
            return {(index, "weight"): _per_row(chord, batch, rows)}
        if term.function is None or not term.function.free_lines:
            return {}
        least, most = self._slope_range(index)
        tiny = torch.finfo(least.dtype).tiny
        lines = self.lines(index)
        return {
            (index, side): _per_row(
                ((slope - least) / (most - least).clamp(min=tiny)).clamp(0, 1), batch, rows
            )
            for side, slope in (("below", lines.lower_slope), ("above", lines.upper_slope))
        }

    def _slope_range(self, index: int) -> tuple[Tensor, Tensor]:
        if index not in self._slope_ranges:
            term = self.terms.terms[index]
            ends = self.intervals.bounds[term.parents[0]]
            self._slope_ranges[index] = term.function.slope_interval(*ends)
        return self._slope_ranges[index]

    def unary(
        self, index: int, coefficients: Tensor, shares: Shares
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Replace ``coefficients . f(z)`` by its upper line.

        Returns:
            Coefficients of z, constant [B, K] and the magnitude of its terms [B, K].
        """
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        if (index, "below") in shares:
            term = self.terms.terms[index]
            least, most = (t.unsqueeze(1) for t in self._slope_range(index))
            ends = Interval(*(t.unsqueeze(1) for t in self.intervals.bounds[term.parents[0]]))
            rounding = self.intervals.rounding[term.parents[0]].unsqueeze(1)
            below, above = (
                least + shares[index, side] * (most - least) for side in ("below", "above")
            )
            low = _Support.apply(below, term.function, ends, 1) - below.abs() * rounding
            high = _Support.apply(above, term.function, ends, -1) + above.abs() * rounding
        else:
            below, low, above, high = (t.unsqueeze(1) for t in self.lines(index))
        constants = positive * high + negative * low
        return positive * above + negative * below, _sum(constants), _sum(constants.abs())

    def product(
        self, index: int, coefficients: Tensor, shares: Shares
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Replace ``coefficients . (v g)`` by its upper plane.

        Returns:
            Coefficients of v and of g, constant [B, K] and the magnitude of its terms [B, K].
        """
        first, second = self.terms.terms[index].parents
        v_lower, v_upper = (t.unsqueeze(1) for t in self.intervals.bounds[first])
        g_lower, g_upper = (t.unsqueeze(1) for t in self.intervals.bounds[second])
        weight = shares.get((index, "weight"))
        if weight is None:
            weight = self.middle_weight(index).unsqueeze(1)
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        other = 1 - weight
        # Above with the first weight on (v_upper, g_lower); below it is on (v_lower, g_lower).
        of_g = positive * (weight * v_upper + other * v_lower) + negative * (
            weight * v_lower + other * v_upper
        )
        of_v = coefficients * (weight * g_lower + other * g_upper)
        constants = -positive * (weight * v_upper * g_lower + other * v_lower * g_upper)
        constants = constants - negative * (weight * v_lower * g_lower + other * v_upper * g_upper)
        return of_v, of_g, _sum(constants), _sum(constants.abs())


def _chord_weight(second: Interval) -> Tensor:
    """The weight at which the planes do not depend on the first factor."""
    run = second.upper - second.lower
    chord = torch.where(run > 0, second.upper / torch.where(run > 0, run, 1.0), 0.5)
    return chord.clamp(0, 1)


def _sum(values: Tensor) -> Tensor:
    return values.flatten(2).sum(2)


def _per_row(values: Tensor, batch: int, rows: int) -> Tensor:
    return values.unsqueeze(1).expand(batch, rows, *values.shape[1:]).contiguous()


def margin(magnitude: Tensor) -> Tensor:
    """How far rounding may have moved a sum whose terms add up to a magnitude, same shape."""
    return guard(magnitude.dtype) * magnitude
