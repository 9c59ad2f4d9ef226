"""Intervals of values from what is known of them besides the steps that compute them.

Interval arithmetic takes every step by itself. Where a value is a monotone function of some earlier
ones, or stays within two numbers, that says more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.rounding import guard


@dataclass(frozen=True)
class Rising:
    """A node's value as a function of earlier nodes' values that falls in none of them.

    Interval arithmetic through the steps of ``log(exp(a) + exp(b)) = a + softplus(b - a)`` or
    ``max(a, b) = b + relu(a - b)`` counts ``a`` twice; the function at both ends of the intervals
    is their exact image.

    Attributes:
        parents: Indices of these nodes.
        function: Of their values, [B, *shape] each.
        margin: What rounding adds to the function's value besides its relative error, in units of
            that.
    """

    parents: tuple[int, ...]
    function: Callable[..., Tensor]
    margin: float = 0.0

    def narrowed(
        self, lower: Tensor, upper: Tensor, bounds: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """An interval of the node's value, cut to the image of its parents'.

        Args:
            lower, upper: The interval, [B, *shape].
            bounds: Of every earlier node.
        """
        unit = guard(lower.dtype)
        least = self.function(*(bounds[p][0] for p in self.parents))
        most = self.function(*(bounds[p][1] for p in self.parents))
        least = least - unit * (least.abs() + self.margin)
        most = most + unit * (most.abs() + self.margin)
        # What overflows is not a number, and narrows nothing.
        return torch.where(least > lower, least, lower), torch.where(most < upper, most, upper)


@dataclass(frozen=True)
class Within:
    """That a node's value stays within two numbers, whatever its parents' intervals say.

    Attributes:
        least, most: The numbers.
        parents: None, as of :class:`Rising`.
    """

    least: float
    most: float
    parents: tuple[int, ...] = ()

    def narrowed(
        self, lower: Tensor, upper: Tensor, bounds: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Rising.narrowed`."""
        unit = guard(lower.dtype)
        least, most = self.least - unit * abs(self.least), self.most + unit * abs(self.most)
        return lower.clamp(min=least), upper.clamp(max=most)


@dataclass(frozen=True)
class LogShares:
    """That a node's value is the logarithm of softmax over the last dimension.

    Each rises in its own logit and falls in all others, so it is least with its own at the lower
    end and the others at the upper.

    Attributes:
        parents: The node of the logits.
        counts: Which of them count, [*shape]; elsewhere the node's interval is left as it is.
    """

    parents: tuple[int]
    counts: Tensor

    def narrowed(
        self, lower: Tensor, upper: Tensor, bounds: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Rising.narrowed`."""
        low, high = bounds[self.parents[0]]
        counts, unit = self.counts.to(low.device), guard(low.dtype)
        least, most = (
            -_softplus(_others(high, counts) - low),
            -_softplus(_others(low, counts) - high),
        )
        size = torch.maximum(low.abs(), high.abs())
        size = torch.where(counts, size, 0).amax(-1, keepdim=True) + 1
        least, most = least - unit * size, most + unit * size
        narrow = counts & (least > lower), counts & (most < upper)
        return torch.where(narrow[0], least, lower), torch.where(narrow[1], most, upper)


def _softplus(z: Tensor) -> Tensor:
    return torch.logaddexp(z, torch.zeros_like(z))


def _others(z: Tensor, counts: Tensor) -> Tensor:
    """``log(sum exp(z))`` over all other entries of the last dimension, without cancellation."""
    z = torch.where(counts, z, -torch.inf)
    none = torch.full_like(z[..., :1], -torch.inf)
    before = torch.cat([none, z[..., :-1].logcumsumexp(-1)], -1)
    after = torch.cat([z[..., 1:].flip(-1).logcumsumexp(-1).flip(-1), none], -1)
    return torch.logaddexp(before, after)
