"""The programs' constraint matrices, applied without being formed.

Every constraint is a variable's square, or a product of two affine forms of which the first has one
variable; so products with a matrix cost gathers and one matrix product, and no N x N matrix per
constraint ever exists.

Shapes: B programs, N variables, K products, G <= N groups of variables that share a multiplier.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.sdp.program import Program


@dataclass(frozen=True)
class Multipliers:
    """A point of the dual, and the primal iterate that belongs to it.

    Attributes:
        diagonal: d by group, [B, G].
        product: c, [B, K].
        moments: Y, [B, N, N], or None; it need not be feasible.
    """

    diagonal: Tensor
    product: Tensor
    moments: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Multipliers:
        """The same numbers in another precision."""
        moments = None if self.moments is None else self.moments.to(dtype)
        return Multipliers(self.diagonal.to(dtype), self.product.to(dtype), moments)


def group_of(program: Program) -> Tensor:
    """The group of every variable: one of its own, but for the unit ball's, [N]."""
    index = torch.arange(program.size, device=program.objective.device)
    if not program.ball or not program.inputs:
        return index
    return torch.where(index <= 1, index, (index - program.inputs + 1).clamp(min=1))


class Operator:
    """The program's constraint matrices, applied without forming them."""

    def __init__(self, program: Program, objective: Tensor) -> None:
        self.program, self.objective = program, objective
        batch, size = len(program), program.size
        self.index = program.variable.unsqueeze(2).expand(-1, -1, size)
        group = group_of(program)
        self.group, self.groups = group, int(group.max()) + 1
        self.present = (program.factor != 0).any(2)
        self.batch, self.size = batch, size

    def by_group(self, diagonal: Tensor) -> Tensor:
        """Sums of [B, N] over groups, [B, G]."""
        if not self.program.ball:
            return diagonal
        found = diagonal.new_zeros(len(diagonal), self.groups)
        return found.index_add_(1, self.group, diagonal)

    def products(self, weights: Tensor) -> Tensor:
        """``sum_k weights_k C_k``, [B, N, N]."""
        program = self.program
        half = torch.zeros_like(self.objective)
        if program.products:
            weighted = (weights * program.scale / 2).unsqueeze(2) * program.factor
            half.scatter_add_(1, self.index, weighted)
            shifted = (weights * program.shift / 2).unsqueeze(1)
            half[:, :1] += shifted @ program.factor
        return half + half.mT

    def magnitude(self, multipliers: Tensor) -> Tensor:
        """The same sum as :meth:`adjoint` over magnitudes of all terms, [B, N, N]."""
        p = self.program
        plain = Operator(
            replace(p, scale=p.scale.abs(), shift=p.shift.abs(), factor=p.factor.abs()),
            self.objective,
        )
        found = plain.products(multipliers[:, self.groups :].abs())
        found.diagonal(dim1=1, dim2=2).add_(multipliers[:, : self.groups][:, self.group].abs())
        return found

    def adjoint(self, multipliers: Tensor) -> Tensor:
        """``diag(d) - sum_k c_k C_k`` for stacked (d, c), [B, G + K]."""
        diagonal = multipliers[:, : self.groups][:, self.group]
        found = -self.products(multipliers[:, self.groups :])
        found.diagonal(dim1=1, dim2=2).add_(diagonal)
        return found

    def first(self, matrix: Tensor) -> Tensor:
        """``matrix p_k`` for the first factors p_k, [B, N, K]."""
        p = self.program
        columns = matrix.gather(2, p.variable.unsqueeze(1).expand(-1, self.size, -1))
        return columns * p.scale.unsqueeze(1) + matrix[:, :, :1] * p.shift.unsqueeze(1)

    def first_rows(self, matrix: Tensor) -> Tensor:
        """``p_k . matrix`` for a matrix [B, N, M]: [B, K, M]."""
        p = self.program
        rows = matrix.gather(1, p.variable.unsqueeze(2).expand(-1, -1, matrix.shape[2]))
        return rows * p.scale.unsqueeze(2) + matrix[:, :1] * p.shift.unsqueeze(2)

    def forward(self, matrix: Tensor) -> Tensor:
        """``(<E_i, matrix>, -<C_k, matrix>)`` for a symmetric matrix, [B, G + K]."""
        diagonal = self.by_group(matrix.diagonal(dim1=1, dim2=2))
        if not self.program.products:
            return diagonal
        values = (self.first(matrix) * self.program.factor.mT).sum(1)
        return torch.cat([diagonal, -values], 1)

    def schur(self, primal: Tensor, inverse: Tensor) -> Tensor:
        """``<A_k, primal A_l inverse>`` over all constraints, [B, G + K, G + K]."""
        program, groups = self.program, self.groups
        corner = primal * inverse
        if program.ball:
            onto = torch.nn.functional.one_hot(self.group, groups).to(corner)
            corner = onto.T @ corner @ onto
        if not program.products:
            return corner
        found = corner.new_empty(self.batch, groups + program.products, groups + program.products)
        found[:, :groups, :groups] = corner
        factor = program.factor
        xp, wp = self.first(primal), self.first(inverse)
        xq, wq = primal @ factor.mT, inverse @ factor.mT
        mixed = (xp * wq + xq * wp) / -2
        if program.ball:
            mixed = onto.T @ mixed
        found[:, :groups, groups:] = mixed
        found[:, groups:, :groups] = mixed.mT
        pxp, pxq, pwp, pwq = (self.first_rows(m) for m in (xp, xq, wp, wq))
        block = pxq.mT * pwq
        block += block.mT.clone()
        block += (factor @ xq) * pwp
        block += pxp * (factor @ wq)
        found[:, groups:, groups:] = block / 4
        return found
