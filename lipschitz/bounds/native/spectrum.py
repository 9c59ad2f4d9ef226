"""Second-order bounds of the largest singular value of Hessians over boxes.

In the eigenvectors V of the Hessian at a box's centre, ``V^T H(x) V`` is nearly diagonal: what is
off the diagonal is O(eps) and moves the outermost eigenvalue by O(eps^2) over its distance to the
others, and each number on the diagonal is a linear combination of entries, whose bound is off by
O(eps^2). With ``a_i >= v_i^T H v_i`` and ``a_ij >= |v_i^T H v_j|``, every ``y^T V^T H V y`` is at
most ``|y|^T A |y|``, so the largest eigenvalue of A bounds that of H; so for -H.

Trusted: eigenvalues as LAPACK computes them in float64, raised by a margin. Eigenvectors need not
be exact: V counts as it is, ``||H|| <= ||V^T H V|| / (1 - ||V^T V - I||)``.

Shapes: B boxes, D inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.curvature import HessianTerms
from lipschitz.bounds.native.hessian_norms import hessian_norm_bound, symmetric
from lipschitz.bounds.native.interval import Interval
from lipschitz.rounding import guard, raise_upper_bound


@torch.no_grad()
def spectral_bound(terms: HessianTerms, box: Interval, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Upper bounds of the largest singular value of ``H_r(x)`` over boxes.

    Args:
        terms: Of the network.
        box: [B, *input_shape].
        rows: [B, C].

    Returns:
        [B], rounding guard included; and how much the entries vary with each input, [B, D].
    """
    batch, shape = len(rows), box.lower.shape[1:]
    count = shape.numel()
    every = rows.repeat_interleave(count, 0)
    wide = Interval(*(end.expand(batch, *shape).repeat_interleave(count, 0) for end in box))
    unit = torch.eye(count, dtype=rows.dtype, device=rows.device).repeat(batch, 1)
    centre = (wide.lower + wide.upper) / 2
    matrices = terms.values(centre, every, unit.reshape(-1, *shape)).reshape(batch, count, count)
    matrices = matrices.double().nan_to_num(0.0, 0.0, 0.0)
    basis = torch.linalg.eigh((matrices + matrices.mT) / 2).eigenvectors.to(rows)
    columns = basis.mT.reshape(batch * count, *shape)  # eigenvectors v_j of every box
    found = terms.over(wide, every, columns)
    bases = basis.double()

    # Numbers v_i . (H v_j) by affine forms and by intervals: [B, i, j].
    middle, gap = (
        part.flatten(2).reshape(batch, count, -1, count).double()
        for part in (found.form.middle, found.form.gap)
    )
    sizes = (middle.abs().sum(2) + gap.abs().sum(2)) @ bases.abs()
    margin = guard(torch.float64) * count * (sizes + sizes.mT)
    middle = torch.einsum("bjcd,bdi->bcij", middle, bases)
    gap = torch.einsum("bjcd,bdi->bcij", gap, bases.abs())
    middle, gap = (middle + middle.mT) / 2, (gap + gap.mT) / 2
    around = margin + gap.abs().sum(1) + middle[:, 1:].abs().sum(1)
    low, high = (end.reshape(batch, count, count).double() for end in found.entries)
    mean, radius = ((high + low) / 2) @ bases, ((high - low) / 2) @ bases.abs()
    radius = radius + margin
    lower, upper = symmetric(mean - radius, mean + radius)
    lower = torch.fmax(lower, middle[:, 0] - around)
    upper = torch.fmin(upper, middle[:, 0] + around)

    # The diagonal again by backward rows, +- v_j . (H v_j).
    ends = torch.stack([columns, -columns], dim=1)
    above, below = found.upper_bounds(ends).reshape(batch, count, 2).double().unbind(2)
    diagonal = torch.diagonal(upper, dim1=1, dim2=2)
    diagonal.copy_(torch.fmin(diagonal, above))
    diagonal = torch.diagonal(lower, dim1=1, dim2=2)
    diagonal.copy_(torch.fmax(diagonal, -below))

    bound = torch.maximum(_largest(upper, lower), _largest(-lower, -upper)).clamp(min=0)
    bound = torch.fmin(bound, hessian_norm_bound("2", lower, upper))
    error = torch.linalg.matrix_norm(bases.mT @ bases - torch.eye(count).to(bases))
    error = error + guard(torch.float64) * count**2
    bound = torch.where(error < 0.5, bound / (1 - error.clamp(max=0.5)), torch.inf)
    width = (box.upper - box.lower).flatten(1).double()
    varies = middle[:, 1:].abs().sum((2, 3))
    weight = torch.where(width > 0, varies / width.clamp(min=torch.finfo(width.dtype).tiny), 0.0)
    return raise_upper_bound(bound.to(rows)), weight.to(rows)


def _largest(upper: Tensor, lower: Tensor) -> Tensor:
    """Upper bound of the largest eigenvalue of symmetric matrices in intervals [B, D, D]: [B]."""
    count = upper.shape[-1]
    matrix = torch.maximum(upper.abs(), lower.abs())
    matrix.diagonal(dim1=1, dim2=2).copy_(upper.diagonal(dim1=1, dim2=2))
    finite = torch.isfinite(matrix).all(-1).all(-1)
    matrix = torch.where(finite[:, None, None], matrix, 0.0)
    margin = guard(torch.float64) * count * torch.linalg.matrix_norm(matrix)
    largest = torch.linalg.eigvalsh(matrix)[..., -1] + margin
    return torch.where(finite, largest, torch.inf)
