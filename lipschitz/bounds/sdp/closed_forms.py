"""The best vectors for one neuron, or one entry, when everything else stands still.

Seen alone, a variable of the program meets a linear objective and one or two convex constraints,
so its best value and the constraints' multipliers have closed forms. All vectors have R
components, of which the first is the one along the constant ``e``.

Shapes: B programs, R components, m neurons, D entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Relative rounding within which a vector counts as inside a constraint, for sweeps in float32 too.
# A choice: if it is off the multipliers are worse, and the certificate says so.
_ROUNDING = 1e-6


class Best(NamedTuple):
    """The best t of some neurons, with the multipliers of what holds it back.

    Attributes:
        t: [B, R, m].
        product: Multiplier of ``t (g - t) >= 0``, [B, m].
        box: Multiplier of ``(t - centre)^2 <= radius^2``, [B, m].
    """

    t: Tensor
    product: Tensor
    box: Tensor


def best_between(weight: Tensor, g: Tensor, centre: Tensor, radius: Tensor) -> Best:
    """Maximise ``weight . t`` over two balls: ``t (g - t) >= 0`` and the box of t.

    The maximum is in the span of the weight, g and e. If it is not that of one ball alone, it is
    on the circle in which the two spheres meet.

    Args:
        weight, g: [B, R, m].
        centre, radius: The box, [B, m].
    """
    tiny = torch.finfo(g.dtype).tiny ** 0.5
    ww, wg, gg = (weight * weight).sum(1), (weight * g).sum(1), (g * g).sum(1)
    w0, g0 = weight[:, 0], g[:, 0]
    ww, gg = ww.clamp(min=tiny), gg.clamp(min=tiny)
    w_norm, g_norm = ww.sqrt(), gg.sqrt()
    squared = radius * radius

    # On the first ball alone, t = g / 2 + |g| / 2 weight / |weight|.
    x = g_norm / (2 * w_norm)
    off = (gg + 2 * x * wg) / 2 - 2 * centre * (x * w0 + g0 / 2) + centre * centre
    first = off <= squared * (1 + _ROUNDING)
    first_product = w_norm / g_norm

    # On the second alone, t = centre e + radius weight / |weight|.
    second_x = radius / w_norm
    inner = second_x * (wg - 2 * centre * w0) + centre * g0 - squared - centre * centre
    second = inner >= -_ROUNDING * squared

    # On both: the plane of the circle is across the line of the centres.
    line = (centre * centre - centre * g0 + gg / 4).clamp(min=tiny)
    share = (line + gg / 4 - squared) / (2 * line)
    along = centre * w0 - wg / 2
    across = (ww - along * along / line).clamp(min=tiny).sqrt()
    circle = (gg / 4 - share * share * line).clamp(min=_ROUNDING * squared + tiny).sqrt()
    third_x = circle / across
    on_line = share - third_x * along / line
    total = across / (2 * circle)
    box = total * share - along / (2 * line)

    third = ~(first | second)
    x = torch.where(first, x, torch.where(second, second_x, third_x))
    y = torch.where(first, 0.5, torch.where(second, 0.0, (1 - on_line) / 2))
    z = torch.where(first, 0.0, torch.where(second, 1.0, on_line)) * centre
    t = x.unsqueeze(1) * weight + y.unsqueeze(1) * g
    t[:, 0] += z
    unused = radius == 0
    none = torch.zeros_like(x)
    product = torch.where(first, first_product, torch.where(third, (total - box).clamp(min=0), 0.0))
    box = torch.where(third, box.clamp(min=0), torch.where(first, none, w_norm / (2 * radius)))
    return Best(
        t.masked_fill(unused.unsqueeze(1), 0),
        product.masked_fill(unused, 0),
        box.masked_fill(unused, 0),
    )


class Signs(NamedTuple):
    """The best u of the entries that have one, with the multipliers of what holds it back.

    Attributes:
        along, across: ``u = along e + across J'``, J' being J without its first component, [B, D].
        box: Multiplier of ``u^2 <= 1``, [B, D].
        below, above: Multipliers of the two McCormick products, [B, D].
    """

    along: Tensor
    across: Tensor
    box: Tensor
    below: Tensor
    above: Tensor


def best_signs(jacobian: Tensor, lower: Tensor, upper: Tensor) -> Signs:
    """Maximise ``u . J`` over the unit ball and the McCormick products.

    ``u`` is in the plane of e and J. With coordinates ``(x, y)`` there and ``s = |J'|`` the
    products say ``s y <= (J_0 - lower)(1 - x)`` and ``s y <= (upper - J_0)(1 + x)``; the best is
    ``J / |J|``, or where one of the lines meets the circle, or where the lines meet.

    Args:
        jacobian: [B, R, D].
        lower, upper: Interval of the entries, [B, D].
    """
    tiny = torch.finfo(jacobian.dtype).tiny ** 0.5
    first = jacobian[:, 0]
    rest = jacobian[:, 1:].square().sum(1).clamp(min=tiny).sqrt()
    norm = (first * first + rest * rest).sqrt()
    width = (upper - lower).clamp(min=tiny)
    over, under = (first - lower).clamp(min=_ROUNDING * width), (upper - first)
    under = under.clamp(min=_ROUNDING * width)
    none = torch.zeros_like(first)

    steep = over / rest
    x_low = (steep * steep - 1) / (steep * steep + 1)
    y_low = 2 * steep / (steep * steep + 1)
    below = _quotient(first * y_low - rest * x_low, over * y_low - rest * x_low)
    steep = under / rest
    x_high = (1 - steep * steep) / (steep * steep + 1)
    y_high = 2 * steep / (steep * steep + 1)
    above = _quotient(first * y_high - rest * x_high, -under * y_high - rest * x_high)
    meet = (over - under) / (over + under)
    candidates = [
        (first / norm, rest / norm, none, none),
        (x_low, y_low, below, none),
        (x_high, y_high, none, above),
        (meet, 2 * over * under / ((over + under) * rest), upper / width, -lower / width),
    ]
    best = torch.full_like(first, -torch.inf)
    chosen = [none] * 4
    for x, y, low, high in candidates:
        room = _ROUNDING * width
        inside = rest * y <= over * (1 - x) + room
        inside &= rest * y <= under * (1 + x) + room
        inside &= x * x + y * y <= 1 + _ROUNDING
        value = torch.where(inside, first * x + rest * y, torch.finfo(first.dtype).min)
        better = value > best
        best = torch.where(better, value, best)
        chosen = [
            torch.where(better, new, old)
            for new, old in zip((x, y, low, high), chosen, strict=True)
        ]
    x, y, below, above = chosen
    below, above = below.clamp(0, 1), above.clamp(0, 1)
    box = (rest * (1 - below - above)).clamp(min=0) / (2 * y.clamp(min=tiny))
    return Signs(x, y / rest, box, below, above)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, 0 where that is no number."""
    return torch.where(
        denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator)
    )
