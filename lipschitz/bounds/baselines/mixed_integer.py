"""Mixed-integer programs built from affine expressions, and their big-M gadgets.

Everything is scaled so that variables and constraints are of size 1, because a solver's tolerances
are absolute. Shapes: V variables, N entries of a flat expression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from torch import Tensor

from lipschitz.bounds.baselines.expressions import Expression
from lipschitz.bounds.baselines.interrupts import interruptible

# Relative gap between the solver's bounds at which it stops. A choice.
_GAP = 1e-6
# Relative widening of intervals that serve as big M, for rounding; not a proof.
_BIG_M_MARGIN = 1e-9
# The only verdicts of scipy.optimize.milp that count: optimal, and a limit reached.
_OPTIMAL, _LIMIT = 0, 1


@dataclass(frozen=True)
class Solution:
    """What the solver says about a maximum.

    Attributes:
        upper_bound: Its dual bound; infinity if it gives none.
        values: Values of all variables at its best solution, [V], or None.
        at_limit: It stopped at the time limit.
    """

    upper_bound: float
    values: Tensor | None
    at_limit: bool


class Program:
    """A mixed-integer program under construction; copies share what was there before."""

    def __init__(self, parent: Program | None = None) -> None:
        self.lower = [] if parent is None else list(parent.lower)
        self.upper = [] if parent is None else list(parent.upper)
        self.integer = [] if parent is None else list(parent.integer)
        self.constraints = [] if parent is None else list(parent.constraints)

    def variables(self, lower: Tensor, upper: Tensor, scale: Tensor, integer: bool) -> Expression:
        """New variables ``scale * v`` with v between bounds, flat: all [N]."""
        first, count = len(self.lower), len(lower)
        self.lower += lower.tolist()
        self.upper += upper.tolist()
        self.integer += [int(integer)] * count
        coefficients = lower.new_zeros(first + count, count)
        coefficients[first:] = torch.diag(scale)
        return Expression(coefficients, lower.new_zeros(1, count))

    def binaries(self, like: Tensor) -> Expression:
        """One binary for each entry of ``like``, [N]."""
        zero, one = torch.zeros_like(like), torch.ones_like(like)
        return self.variables(zero, one, one, True)

    def not_positive(self, expression: Expression) -> None:
        """Require every entry of a flat expression to be at most 0."""
        self.constraints.append(expression)

    def maximise(self, objective: Expression, seconds: float) -> Solution:
        """Maximise a flat expression of one entry, for at most so long.

        Raises:
            KeyboardInterrupt: At once, though the solver is compiled code.
        """
        count = len(self.lower)
        coefficients = objective.padded(count)[:, 0]
        # Of size 1 as well: a tolerance on an objective of 1e-9 would swallow it.
        unit = float(coefficients.abs().max()) or 1.0
        cost, constraints = -(coefficients / unit).numpy(), self._matrix(count)
        found = interruptible(
            lambda: milp(
                cost,
                integrality=np.array(self.integer),
                bounds=Bounds(np.array(self.lower), np.array(self.upper)),
                constraints=constraints,
                options={"time_limit": seconds, "mip_rel_gap": _GAP},
            )
        )
        bound = found.mip_dual_bound if found.status in (_OPTIMAL, _LIMIT) else None
        known = bound is not None and np.isfinite(bound)
        return Solution(
            float(objective.constant) - bound * unit if known else np.inf,
            None if found.x is None else torch.from_numpy(found.x.copy()),
            found.status == _LIMIT,
        )

    def _matrix(self, count: int) -> LinearConstraint | None:
        rows, columns, values, limits, total = [], [], [], [], 0
        for block in self.constraints:
            variable, row = block.coefficients.nonzero(as_tuple=True)
            rows.append(row.numpy() + total)
            columns.append(variable.numpy())
            values.append(block.coefficients[variable, row].numpy())
            limits.append(-block.constant[0].numpy())
            total += block.constant.shape[1]
        if not total:
            return None
        entries = (np.concatenate(rows), np.concatenate(columns))
        matrix = coo_array((np.concatenate(values), entries), shape=(total, count)).tocsr()
        return LinearConstraint(matrix, ub=np.concatenate(limits))


def scale_of(lower: Tensor, upper: Tensor) -> Tensor:
    """Largest magnitude in the interval, 1 where that is 0."""
    largest = torch.maximum(lower.abs(), upper.abs())
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def widened(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The interval with a margin for rounding, so that it may serve as big M; flat."""
    margin = _BIG_M_MARGIN * scale_of(lower, upper)
    return (lower - margin).flatten(), (upper + margin).flatten()


def gated_product(
    program: Program, g: Expression, s: Expression, lower: Tensor, upper: Tensor
) -> Expression:
    """New variables ``t = g * s`` for binaries s and g in [lower, upper] (McCormick; exact)."""
    scale = scale_of(lower, upper)
    gated = program.variables(lower.clamp(max=0) / scale, upper.clamp(min=0) / scale, scale, False)
    off = (s * -1).plus(1.0)
    for constraint in (
        gated - s * upper,
        s * lower - gated,
        gated - g + off * lower,
        g - gated - off * upper,
    ):
        program.not_positive(constraint * (1 / scale))
    return gated


def sum_of_magnitudes(
    program: Program, entries: Expression, lower: Tensor, upper: Tensor
) -> Expression:
    """An expression that is at most, and at best equal to, the sum of the entries' magnitudes."""
    signs = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, -1.0, 0.0)).to(lower)
    total = entries * signs
    chosen = (signs == 0).nonzero()[:, 0]
    if len(chosen):
        lower, upper, entry = lower[chosen], upper[chosen], entries.take(chosen)
        scale = scale_of(lower, upper)
        is_positive = program.binaries(lower)
        size = program.variables(torch.zeros_like(lower), torch.ones_like(lower), scale, False)
        below = size - entry + (is_positive * -1).plus(1.0) * (2 * lower)
        above = size + entry - is_positive * (2 * upper)
        program.not_positive(below * (1 / scale))
        program.not_positive(above * (1 / scale))
        total = total.put(chosen, size)
    return Expression(total.coefficients.sum(1, keepdim=True), total.constant.sum(1, keepdim=True))
