"""Activations with kinks: straight pieces, and those with a curved one.

Where an activation is defined by its kinks the slopes on both sides are exact numbers, so a neuron
whose interval keeps to one piece has one slope, to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.activations.base import Activation


class Straight(Activation):
    """Base of activations of straight pieces.

    Attributes:
        slopes: The slope of each piece.
    """

    slopes: tuple[float, ...] = ()

    @property
    def kinks(self) -> tuple[float, ...]:
        """Every breakpoint is one."""
        return self.breakpoints

    @property
    def curvatures(self) -> tuple[int, ...]:
        """No piece is curved."""
        return (0,) * len(self.slopes)

    @property
    def slope_range(self) -> tuple[float, float]:
        """Smallest and largest slope anywhere."""
        return min(self.slopes), max(self.slopes)

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """The piece's slope, a number."""
        return preact.new_full((), self.slopes[piece])

    def one_sided_slope(self, preact: Tensor, *, after: bool) -> Tensor:
        """Slope just after, or just before, ``preact``."""
        return super().one_sided_slope(preact, after=after).expand_as(preact)

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Nothing is computed: slopes are exact."""
        return torch.zeros_like(preact)


@dataclass(frozen=True)
class Hardtanh(Straight):
    """``z`` cut to ``[least, most]``; ReLU6 is the cut to [0, 6], ``clamp`` any other."""

    least: float = -1.0
    most: float = 1.0

    rounds = False

    def __post_init__(self) -> None:
        if not self.least < self.most:
            raise NotImplementedError(f"a cut to [{self.least}, {self.most}], which is empty")

    @property
    def name(self) -> str:
        """With its ends."""
        return f"Hardtanh({self.least:g}, {self.most:g})"

    @property
    def value_range(self) -> tuple[float, float]:
        """The ends of the cut; infinite bounds cut nothing."""
        return self.least, self.most

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The ends that are not infinite."""
        return tuple(end for end in (self.least, self.most) if math.isfinite(end))

    @property
    def slopes(self) -> tuple[float, ...]:
        """1 between the ends, 0 beyond."""
        outside = [[0.0] if math.isfinite(end) else [] for end in (self.least, self.most)]
        return (*outside[0], 1.0, *outside[1])

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return preact.clamp(self.least, self.most)


@dataclass(frozen=True)
class Absolute(Straight):
    """``|z|``."""

    name = "abs"
    breakpoints = (0.0,)
    slopes = (-1.0, 1.0)
    turning_points = (0.0,)
    value_range = (0.0, math.inf)
    rounds = False

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return preact.abs()


@dataclass(frozen=True)
class Softshrink(Straight):
    """``z`` moved towards 0 by ``threshold``, and 0 within it."""

    threshold: float = 0.5

    name = "Softshrink"
    slopes = (1.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise NotImplementedError(f"a threshold of {self.threshold}, which is below 0")

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The ends of the part that is 0."""
        return -self.threshold, self.threshold

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return F.softshrink(preact, self.threshold)


@dataclass(frozen=True, eq=False)
class PReLU(Straight):
    """``z`` for ``z > 0``, ``weight * z`` below: any weights, one for all or one per channel.

    Attributes:
        weight: The slopes for ``z < 0``, [1] or [channels].
        channel_dims: Dimensions of one value behind the channel; only meant with several weights.
    """

    weight: Tensor
    channel_dims: int = 0

    name = "PReLU"
    breakpoints = (0.0,)
    free_lines = False

    @staticmethod
    def of(weight: Tensor, value: Tensor) -> PReLU:
        """For the value [B, ...] that the activation is applied to."""
        return PReLU(weight.detach().clone(), max(value.dim() - 2, 0))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PReLU:
        """A copy whose weights have this device and dtype."""
        return replace(self, weight=self.weight.to(device=device, dtype=dtype))

    @property
    def slopes(self) -> tuple[float, ...]:
        """Of the pieces, taking the extreme weight; for the number of pieces."""
        return float(self.weight.min()), 1.0

    @property
    def slope_range(self) -> tuple[float, float]:
        """Smallest and largest slope anywhere."""
        return min(float(self.weight.min()), 1.0), max(float(self.weight.max()), 1.0)

    @property
    def turning_points(self) -> tuple[float, ...]:
        """0 where a weight is negative; elsewhere the image's ends are those of the interval."""
        return self.breakpoints

    def _weight(self) -> Tensor:
        if len(self.weight) == 1:
            return self.weight.reshape(())
        return self.weight.reshape(-1, *[1] * self.channel_dims)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape that ends in that of one value."""
        return torch.where(preact > 0, preact, self._weight() * preact)

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """1, or the channel's weight."""
        return preact.new_ones(()) if piece else self._weight()


@dataclass(frozen=True)
class Hardswish(Activation):
    """``z * relu6(z + 3) / 6``: 0, a parabola between -3 and 3, then ``z``."""

    name = "Hardswish"
    breakpoints = kinks = (-3.0, 3.0)
    curvatures = (0, 1, 0)
    turning_points = (-3.0, -1.5)
    slope_range = (-0.5, 1.5)
    value_range = (-0.3750002, math.inf)

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        return F.hardswish(preact)

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """0, the parabola's, 1."""
        if piece == 1:
            return preact.clamp(-3, 3) / 3 + 0.5
        return preact.new_full((), 0.0 if piece == 0 else 1.0)

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """Where the parabola has the slope."""
        return 3 * slope - 1.5

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Exact outside the parabola."""
        return torch.where(preact.abs() < 3, preact.abs() / 3 + 0.5, 0.0)


@dataclass(frozen=True)
class ELU(Activation):
    """``scale * z`` for ``z > 0``, ``scale * alpha * (exp(rate * z) - 1)`` below.

    ELU has rate and scale 1, CELU the rate ``1 / alpha``, SELU its own scale and alpha.

    Attributes:
        alpha: The function's limit at minus infinity is ``-scale * alpha``.
        rate, scale: As above; positive.
        kind: Which of the three.
    """

    alpha: float = 1.0
    rate: float = 1.0
    scale: float = 1.0
    kind: str = "ELU"

    breakpoints = (0.0,)

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.rate > 0):
            raise NotImplementedError(f"an alpha of {self.alpha}: it must be above 0")

    @staticmethod
    def celu(alpha: float) -> ELU:
        """CELU, whose slope is continuous."""
        if not alpha > 0:
            raise NotImplementedError(f"an alpha of {alpha}: it must be above 0")
        return ELU(alpha, 1 / alpha, kind="CELU")

    @staticmethod
    def selu() -> ELU:
        """SELU (Klambauer et al. 2017), with torch's constants."""
        return ELU(
            1.6732632423543772848170429916717, 1.0, 1.0507009873554804934193349852946, "SELU"
        )

    @property
    def name(self) -> str:
        """With its alpha, if that is not the usual one."""
        return (
            self.kind if self.alpha == 1 or self.kind == "SELU" else f"{self.kind}({self.alpha:g})"
        )

    @property
    def kinks(self) -> tuple[float, ...]:
        """0, unless the slopes of both sides agree."""
        return () if self.kind == "CELU" or self.alpha == 1 else self.breakpoints

    curvatures = (1, 0)

    @property
    def slope_range(self) -> tuple[float, float]:
        """From 0 to the larger of the two slopes at 0."""
        most = self.scale * max(1.0, self.alpha * self.rate)
        return 0.0, most if most == 1 else most * (1 + 1e-6)

    @property
    def value_range(self) -> tuple[float, float]:
        """Above its limit at minus infinity."""
        return -self.scale * self.alpha * (1 + 1e-6), math.inf

    def forward(self, preact: Tensor) -> Tensor:
        """The activation itself, any shape."""
        below = self.alpha * torch.expm1(self.rate * preact.clamp(max=0))
        return self.scale * torch.where(preact > 0, preact, below)

    def piece_slope(self, piece: int, preact: Tensor) -> Tensor:
        """Of the exponential, or the scale."""
        if piece:
            return preact.new_full((), self.scale)
        return self._steepness * torch.exp(self.rate * preact.clamp(max=0))

    @property
    def _steepness(self) -> float:
        """Slope just below 0; that of CELU is its scale, whatever ``alpha * (1 / alpha)`` gives."""
        return self.scale if self.kind == "CELU" else self.scale * self.alpha * self.rate

    def inverse_slope(self, piece: int, slope: Tensor) -> Tensor:
        """Where the exponential has the slope."""
        tiny = torch.finfo(slope.dtype).tiny
        return torch.log((slope / self._steepness).clamp(min=tiny)) / self.rate

    def slope_scale(self, preact: Tensor) -> Tensor:
        """Exact for ``z >= 0``; the exponent's own rounding grows with it."""
        below = self.piece_slope(0, preact) * (1 + self.rate * preact.abs().clamp(max=1e3))
        return torch.where(preact >= 0, 0.0, below.clamp(min=torch.finfo(below.dtype).tiny))
