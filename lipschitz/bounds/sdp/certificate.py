"""The bound that any multipliers give, and the only place where it is computed.

Let y be the program's variables at a point of the box, in the notation of
:mod:`lipschitz.bounds.sdp.dual`. There ``y_i^2 <= 1`` for all variables, with multipliers d, and
``C_k(y) >= 0`` for all products, with multipliers c. All multipliers are at least 0 except that of
the constant, whose constraint is an equality. Then

    norm <= norm + sum_i d_i (1 - y_i^2) + sum_k c_k C_k(y) = sum_i d_i - y . Z y
         <= sum_i d_i  +  |y|^2 max(0, -lambda_min(Z)),

and ``|y|^2`` is at most N (for the l2 norm, where all of u shares one multiplier, 2 plus the number
of t). So badly chosen multipliers give a loose bound, never a wrong one.

Proved and trusted: ``lambda_min(Z) >= -delta`` is accepted only if a Cholesky factorisation of
``Z + delta I`` runs to its end in float64, which proves ``lambda_min > -delta - m`` with
``m = (N + 2) u / (1 - (N + 2) u) trace(Z + delta I)`` for the unit roundoff u (Rump 2006,
"Verification of positive definiteness", BIT 46); trusted is that the library's Cholesky is of the
usual kind, whose rounding errors are those of any order of the sums. What assembling Z and adding
up d rounds is bounded by the magnitudes of the terms and added. The J and g of the unit vectors are
sums rounded in float64, for which a margin of 1e-10 of the bound is added, not proved; the
intervals that scale the variables are those of bound propagation, with its own guards.

No eigenvalue is computed: delta grows by factors of four, from a small share of the bound, until
the factorisation runs to its end; a good solution takes two or three trials.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.sdp.dual import Multipliers, dual_matrix
from lipschitz.bounds.sdp.program import Program

# Unit roundoff of float64.
_UNIT = 2.0**-53
# Part of the bound added for rounding in the J and g of the unit vectors; not proved.
_RELATIVE_SLACK = 1e-10
# The first shift tried adds this share of the bound, each further one ``_GROWTH`` times as much.
# Large matrices begin with a larger share, since each trial is a Cholesky factorisation. What has
# passed gets one more trial with a smaller shift: a tenth of it if the first trial passed, else a
# half. Choices: a shift that is larger than necessary makes the bound looser by it, never wrong.
_FIRST_SHARE = 1e-4
_LARGE, _FIRST_SHARE_OF_LARGE = 1024, 1e-3
_GROWTH = 4.0
_SMALLER = (0.1, 0.5)
_TRIALS = 40


def certified_bound(program: Program, multipliers: Multipliers) -> Tensor:
    """Upper bound of each program's norm, [B]; infinity where no shift passed the test.

    Multipliers or coefficients that are no numbers, or that overflow, give infinity.

    Args:
        program: B programs.
        multipliers: Any; those of inequalities that are negative count as 0.
    """
    program = program.to(torch.float64)
    constant, *others = (part.double() for part in multipliers.parts())
    usable = torch.isfinite(constant)
    for part in others:
        usable &= torch.isfinite(part).all(1)
    dual = dual_matrix(program, Multipliers(constant, *(part.clamp(min=0) for part in others)))
    size = dual.matrix.shape[1]
    rounded = _UNIT * (size + program.sign.shape[1] + 16) * dual.terms
    scale = torch.maximum(dual.total.abs(), rounded)
    usable &= torch.isfinite(dual.matrix).flatten(1).all(1) & torch.isfinite(scale)
    shift = _proved_shift(dual.matrix, scale / dual.trace, usable) + rounded
    bound = dual.total + dual.trace * shift
    bound = bound + _UNIT * (size + 2) * dual.magnitude
    bound = bound + _RELATIVE_SLACK * bound.abs()
    return torch.where(usable & torch.isfinite(bound), bound, torch.inf)


def _proved_shift(matrix: Tensor, scale: Tensor, usable: Tensor) -> Tensor:
    """A number s for which ``matrix + s I`` is proved positive semidefinite, [B].

    Args:
        matrix: As computed, [B, N, N].
        scale: A shift that would be too large to be of use, [B].
        usable: What is no number proves nothing, whatever a factorisation says about it, [B].
    """
    size = matrix.shape[1]
    unit = (size + 2) * _UNIT / (1 - (size + 2) * _UNIT)
    share = _FIRST_SHARE_OF_LARGE if size > _LARGE else _FIRST_SHARE
    delta = share * scale + torch.finfo(matrix.dtype).tiny
    left = usable.nonzero()[:, 0]
    proved = torch.zeros_like(usable)

    def passes(which: Tensor, shift: Tensor) -> Tensor:
        shifted = matrix[which]
        shifted.diagonal(dim1=1, dim2=2).add_(shift.unsqueeze(1))
        return torch.linalg.cholesky_ex(shifted)[1] == 0

    for trial in range(_TRIALS):
        if not len(left):
            break
        good = passes(left, delta[left])
        found = left[good]
        proved[found] = True
        smaller = delta * _SMALLER[min(trial, 1)]
        enough = found[passes(found, smaller[found])]
        delta[enough] = smaller[enough]
        left = left[~good]
        delta[left] *= _GROWTH
    trace = matrix.diagonal(dim1=1, dim2=2).abs().sum(1) + size * delta
    return torch.where(proved, delta + unit * trace, torch.inf)
