"""Lines around a function over intervals on which it bends one way: a tangent and a chord.

Most intervals are of this kind, above all when boxes are small, and their lines of least area are
known at once: the tangent at the middle on one side, the chord on the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipschitz.relaxation import LineBounds, chord_slope

Lines = Callable[[Tensor, Tensor], LineBounds]


def on_one_piece(
    lower: Tensor, upper: Tensor, ends: tuple[float, ...], jumps: tuple[float, ...] = ()
) -> Tensor:
    """Where intervals are finite and lie between two ends of pieces; bool.

    Args:
        lower, upper: The intervals, in order.
        ends: Where pieces end.
        jumps: Those at which the function jumps; a point there belongs to no piece.
    """
    found = torch.isfinite(lower) & torch.isfinite(upper)
    for end in ends:
        found &= (lower >= end) | (upper <= end)
    for end in jumps:
        found &= (lower != end) | (upper != end)
    return found


def curvature_of(lower: Tensor, ends: tuple[float, ...], curvatures: tuple[int, ...]) -> Tensor:
    """The curvature of the piece on which an interval begins, same shape."""
    found = torch.full_like(lower, float(curvatures[0]))
    for end, curvature in zip(ends, curvatures[1:], strict=True):
        found = torch.where(lower >= end, float(curvature), found)
    return found


def tangent_and_chord(
    lower: Tensor,
    upper: Tensor,
    values: tuple[Tensor, Tensor, Tensor],
    slope: Tensor,
    curvature: Tensor,
    margin: Callable[[Tensor], Tensor],
) -> LineBounds:
    """Lines of least area around a function that is convex or concave on every interval.

    Args:
        lower, upper: The intervals.
        values: The function at the lower end, in the middle and at the upper end.
        slope: Its slope in the middle.
        curvature: 1 where it is convex, -1 where it is concave, 0 where it is straight.
        margin: Rounding of an intercept, given the line's slope.
    """
    middle = lower + (upper - lower) / 2
    chord = chord_slope(values[2] - values[0], upper - lower)
    at_ends = values[0] - chord * lower, values[2] - chord * upper
    tangent = values[1] - slope * middle
    convex, concave = curvature > 0, curvature < 0
    room, chord_room = margin(slope), margin(chord)
    return LineBounds(
        torch.where(convex, slope, chord),
        torch.where(convex, tangent - room, torch.minimum(*at_ends) - chord_room),
        torch.where(concave, slope, chord),
        torch.where(concave, tangent + room, torch.maximum(*at_ends) + chord_room),
    )


def by_pieces(
    lower: Tensor, upper: Tensor, whole: Tensor, on_piece: Lines, elsewhere: Lines
) -> LineBounds:
    """Lines by the quick way where it serves, by the slow one elsewhere.

    Args:
        lower, upper: The intervals.
        whole: Where the quick way serves.
        on_piece: The quick way.
        elsewhere: The slow way, which takes any intervals.
    """
    if not bool(whole.any()):
        return elsewhere(lower, upper)
    found = on_piece(lower, upper)
    if bool(whole.all()):
        return found
    rest = ~whole
    hull = elsewhere(lower[rest], upper[rest])
    return LineBounds(*(t.masked_scatter(rest, h) for t, h in zip(found, hull, strict=True)))
