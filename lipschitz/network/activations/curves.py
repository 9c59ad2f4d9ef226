"""How the derivative of an activation bends: its pieces, extremes and where it has which slope.

Found once for each activation and order, in float64, by bisection for the sign changes of the next
two derivatives. Where the pieces end need not be exact: the second derivative of what is bounded is
zero there, so an end that is off by a rounding matters in second order only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from lipschitz.network.activations.base import Activation
from lipschitz.network.activations.jets import formula_ends, jet
from lipschitz.network.activations.piecewise import ELU
from lipschitz.network.activations.smooth import Softplus

# End of the grids below, in z times the activation's scale. A choice: tails that fall off like
# exp(-|z|) are, to the last digit of float64, at their limits there.
_REACH = 60.0
# Points of the grid, between two ends, on which changes of sign are looked for. A choice: two
# changes within one step of it would be missed.
_GRID = 24_001
# Values on the grid below this share of the largest one count as zero: their sign is rounding. A
# choice, far above the unit of float64.
_NOISE = 1e-11
# Cells of the table of touching points, and points of the grid that it is read from. Choices: the
# table is where Newton's method starts, so a coarser one makes lines looser, never wrong.
_CELLS, _FINE = 16_384, 240_001
# Ranges over all reals are widened by this share of the largest magnitude, since float32 rounds
# their ends: about eight of its units.
_WIDER = 1e-6


@dataclass(frozen=True)
class Piece:
    """A part of the real line on which a derivative bends one way.

    Attributes:
        start, end: Its ends, infinite at the outer ones.
        formula: The activation's formula there.
        curvature: 1 if convex, -1 if concave, 0 if straight.
    """

    start: float
    end: float
    formula: int
    curvature: int


@dataclass(frozen=True)
class Break:
    """Where another formula begins.

    Attributes:
        point: z.
        values, slopes: The derivative, and the next one, before and after it.
    """

    point: float
    values: tuple[float, float]
    slopes: tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """The derivative of one order of an activation.

    Attributes:
        pieces: From the left.
        breaks: Where formulas meet.
        turning: Where it is extreme, and its value there.
        bends: Where the next derivative is extreme, and that one's value there.
        value_size, slope_size: Largest magnitude of it and of the next one; 0 if unbounded.
        value_range, slope_range: What it and the next one lie in anywhere, rounded outwards.
        scale: By how much its features are narrower than those of the usual activations.
    """

    pieces: tuple[Piece, ...]
    breaks: tuple[Break, ...]
    turning: tuple[tuple[float, float], ...]
    bends: tuple[tuple[float, float], ...]
    value_size: float
    slope_size: float
    value_range: tuple[float, float]
    slope_range: tuple[float, float]
    scale: float

    @property
    def jumps(self) -> tuple[float, ...]:
        """Where the derivative itself jumps."""
        return tuple(b.point for b in self.breaks if not _equal(*b.values))


def _equal(first: float, second: float) -> bool:
    return abs(first - second) <= 1e-12 * max(1.0, abs(first), abs(second))


def _scale(activation: Activation) -> float:
    if isinstance(activation, Softplus):
        return activation.beta
    return activation.rate if isinstance(activation, ELU) else 1.0


def _zeros(function: Callable[[Tensor], Tensor], start: float, end: float) -> list[float]:
    """Where a function changes its sign strictly between two points."""
    z = torch.linspace(start, end, _GRID, dtype=torch.float64)
    values = function(z)
    values = torch.where(values.abs() > _NOISE * values.abs().max(), values, 0.0)
    kept = values != 0  # zeros are left out; their neighbours show the change
    z, sign = z[kept], values[kept].sign()
    change = (sign[1:] != sign[:-1]).nonzero()[:, 0]
    lower, upper, rising = z[change], z[change + 1], sign[change + 1]
    for _ in range(60):
        middle = (lower + upper) / 2
        above = function(middle) * rising > 0
        lower, upper = torch.where(above, lower, middle), torch.where(above, middle, upper)
    return ((lower + upper) / 2).tolist()


@lru_cache(maxsize=256)
def curve(activation: Activation, order: int) -> Curve:
    """How the derivative of an order of a curved activation bends."""
    scale = _scale(activation)
    cuts = formula_ends(activation)
    ends = [-_REACH / scale, *cuts, _REACH / scale]

    def at(formula: int, n: int) -> Callable[[Tensor], Tensor]:
        return lambda z: jet(activation, formula, z)(n)

    def number(formula: int, n: int, z: float) -> float:
        return float(at(formula, n)(torch.tensor(z, dtype=torch.float64)))

    pieces, turning, bends, values, slopes = [], [], [], [], []
    for formula, (start, end) in enumerate(pairwise(ends)):
        inner = _zeros(at(formula, order + 2), start, end)
        bends += [(z, number(formula, order + 1, z)) for z in inner]
        turns = _zeros(at(formula, order + 1), start, end)
        turning += [(z, number(formula, order, z)) for z in turns]
        for left, right in pairwise([start, *inner, end]):
            inside = torch.linspace(left, right, 1001, dtype=torch.float64)[1:-1]
            bend = at(formula, order + 2)(inside)
            outer = (
                -math.inf if left == ends[0] else left,
                math.inf if right == ends[-1] else right,
            )
            pieces.append(Piece(*outer, formula, int(bend[bend.abs().argmax()].sign())))
        values += [number(formula, order, z) for z in (start, *turns, end)]
        slopes += [number(formula, order + 1, z) for z in (start, *inner, end)]
    breaks = tuple(
        Break(
            z,
            (number(before, order, z), number(before + 1, order, z)),
            (number(before, order + 1, z), number(before + 1, order + 1, z)),
        )
        for before, z in enumerate(cuts)
    )
    # The square is the one activation here whose slope, its first derivative, is unbounded.
    is_bounded = order > 1 or math.isfinite(activation.slope_range[1])
    size, slope_size = (max(map(abs, found)) for found in (values, slopes))
    return Curve(
        tuple(pieces),
        breaks,
        tuple(turning),
        tuple(bends),
        size if is_bounded else 0.0,
        slope_size,
        activation.slope_range if order == 1 else _range(values, size),
        _range(slopes, slope_size),
        scale,
    )


def _range(values: list[float], size: float) -> tuple[float, float]:
    return min(values) - _WIDER * size, max(values) + _WIDER * size


@dataclass(frozen=True)
class Touching:
    """Where on a piece the next derivative is a given number, to a thousandth or so.

    The cells are even in the angle whose cosine runs through the piece's slopes, since the slope is
    extreme, and so its inverse steep, at the ends.

    Attributes:
        middle, half: Of the interval of slopes.
        points: z of every cell.
    """

    middle: float
    half: float
    points: Tensor

    def near(self, slope: Tensor) -> Tensor:
        """The z of the cell of a slope; infinite in the far tail."""
        share = ((slope - self.middle) * (1 / self.half)).clamp(-1, 1)
        cell = (share.acos() * (_CELLS / math.pi)).long()
        return self.points[cell.clamp(0, _CELLS - 1)]


@lru_cache(maxsize=256)
def touching(
    activation: Activation, order: int, piece: Piece, device: torch.device, dtype: torch.dtype
) -> Touching:
    """The table of a curved piece of a derivative."""
    reach = _REACH / _scale(activation)
    start, end = max(piece.start, -reach), min(piece.end, reach)
    z = torch.linspace(start, end, _FINE, dtype=torch.float64)
    slopes = jet(activation, piece.formula, z)(order + 1)
    if piece.curvature < 0:
        z, slopes = z.flip(0), slopes.flip(0)
    slopes = slopes.cummax(0).values
    low, high = float(slopes[0]), float(slopes[-1])
    middle, half = (low + high) / 2, (high - low) / 2
    angle = (torch.arange(_CELLS, dtype=torch.float64) + 0.5) * (math.pi / _CELLS)
    wanted = middle + half * angle.cos()
    right = torch.searchsorted(slopes, wanted).clamp(1, _FINE - 1)
    run = (slopes[right] - slopes[right - 1]).clamp(min=torch.finfo(torch.float64).tiny)
    share = ((wanted - slopes[right - 1]) / run).clamp(0, 1)
    points = torch.lerp(z[right - 1], z[right], share)
    # The cells at the ends of the table stand for slopes of points beyond the grid, and for slopes
    # that no point has: both belong at the piece's infinite end.
    first, last = (piece.end, piece.start)[:: piece.curvature]
    if math.isinf(first):
        points[0] = first
    if math.isinf(last):
        points[-1] = last
    return Touching(middle, half, points.to(device, dtype))
