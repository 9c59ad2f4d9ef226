"""Solutions of earlier programs, to begin related ones from.

The program of a child differs from its parent's by one variable and narrower intervals, that of a
larger radius by wider ones and a few more variables. Variables are matched by what they stand for,
an entry's sign or a neuron. A solution itself is a bad place to begin an interior-point method;
its mixture with the cold start is a good one (:class:`lipschitz.sdp.interior_point.Solver`).
Measured on MLPs of width 64 and 128: 7 steps for 9, 8 for 10.

Shapes: B programs, N variables, K products, F things a variable may stand for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.sdp.constraints import Multipliers
from lipschitz.sdp.interior_point import Start
from lipschitz.sdp.program import FAMILIES, Program

_BYTES = 2**28
_MOST_RECORDS = 4096
_FEWEST_RECORDS = 64  # of fewer, a search finds none again, and each is large


class WarmStarts:
    """The latest solutions, numbered in the order they came.

    Args:
        inputs: D, entries of the Jacobian.
        neurons: Neurons of all activations together.
        like: A tensor on the device of the programs.
    """

    def __init__(self, inputs: int, neurons: int, like: Tensor) -> None:
        self.inputs, self.things = inputs, 1 + inputs + neurons  # and one more for what is unused
        size = self.things + 1
        room = min(_MOST_RECORDS, _BYTES // (4 * size * size))
        self.capacity = room if room >= _FEWEST_RECORDS else 0
        self.count, self.size, self.device = 0, size, like.device
        self.number = torch.full((self.capacity,), -1, dtype=torch.long, device=like.device)
        self.moments = torch.empty(0, size, size, device=like.device)
        self.diagonal = torch.empty(0, size, device=like.device)
        self.product = torch.empty(0, FAMILIES * size, device=like.device)

    def _meaning(self, program: Program) -> tuple[Tensor, Tensor]:
        """What the variables [B, N] and the products [B, K] stand for."""
        constant = program.neuron.new_zeros(len(program), 1)
        entry = torch.where(program.entry >= 0, 1 + program.entry, self.things)
        neuron = torch.where(program.neuron >= 0, 1 + self.inputs + program.neuron, self.things)
        variable = torch.cat([constant, entry, neuron], 1)
        return variable, program.family * self.size + variable.gather(1, program.variable)

    def keep(self, program: Program, multipliers: Multipliers) -> Tensor:
        """Remember solutions; returns their numbers, [B], -1 where there is no room for them."""
        batch = len(program)
        if program.ball or multipliers.moments is None or batch > self.capacity:
            return torch.full((batch,), -1, dtype=torch.long, device=self.device)
        if not len(self.moments):
            self.moments = self.moments.new_empty(self.capacity, self.size, self.size)
            self.diagonal = self.diagonal.new_empty(self.capacity, self.size)
            self.product = self.product.new_empty(self.capacity, FAMILIES * self.size)
        variable, product = self._meaning(program)
        numbers = torch.arange(self.count, self.count + batch, device=self.device)
        slots = numbers % self.capacity
        self.count += batch
        self.number[slots] = numbers
        moments = torch.eye(self.size, device=self.device).repeat(batch, 1, 1).flatten(1)
        moments.scatter_(1, self._pairs(variable), multipliers.moments.float().flatten(1))
        self.moments[slots] = moments.reshape(batch, self.size, self.size)
        unknown = torch.full((batch, self.size), -1.0, device=self.device)
        self.diagonal[slots] = unknown.scatter(1, variable, multipliers.diagonal.float())
        unknown = torch.full((batch, FAMILIES * self.size), -1.0, device=self.device)
        self.product[slots] = unknown.scatter(1, product, multipliers.product.float())
        return numbers

    def begin(self, numbers: Tensor, program: Program) -> Start | None:
        """Where to begin programs related to remembered ones.

        Args:
            numbers: Of the remembered ones, -1 for none, [B].
            program: The programs.

        Returns:
            Where to begin; None where all begin cold.
        """
        if program.ball or not len(self.moments):
            return None
        slots = numbers % self.capacity
        known = (numbers >= 0) & (self.number[slots] == numbers)
        variable, product = self._meaning(program)
        all_diagonal = self.diagonal[slots]
        diagonal = all_diagonal.gather(1, variable)
        # What has been fixed since is a part of the constant now.
        present = torch.zeros_like(all_diagonal, dtype=torch.bool).scatter(1, variable, True)
        fixed = all_diagonal.clamp(min=0).masked_fill(present, 0)[:, : self.things].sum(1)
        diagonal[:, 0] += fixed
        moments = self.moments[slots].flatten(1).gather(1, self._pairs(variable))
        shape = (len(program), program.size, program.size)
        found = Multipliers(
            diagonal, self.product[slots].gather(1, product), moments.reshape(shape)
        )
        return Start(known, found)

    def _pairs(self, variable: Tensor) -> Tensor:
        """Places of all pairs of variables in a flat matrix of things, [B, N * N]."""
        return (variable.unsqueeze(2) * self.size + variable.unsqueeze(1)).flatten(1)
