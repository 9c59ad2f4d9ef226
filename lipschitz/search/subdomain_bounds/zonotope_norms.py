"""Norms of gradients that are known as zonotopes.

The dual norm of Linf is the largest of ``v . J`` over all vectors v of signs, and the largest value
of a linear functional over a zonotope is one sum. So with few inputs all signs are tried, which
loses nothing; of more than a handful only those of the entries that gain most by it, and the others
count with their largest magnitude. For L2 the square of every entry is bounded by its chord.

Shapes: B regions, D entries, S symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.norms import Measure, upper_magnitude
from lipschitz.rounding import guard, raise_upper_bound
from lipschitz.search.subdomain_bounds.zonotopes import Gradients

# Entries whose signs are all tried. A choice: 2 to this power functionals for every region.
_SIGNS = 5


@dataclass(frozen=True)
class NormsOfZonotopes:
    """Bounds of the norms.

    Attributes:
        upper_bound: [B].
        pull: How far every symbol moves the functional that attains the bound, [B, S].
    """

    upper_bound: Tensor
    pull: Tensor


def norms_of_zonotopes(gradients: Gradients, measure: Measure) -> NormsOfZonotopes:
    """Upper bounds of the norm of each gradient, rounding margins included.

    Args:
        gradients: The gradients.
        measure: The norm, of every row by itself.
    """
    centre, rounding = measure.counted(gradients.centre), measure.counted(gradients.rounding)
    columns = measure.counted(gradients.columns)
    radius = columns.abs().sum(1)
    found = _NORMS[measure.norm](centre, columns, radius)
    reach = rounding.sum(1) + guard(centre.dtype) * (centre.abs() + radius).sum(1)
    return NormsOfZonotopes(raise_upper_bound(found.upper_bound + reach), found.pull)


def _sum_of_magnitudes(centre: Tensor, columns: Tensor, radius: Tensor) -> NormsOfZonotopes:
    batch, inputs = centre.shape
    largest = centre.abs() + radius
    is_open = radius > centre.abs()
    count = min(inputs, _SIGNS)
    # Of an open entry the wrong sign is worth this much.
    gap = torch.where(is_open, radius - centre.abs(), -1.0)
    chosen = gap.topk(count, 1).indices
    signs = torch.where(centre >= 0, 1.0, -1.0).to(centre)
    rest = is_open.scatter(1, chosen, False)
    constant = torch.where(rest, largest, 0.0).sum(1)
    signs = torch.where(rest, 0.0, signs)
    patterns = torch.cartesian_prod(*[centre.new_tensor([1.0, -1.0])] * count).reshape(-1, count)
    vectors = signs.unsqueeze(1).repeat(1, len(patterns), 1)
    at = chosen.unsqueeze(1).expand(-1, len(patterns), -1)
    vectors.scatter_(2, at, patterns.expand(batch, -1, -1))
    pulls = torch.bmm(vectors, columns.transpose(1, 2)).abs()  # [B, V, S]
    values = torch.bmm(vectors, centre.unsqueeze(2)).squeeze(2) + pulls.sum(2)
    value, which = values.max(1)
    pull = pulls[torch.arange(batch, device=centre.device), which]
    return NormsOfZonotopes(torch.minimum(value + constant, largest.sum(1)), pull)


def _largest_magnitude(centre: Tensor, columns: Tensor, radius: Tensor) -> NormsOfZonotopes:
    value, which = (centre.abs() + radius).max(1)
    pull = columns.abs()[torch.arange(len(centre), device=centre.device), :, which]
    return NormsOfZonotopes(value, pull)


def _root_of_squares(centre: Tensor, columns: Tensor, radius: Tensor) -> NormsOfZonotopes:
    lower, upper = centre - radius, centre + radius
    simple = upper_magnitude(lower, upper)
    slope = lower + upper
    pull = torch.bmm(columns, slope.unsqueeze(2)).squeeze(2).abs()
    # J^2 <= (l + u) J - l u for l <= J <= u; terms may cancel, so the margin goes by their size.
    square = (slope * centre).sum(1) + pull.sum(1) - (lower * upper).sum(1)
    square = square + 4 * guard(centre.dtype) * simple.square().sum(1)
    value = torch.minimum(square.clamp(min=0).sqrt(), simple.norm(dim=1))
    scale = 2 * value.clamp(min=torch.finfo(value.dtype).tiny)
    return NormsOfZonotopes(value, pull / scale.unsqueeze(1))


_NORMS = {"inf": _sum_of_magnitudes, "1": _largest_magnitude, "2": _root_of_squares}
