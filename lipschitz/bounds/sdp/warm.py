"""Where the sweeps of earlier programs have ended, to begin related ones from.

The program of a child differs from its parent's by one variable and narrower intervals, that of a
larger radius by wider ones and a few more variables. All that sweeps need to go on is how much
every t counts, its coefficient in the objective (:mod:`lipschitz.bounds.sdp.sweeps`).

Shapes: B programs, R components, M neurons of the programs, N neurons of the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.sdp.program import Program
from lipschitz.bounds.sdp.sweeps import Sweeps, cold_weights

# Most bytes and most records of remembered solutions. Choices: a program whose ancestor's solution
# has been overwritten begins cold and takes more sweeps.
_BYTES = 2**28
_MOST_RECORDS = 2**15


class WarmStarts:
    """The latest solutions, numbered in the order they came.

    Args:
        neurons: N.
        rank: R.
        like: A tensor on the device of the programs.
    """

    def __init__(self, neurons: int, rank: int, like: Tensor) -> None:
        self.neurons, self.rank, self.device = neurons, rank, like.device
        self.capacity = max(1, min(_MOST_RECORDS, _BYTES // (4 * rank * max(neurons, 1))))
        self.count = 0
        self.number = torch.full((self.capacity,), -1, dtype=torch.long, device=like.device)
        self.weights = torch.empty(0, rank, neurons, device=like.device)

    def keep(self, sweeps: Sweeps) -> Tensor:
        """Remember where sweeps have ended; returns their numbers, [B]."""
        batch = len(sweeps.program)
        numbers = torch.arange(self.count, self.count + batch, device=self.device)
        kept = numbers[-self.capacity :]
        if len(self.weights) < min(int(kept[-1]) + 1, self.capacity):  # grows as it is filled
            room = min(self.capacity, max(64, 2 * (int(kept[-1]) + 1)))
            more = self.weights.new_zeros(room - len(self.weights), self.rank, self.neurons)
            self.weights = torch.cat([self.weights, more])
        slots = kept % self.capacity
        self.count += batch
        self.number[slots] = kept
        full = self.weights.new_zeros(len(kept), self.rank, self.neurons)
        full[:, :, sweeps.program.neuron] = sweeps.weights[-len(kept) :].to(full)
        self.weights[slots] = full
        return numbers

    def begin(self, numbers: Tensor, program: Program) -> Tensor | None:
        """Where to begin programs related to remembered ones.

        Args:
            numbers: Of the remembered ones, -1 for none, [B].
            program: The programs.

        Returns:
            How much every t counts, [B, R, M]; None where all begin cold.
        """
        slots = numbers % self.capacity
        known = (numbers >= 0) & (self.number[slots] == numbers)
        if not bool(known.any()):
            return None
        slots = slots.masked_fill(~known, 0)
        weights = self.weights[slots][:, :, program.neuron]
        cold = cold_weights(program, self.rank).to(weights)
        # What the remembered program had no variable for has no direction yet.
        unknown = ~known[:, None, None] | (weights == 0).all(1, keepdim=True)
        return torch.where(unknown, cold * weights.abs().mean().clamp(min=1e-30), weights)
