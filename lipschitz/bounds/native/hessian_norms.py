"""Norms of Hessians: what bounds them from intervals of entries.

The gradient's change is measured in the dual of the norm of the input's: for Linf ``||H||`` is the
largest ``||H t||_1`` over sign vectors t, for L1 the largest entry, for L2 the largest singular
value. The first is NP-hard in general. With few inputs all sign vectors are tried; with many, for
any weights ``d > 0``

    s^T H t <= ||D^(-1/2) H D^(-1/2)||_2 (d_1 + ... + d_n),    D = diag(d),

since ``D^(1/2) s`` and ``D^(1/2) t`` have the length ``sqrt(d_1 + ... + d_n)``. With the row sums
of magnitudes as weights that is never more than the sum of all magnitudes (Schur's test), and with
the best weights it is the semidefinite bound, at most 1.8 times the norm (Grothendieck 1953).

Trusted: singular values and eigenvalues as LAPACK computes them in float64, raised by a margin.

Shapes: matrices [..., D, D].
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lipschitz.norms import spectral_norm_bound, upper_magnitude
from lipschitz.rounding import guard, raise_upper_bound

# Inputs up to which all sign vectors are tried; there are 2^(D-1) of them up to the sign. A choice.
FEW_SIGNS = 12
# Steps towards better weights, their length, and the number of inputs up to which they are made.
# Choices: any weights give a bound.
_WEIGHT_STEPS, _WEIGHT_RATE, _MOST_WEIGHED = 24, 0.25, 256


@lru_cache(maxsize=16)
def _signs(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    number = torch.arange(2 ** (count - 1), device=device).unsqueeze(1)
    bits = (number >> torch.arange(count, device=device)) & 1
    return 1 - 2 * bits.to(dtype)


def sign_vectors(count: int, like: Tensor) -> Tensor:
    """All sign vectors up to the sign of the whole: the last is always 1, [2^(count-1), count]."""
    return _signs(count, like.device, like.dtype)


def symmetric(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Intervals of the entries of symmetric matrices: each entry is also its mirror image."""
    return torch.maximum(lower, lower.mT), torch.minimum(upper, upper.mT)


def hessian_norm_bound(norm: str, lower: Tensor, upper: Tensor) -> Tensor:
    """Upper bound of the norm of every symmetric matrix whose entries are in intervals: [...].

    Args:
        norm: ``inf``, ``1`` or ``2``: that of the input.
        lower, upper: [..., D, D].

    Returns:
        In the dtype of the entries, rounding guard included.
    """
    largest = upper_magnitude(lower, upper)
    if norm == "1":
        return raise_upper_bound(largest.amax((-2, -1)))
    lower, upper = lower.double(), upper.double()
    middle = (lower + upper) / 2
    middle = (middle + middle.mT) / 2
    radius = torch.maximum(upper - middle, middle - lower)
    if norm == "2":
        around = spectral_norm_bound(middle) + spectral_norm_bound(radius)
        bound = torch.minimum(around, spectral_norm_bound(largest))
    else:
        unit = guard(torch.float64) * lower.shape[-1]
        total = largest.double().sum((-2, -1))
        bound = torch.minimum(total, _inf_norm_bound(middle) + radius.sum((-2, -1)))
        bound = bound + unit * total
    return raise_upper_bound(bound.to(largest))


def _inf_norm_bound(matrices: Tensor) -> Tensor:
    """Upper bound of the norm from Linf to L1 of symmetric matrices: exact for few inputs."""
    count = matrices.shape[-1]
    if count <= FEW_SIGNS:
        signs = sign_vectors(count, matrices)
        return (matrices @ signs.T).abs().sum(-2).amax(-1)
    return weighted_bound(matrices).bound


class Weighted(NamedTuple):
    """The bound by weights, and the weights.

    Attributes:
        bound: [...], in float64.
        weights: d, [..., D].
    """

    bound: Tensor
    weights: Tensor


def _scaled(matrices: Tensor, weights: Tensor) -> Tensor:
    """``D^(-1/2) H D^(-1/2)``."""
    scale = weights.rsqrt()
    return matrices * scale.unsqueeze(-1) * scale.unsqueeze(-2)


def weighted_bound(matrices: Tensor) -> Weighted:
    """The bound by weights, of symmetric matrices [..., D, D].

    The weights start as row sums and follow the gradient of the bound's logarithm, which for the
    top eigenvector u is ``d_i / sum(d) - u_i^2``; the least bound on the way counts.
    """
    matrices, count = matrices.double(), matrices.shape[-1]
    tiny = torch.finfo(torch.float64).tiny
    sums = matrices.abs().sum(-1)
    # No weight is 0; where a row is, the weight costs a millionth of the bound at most.
    weights = torch.maximum(sums, 1e-6 * sums.mean(-1, keepdim=True)).clamp(min=tiny)
    best = Weighted(torch.full_like(sums[..., 0], torch.inf), weights)
    steps = _WEIGHT_STEPS if count <= _MOST_WEIGHED else 0
    for step in range(steps + 1):
        scaled, whole = _scaled(matrices, weights), weights.sum(-1)
        bound = spectral_norm_bound(scaled) * whole * (1 + guard(torch.float64) * count)
        better = (bound < best.bound).unsqueeze(-1)
        best = Weighted(torch.fmin(bound, best.bound), torch.where(better, weights, best.weights))
        if step == steps:
            break
        values, vectors = torch.linalg.eigh(scaled)
        mass = _outermost(values, vectors, 1).squeeze(-1).square()
        rate = _WEIGHT_RATE * count / (1 + step)
        change = rate * (mass - weights / whole.unsqueeze(-1))
        weights = weights * change.clamp(-1, 1).exp()
    return best


def _outermost(values: Tensor, vectors: Tensor, count: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues by magnitude, [..., D, count]."""
    order = values.abs().argsort(-1, descending=True)[..., :count].unsqueeze(-2)
    return vectors.gather(-1, order.expand(*vectors.shape[:-1], -1))


def affine_norm_bound(norm: str, columns: Tensor, gap: Tensor) -> Tensor:
    """Upper bound of the norm of every matrix between affine functions of u in [-1, 1]^D.

    Of a sum ``M_0 + u_1 M_1 + ... + u_D M_D`` the moving part is bounded by the sum of the norms,
    and, since ``|u|_2 <= sqrt(D)``, by ``sqrt(D)`` times the norm of all ``M_k`` side by side. The
    intervals of entries know only the sum of all magnitudes.

    Args:
        norm: ``2``, or ``inf`` by weights.
        columns: Symmetric matrices ``M_0 .. M_D``, [B, 1 + D, D, D].
        gap: How far the entries may be from the sum, [B, D, D].

    Returns:
        [B], in float64, margins for rounding in ``gap`` or left to the caller.
    """
    columns, gap = columns.double(), gap.double()
    if norm == "inf":
        weights = weighted_bound(columns[:, 0]).weights
        whole = weights.sum(-1)
        columns = _scaled(columns, weights.unsqueeze(1))
        extra = gap.sum((-2, -1))
    else:
        whole, extra = torch.ones_like(gap[:, 0, 0]), spectral_norm_bound(gap)
    middle, moving = columns[:, 0], columns[:, 1:]
    side_by_side = moving.transpose(1, 2).flatten(2)  # [B, i, k j]
    together = spectral_norm_bound(side_by_side) * moving.shape[1] ** 0.5
    moved = torch.minimum(together, spectral_norm_bound(moving).sum(-1))
    unit = guard(torch.float64) * columns.shape[-1]
    return ((spectral_norm_bound(middle) + moved) * whole + extra) * (1 + unit)


def best_directions(norm: str, matrices: Tensor, starts: int = 8) -> Tensor:
    """Directions t, of norm 1, that a matrix stretches most, or nearly: [..., D].

    Exact but for Linf with many inputs, where ``t <- sign(H sign(H t))`` climbs from the matrices'
    largest eigenvectors.

    Args:
        norm: ``inf``, ``1`` or ``2``.
        matrices: Symmetric, [..., D, D].
        starts: How many eigenvectors to climb from.
    """
    count = matrices.shape[-1]
    if norm == "1":
        entry = matrices.abs().flatten(-2).argmax(-1) % count
        return torch.nn.functional.one_hot(entry, count).to(matrices)
    if norm == "2":
        return _outermost(*torch.linalg.eigh(matrices), 1).squeeze(-1)
    if count <= FEW_SIGNS:
        signs = sign_vectors(count, matrices)
        return signs[(matrices @ signs.T).abs().sum(-2).argmax(-1)]
    signs = _sign(_outermost(*torch.linalg.eigh(matrices), starts))
    for _ in range(count):
        image = matrices @ signs
        better = _sign(matrices @ _sign(image))
        if bool((better == signs).all()):
            break
        signs = better
    best = (matrices @ signs).abs().sum(-2).argmax(-1)[..., None, None]
    return signs.gather(-1, best.expand(*signs.shape[:-1], 1)).squeeze(-1)


def _sign(values: Tensor) -> Tensor:
    return torch.where(values >= 0, 1.0, -1.0).to(values)
