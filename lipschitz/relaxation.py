"""Linear relaxations of the two nonlinear steps of a backward pass: ``h = g * s`` and ``|g|``.

Each is bounded between two lines in ``g`` over ``[g_lower, g_upper]``. The intercepts are taken
as the extreme of the remaining gap at the two ends of the interval, which is right for *any*
slope of the line (the function minus a line stays convex, or concave), so rounding in a slope
cannot make a line cross the function.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LineBounds(NamedTuple):
    """``lower_slope * g + lower_intercept <= f(g) <= upper_slope * g + upper_intercept``."""

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor


def chord_slope(rise: Tensor, run: Tensor) -> Tensor:
    """Slope of a chord; 0 over an interval too short to divide by."""
    tiny = torch.finfo(run.dtype).tiny
    return torch.where(run > tiny, rise / run.clamp(min=tiny), torch.zeros_like(run))


def slope_product_lines(
    g_lower: Tensor, g_upper: Tensor, slope_lower: Tensor, slope_upper: Tensor
) -> LineBounds:
    """Tightest lines in ``g`` alone around ``h = g * s``, the slope ``s`` in an interval.

    ``h`` lies between ``psi(g) = min(slope_lower g, slope_upper g)`` (concave) and
    ``phi(g) = max(slope_lower g, slope_upper g)`` (convex); the chord of ``phi`` over the interval
    is the tightest linear upper bound and the chord of ``psi`` the tightest lower one. For an
    unstable ReLU this is the relaxation of Shi et al. 2022 (section 3.3), and if the slope is
    certain both lines are ``s * g``.

    Args:
        g_lower, g_upper: Interval of g, any common shape; ignored where the slope is certain.
        slope_lower, slope_upper: Interval of the slope, same shape.

    Returns:
        The two lines, tensors of the same shape.
    """
    certain = slope_lower == slope_upper
    phi_at_lower = torch.maximum(slope_lower * g_lower, slope_upper * g_lower)
    phi_at_upper = torch.maximum(slope_lower * g_upper, slope_upper * g_upper)
    psi_at_lower = torch.minimum(slope_lower * g_lower, slope_upper * g_lower)
    psi_at_upper = torch.minimum(slope_lower * g_upper, slope_upper * g_upper)
    run = g_upper - g_lower
    # On an interval of one sign phi and psi are lines already.
    positive, negative = g_lower >= 0, g_upper <= 0
    upper_slope = chord_slope(phi_at_upper - phi_at_lower, run)
    upper_slope = torch.where(
        positive, slope_upper, torch.where(negative, slope_lower, upper_slope)
    )
    lower_slope = chord_slope(psi_at_upper - psi_at_lower, run)
    lower_slope = torch.where(
        positive, slope_lower, torch.where(negative, slope_upper, lower_slope)
    )
    upper_intercept = torch.maximum(
        phi_at_lower - upper_slope * g_lower, phi_at_upper - upper_slope * g_upper
    )
    lower_intercept = torch.minimum(
        psi_at_lower - lower_slope * g_lower, psi_at_upper - lower_slope * g_upper
    )
    exact = certain | positive | negative
    zero = torch.zeros_like(run)
    return LineBounds(
        torch.where(certain, slope_lower, lower_slope),
        torch.where(exact, zero, lower_intercept),
        torch.where(certain, slope_lower, upper_slope),
        torch.where(exact, zero, upper_intercept),
    )


def absolute_value_chord(g_lower: Tensor, g_upper: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the tightest line above ``|g|`` over ``[g_lower, g_upper]``.

    It is the chord, since ``|.|`` is convex (Shi et al. 2022, the norm node); shapes as given.
    """
    run = g_upper - g_lower
    slope = chord_slope(g_upper.abs() - g_lower.abs(), run).clamp(-1, 1)
    slope = torch.where(
        g_lower >= 0,
        torch.ones_like(run),
        torch.where(g_upper <= 0, -torch.ones_like(run), slope),
    )
    intercept = torch.maximum(g_lower.abs() - slope * g_lower, g_upper.abs() - slope * g_upper)
    return slope, intercept
