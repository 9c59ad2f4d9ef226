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
from typing import NamedTuple

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.terms.contractions import (
    Contraction,
    contracted,
    contractions_of,
)
from lipschitz.bounds.native.terms.intervals import TermIntervals
from lipschitz.network.activations import Activation
from lipschitz.network.derivative import Step, Terms
from lipschitz.relaxation import LineBounds, slope_product_lines
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
        contractions: Of the graph, by the term that sums; found if None.
    """

    terms: Terms
    intervals: TermIntervals
    contractions: dict[int, Contraction] | None = None
    _planes: dict[int, Planes] = field(default_factory=dict)
    _lines: dict[int, LineBounds] = field(default_factory=dict)
    _slope_ranges: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.contractions is None:
            self.contractions = contractions_of(self.terms)

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
        return Relaxations(self.terms, self.intervals.take(boxes), self.contractions)

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
        if (index, "below") not in shares:
            return self._between(index, coefficients)
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        term = self.terms.terms[index]
        least, most = (t.unsqueeze(1) for t in self._slope_range(index))
        ends = Interval(*(t.unsqueeze(1) for t in self.intervals.bounds[term.parents[0]]))
        rounding = self.intervals.rounding[term.parents[0]].unsqueeze(1)
        below, above = (least + shares[index, side] * (most - least) for side in ("below", "above"))
        low = _Support.apply(below, term.function, ends, 1) - below.abs() * rounding
        high = _Support.apply(above, term.function, ends, -1) + above.abs() * rounding
        constants = positive * high + negative * low
        return positive * above + negative * below, summed(constants), summed(constants.abs())

    def _between(self, index: int, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`unary` by the lines of least area, which are the same for every row."""
        below, low, above, high = (t.unsqueeze(1) for t in self.lines(index))
        size = coefficients.abs()
        new = coefficients * ((above + below) / 2)
        new = torch.addcmul(new, size, (above - below) / 2)
        constant = _inner(coefficients, (high + low) / 2) + _inner(size, (high - low) / 2)
        return new, constant, _inner(size, torch.maximum(high.abs(), low.abs()))

    def product(
        self, index: int, coefficients: Tensor, shares: Shares
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Replace ``coefficients . (v g)`` by its upper plane.

        Returns:
            Coefficients of v and of g, constant [B, K] and the magnitude of its terms [B, K].
        """
        weight = shares.get((index, "weight"))
        if weight is None:
            return self._by_middles(index, coefficients)
        first, second = self.terms.terms[index].parents
        v_lower, v_upper = (t.unsqueeze(1) for t in self.intervals.bounds[first])
        g_lower, g_upper = (t.unsqueeze(1) for t in self.intervals.bounds[second])
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        other = 1 - weight
        # Above with the first weight on (v_upper, g_lower); below it is on (v_lower, g_lower).
        of_g = positive * (weight * v_upper + other * v_lower) + negative * (
            weight * v_lower + other * v_upper
        )
        of_v = coefficients * (weight * g_lower + other * g_upper)
        constants = -positive * (weight * v_upper * g_lower + other * v_lower * g_upper)
        constants = constants - negative * (weight * v_lower * g_lower + other * v_upper * g_upper)
        return of_v, of_g, summed(constants), summed(constants.abs())

    def _by_middles(
        self, index: int, coefficients: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:meth:`product` by the weights of :meth:`middle_weight`, the same for every row.

        With one half, the plane above ``c v g`` is ``c (v_m g + g_m v - v_m g_m)`` plus a quarter
        of ``|c|`` times both widths, m being the middles.
        """
        first, second = self.terms.terms[index].parents
        if index not in self._planes:
            self._planes[index] = Planes.of(
                self.intervals.bounds[first], self.intervals.bounds[second]
            )
        planes, size = self._planes[index], coefficients.abs()
        if not isinstance(self.terms.terms[first].function, Step):
            of_v, of_g = coefficients * planes.g_middle, coefficients * planes.v_middle
            constant = _inner(size, planes.gap) - _inner(coefficients, planes.middle)
            return of_v, of_g, constant, _inner(size, planes.size)
        # Chords: the second factor's lines alone.
        lines = slope_product_lines(
            *torch.broadcast_tensors(*self.intervals.bounds[second], *self.intervals.bounds[first])
        )
        below, low, above, high = (t.unsqueeze(1) for t in lines)
        of_g = coefficients * ((above + below) / 2)
        of_g = torch.addcmul(of_g, size, (above - below) / 2)
        constant = _inner(coefficients, (high + low) / 2) + _inner(size, (high - low) / 2)
        of_v = torch.zeros((), dtype=size.dtype, device=size.device).expand_as(size)
        return of_v, of_g, constant, _inner(size, torch.maximum(high.abs(), low.abs()))

    def contraction(
        self, total: int, coefficients: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Replace ``coefficients . sum of (v g)`` by its upper plane.

        Args:
            total: The term that sums, of :attr:`contractions`.
            coefficients: [B, K, *shape of that term].

        Returns:
            As :meth:`product`, of the terms that both factors repeat.
        """
        this, shape = self.contractions[total], self.terms.terms[total].shape
        first, second = this.sources
        if this.product not in self._planes:
            ends = (self.intervals.bounds[source] for source in this.sources)
            self._planes[this.product] = Planes.of(*ends, shape, this.shape)
        planes = self._planes[this.product]
        if this.factor != 1:
            coefficients = coefficients * this.factor
        of_v, of_g = (
            contracted(coefficients, middle, self.terms.terms[source].shape, this.shape)
            for source, middle in ((first, planes.g_middle), (second, planes.v_middle))
        )
        size = coefficients.abs()
        constant = _inner(size, planes.gap) - _inner(coefficients, planes.middle)
        return of_v, of_g, constant, _inner(size, planes.size)


class Planes(NamedTuple):
    """Both planes of products in equal parts, or of sums of products.

    Attributes:
        v_middle, g_middle: Middles of the factors' intervals, [B or 1, 1, *their shape].
        middle: Products of these, [B or 1, 1, *shape].
        gap: A quarter of the product of both widths.
        size: Largest magnitude of the products.
    """

    v_middle: Tensor
    g_middle: Tensor
    middle: Tensor
    gap: Tensor
    size: Tensor

    @staticmethod
    def of(
        v: Interval, g: Interval, shape: torch.Size | None = None, full: torch.Size | None = None
    ) -> Planes:
        """Of two intervals; summed to ``shape`` over the dimensions of ``full``, if given."""
        v_middle, g_middle = (((e.lower + e.upper) / 2).unsqueeze(1) for e in (v, g))
        v_half, g_half = (((e.upper - e.lower) / 2).unsqueeze(1) for e in (v, g))
        pairs = (
            (v_middle, g_middle),
            (v_half, g_half),
            (v_middle.abs() + v_half, g_middle.abs() + g_half),
        )
        if shape is None:
            return Planes(v_middle, g_middle, *(a * b for a, b in pairs))
        sums = (contracted(a, b, shape, full) for a, b in pairs)
        return Planes(v_middle, g_middle, *sums)


def _inner(coefficients: Tensor, values: Tensor) -> Tensor:
    """Sum of products over all but the first two dimensions: [B, K, *shape] x [B or 1, 1, ...]."""
    rows, values = _flat(coefficients), _flat(values)[:, 0]
    if values.shape[0] == 1:
        return rows @ values[0]
    if rows.shape[0] == 1:
        return (rows @ values.T)[0].T
    return torch.bmm(rows, values.unsqueeze(-1)).squeeze(-1)


def _chord_weight(second: Interval) -> Tensor:
    """The weight at which the planes do not depend on the first factor."""
    run = second.upper - second.lower
    chord = torch.where(run > 0, second.upper / torch.where(run > 0, run, 1.0), 0.5)
    return chord.clamp(0, 1)


def summed(values: Tensor) -> Tensor:
    """Sum over all but the first two dimensions, of which a single number has no more."""
    return _flat(values).sum(2)


def _flat(values: Tensor) -> Tensor:
    return values.reshape(*values.shape[:2], -1)


def _per_row(values: Tensor, batch: int, rows: int) -> Tensor:
    return values.unsqueeze(1).expand(batch, rows, *values.shape[1:]).contiguous()


def margin(magnitude: Tensor) -> Tensor:
    """How far rounding may have moved a sum whose terms add up to a magnitude, same shape."""
    return guard(magnitude.dtype) * magnitude
