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

import torch
from torch import Tensor

from lipschitz.norms import spectral_norm_bound, upper_magnitude
from lipschitz.rounding import guard, raise_upper_bound

# Inputs up to which all sign vectors are tried; there are 2^(D-1) of them up to the sign. A choice.
FEW_SIGNS = 12
# Steps towards better weights, and the first step's length in the logarithm. Choices: any weights
# give a bound.
_WEIGHT_STEPS, _WEIGHT_RATE = 24, 2.0


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
        return largest.amax((-2, -1))
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
    return weighted_bound(matrices)


def weighted_bound(matrices: Tensor, steps: int = _WEIGHT_STEPS) -> Tensor:
    """The bound by weights, of symmetric matrices [..., D, D]: [...], in float64.

    The weights start as row sums and follow the gradient of the bound's logarithm, which for the
    top eigenvector u is ``d_i / sum(d) - u_i^2``; the least bound on the way counts.
    """
    matrices = matrices.double()
    tiny = torch.finfo(torch.float64).tiny
    sums, count = matrices.abs().sum(-1), matrices.shape[-1]
    total = sums.sum(-1, keepdim=True)
    # No weight is 0; where a row is, the weight costs a millionth of the bound at most.
    weights = torch.maximum(sums, 1e-6 * total / count).clamp(min=tiny)
    best = torch.full_like(total.squeeze(-1), torch.inf)
    for step in range(steps + 1):
        scale = weights.rsqrt()
        scaled = matrices * scale.unsqueeze(-1) * scale.unsqueeze(-2)
        spectral = spectral_norm_bound(scaled)
        whole = weights.sum(-1)
        best = torch.minimum(best, spectral * whole * (1 + guard(torch.float64) * count))
        if step == steps:
            break
        values, vectors = torch.linalg.eigh(scaled)
        top = values.abs().argmax(-1, keepdim=True).unsqueeze(-2)
        top = top.expand(*vectors.shape[:-1], 1)
        mass = vectors.gather(-1, top).squeeze(-1).square()
        rate = _WEIGHT_RATE / (1 + step) ** 0.5
        weights = weights * torch.exp(rate * (mass - weights / whole.unsqueeze(-1)))
    return best


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
        values, vectors = torch.linalg.eigh(matrices)
        top = values.abs().argmax(-1)[..., None, None].expand(*vectors.shape[:-1], 1)
        return vectors.gather(-1, top).squeeze(-1)
    if count <= FEW_SIGNS:
        signs = sign_vectors(count, matrices)
        return signs[(matrices @ signs.T).abs().sum(-2).argmax(-1)]
    values, vectors = torch.linalg.eigh(matrices)
    order = values.abs().argsort(-1, descending=True)[..., :starts]
    order = order.unsqueeze(-2).expand(*vectors.shape[:-1], -1)
    signs = _sign(vectors.gather(-1, order))
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
