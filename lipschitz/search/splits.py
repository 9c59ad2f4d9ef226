"""Closed splits, and what one first-layer split implies for the other neurons of its layer.

A neuron is split into ``z <= p`` and ``z >= p``, with p a kink of its activation (0 for ReLU) or a
point inside the interval of a smooth one; an entry into counting it as ``-J_i`` and as ``J_i``.
Both halves contain the boundary, so the two children cover their parent.

Shapes: B subdomains, N neurons, M neurons whose pre-activation is affine in the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.rounding import guard
from lipschitz.search.subdomains import Subdomains, concatenate

# Largest ``M * M * D`` for which the table of all pairs of first-layer neurons is made. A choice:
# without the table children have looser intervals, and the search needs more of them.
LARGEST_TABLE = 5 * 10**7


@dataclass(frozen=True)
class Implications:
    """Bounds of first-layer pre-activations on the half of the box that a split leaves.

    Attributes:
        neurons: The M neurons, as columns of the [B, N] tensors.
        position: Where a neuron is among them, -1 if it is not, [N].
        lower, upper: [M, 2, M]: bounds of the last neuron's pre-activation where that of the
            first is at most 0 (index 0) or at least 0 (index 1).
    """

    neurons: Tensor
    position: Tensor
    lower: Tensor
    upper: Tensor


def _maximum_over_half(
    weight: Tensor, at_centre: Tensor, margin: Tensor, sign: int, other: Tensor
) -> Tensor:
    """Largest ``at_centre_j + other . x`` over x in [-1, 1]^D with ``sign * z_k(x) >= 0``.

    The linear program has one constraint, so its dual has one variable: a convex piecewise linear
    function of a multiplier ``beta >= 0``, least where its slope changes sign. Any multiplier
    gives a valid bound.

    Args:
        weight: Coefficients of all z, [M, D].
        at_centre: z at the centre, [M].
        margin: How far rounding may have moved z, [M].
        sign: The half.
        other: ``weight`` or its negative: whose maximum is wanted.

    Returns:
        [M (k), M (j)].
    """
    direction = 1 if other is weight else -1
    unit = guard(weight.dtype)
    rows = []
    # The half is widened by the margin of the neuron that cuts it.
    for k_weight, k_centre in zip(sign * weight, sign * at_centre + margin, strict=True):
        safe = torch.where(k_weight == 0, torch.ones_like(k_weight), k_weight)
        kinks = torch.where(k_weight == 0, torch.zeros_like(other), -other / safe)
        kinks, order = kinks.clamp(min=0).sort(dim=1)
        at_zero = torch.where(other == 0, k_weight.abs(), other.sign() * k_weight).sum(1)
        jumps = (2 * k_weight.abs())[order] * (kinks > 0)  # of the slope, at each kink
        slopes = (k_centre + at_zero)[:, None] + jumps.cumsum(1)
        rising = slopes >= 0
        first = rising.to(torch.uint8).argmax(dim=1, keepdim=True)
        last = torch.full_like(first, kinks.shape[1] - 1)
        beta = kinks.gather(1, torch.where(rising.any(1, keepdim=True), first, last))
        beta = torch.where((k_centre + at_zero)[:, None] >= 0, torch.zeros_like(beta), beta)
        reach = (other + beta * k_weight).abs().sum(1)
        found = direction * at_centre + margin + beta[:, 0] * k_centre + reach
        # A large multiplier makes large terms that cancel.
        terms = other.abs().sum(1) + at_centre.abs()
        terms = terms + beta[:, 0] * (k_weight.abs().sum() + k_centre.abs())
        rows.append((found + unit * terms).nan_to_num(torch.inf, torch.inf))
    return torch.stack(rows)


def implications(
    neurons: Tensor, weight: Tensor, at_centre: Tensor, rounding: Tensor, total: int
) -> Implications | None:
    """The table of all pairs, or None if it would be too large.

    Args:
        neurons: Columns of the M neurons, [M].
        weight: Their coefficients over the box scaled to [-1, 1]^D, [M, D].
        at_centre: Their value at its centre, [M].
        rounding: How far rounding may have moved their values, [M].
        total: N.
    """
    count, inputs = weight.shape
    if count == 0 or count * count * inputs > LARGEST_TABLE:
        return None
    dtype = weight.dtype
    weight, at_centre, margin = weight.double(), at_centre.double(), rounding.double()
    upper, lower = (
        torch.stack([_maximum_over_half(weight, at_centre, margin, s, w) for s in (-1, 1)], 1)
        for w in (weight, -weight)
    )
    lower = -lower
    # The coefficients are as exact as the problem's dtype; the table itself is in float64.
    margin = guard(dtype) * (weight.abs().sum(1) + at_centre.abs())
    position = torch.full((total,), -1, dtype=torch.long, device=neurons.device)
    position[neurons] = torch.arange(count, device=neurons.device)
    return Implications(neurons, position, (lower - margin).to(dtype), (upper + margin).to(dtype))


def closed_halves(
    parents: Subdomains, table: Implications | None = None, points: Tensor | None = None
) -> Subdomains:
    """Both children of every subdomain at its chosen variable, the lower halves first, [2 B].

    Args:
        parents: Subdomains with a choice, none of them a leaf.
        table: What first-layer splits imply for their layer; only for splits at 0.
        points: Where each neuron is split, [B, N]; at 0 if None.
    """
    batch, total = parents.preact_lower.shape
    both = concatenate([parents, parents])  # fresh tensors, changed in place below
    lower, upper, sign = both.preact_lower, both.preact_upper, both.entry_sign
    on_neuron = parents.choice < total
    below = on_neuron.nonzero()[:, 0]
    above, neuron = below + batch, parents.choice[below]
    if table is not None:
        column = table.position[neuron]
        known = (column >= 0).nonzero()[:, 0]
        for side, half in ((0, below[known]), (1, above[known])):
            at = (half[:, None], table.neurons)
            lower[at] = torch.maximum(lower[at], table.lower[column[known], side])
            upper[at] = torch.minimum(upper[at], table.upper[column[known], side])
    at_point = lower.new_zeros(len(below)) if points is None else points[below, neuron]
    upper[below, neuron] = torch.minimum(upper[below, neuron], at_point)
    lower[above, neuron] = torch.maximum(lower[above, neuron], at_point)
    on_entry = (~on_neuron).nonzero()[:, 0]
    entry = parents.choice[on_entry] - total
    sign[on_entry, entry], sign[on_entry + batch, entry] = -1, 1
    both.stale.add_(on_neuron.repeat(2).to(both.stale))
    return both
