"""Linear bounds of any term, with the free weights of planes and slopes of lines optimised.

Every step of the optimisation is a certified bound of its own, and the least counts. Rows are
independent: each has weights and slopes of its own, and chunks of boxes and rows are bounded one
after the other as the memory budget asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.memory.budget import take
from lipschitz.bounds.native.terms.backward import upper_bound
from lipschitz.bounds.native.terms.relaxations import Relaxations, Shares

# What is noted where the time did not suffice.
STAGE = "planes"
# Numbers that autograd keeps for each number of a nonlinear term. Measured as peak memory; on which
# network is not on record. It only decides how many rows are bounded at once.
_COPIES = 80
# The same of a pass without autograd. A choice.
_PLAIN_COPIES = 10
# Chunks of rows may take so many times the memory budget of a single pass, since the steps of the
# optimisation use the same chunk again and again. A choice.
_BUDGETS = 16


@dataclass(frozen=True)
class PlaneSearch:
    """How weights and slopes are optimised, by Adam.

    Attributes:
        steps: Largest number of steps; 0 takes them as they are.
        learning_rate: Length of the first step, of shares in [0, 1].
        decay: Of the learning rate, at every step.
        patience: Steps in a row without the least gain after which it stops.
        least_gain: Share of the bound.
        cotangent_steps: Largest number of steps for the intervals of cotangents, which come first.
    """

    steps: int = 10
    learning_rate: float = 0.1
    decay: float = 0.95
    patience: int = 3
    least_gain: float = 1e-4
    cotangent_steps: int = 0


NO_STEPS = PlaneSearch(steps=0)


class LinearBounds:
    """Linear bounds of terms over boxes.

    Args:
        relaxations: How nonlinear terms are replaced.
        constants: Values of the constant terms, [B, *shape].
        lower, upper: Boxes, [B or 1, *input_shape].
        budget: Bytes for rows.
    """

    def __init__(
        self,
        relaxations: Relaxations,
        constants: dict[int, Tensor],
        lower: Tensor,
        upper: Tensor,
        budget: int,
    ) -> None:
        self.relaxations, self.constants, self.budget = relaxations, constants, budget
        self.box = (lower + upper) / 2, (upper - lower) / 2
        self._free = [
            index
            for index, term in enumerate(relaxations.terms.terms)
            if term.is_product or term.function is not None
        ]

    def upper_bounds(
        self,
        start: int,
        coefficients: Tensor,
        search: PlaneSearch = NO_STEPS,
        clock: Clock = UNLIMITED,
        stage: str = STAGE,
    ) -> Tensor:
        """Upper bounds of ``coefficients . value of a term`` over all boxes.

        Args:
            start: The term.
            coefficients: [B, K, *shape of the term].
            search: How weights and slopes are optimised.
            clock: When to stop; rows not reached are left at infinity.
            stage: What is noted then.

        Returns:
            [B, K].
        """
        batch, rows = coefficients.shape[:2]
        terms = self.relaxations.terms.terms
        copies = _COPIES if search.steps else _PLAIN_COPIES
        numbers = sum(terms[i].shape.numel() for i in self._free if i <= start) or 1
        fit = max(1, _BUDGETS * self.budget // (copies * numbers * coefficients.element_size()))
        box_step, row_step = max(1, min(batch, fit // rows)), max(1, min(rows, fit))
        if box_step == batch and row_step == rows:
            parts = [(slice(None), slice(None))]
        else:
            parts = [
                (slice(b, b + box_step), slice(k, k + row_step))
                for b in range(0, batch, box_step)
                for k in range(0, rows, row_step)
            ]
        bounds = coefficients.new_full((batch, rows), torch.inf)
        for part in clock.in_time(parts, stage):
            bounds[part] = self._least(start, part[0], coefficients[part], search, clock)
        return bounds

    def _least(
        self, start: int, boxes: slice, coefficients: Tensor, search: PlaneSearch, clock: Clock
    ) -> Tensor:
        """The least bounds on the way, [B, K]."""
        relaxations = self.relaxations.take(boxes)
        constants = {i: take(value, boxes) for i, value in self.constants.items()}
        box = tuple(take(end, boxes) for end in self.box)
        arguments = (relaxations, start, coefficients, constants, box)
        best = upper_bound(*arguments)
        if not search.steps or clock.is_over:
            return best
        shares = self._start(relaxations, start, coefficients, best, arguments)
        if not shares:  # a term before the first product
            return best
        adam = torch.optim.Adam(shares.values(), lr=search.learning_rate)
        decay = torch.optim.lr_scheduler.ExponentialLR(adam, search.decay)
        idle = 0
        for step in clock.without_notes().in_time(range(search.steps + 1)):
            with torch.enable_grad():
                found = upper_bound(*arguments, shares)
                improved = torch.fmin(best, found.detach())
                gained = float((best - improved).sum())
                least = search.least_gain * float(improved.abs().sum())
                idle = idle + 1 if step and gained <= least else 0
                best = improved
                no_share_counts = found.grad_fn is None
                if step == search.steps or idle == search.patience or no_share_counts:
                    break
                adam.zero_grad()
                found.sum().backward()
            adam.step()
            decay.step()
            for share in shares.values():
                share.detach().clamp_(0, 1)
        return best

    def _start(
        self,
        relaxations: Relaxations,
        start: int,
        coefficients: Tensor,
        halves: Tensor,
        arguments: tuple[object, ...],
    ) -> Shares:
        """Shares to begin with: of every row, planes in the middle or chords, what is better."""
        batch, rows = coefficients.shape[:2]
        shares: Shares = {}
        for index in self._free:
            if index <= start:
                shares |= relaxations.start(index, batch, rows)
        chords = upper_bound(*arguments, shares)
        for (index, which), share in shares.items():
            if which == "weight":
                nearer = (halves < chords).reshape(batch, rows, *[1] * (share.dim() - 2))
                middle = relaxations.middle_weight(index).unsqueeze(1)
                share.copy_(torch.where(nearer, middle, share))
        for share in shares.values():
            share.requires_grad_()
        return shares
