"""Whether the splits of many subdomains leave any input at all, tested in one batch.

Splits are linear constraints ``M x + c >= 0`` on the box ``[-1, 1]^D`` (deeper neurons through a
linear bound of their pre-activation). Accelerated projected gradient (Nesterov 1983; FISTA, Beck
and Teboulle 2009) descends on ``||min(M x + c, 0)||^2 / 2``. Its residual is at the same time a
vector of multipliers: if for some ``lam >= 0`` the largest value of ``lam . (M x + c)`` over the
box is negative, no input is left (Farkas). That is one closed formula, so the answer "empty" is
checked, whatever the iteration did; the answer "here is a point" is only a proposal.

Shapes: B subdomains, K constraints, D inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.rounding import guard

# Iterations between two tests for an answer. A choice: only speed depends on it.
_CHECK_EVERY = 15
# Slack that the descent aims at, so that a point found is not on the boundary of the region. A
# choice: both answers are checked without it.
_INSIDE = 1e-5


@dataclass(frozen=True)
class Feasibility:
    """What the test found out.

    Attributes:
        empty: Proved to contain no input, [B].
        found: A point satisfies all constraints up to rounding, [B].
        point: That point, or the last iterate, in [-1, 1]^D, [B, D].
    """

    empty: Tensor
    found: Tensor
    point: Tensor


def farkas(matrix: Tensor, constant: Tensor, multipliers: Tensor) -> Tensor:
    """Whether the multipliers prove ``matrix x + constant >= 0`` impossible on [-1, 1]^D.

    Args:
        matrix: [B, K, D].
        constant: [B, K].
        multipliers: Not negative, [B, K].

    Returns:
        [B], true only beyond what rounding can explain.
    """
    combined = torch.bmm(multipliers.unsqueeze(1), matrix).squeeze(1)
    largest = (multipliers * constant).sum(1) + combined.abs().sum(1)
    terms = (multipliers * (constant.abs() + matrix.abs().sum(2))).sum(1)
    return largest < -guard(matrix.dtype) * terms


def search_feasible(matrix: Tensor, constant: Tensor, steps: int = 60) -> Feasibility:
    """Look for a point, or for a proof that there is none.

    Args:
        matrix: Constraint rows, of norm at most 1, [B, K, D].
        constant: [B, K].
        steps: At most that many gradient steps.
    """
    batch, _, inputs = matrix.shape
    best = matrix.new_zeros(batch, inputs)
    empty = torch.zeros(batch, dtype=torch.bool, device=matrix.device)
    found, active = torch.zeros_like(empty), torch.arange(batch, device=matrix.device)
    step = _step_sizes(matrix)
    point = ahead = best
    momentum = 1.0
    for iteration in range(1, steps + 1):
        residual = (torch.bmm(matrix, ahead.unsqueeze(2)).squeeze(2) + constant - _INSIDE).clamp(
            max=0
        )
        gradient = torch.bmm(residual.unsqueeze(1), matrix).squeeze(1)
        moved = (ahead - step * gradient).clamp(-1, 1)
        following = (1 + (1 + 4 * momentum * momentum) ** 0.5) / 2
        ahead = moved + (momentum - 1) / following * (moved - point)
        point, momentum = moved, following
        if iteration % _CHECK_EVERY and iteration != steps:
            continue
        slack = torch.bmm(matrix, point.unsqueeze(2)).squeeze(2) + constant
        infeasible = farkas(matrix, constant, (_INSIDE - slack).clamp(min=0))
        feasible = (slack >= 0).all(1)
        best[active], empty[active] = point, infeasible
        found[active] = feasible & ~infeasible
        going = ~(infeasible | feasible)
        if not bool(going.any()):
            break
        # Leave out subdomains with an answer once they are many enough to be worth the copy.
        if float(going.float().mean()) < 0.7:
            active, matrix, constant = active[going], matrix[going], constant[going]
            point, ahead, step = point[going], ahead[going], step[going]
    return Feasibility(empty, found, best)


def _step_sizes(matrix: Tensor) -> Tensor:
    """1 / largest eigenvalue of ``M^T M``, a little less, [B, 1]; a wrong one only costs steps."""
    vector = torch.linspace(1.0, 2.0, matrix.shape[2], dtype=matrix.dtype, device=matrix.device)
    vector = vector.expand(matrix.shape[0], -1).unsqueeze(2)
    largest = vector.new_ones(matrix.shape[0], 1, 1)
    for _ in range(4):
        vector = torch.bmm(matrix.transpose(1, 2), torch.bmm(matrix, vector))
        largest = vector.norm(dim=1, keepdim=True).clamp(min=1e-12)
        vector = vector / largest
    return 1 / (1.2 * largest.squeeze(2)).clamp(min=1e-9)
