"""Guards against floating-point rounding, in one place.

What is certified is the network in real arithmetic with the stored weights. All sums here are
rounded to nearest, so two guards keep rounding from turning a bound into a wrong one: every
pre-activation interval is widened, before any neuron is called stable, by :func:`guard` times the
magnitude of the terms it was summed from; and a reported upper bound is raised by the same
relative amount. This is a margin of 16 units in the last place, not a rounding-error analysis: a
result that must hold to the last digits should be computed in float64, where the guard is 4e-15.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def guard(dtype: torch.dtype) -> float:
    """Relative margin, 16 units in the last place of ``dtype``."""
    return 16 * torch.finfo(dtype).eps


def raise_upper_bound(upper_bound: Tensor) -> Tensor:
    """An upper bound of a norm with the rounding guard added, same shape."""
    return upper_bound * (1 + guard(upper_bound.dtype))


def rounded_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` that is not above ``value``; infinity and NaN stay.

    The one rule for thresholds that tensors of bounds are compared with. A comparison in ``dtype``
    takes a threshold for the number nearest to it, which may be above; then a bound between the two
    would count as settled here and as open wherever it is compared as a Python float. For bounds of
    ``dtype``, ``bound <= value`` and ``bound <= rounded_down(value)`` are the same, in either.
    """
    nearest = torch.tensor(value, dtype=dtype)
    if math.isfinite(value) and float(nearest) > value:
        nearest = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return float(nearest)


def rounded_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest numbers of ``dtype`` that are not below ``values``; NaN stays, same shape.

    To the nearest, a positive bound below the smallest number of ``dtype`` would become 0.
    """
    found = values.to(dtype)
    above = torch.nextafter(found, torch.full_like(found, torch.inf))
    return torch.where(found.to(values.dtype) < values, above, found)
