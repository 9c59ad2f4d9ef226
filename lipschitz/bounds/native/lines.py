"""Lines around nonlinear steps: around activations, and around slope products ``h = g * s``.

Shapes: coefficients are [B, K, *shape] with B boxes (class x subdomain) and K rows each; B is 1
as long as nothing that differs between the boxes has been met.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.memory.budget import take
from lipschitz.bounds.native.memory.windows import Window
from lipschitz.network.activations import Activation, PiecewiseLinear
from lipschitz.relaxation import slope_product_lines


class Lines(NamedTuple):
    """Two lines around a nonlinear step, stored so that one row costs few operations.

    ``lower_slope``, ``slope_gap`` (upper minus lower slope) broadcast to [B, K, *shape];
    ``lower_intercept`` (None: zero) and ``intercept_gap`` are [B, N]. With ``is_cut`` they hold
    only the part inside the window of the rows they are meant for, and intercepts may be [B, K, N].
    """

    lower_slope: Tensor
    slope_gap: Tensor
    lower_intercept: Tensor | None
    intercept_gap: Tensor
    is_cut: bool = False

    def cut_to(self, window: Window) -> Lines:
        """The lines inside a window."""
        if self.is_cut or (window.is_whole and window.layout == window.shape):
            return self
        lower = None if self.lower_intercept is None else window.cut_flat(self.lower_intercept)
        return Lines(
            window.cut(self.lower_slope),
            window.cut(self.slope_gap),
            lower,
            window.cut_flat(self.intercept_gap),
            is_cut=True,
        )

    def take(self, boxes: slice) -> Lines:
        """The lines of some boxes."""
        lower = None if self.lower_intercept is None else take(self.lower_intercept, boxes)
        return Lines(
            take(self.lower_slope, boxes),
            take(self.slope_gap, boxes),
            lower,
            take(self.intercept_gap, boxes),
            self.is_cut,
        )


def activation_lines(
    activation: Activation,
    preact: Interval,
    lower_slope: Tensor | None = None,
    rounding: Tensor | None = None,
) -> Lines:
    """Lines around an activation over its pre-activation interval.

    For ReLU and LeakyReLU the upper line is the chord; the lower one passes through the origin
    with any slope between the activation's two. The default is the one of CROWN (Zhang et al.
    2018): the larger slope if the chord's is above one half, else the smaller. Other activations
    have the lines of least area.

    Args:
        activation: The activation.
        preact: Interval [B, *shape].
        lower_slope: Slope of the lower line where the neuron is open: for ReLU and LeakyReLU
            between the two slopes, broadcastable to [B, K, *shape]; else any, [B, 1, *shape].
        rounding: How far rounding may have moved the pre-activation, [1 or B, *shape]. The lines
            are set that far apart, so that a bound of a later layer allows for it too.

    Returns:
        The lines; slopes [B, 1, *shape], or [B, K, *shape] as ``lower_slope`` has them.
    """
    if not isinstance(activation, PiecewiseLinear):
        return _curve_lines(activation, preact, lower_slope, rounding)
    small = activation.negative_slope
    lower, upper = preact
    active = lower >= 0
    unstable = ~(active | (upper <= 0))  # an interval that is not a number included
    run = torch.where(unstable, upper - lower, torch.ones_like(upper))
    chord = (upper - small * lower) / run
    stable_slope = torch.where(active, torch.ones_like(upper), torch.full_like(upper, small))
    upper_slope = torch.where(unstable, chord, stable_slope)
    # Largest gap at the two ends: right for any slope, so a rounded chord stays above.
    intercept = torch.maximum((small - chord) * lower, (1 - chord) * upper)
    intercept = torch.where(unstable, intercept, torch.zeros_like(upper)).flatten(1)
    lower_intercept = None
    if rounding is not None:
        steepest = torch.where(unstable, torch.ones_like(upper), stable_slope)
        margin = (steepest * rounding).flatten(1)
        lower_intercept, intercept = -margin, intercept + 2 * margin
    unstable, stable_slope = unstable.unsqueeze(1), stable_slope.unsqueeze(1)
    upper_slope = upper_slope.unsqueeze(1)
    if lower_slope is None:
        lower_slope = small + (1 - small) * (upper_slope > 0.5).to(upper.dtype)
    lower_slope = torch.where(unstable, lower_slope, stable_slope)
    return Lines(lower_slope, upper_slope - lower_slope, lower_intercept, intercept)


def _curve_lines(
    activation: Activation,
    preact: Interval,
    lower_slope: Tensor | None,
    rounding: Tensor | None,
) -> Lines:
    """:func:`activation_lines` of any other activation."""
    lines = activation.lines(*preact)
    if lower_slope is not None:
        slope = torch.where(activation.is_open(*preact), lower_slope.squeeze(1), lines.lower_slope)
        lines = lines._replace(
            lower_slope=slope, lower_intercept=activation.support(slope, *preact, 1)[0]
        )
    below, above = lines.lower_intercept, lines.upper_intercept
    if rounding is not None:
        below = below - lines.lower_slope.abs() * rounding
        above = above + lines.upper_slope.abs() * rounding
    return Lines(
        lines.lower_slope.unsqueeze(1),
        (lines.upper_slope - lines.lower_slope).unsqueeze(1),
        below.flatten(1),
        (above - below).flatten(1),
    )


def product_lines(cotangent: Interval, slope: Interval) -> Lines:
    """Lines around ``h = g * s``, see :func:`lipschitz.relaxation.slope_product_lines`.

    Args:
        cotangent: Interval of g, [B, *shape].
        slope: Interval of s, [B or 1, *shape].
    """
    bounds = slope_product_lines(*cotangent, *torch.broadcast_tensors(*slope))
    return Lines(
        bounds.lower_slope.unsqueeze(1),
        (bounds.upper_slope - bounds.lower_slope).unsqueeze(1),
        bounds.lower_intercept.flatten(1),
        (bounds.upper_intercept - bounds.lower_intercept).flatten(1),
    )


def inner(rows: Tensor, vector: Tensor) -> Tensor:
    """``rows . vector`` for rows [B, K, N] and vectors [B, N] or [B, K, N]: [B, K]."""
    if vector.dim() == 3:
        return (rows * vector).sum(2)
    if rows.shape[0] == 1:
        return vector @ rows[0].T
    if vector.shape[0] == 1:
        return rows @ vector[0]
    return torch.bmm(rows, vector.unsqueeze(-1)).squeeze(-1)


def relax(window: Window, lines: Lines) -> tuple[Window, Tensor]:
    """Replace ``coefficients . f(value)`` by its upper line: new coefficients, constant [B, K]."""
    coefficients, lines = window.values, lines.cut_to(window)
    positive = coefficients.clamp(min=0)
    constant = inner(positive.flatten(2), lines.intercept_gap)
    if lines.lower_intercept is not None:
        constant = constant + inner(window.flat(), lines.lower_intercept)
    new = torch.addcmul(coefficients * lines.lower_slope, positive, lines.slope_gap)
    return window.having(new), constant
