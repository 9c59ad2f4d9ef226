"""The bound that any multipliers give, and the only place where it is computed.

Let Y be any moment matrix that the constraints of :mod:`lipschitz.sdp.program` allow; the true
point ``y y^T`` is one. With multipliers ``d`` (``d_i >= 0`` except at the constant, where the
constraint is an equality) and ``c >= 0`` put ``Z = diag(d) - O - sum_k c_k C_k``. Then

    <O, Y> = <diag(d), Y> - sum_k c_k <C_k, Y> - <Z, Y>
           <= sum_i d_i  +  trace(Y) max(0, -lambda_min(Z)),

since ``<E_i, Y> <= 1``, ``<C_k, Y> >= 0`` and Y is positive semidefinite. The trace is at most N
(for the l2 norm, where all of u shares one multiplier, 2 plus the number of t). So a badly solved
program gives a loose bound, never a wrong one.

Proved and trusted: ``lambda_min(Z) >= -delta`` is accepted only if a Cholesky factorisation of
``Z + delta I`` runs to its end in float64, which proves ``lambda_min > -delta - m`` with
``m = (N + 2) u / (1 - (N + 2) u) trace(Z + delta I)`` for the unit roundoff u (Rump 2006,
"Verification of positive definiteness", BIT 46); trusted is that the library's Cholesky is of the
usual kind, whose rounding errors are those of any order of the sums. What assembling Z and adding
up d rounds is bounded by the magnitudes of the terms and added. Eigenvalue routines only propose
delta. The program's coefficients are sums rounded in float64, for which a margin of 1e-10 of the
bound is added, not proved; the intervals that scale the variables are those of bound propagation,
with its own guards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.sdp.constraints import Multipliers, Operator
from lipschitz.sdp.program import Program

_UNIT = 2.0**-53
# Coefficients of the expressions have themselves been rounded, in float64.
_RELATIVE_SLACK = 1e-10
_ATTEMPTS = 40


def certified_bound(program: Program, multipliers: Multipliers) -> Tensor:
    """Upper bound of each program's value, [B]; infinity where no shift passed the test.

    Multipliers or coefficients that are no numbers, or that overflow, give infinity.

    Args:
        program: B programs.
        multipliers: Any; those of inequalities that are negative count as 0.
    """
    operator = Operator(program, program.objective)
    diagonal, product = multipliers.diagonal.clone(), multipliers.product.clamp(min=0)
    diagonal[:, 1:] = diagonal[:, 1:].clamp(min=0)
    stacked = torch.cat([diagonal, product], 1)
    stacked = torch.where(torch.isfinite(stacked).all(1, keepdim=True), stacked, torch.nan)
    dual = operator.adjoint(stacked) - program.objective
    terms = operator.magnitude(stacked) + program.objective.abs()
    rounded = _UNIT * (program.products + 16) * terms.flatten(1).norm(dim=1)
    shift = _proved_shift(dual, rounded)
    trace = 2 + program.size - 1 - program.inputs if program.ball else program.size
    summed = stacked[:, : operator.groups]
    bound = summed.sum(1) + trace * shift
    bound = bound + _UNIT * (operator.groups + 2) * summed.abs().sum(1)
    bound = bound + _RELATIVE_SLACK * bound.abs()
    return torch.where(torch.isfinite(bound), bound, torch.inf)


def _proved_shift(dual: Tensor, rounded: Tensor) -> Tensor:
    """A number s for which ``dual + s I`` is proved positive semidefinite, [B].

    Args:
        dual: As computed, [B, N, N].
        rounded: How far, in operator norm, it may be from the true matrix, [B].
    """
    size = dual.shape[1]
    unit = (size + 2) * _UNIT / (1 - (size + 2) * _UNIT)
    eye = torch.eye(size, dtype=dual.dtype, device=dual.device)

    def passes(matrix: Tensor) -> Tensor:
        return torch.linalg.cholesky_ex(matrix)[1] == 0

    # What is no number proves nothing, whatever a factorisation says about it.
    usable = torch.isfinite(dual).flatten(1).all(1)
    dual = torch.where(usable[:, None, None], dual, eye)
    delta = torch.zeros_like(rounded)
    open_ = (~passes(dual)).nonzero()[:, 0]
    if len(open_):
        largest = dual[open_].abs().amax((1, 2))
        delta[open_] = _negative_part(dual[open_]) + 1e-12 * largest
    for _ in range(_ATTEMPTS):
        if not len(open_):
            break
        good = passes(dual[open_] + delta[open_, None, None] * eye)
        open_ = open_[~good]
        delta[open_] = 2 * delta[open_] + torch.finfo(dual.dtype).tiny
    trace = dual.diagonal(dim1=1, dim2=2).abs().sum(1) + size * delta
    shift = delta + unit * trace + rounded
    shift[open_] = torch.inf
    return torch.where(usable, shift, torch.inf)


def _negative_part(matrices: Tensor) -> Tensor:
    """About how far the spectra reach below 0, [B]; only proposed, so a failure costs little."""
    try:
        return (-torch.linalg.eigvalsh(matrices)[:, 0]).clamp(min=0)
    except torch.linalg.LinAlgError:  # one matrix whose iteration does not converge is enough
        return matrices.abs().sum(2).amax(1)
