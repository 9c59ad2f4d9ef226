"""Weights of planes that suit the corner at which a first bound is attained.

A bound by planes ends in an affine function of the input, whose maximum over the box is attained at
a corner. If of the two planes of every product the one is taken that is nearer to the product
there, the bound falls where it was largest. That costs two passes and the values at the corner
instead of the dozens of an optimisation.

Shapes: B boxes of K rows each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.terms.relaxations import Relaxations, Shares
from lipschitz.network.derivative import Step


def weights_at_corner(
    relaxations: Relaxations,
    start: int,
    record: dict[int, Tensor],
    constants: dict[int, Tensor],
    box: tuple[Tensor, Tensor],
) -> Shares:
    """The weights that make planes tight at the corners where bounds are attained.

    Args:
        relaxations: How nonlinear terms are replaced.
        start: The term that was bounded.
        record: Coefficients at every product and at the input, [B, K, *shape].
        constants: Values of the constant terms, [B, *shape].
        box: Centre and radius of the boxes, [B or 1, *input_shape].
    """
    batch, rows = record[0].shape[:2]
    centre, radius = (end.unsqueeze(1) for end in box)
    corners = (centre + radius * record[0].sign()).flatten(0, 1)
    per_row = {
        i: value.unsqueeze(1).expand(batch, rows, *value.shape[1:]).flatten(0, 1)
        for i, value in constants.items()
        if i <= start
    }
    values = relaxations.terms.values(corners, per_row, start)
    shares: Shares = {}
    for index, coefficients in record.items():
        if not index:
            continue
        first, second = relaxations.terms.terms[index].parents
        if isinstance(relaxations.terms.terms[first].function, Step):
            continue  # a slope that jumps has no lines, so its planes are best as they are
        v, g = (values[parent].unflatten(0, (batch, rows)) for parent in (first, second))
        v_lower, v_upper = (t.unsqueeze(1) for t in relaxations.intervals.bounds[first])
        g_lower, g_upper = (t.unsqueeze(1) for t in relaxations.intervals.bounds[second])
        below, above = (v - v_lower).clamp(min=0), (v_upper - v).clamp(min=0)
        rises = coefficients >= 0
        # How far the two planes are from the product at the corner.
        of_first = torch.where(rises, above, below) * (g - g_lower).clamp(min=0)
        of_second = torch.where(rises, below, above) * (g_upper - g).clamp(min=0)
        both = of_first + of_second
        shares[index, "weight"] = torch.where(
            both > 0, of_second / torch.where(both > 0, both, 1.0), 0.5
        )
    return shares
