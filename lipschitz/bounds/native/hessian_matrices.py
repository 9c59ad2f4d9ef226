"""Second-order bounds of norms of whole Hessians over boxes, from affine forms of all entries.

For L2, in the eigenvectors V of the Hessian at a box's centre, ``V^T H(x) V`` is nearly diagonal:
what is off the diagonal is O(eps) and moves the outermost eigenvalue by O(eps^2) over its distance
to the others, and each number on the diagonal is a linear combination of entries, whose bound is
off by O(eps^2). With ``a_ii >= v_i^T H v_i`` and ``a_ij >= |v_i^T H v_j|``, every ``y^T V^T H V y``
is at most ``|y|^T A |y|``, so the largest eigenvalue of A bounds that of H; so for -H. With many
inputs the sum of what moves is less (:func:`affine_norm_bound`), which serves Linf too.

Trusted: eigenvalues as LAPACK computes them in float64, raised by a margin. Eigenvectors need not
be exact: V counts as it is, ``||H|| <= ||V^T H V|| / (1 - ||V^T V - I||)``.

Shapes: B boxes, D inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.curvature import HessianProducts, HessianTerms
from lipschitz.bounds.native.hessian_norms import affine_norm_bound, hessian_norm_bound, symmetric
from lipschitz.bounds.native.interval import Interval
from lipschitz.rounding import guard, raise_upper_bound


@dataclass(frozen=True)
class _Matrices:
    """Symmetric matrices ``W^T H W`` over boxes, in float64.

    Attributes:
        columns: Affine functions of u in [-1, 1]^D, [B, 1 + D, D, D].
        gap: How far the matrices may be from these, [B, D, D].
        lower, upper: Intervals of the entries, [B, D, D].
    """

    columns: Tensor
    gap: Tensor
    lower: Tensor
    upper: Tensor

    @staticmethod
    def of(found: HessianProducts, basis: Tensor) -> _Matrices:
        """From bounds of ``H w_j`` for the columns of ``W``.

        Args:
            found: B D products, those of a box together.
            basis: W, [B, D, D], in float64.
        """
        batch, count = basis.shape[:2]
        # Numbers w_i . (H w_j): [B, columns of the form, i, j].
        middle, gap = (
            part.flatten(2).reshape(batch, count, -1, count).double()
            for part in (found.form.middle, found.form.gap)
        )
        sizes = (middle.abs().sum(2) + gap.abs().sum(2)) @ basis.abs()
        margin = guard(torch.float64) * count * (sizes + sizes.mT)
        middle = torch.einsum("bjcd,bdi->bcij", middle, basis)
        gap = torch.einsum("bjd,bdi->bij", gap.abs().sum(2), basis.abs())
        middle, gap = (middle + middle.mT) / 2, (gap + gap.mT) / 2 + margin
        low, high = (end.reshape(batch, count, count).double() for end in found.entries)
        mean, radius = ((high + low) / 2) @ basis, ((high - low) / 2) @ basis.abs()
        lower, upper = symmetric(mean - radius - margin, mean + radius + margin)
        around = gap + middle[:, 1:].abs().sum(1)
        return _Matrices(
            middle,
            gap,
            torch.fmax(lower, middle[:, 0] - around),
            torch.fmin(upper, middle[:, 0] + around),
        )

    def finite(self) -> tuple[_Matrices, Tensor]:
        """The same with zeros instead of matrices that overflow, and which do not, [B]."""
        numbers = self.columns, self.gap, self.lower, self.upper
        known = torch.stack([torch.isfinite(n).flatten(1).all(1) for n in numbers]).all(0)
        zeroed = (torch.where(known.reshape(-1, *[1] * (n.dim() - 1)), n, 0.0) for n in numbers)
        return _Matrices(*zeroed), known


@torch.no_grad()
def matrix_bound(
    terms: HessianTerms,
    norm: str,
    box: Interval,
    rows: Tensor,
    known: dict[int, Interval] | None = None,
) -> tuple[Tensor, Tensor]:
    """Upper bounds of the norm of ``H_r(x)`` over boxes.

    Args:
        terms: Of the network.
        norm: ``2`` or ``inf``.
        box: [B, *input_shape].
        rows: [B, C].
        known: Intervals by term, [B or 1, *shape].

    Returns:
        [B], rounding guard included, infinity where values overflow; and how much the entries vary
        with each input, per unit, [B, D].
    """
    batch, shape = len(rows), box.lower.shape[1:]
    count = shape.numel()
    every = rows.repeat_interleave(count, 0)
    wide = Interval(*(end.expand(batch, *shape).repeat_interleave(count, 0) for end in box))
    known = {i: Interval(*(_each(end, count) for end in k)) for i, k in (known or {}).items()}
    basis = torch.eye(count, dtype=rows.dtype, device=rows.device).repeat(batch, 1, 1)
    if norm == "2":
        centre = (wide.lower + wide.upper) / 2
        values = terms.values(centre, every, basis.reshape(-1, *shape))
        matrices = values.reshape(batch, count, count).double().nan_to_num(0.0, 0.0, 0.0)
        basis = torch.linalg.eigh((matrices + matrices.mT) / 2).eigenvectors.to(rows)
    directions = basis.mT.reshape(batch * count, *shape)
    found = terms.over(wide, every, directions, known)
    matrices, known = _Matrices.of(found, basis.double()).finite()
    if norm == "2":
        bound = _spectral_bound(found, matrices, directions, basis.double())
    else:
        bound = affine_norm_bound(norm, matrices.columns, matrices.gap)
        bound = torch.fmin(bound, hessian_norm_bound(norm, matrices.lower, matrices.upper))
    bound = torch.where(known, bound, torch.inf)
    width = (box.upper - box.lower).flatten(1).double().expand(batch, -1)
    varies = matrices.columns[:, 1:].abs().sum((2, 3))
    weight = torch.where(width > 0, varies / width.clamp(min=torch.finfo(width.dtype).tiny), 0.0)
    return raise_upper_bound(bound.to(rows)), weight.to(rows)


def _each(end: Tensor, count: int) -> Tensor:
    return end if len(end) == 1 else end.repeat_interleave(count, 0)


def _spectral_bound(
    found: HessianProducts, matrices: _Matrices, directions: Tensor, basis: Tensor
) -> Tensor:
    """The largest singular value, from bounds in an almost orthogonal basis, [B]."""
    batch, count = basis.shape[:2]
    lower, upper = matrices.lower.clone(), matrices.upper.clone()
    # The diagonal again by backward rows, +- v_j . (H v_j).
    ends = torch.stack([directions, -directions], dim=1)
    above, below = found.upper_bounds(ends).reshape(batch, count, 2).double().unbind(2)
    diagonal = upper.diagonal(dim1=1, dim2=2)
    diagonal.copy_(torch.fmin(diagonal, above))
    diagonal = lower.diagonal(dim1=1, dim2=2)
    diagonal.copy_(torch.fmax(diagonal, -below))
    bound = torch.maximum(_largest(upper, lower), _largest(-lower, -upper)).clamp(min=0)
    bound = torch.fmin(bound, affine_norm_bound("2", matrices.columns, matrices.gap))
    bound = torch.fmin(bound, hessian_norm_bound("2", lower, upper))
    error = torch.linalg.matrix_norm(basis.mT @ basis - torch.eye(count).to(basis))
    error = error + guard(torch.float64) * count**2
    return torch.where(error < 0.5, bound / (1 - error.clamp(max=0.5)), torch.inf)


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
