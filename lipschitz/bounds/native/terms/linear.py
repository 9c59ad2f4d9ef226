"""Linear bounds of any term, with the free weights of planes and slopes of lines optimised.

Three ways to set the weights are tried: both planes in equal parts, the planes that suit the corner
at which that bound is attained (:mod:`lipschitz.bounds.native.terms.corners`), and the chord. From
the best of them, each row's own, an optimisation starts. Every step is a certified bound, and the
least counts. Chunks of boxes and rows are bounded one after the other as the memory budget asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.interval import Interval, intersect
from lipschitz.bounds.native.memory.budget import take
from lipschitz.bounds.native.plan import unit_rows
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.bounds.native.terms.backward import upper_bound
from lipschitz.bounds.native.terms.corners import weights_at_corner
from lipschitz.bounds.native.terms.relaxations import Relaxations, Shares
from lipschitz.norms import Measure
from lipschitz.rounding import guard

# What is noted where the time did not suffice.
STAGE = "planes"
# Numbers that autograd keeps for each number of a nonlinear term. Measured as peak memory; on which
# network is not on record. It only decides how many rows are bounded at once.
_COPIES = 80
# The same of passes without autograd. A choice.
_PLAIN_COPIES = 10
# Chunks of rows may take so many times the memory budget of a single pass, since the steps of the
# optimisation use the same chunk again and again. A choice.
_BUDGETS = 16


@dataclass(frozen=True)
class PlaneSearch:
    """How weights and slopes are optimised, by Adam.

    Attributes:
        steps: Largest number of steps; 0 takes them as they are.
        corners: Bound a second time, with the planes that suit the corner where the first bound is
            attained.
        learning_rate: Length of the first step, of shares in [0, 1].
        decay: Of the learning rate, at every step.
        patience: Steps in a row without the least gain after which it stops.
        least_gain: Share of the bound.
        cotangent_steps: Largest number of steps for the intervals of cotangents, which come first.
    """

    steps: int = 10
    corners: bool = True
    learning_rate: float = 0.1
    decay: float = 0.95
    patience: int = 3
    least_gain: float = 1e-4
    cotangent_steps: int = 0


# One pass, for many boxes.
ONE_PASS = PlaneSearch(steps=0, corners=False)


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
        search: PlaneSearch = ONE_PASS,
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
        is_fixed = not search.steps and not search.corners
        contractions = self.relaxations.contractions.values() if is_fixed else ()
        left_out = {contraction.product for contraction in contractions}
        formed = (i for i in self._free if i <= start and i not in left_out)
        numbers = sum(terms[i].shape.numel() for i in formed) + terms[0].shape.numel()
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
            found = self._least(start, part[0], coefficients[part], search, clock)
            bounds[part] = torch.where(found.isnan(), torch.inf, found)  # what overflowed
        return bounds

    def _least(
        self, start: int, boxes: slice, coefficients: Tensor, search: PlaneSearch, clock: Clock
    ) -> Tensor:
        """The least bounds on the way, [B, K]."""
        relaxations = self.relaxations.take(boxes)
        constants = {i: take(value, boxes) for i, value in self.constants.items()}
        box = tuple(take(end, boxes) for end in self.box)
        arguments = (relaxations, start, coefficients, constants, box)
        record: dict[int, Tensor] | None = {} if search.corners else None
        best = upper_bound(*arguments, record=record)
        tried = [(best, None)]
        if record and 0 in record:  # else nothing depends on the input
            at_corner = weights_at_corner(relaxations, start, record, constants, box)
            tried.append((upper_bound(*arguments, at_corner), at_corner))
            best = torch.fmin(best, tried[1][0])
        if not search.steps or clock.is_over:
            return best
        shares = {
            key: share
            for index in self._free
            if index <= start
            for key, share in relaxations.start(index, *coefficients.shape[:2]).items()
        }
        if not shares:  # a term before the first product
            return best
        best = torch.fmin(best, self._begin(relaxations, shares, tried, arguments))
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

    @staticmethod
    def _begin(
        relaxations: Relaxations,
        shares: Shares,
        tried: list[tuple[Tensor, Shares | None]],
        arguments: tuple[object, ...],
    ) -> Tensor:
        """Set weights, which are those of chords, to the best of every row's; the bound by chords.

        Args:
            relaxations: How nonlinear terms are replaced.
            shares: To be set.
            tried: Bounds [B, K] and the weights that they came from, None for equal parts.
            arguments: Of :func:`upper_bound`.
        """
        chords = least = upper_bound(*arguments, shares)
        for bound, weights in tried:
            lower = bound < least
            least = torch.fmin(bound, least)
            for key, share in shares.items():
                if key[1] != "weight":
                    continue
                new = None if weights is None else weights.get(key)
                if new is None:
                    new = relaxations.middle_weight(key[0]).unsqueeze(1)
                here = lower.reshape(*lower.shape, *[1] * (share.dim() - 2))
                share.copy_(torch.where(here, new, share))
        for share in shares.values():
            share.requires_grad_()
        return chords

    def numbers(
        self,
        start: int,
        known: Interval,
        search: PlaneSearch = ONE_PASS,
        clock: Clock = UNLIMITED,
        stage: str = STAGE,
        mask: Tensor | None = None,
    ) -> Interval:
        """Intervals of every number of a term by rows of its own, within those known.

        Args:
            start: The term.
            known: [B, *shape of the term].
            search, clock, stage: As in :meth:`upper_bounds`.
            mask: Which numbers are asked for, [B or 1, *shape]; all if None.
        """
        like = known.lower
        shape = like.shape[1:]
        if mask is None:
            mask = torch.ones_like(like[:1], dtype=torch.bool)
        indices = needed_indices(mask)
        if not len(indices):
            return known
        rows = unit_rows(indices, shape, like)
        rows = rows.expand(len(like), *rows.shape[1:])
        found = self.upper_bounds(start, rows, search, clock, stage)
        return intersect(known, place(known, torch.stack(found.chunk(2, dim=1)), indices, mask))

    def norms(
        self,
        start: int,
        entries: Interval,
        measure: Measure,
        search: PlaneSearch = ONE_PASS,
        clock: Clock = UNLIMITED,
        stage: str = STAGE,
    ) -> Tensor:
        """Upper bounds of the norm of a term of the input's shape, by the chord of every entry.

        The chord is that of ``|J_i|`` or ``J_i^2`` (Shi et al. 2022, section 3.3).

        Args:
            start: The term.
            entries: Intervals of its entries, [B, *input_shape].
            measure: The norm, of each row; ``inf`` or ``2``.
            search, clock, stage: As in :meth:`upper_bounds`.

        Returns:
            [B], rounding guard included.
        """
        lower, upper = (end.flatten(1) for end in entries)
        slope, intercept = measure.chord(lower, upper)
        row = slope.reshape(len(slope), 1, *entries.lower.shape[1:])
        found = self.upper_bounds(start, row, search, clock, stage)[:, 0] + intercept.sum(1)
        found = found + guard(found.dtype) * intercept.abs().sum(1)
        return measure.close(found, lower, upper)
