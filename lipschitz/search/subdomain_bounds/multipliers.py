"""Pre-activation bounds that use the splits of a subdomain: multipliers for ``z >= 0``, ``z <= 0``.

A split says more than the sign of one neuron: it cuts the box by ``z >= 0`` or ``z <= 0``, and
fewer inputs mean tighter intervals for every other neuron, those of the first layer included. The
cut enters a bound through a multiplier (beta-CROWN, Wang et al. 2021). Here every upper line
``a . x + b`` of a row is formed first, and the multipliers are optimised on the input alone: for
constraints ``M x + c >= 0`` over ``[-1, 1]^D`` and every ``beta >= 0``

    max a . x + b  <=  b + beta . c + || a + beta M ||_1

so a step costs two small products per row and does not touch the network.

Shapes: B subdomains, K rows, J constraints, D inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.forward.value_pass import value_upper_line
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import Lines, activation_lines
from lipschitz.bounds.native.memory.budget import take
from lipschitz.bounds.native.plan import Plan, unit_rows
from lipschitz.rounding import guard
from lipschitz.search.subdomain_bounds.maxima import SubdomainMaxima

# Decay rates of Adam's moments, lower than usual because there are few steps. A choice: any
# multipliers give a valid bound.
_FIRST_MOMENT, _SECOND_MOMENT = 0.8, 0.95


def constrained_maximum(
    coefficients: Tensor, constants: Tensor, matrix: Tensor, offsets: Tensor, *, steps: int
) -> Tensor:
    """Upper bound of ``a . x + b`` over the part of ``[-1, 1]^D`` with ``M x + c >= 0``.

    Projected Adam on the multipliers; the bound holds for any of them, and the best is kept, so
    it is never above the one without constraints.

    Args:
        coefficients, constants: a [B, K, D] and b [B, K].
        matrix, offsets: M [B, J, D], rows of norm 1 or 0, and c [B, J].
        steps: Number of steps.

    Returns:
        [B, K].
    """
    # Offsets and constants are raised by as much as rounding may lower the sums below.
    unit = guard(offsets.dtype)
    offsets = offsets + unit * (offsets.abs() + matrix.abs().sum(2))
    magnitude = coefficients.abs().sum(2)
    constants = constants + unit * (constants.abs() + magnitude)
    best = constants + magnitude
    batch, count, inputs = coefficients.shape
    transposed = matrix.transpose(1, 2)
    beta = coefficients.new_zeros(batch, count, matrix.shape[1])
    first, second = torch.zeros_like(beta), torch.zeros_like(beta)
    size = 0.1 * magnitude.unsqueeze(2) / inputs**0.5
    residual = coefficients
    for step in range(1, steps + 1):
        gradient = torch.baddbmm(offsets.unsqueeze(1), residual.sign(), transposed)
        first.lerp_(gradient, 1 - _FIRST_MOMENT)
        second.mul_(_SECOND_MOMENT).addcmul_(gradient, gradient, value=1 - _SECOND_MOMENT)
        unbias = (1 - _SECOND_MOMENT**step) ** 0.5 / (1 - _FIRST_MOMENT**step)
        rate = unbias * 0.3 ** (step / max(steps, 5))
        direction = first / second.sqrt().add_(torch.finfo(second.dtype).tiny)
        beta.addcmul_(direction, size, value=-rate).clamp_(min=0)
        residual = torch.baddbmm(coefficients, beta, matrix)
        found = constants + (beta @ offsets.unsqueeze(2)).squeeze(2) + residual.abs().sum(2)
        best = torch.minimum(best, found)
    return best


def _gather(tensor: Tensor, columns: Tensor) -> Tensor:
    """Columns [B, K] of dimension 1 of a tensor [B or 1, N, ...]."""
    rest = tensor.shape[2:]
    tensor = tensor.expand(len(columns), *tensor.shape[1:])
    index = columns.reshape(*columns.shape, *[1] * len(rest)).expand(*columns.shape, *rest)
    return tensor.gather(1, index)


def _first_true(mask: Tensor) -> Tensor:
    """Columns of each row's true entries first, cut to the longest row's number: [B, K]."""
    count = int(mask.sum(1).max()) if mask.numel() else 0
    return mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]


def _boxes(bounds: Interval, boxes: slice) -> Interval:
    return Interval(take(bounds.lower, boxes), take(bounds.upper, boxes))


class SplitTightening:
    """Tightens the pre-activations of subdomains by their splits.

    Args:
        plan: The graph.
        lower, upper: The box, [1, *input_shape].
        rounding: Widening of pre-activations by activation node, [1, *shape].
        steps: Steps of the multipliers.
        budget: Bytes for rows, constraints and multipliers; at least one subdomain is done at
            once.
        maxima: Lines of maxima; without them these are passed through their trees.
    """

    def __init__(
        self,
        plan: Plan,
        lower: Tensor,
        upper: Tensor,
        rounding: dict[int, Tensor],
        *,
        steps: int,
        budget: int,
        maxima: SubdomainMaxima | None = None,
    ) -> None:
        self.plan, self.steps, self.budget, self.maxima = plan, steps, budget, maxima
        self.centre, self.radius = ((lower + upper) / 2).flatten(), ((upper - lower) / 2).flatten()
        self.rounding = {i: margin.flatten() for i, margin in rounding.items()}

    def _rows(
        self, activation: int, indices: Tensor, lines: dict[int, Lines]
    ) -> tuple[Tensor, Tensor]:
        """Upper lines of z and of -z over [-1, 1]^D: [B or 1, 2, K, D] and [B or 1, 2, K]."""
        node = self.plan.preact_node(activation)
        rows = unit_rows(indices, self.plan.graph.nodes[node].shape, self.centre)
        at_input, constant = value_upper_line(self.plan, node, rows, lines)
        at_input = at_input.flatten(2)
        constant = constant + at_input @ self.centre
        return (at_input * self.radius).unflatten(1, (2, -1)), constant.unflatten(1, (2, -1))

    def __call__(
        self, preacts: dict[int, Interval], clock: Clock = UNLIMITED
    ) -> dict[int, Interval]:
        """Pre-activation intervals [B, *shape], never looser than the given ones.

        Subdomains that the clock leaves no time for keep theirs.

        A neuron counts as split if its interval ends at 0. One that is stable by its bounds alone
        gives no constraint: it would cut nothing off.
        """
        counts = [self._counts(bounds) for bounds in preacts.values()]
        splits, free = (sum(c[i] for c in counts) for i in (0, 1))
        if not splits or not free:
            return preacts
        inputs = len(self.centre)
        # Rows and residuals of two sides, the constraints, and five tensors of multipliers.
        numbers = 6 * 2 * free * inputs + 2 * splits * inputs + 5 * 2 * free * splits
        step = max(1, self.budget // (numbers * self.centre.element_size()))
        parts, done = [], 0
        batch = max(len(p.lower) for p in preacts.values())
        for start in clock.in_time(range(0, batch, step)):
            boxes, done = slice(start, start + step), start + step
            parts.append(self._tighten({i: _boxes(p, boxes) for i, p in preacts.items()}))
        if done < batch:
            parts.append({i: _boxes(p, slice(done, batch)) for i, p in preacts.items()})
        return {
            i: Interval(*(torch.cat([part[i][side] for part in parts]) for side in (0, 1)))
            for i in preacts
        }

    @staticmethod
    def _counts(bounds: Interval) -> tuple[int, int]:
        """Most splits and most open neurons that one subdomain has in a layer."""
        lower, upper = (end.flatten(1) for end in bounds)
        splits, free = (lower == 0) ^ (upper == 0), (lower < 0) & (upper > 0)
        return int(splits.sum(1).max()), int(free.sum(1).max())

    def _tighten(self, preacts: dict[int, Interval]) -> dict[int, Interval]:
        batch = max(len(p.lower) for p in preacts.values())
        lines: dict[int, Lines] = {}
        matrices, offsets = [], []
        for activation in self.plan.activations:  # all splits first: later ones help too
            lower, upper = (end.flatten(1).expand(batch, -1) for end in preacts[activation])
            sign = ((lower == 0) & (upper > 0)).to(lower) - ((upper == 0) & (lower < 0)).to(lower)
            indices = (sign != 0).any(0).nonzero()[:, 0]
            if len(indices):
                matrix, offset = self._constraints(activation, indices, sign[:, indices], lines)
                matrices.append(matrix)
                offsets.append(offset)
            self._advance(activation, preacts, lines)
        if not matrices:
            return preacts
        matrix, offset = torch.cat(matrices, dim=1), torch.cat(offsets, dim=1)
        tightened: dict[int, Interval] = {}
        lines = {}
        for activation in self.plan.activations:
            tightened[activation] = self._tightened(
                activation, preacts[activation], lines, matrix, offset
            )
            self._advance(activation, tightened, lines)
        return tightened

    def _advance(
        self, activation: int, preacts: dict[int, Interval], lines: dict[int, Lines]
    ) -> None:
        bounds = preacts[activation]
        margin = self.rounding[activation].reshape(1, *bounds.lower.shape[1:])
        lines[activation] = activation_lines(
            self.plan.graph.nodes[activation].activation, bounds, rounding=margin
        )
        if self.maxima is not None:
            self.maxima.add_lines(activation, preacts, lines)

    def _constraints(
        self, activation: int, indices: Tensor, sign: Tensor, lines: dict[int, Lines]
    ) -> tuple[Tensor, Tensor]:
        """Splits [B, K] (+1, -1, 0 none) as constraints ``M x + c >= 0``, rows of norm 1 or 0."""
        at_input, constant = self._rows(activation, indices, lines)
        columns = _first_true(sign != 0)
        sign = sign.gather(1, columns)
        margin = _gather(self.rounding[activation][indices][None], columns)
        positive = (sign > 0).unsqueeze(2)
        matrix = torch.where(
            positive, _gather(at_input[:, 0], columns), _gather(at_input[:, 1], columns)
        )
        offset = torch.where(
            sign > 0, _gather(constant[:, 0], columns), _gather(constant[:, 1], columns)
        )
        norm = matrix.norm(dim=2)
        usable = (sign != 0) & (norm > 1e-12 * (1 + offset.abs()))
        scale = torch.where(usable, 1 / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
        return matrix * scale.unsqueeze(2), (offset + margin) * scale

    def _tightened(
        self,
        activation: int,
        bounds: Interval,
        lines: dict[int, Lines],
        matrix: Tensor,
        offset: Tensor,
    ) -> Interval:
        batch, shape = len(matrix), bounds.lower.shape[1:]
        lower, upper = (end.flatten(1).expand(batch, -1) for end in bounds)
        free = (lower < 0) & (upper > 0)
        indices = free.any(0).nonzero()[:, 0]
        if not len(indices):
            return bounds
        at_input, constant = self._rows(activation, indices, lines)
        columns = _first_true(free[:, indices])
        maxima = constrained_maximum(
            torch.cat([_gather(at_input[:, side], columns) for side in (0, 1)], dim=1),
            torch.cat([_gather(constant[:, side], columns) for side in (0, 1)], dim=1),
            matrix,
            offset,
            steps=self.steps,
        )
        neurons = indices[columns]
        # Subdomains with fewer open neurons than the others were padded with decided ones.
        margin = self.rounding[activation][neurons].masked_fill(~free.gather(1, neurons), torch.inf)
        above, below = maxima.chunk(2, dim=1)
        new_upper = torch.minimum(upper.gather(1, neurons), above + margin)
        new_lower = torch.maximum(lower.gather(1, neurons), -below - margin)
        return Interval(
            lower.scatter(1, neurons, new_lower).reshape(batch, *shape),
            upper.scatter(1, neurons, new_upper).reshape(batch, *shape),
        )
