"""GELU, SiLU and Mish: ``z`` times a sigmoid.

Their slope falls to a critical value below 0, rises to one above 1 and falls back to 1. Critical
points and extreme slopes were computed to 40 digits and are rounded outwards here. The slope has
no closed inverse; a table of each piece takes its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.activations.smooth import FAR, Smooth

# Points in the table of each piece's slopes, and the |z| up to which the table goes. Choices: it
# only finds where lines touch, so a coarser one makes them looser, never wrong.
_KNOTS = 4096
_REACH = 12.0


@lru_cache(maxsize=64)
def _inverse_table(
    activation: Smooth, piece: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Ascending slopes of a piece and where it has them, both [knots]."""
    ends = (-_REACH, *activation.breakpoints, _REACH)
    z = torch.linspace(ends[piece], ends[piece + 1], _KNOTS, dtype=torch.float64)
    slopes = activation.true_slope(z)
    if activation.curvatures[piece] < 0:
        z, slopes = z.flip(0), slopes.flip(0)
    return slopes.cummax(0).values.to(device, dtype), z.to(device, dtype)


class Gated(Smooth):
    """Base of ``z`` times a sigmoid: concave, convex, concave, between two critical slopes."""

    curvatures = (-1, 1, -1)

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """Interpolated in a table; slopes nearer to the limit than the table goes are far out."""
        slopes, points = _inverse_table(self, piece, slope.device, slope.dtype)
        right = torch.searchsorted(slopes, slope.contiguous()).clamp(1, len(slopes) - 1)
        low, high = slopes[right - 1], slopes[right]
        share = (slope - low) / (high - low).clamp(min=torch.finfo(slope.dtype).tiny)
        found = torch.lerp(points[right - 1], points[right], share.clamp(0, 1))
        if piece == 0:
            return torch.where(slope > slopes[-1], -torch.inf, found)
        return torch.where(slope < slopes[0], torch.inf, found) if piece == 2 else found


@dataclass(frozen=True)
class SiLU(Gated):
    """``z * sigmoid(z)``, also called Swish."""

    name = "SiLU"
    breakpoints = (-2.399357280515467667833, 2.399357280515467667833)
    turning_points = (-1.278464542761073795109,)
    slope_range = (-0.0998395, 1.0998396)
    value_range = (-0.2784647, math.inf)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return F.silu(preact)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``s (1 + z (1 - s))`` with s the sigmoid."""
        z = preact.clamp(-FAR, FAR)
        return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Both terms, times the magnitude of a negative exponent."""
        z = preact.clamp(-FAR, FAR)
        terms = torch.sigmoid(z) * (1 + z.abs() * torch.sigmoid(-z))
        return terms * (1 + z.clamp(max=0).abs())


@dataclass(frozen=True)
class Mish(Gated):
    """``z * tanh(softplus(z))``."""

    name = "Mish"
    breakpoints = (-2.256376396360793120006, 1.490571179485428459294)
    turning_points = (-1.192431214515495212138,)
    slope_range = (-0.1125264, 1.0884984)
    value_range = (-0.3088460, math.inf)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return F.mish(preact)

    @staticmethod
    def _parts(preact: Tensor) -> tuple[Tensor, Tensor]:
        """``tanh(softplus(z))`` and its derivative, with ``t = exp(-|z|)``."""
        z = preact.clamp(-FAR, FAR)
        t = torch.exp(-z.abs())
        rising = z > 0
        gate = torch.where(
            rising, (1 + 2 * t) / (1 + 2 * t + 2 * t * t), t * (t + 2) / (t * (t + 2) + 2)
        )
        secant = torch.where(
            rising, 2 * t * (1 + t) / (1 + 2 * t + 2 * t * t), 2 * (1 + t) / (t * (t + 2) + 2)
        )
        return gate, secant.square() * torch.sigmoid(z)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``t + z t'`` with t the gate."""
        gate, change = self._parts(preact)
        return gate + preact.clamp(-FAR, FAR) * change

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Both terms, times the magnitude of the exponent."""
        gate, change = self._parts(preact)
        z = preact.abs().clamp(max=FAR)
        return gate * (1 + preact.clamp(-FAR, 0).abs()) + z * change * (1 + z)


@dataclass(frozen=True)
class GELU(Gated):
    """``z * Phi(z)`` with the normal distribution function Phi."""

    name = "GELU"
    breakpoints = (-1.414213562373095048802, 1.414213562373095048802)
    turning_points = (-0.7517915246935644574579,)
    slope_range = (-0.1289043, 1.1289044)
    value_range = (-0.1699714, math.inf)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return F.gelu(preact)

    @staticmethod
    def _parts(preact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z cut to where the slope changes, ``Phi(z)`` and ``phi(z)``."""
        z = preact.clamp(-60, 60)
        phi = torch.exp(-z.square() / 2) * (1 / math.sqrt(2 * math.pi))
        return z, torch.erfc(-z * math.sqrt(0.5)) / 2, phi

    def true_slope(self, preact: Tensor) -> Tensor:
        """``Phi(z) + z phi(z)``."""
        z, distribution, density = self._parts(preact)
        return distribution + z * density

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Both terms, times the magnitude of the exponents."""
        z, distribution, density = self._parts(preact)
        tail = 1 + z.clamp(max=0).square()
        return distribution * tail + z.abs() * density * (1 + z.square())


@dataclass(frozen=True)
class TanhGELU(Gated):
    """GELU with ``approximate="tanh"``: ``z * sigmoid(w(z))``, w a cubic."""

    name = "GELU(tanh)"
    breakpoints = (-1.418504008790828355548, 1.418504008790828355548)
    turning_points = (-0.752461422071016258488,)
    slope_range = (-0.1289933, 1.1289934)
    value_range = (-0.1700408, math.inf)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return F.gelu(preact, approximate="tanh")

    @staticmethod
    def _parts(preact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z cut to where the slope changes, ``w`` and its derivative."""
        z, factor = preact.clamp(-50, 50), 2 * math.sqrt(2 / math.pi)
        cubic = 0.044715 * z.square()
        return z, factor * z * (1 + cubic), factor * (1 + 3 * cubic)

    def true_slope(self, preact: Tensor) -> Tensor:
        """``s (1 + z w' (1 - s))`` with s the sigmoid of w."""
        z, w, change = self._parts(preact)
        return torch.sigmoid(w) * (1 + z * change * torch.sigmoid(-w))

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Both terms, times the magnitude of the exponents."""
        z, w, change = self._parts(preact)
        falling = torch.sigmoid(-w) * (1 + w.abs())
        return torch.sigmoid(w) * (1 + w.clamp(max=0).abs() + z.abs() * change * falling)
