"""What linear constraints leave of a box: largest values of affine functions, and smaller boxes.

The largest value of ``a . u`` over [-1, 1]^D under constraints ``g_k . u + h_k >= 0`` is at most
``beta . h + ||a + sum beta_k g_k||_1`` for any multipliers ``beta >= 0`` (weak duality). One
multiplier after the other is set to its best value: the function is convex and piecewise linear in
it, so that is one of its kinks. No multipliers need to be the best ones, and none are trusted.

Shapes: B regions, D inputs, K constraints, R functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.rounding import guard


@dataclass(frozen=True)
class HalfSpaces:
    """Constraints ``matrix u + constant >= 0`` over [-1, 1]^D; rows of zeros say nothing.

    Attributes:
        matrix: [B, K, D].
        constant: [B, K].
    """

    matrix: Tensor
    constant: Tensor

    @staticmethod
    def none(batch: int, inputs: int, like: Tensor) -> HalfSpaces:
        """No constraint."""
        return HalfSpaces(like.new_zeros(batch, 0, inputs), like.new_zeros(batch, 0))

    def __len__(self) -> int:
        return self.matrix.shape[1]

    def and_also(self, matrix: Tensor, constant: Tensor) -> HalfSpaces:
        """With more of them."""
        return HalfSpaces(
            torch.cat([self.matrix, matrix], 1), torch.cat([self.constant, constant], 1)
        )

    def scaled(self) -> HalfSpaces:
        """The same with rows of norm 1, or less where one is hardly more than its constant."""
        size = self.matrix.norm(dim=2)
        floor = 1e-12 * (1 + self.constant.abs())
        scale = torch.where(size > floor, 1 / size.clamp(min=1e-300), 1.0)
        return HalfSpaces(self.matrix * scale.unsqueeze(2), self.constant * scale)

    def double(self) -> HalfSpaces:
        """The same in float64."""
        return HalfSpaces(self.matrix.double(), self.constant.double())


def largest_values(functions: Tensor, spaces: HalfSpaces, sweeps: int = 1) -> Tensor:
    """Upper bounds of ``functions . u`` over the box and the constraints, margins included.

    Args:
        functions: [B, R, D].
        spaces: The constraints.
        sweeps: How often every multiplier is set.

    Returns:
        [B, R], never above the largest value over the box, by more than the margin.
    """
    size = functions.abs().sum(2)
    count = len(spaces)
    sums, constant, terms = functions, torch.zeros_like(size), size
    multipliers = functions.new_zeros(*size.shape, count)
    reach = spaces.matrix.abs().sum(2)
    for step in range(sweeps * count):
        k = step % count
        g, h = spaces.matrix[:, k, None], spaces.constant[:, k, None]  # [B, 1, D], [B, 1]
        old = multipliers[:, :, k]
        rest = sums if step < count else sums - old.unsqueeze(2) * g
        best = _best_multiplier(rest, g, h)
        sums = rest + best.unsqueeze(2) * g
        multipliers[:, :, k] = best
    if count:
        constant = torch.bmm(multipliers, spaces.constant.unsqueeze(2)).squeeze(2)
        weights = (spaces.constant.abs() + reach).unsqueeze(2)
        terms = size + torch.bmm(multipliers, weights).squeeze(2)
    found = constant + sums.abs().sum(2) + guard(size.dtype) * terms
    return torch.minimum(found, size * (1 + guard(size.dtype)))


def _best_multiplier(rest: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """The ``beta >= 0`` that makes ``beta h + ||rest + beta g||_1`` smallest, [B, R].

    Args:
        rest: [B, R, D].
        g: [B, 1, D].
        h: [B, 1].
    """
    safe = torch.where(g == 0, torch.ones_like(g), g)
    kinks = torch.where(g == 0, torch.zeros_like(rest), -rest / safe).clamp(min=0)  # [B, R, D]
    values = kinks * h.unsqueeze(2)
    values = values + (rest.unsqueeze(2) + kinks.unsqueeze(3) * g.unsqueeze(2)).abs().sum(3)
    value, which = values.min(2)
    beta = kinks.gather(2, which.unsqueeze(2)).squeeze(2)
    # Staying at 0 is the best if nothing is gained, or if what is gained is not a number.
    return torch.where(value < rest.abs().sum(2), beta, torch.zeros_like(beta))


def smaller_boxes(
    lower: Tensor, upper: Tensor, spaces: HalfSpaces, precision: torch.dtype
) -> tuple[Interval, Tensor]:
    """Boxes that still hold all points which the constraints allow.

    Args:
        lower, upper: The boxes, [B, D].
        spaces: Constraints over them, each moved to [-1, 1]^D.
        precision: In which they were moved there; the middle and the radius of a box may be rounded
            by as much.

    Returns:
        The new boxes, and which of them hold no such point, [B].
    """
    batch, inputs = lower.shape
    if not len(spaces):
        return Interval(lower, upper), torch.zeros(batch, dtype=torch.bool, device=lower.device)
    unit = torch.eye(inputs, dtype=lower.dtype, device=lower.device).expand(batch, -1, -1)
    functions = torch.cat([unit, -unit, spaces.matrix], 1)
    above, below, slack = largest_values(functions, spaces).split([inputs, inputs, len(spaces)], 1)
    empty = (above < -below).any(1) | (slack + spaces.constant < 0).any(1)
    centre = (lower + upper) / 2
    radius = torch.maximum(upper - centre, centre - lower)
    margin = guard(precision) * (centre.abs() + radius)
    low, high = centre - radius * below - margin, centre + radius * above + margin
    found = Interval(torch.maximum(lower, low), torch.minimum(upper, high))
    empty = empty | (found.lower > found.upper).any(1)
    return found, empty
