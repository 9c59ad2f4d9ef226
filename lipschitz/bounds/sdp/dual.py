"""The program's dual matrix for given multipliers, the matrix that the certificate is about.

With ``y = (1, u, z)``, where ``t = centre + radius z`` so that every variable is in [-1, 1], the
multipliers d of the squares and c of the products make the Lagrangian

    sum of d - y . Z y,    Z = diag(d) - (F + F^T) / 2,

where ``y . F y`` is the norm plus the sum of all products times their multipliers. A row of F is
what one variable is multiplied with, a combination of the J and g that :meth:`Program.pull_back`
gives for the unit vectors.

Shapes: B programs, D entries, M neurons as in :mod:`lipschitz.bounds.sdp.program`; N variables, of
which U are entries and V neurons.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipschitz.bounds.sdp.program import Program

# Numbers of one chunk of unit vectors at the widest node (2 MB in float64), to stay in the cache. A
# choice: only speed depends on it.
_CHUNK = 2**18


@dataclass(frozen=True)
class Multipliers:
    """A point of the dual; what belongs to no variable is ignored.

    Attributes:
        constant: Of ``1^2 = 1``, any sign, [B].
        entry: Of ``u^2 <= 1``, [B, D]; for the l2 norm [B, 1], of their sum.
        neuron: Of ``z^2 <= 1``, [B, M].
        product: Of ``t (g - t) >= 0``, [B, M].
        below, above: Of the two McCormick products, [B, D].
    """

    constant: Tensor
    entry: Tensor
    neuron: Tensor
    product: Tensor
    below: Tensor
    above: Tensor

    def parts(self) -> list[Tensor]:
        """All of them, in the order above."""
        return [getattr(self, f.name) for f in fields(self)]

    def take(self, which: Tensor) -> Multipliers:
        """Those of some of the programs, by index or mask."""
        return Multipliers(*(part[which] for part in self.parts()))


@dataclass(frozen=True)
class DualMatrix:
    """Z and what its rounding is judged by.

    Attributes:
        matrix: Z, [B, N, N]; variables that a program does not use have zero rows.
        total: Sum of d, [B].
        terms: No less than the Frobenius norm of Z with the magnitudes of all terms added up, [B].
        magnitude: Sum of the magnitudes of d, [B].
        trace: No feasible y y^T has a larger trace, [B].
    """

    matrix: Tensor
    total: Tensor
    terms: Tensor
    magnitude: Tensor
    trace: Tensor


class _Places:
    """Where the variables of each program are in its matrix: 1, then u, then z."""

    def __init__(self, program: Program) -> None:
        self.inputs = int(program.is_free.sum(1).max())
        self.neurons = int(program.is_open.sum(1).max())
        self.size = 1 + self.inputs + self.neurons
        self.free, self.free_row = self._slots(program.is_free, 1)
        self.open, self.open_row = self._slots(program.is_open, 1 + self.inputs)

    @staticmethod
    def _slots(mask: Tensor, first: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Everything that a mask [B, n] selects, by its own index and by program and row."""
        batch, place = mask.nonzero(as_tuple=True)
        return (batch, place), (batch, (mask.cumsum(1) - 1 + first)[batch, place])


def _unit_vectors(
    program: Program, places: _Places
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What the unit vectors of 1 and of every z give, some at a time.

    Yields:
        Their columns [c], their t and g, [B, c, M], and their J, [B, c, D].
    """
    batch, like = len(program), program.rows
    widest = max(node.shape.numel() for node in program.graph.nodes)
    step = max(1, _CHUNK // (batch * widest))
    owner = like.new_full((batch, 1 + places.neurons), -1, dtype=torch.long)
    owner[places.open[0], places.open_row[1] - places.inputs] = places.open[1]
    for begin in range(0, 1 + places.neurons, step):
        vector = torch.arange(begin, min(begin + step, 1 + places.neurons), device=like.device)
        own = owner[:, vector]
        b, c = (own >= 0).nonzero(as_tuple=True)
        t = like.new_zeros(batch, len(vector), len(program.neuron))
        t[b, c, own[b, c]] = program.radius[b, own[b, c]]
        if begin == 0:
            t[:, 0] = program.centre
        g = torch.zeros_like(t)

        def between(part: slice, found: Tensor, t: Tensor = t, g: Tensor = g) -> Tensor:
            g[:, :, part] = found
            return t[:, :, part]

        start = program.rows.unsqueeze(1) * (vector == 0).unsqueeze(1)
        jacobian = program.pull_back(start, between)
        yield torch.where(vector == 0, 0, vector + places.inputs), t, g, jacobian


def dual_matrix(program: Program, multipliers: Multipliers) -> DualMatrix:
    """Z of B programs in the precision of the program.

    Args:
        program: The programs.
        multipliers: Non-negative, but for the constant's.
    """
    batch, like, places = len(program), program.rows, _Places(program)
    free, open_ = places.free, places.open
    below, above = multipliers.below * program.is_free, multipliers.above * program.is_free
    of_u = 1 - below - above
    of_constant = program.sign + below - above
    of_z = multipliers.product * program.radius
    of_centre = multipliers.product * program.centre
    form = like.new_zeros(batch, places.size, places.size)
    # Sums of the terms' magnitudes: squared and summed up but for the constant's row.
    squares, constant_row = like.new_zeros(batch), like.new_zeros(batch, places.size)
    for column, t, g, jacobian in _unit_vectors(program, places):
        rest, size = g - t, g.abs().add_(t.abs())
        counted = jacobian * of_u.unsqueeze(1)
        row, b = places.free_row[1][:, None], free[0][:, None]
        form[b, row, column] = counted.transpose(1, 2)[free]
        row, b = places.open_row[1][:, None], open_[0][:, None]
        form[b, row, column] = (rest * of_z.unsqueeze(1)).transpose(1, 2)[open_]
        form[:, 0, column] = (jacobian * of_constant.unsqueeze(1)).sum(2)
        form[:, 0, column] += (rest * of_centre.unsqueeze(1)).sum(2)
        squares += (counted * program.is_free.unsqueeze(1)).square().sum((1, 2))
        squares += (size * of_z.unsqueeze(1)).square().sum((1, 2))
        constant_row[:, column] = (jacobian * of_constant.unsqueeze(1)).abs().sum(2)
        constant_row[:, column] += (size * of_centre.abs().unsqueeze(1)).sum(2)
    # What the ends of the entries' intervals add to the McCormick products.
    low, high = below * program.entry_lower, above * program.entry_upper
    b, row = places.free_row
    form[b, row, 0] += (low + high)[free]
    form[:, 0, 0] += (high - low).sum(1)
    squares += 3 * (low.abs() + high.abs()).square().sum(1)
    constant_row[:, 0] += (low.abs() + high.abs()).sum(1)
    matrix = form.add_(form.mT.clone()).mul_(-0.5)
    diagonal = like.new_zeros(batch, places.size)
    diagonal[:, 0] = multipliers.constant
    diagonal[places.free_row] = multipliers.entry.expand_as(program.sign)[free]
    diagonal[places.open_row] = multipliers.neuron[open_]
    matrix.diagonal(dim1=1, dim2=2).add_(diagonal)
    spread = 2 * squares + 2 * constant_row.square().sum(1) + diagonal.square().sum(1)
    summed, trace = diagonal, program.sizes.to(like)
    if program.ball:  # one multiplier for the sum of all squares of u, which is at most 1
        first, last = diagonal[:, :1], diagonal[:, 1 + places.inputs :]
        summed = torch.cat([first, multipliers.entry, last], 1)
        trace = trace - program.is_free.sum(1) + 1
    return DualMatrix(matrix, summed.sum(1), (2 * spread).sqrt(), summed.abs().sum(1), trace)
