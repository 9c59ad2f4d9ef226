"""Slopes of the lines below activations, optimised for each neuron's own bound.

Plain CROWN fixes the slope of the line below every unstable activation; any value between the
activation's two slopes is right, and another one for every row that is bounded (alpha-CROWN, Xu
et al. 2021). Other activations than ReLU and LeakyReLU have two such slopes
(:mod:`lipschitz.bounds.native.slopes.curves`). The derivative of a row's bound by its slopes is
read off a forward pass (:mod:`lipschitz.bounds.native.slopes.attaining`); no autograd graph is
kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.forward.value_pass import value_upper_bound
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import Lines, activation_lines
from lipschitz.bounds.native.memory.budget import numbers_at_once, take
from lipschitz.bounds.native.memory.differences import Differences
from lipschitz.bounds.native.memory.effort import value_effort
from lipschitz.bounds.native.memory.tiles import Tiles
from lipschitz.bounds.native.memory.windows import Window
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_lines import MaximumLines
from lipschitz.bounds.native.slopes.attaining import attaining_values, entries_at
from lipschitz.bounds.native.slopes.curves import CurveSlopes
from lipschitz.bounds.native.slopes.shares import MaximumShares
from lipschitz.network.activations import PiecewiseLinear

# Tensors of one row's widest node that an optimisation step holds: slopes, Adam's two moments,
# the recorded coefficients, the attaining values and the work of one pass. Counted, not measured:
# it only decides how many rows are optimised at once.
_COPIES = 14
# The same with curved activations: also two slopes with moments, and the candidates for the points
# at which lines touch.
_CURVE_COPIES = 40

STAGE = "slope optimisation"


@dataclass(frozen=True)
class SlopeSearch:
    """How slopes are optimised. Any slopes in their range are sound; the numbers decide how tight.

    The first step of one half lets a ReLU's slope reach either end of [0, 1] at once, where most of
    the best slopes are. The other numbers are choices.

    Attributes:
        steps: Largest number of Adam steps per layer; 0 leaves plain CROWN, intersected with
            interval arithmetic.
        learning_rate: First step size of a slope.
        decay: Factor on the step size after every step.
        curve_pace, corner_pace: Factor on the step size of activations with two free slopes, curved
            ones, whose best slopes are rarely at an end of their range, and straight ones.
        patience: A chunk of rows stops after this many steps in a row that each gained less than
            ``least_gain``.
        least_gain: Share of what the chunk has gained so far.
    """

    steps: int = 20
    learning_rate: float = 0.5
    decay: float = 0.85
    curve_pace: float = 0.1
    corner_pace: float = 0.3
    patience: int = 3
    least_gain: float = 0.003


class Maximum(NamedTuple):
    """A maximum that rows pass.

    Attributes:
        lines: Lines to start from.
        candidates: Entries that can be the largest, [B or 1, W, n].
    """

    lines: MaximumLines
    candidates: Tensor


class _Adam:
    """Adam (Kingma & Ba 2015) on tensors kept within a range; ``pace`` scales a tensor's steps."""

    def __init__(
        self,
        parameters: dict[Hashable, Tensor],
        search: SlopeSearch,
        pace: dict[Hashable, float],
    ) -> None:
        self.parameters, self.pace = parameters, pace
        self.first = {i: torch.zeros_like(p) for i, p in parameters.items()}
        self.second = {i: torch.zeros_like(p) for i, p in parameters.items()}
        self.search = search
        self.step = 0

    def descend(self, gradients: dict[Hashable, Tensor], smallest: dict[Hashable, float]) -> None:
        """One step, then clamp to [smallest, 1]; the smallest value is 0 if not given."""
        rate = self.search.learning_rate * self.search.decay**self.step
        self.step += 1
        correction = (1 - 0.999**self.step) ** 0.5 / (1 - 0.9**self.step)
        for index, gradient in gradients.items():
            first = self.first[index].mul_(0.9).add_(gradient, alpha=0.1)
            second = self.second[index].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            tiny = torch.finfo(second.dtype).tiny
            self.parameters[index].addcdiv_(
                first,
                second.sqrt().add_(tiny),
                value=-rate * self.pace.get(index, 1.0) * correction,
            ).clamp_(smallest.get(index, 0.0), 1.0)


def optimised_preactivation_rows(
    plan: Plan,
    activation: int,
    indices: Tensor,
    preacts: dict[int, Interval],
    rounding: dict[int, Tensor],
    lower: Tensor,
    upper: Tensor,
    search: SlopeSearch,
    *,
    budget: int,
    clock: Clock = UNLIMITED,
    maxima: dict[int, Maximum] | None = None,
    second: Tensor | None = None,
) -> Tensor:
    """Bounds of chosen pre-activations, each with its own optimised slopes.

    Args:
        plan: The graph.
        activation: The activation node; or a maximum's, for differences of its entries.
        indices: Flat coordinates, [K]; neighbours in space should be neighbours here.
        preacts: Intervals of the earlier activations, [B or 1, *shape].
        rounding: Their rounding margins, [B or 1, *shape].
        lower, upper: Boxes, [B or 1, *input_shape].
        search: How to optimise.
        budget: Bytes for rows.
        clock: When to stop; rows not reached are left at infinity.
        maxima: The earlier maxima.
        second: Flat coordinates of the entries to subtract, [K].

    Returns:
        Upper bounds of z and of -z, [2, B, K].
    """
    graph = plan.graph
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    pool = plan.pools.get(activation)
    node = plan.preact_node(activation) if pool is None else pool.of
    earlier = [a for a in plan.activations if a <= node]
    lines = {
        a: activation_lines(graph.nodes[a].activation, preacts[a], rounding=rounding[a])
        for a in earlier
    }
    maxima = {} if maxima is None else {i: m for i, m in maxima.items() if i <= node}
    lines |= {i: maximum.lines for i, maximum in maxima.items()}
    batch = max([len(lower), *(len(preacts[a].lower) for a in earlier)])
    bounds = lower.new_full((2, batch, len(indices)), torch.inf)
    straight = all(isinstance(graph.nodes[a].activation, PiecewiseLinear) for a in earlier)
    copies = _COPIES if straight else _CURVE_COPIES
    layer = plan.layer(activation)
    numbers = numbers_at_once(budget, lower.element_size(), copies)
    tiles: Tiles | Differences = Tiles.of(plan, node, indices, batch, numbers, value_effort)
    if second is not None:
        tiles = Differences.of(tiles, second)
    for chunk in clock.in_time(tiles.chunks(), STAGE, layer):
        boxes, part = chunk.boxes, chunk.rows
        found = _optimised_chunk(
            plan,
            node,
            tiles.unit_rows(chunk, lower),
            {a: line.take(boxes) for a, line in lines.items()},
            {a: Interval(*(take(end, boxes) for end in preacts[a])) for a in earlier},
            {a: take(rounding[a], boxes) for a in earlier},
            (take(centre, boxes), take(radius, boxes)),
            min(batch, boxes.stop) - boxes.start,
            search,
            clock,
            layer,
            {i: take(maximum.candidates, boxes) for i, maximum in maxima.items()},
        )
        bounds[0, boxes, part], bounds[1, boxes, part] = found.chunk(2, dim=1)
    return tiles.restored(bounds)


def _optimised_chunk(
    plan: Plan,
    node: int,
    rows: Window,
    lines: dict[int, Lines | MaximumLines],
    preacts: dict[int, Interval],
    rounding: dict[int, Tensor],
    box: tuple[Tensor, Tensor],
    batch: int,
    search: SlopeSearch,
    clock: Clock,
    layer: int,
    candidates: dict[int, Tensor],
) -> Tensor:
    """Smallest upper bound found for each of the rows [1, K, *shape]: [B, K].

    ``lines`` are those to start from, ``preacts`` and ``rounding`` [B or 1, *shape] what they are
    made from, and ``box`` is its centre and radius, [B or 1, *input_shape]. ``clock`` says when to
    stop, in which layer; ``candidates`` which entries the maxima may have, [B or 1, W, n].
    """
    record: dict[int, Window] = {}
    best = value_upper_bound(plan, node, rows, lines, *box, record).expand(
        batch, rows.values.shape[1]
    )
    # From here on only the part of every layer that the rows touch.
    maxima = {
        i: MaximumShares(plan, i, record[i], lines.pop(i), some, batch)
        for i, some in candidates.items()
        if i in record
    }
    lines = {
        a: line.cut_to(record[a])._replace(is_cut=True)
        for a, line in lines.items()
        if a in record and a not in plan.pools
    }
    kinds = {a: plan.graph.nodes[a].activation for a in lines}
    free = {
        a: record[a].cut(kind.is_open(*preacts[a]).unsqueeze(1))
        for a, kind in kinds.items()
        if isinstance(kind, PiecewiseLinear)
    }
    upper_slopes = {a: lines[a].lower_slope + lines[a].slope_gap for a in free}
    slopes = {
        a: lines[a].lower_slope.expand(*best.shape, *record[a].values.shape[2:]).contiguous()
        for a in free
    }
    smallest = {a: kinds[a].negative_slope for a in free}
    curves = {
        a: CurveSlopes(
            kind,
            Interval(*(record[a].cut(end.unsqueeze(1)) for end in preacts[a])),
            record[a].cut(rounding[a].unsqueeze(1)),
            lines[a],
            *best.shape,
        )
        for a, kind in kinds.items()
        if a not in free and kind.free_lines
    }
    if not free and not curves and not maxima:
        return best
    lines |= {i: shares.lines() for i, shares in maxima.items()}
    lines |= {a: curve.lines() for a, curve in curves.items()}
    shares = {(a, side): share for a, c in curves.items() for side, share in c.shares.items()}
    pace = {
        (a, side): search.curve_pace if any(kinds[a].curvatures) else search.corner_pace
        for a, side in shares
    }
    shares |= {i: maximum.parameters for i, maximum in maxima.items()}
    adam = _Adam(slopes | shares, search, pace)
    before = best.sum()
    start, idle = float(before), 0
    for _ in clock.in_time(range(search.steps), STAGE, layer):
        values = attaining_values(plan, record, lines, *box)
        gradients = {
            a: (record[a].values.clamp(max=0) * values[plan.preact_node(a)]).mul_(free[a])
            for a in free
        }
        gradients |= {
            (a, side): gradient
            for a, curve in curves.items()
            for side, gradient in curve.gradients(
                record[a].values, values[plan.preact_node(a)]
            ).items()
        }
        for i, maximum in maxima.items():
            entries = record[plan.pools[i].of].having(values[plan.pools[i].of])
            at = entries_at(plan, i, record[i], entries)[1]
            gradients[i] = maximum.gradient(record[i], at)
        adam.descend(gradients, smallest)
        lines |= {i: maximum.lines() for i, maximum in maxima.items()}
        lines |= {a: curve.lines() for a, curve in curves.items()}
        lines |= {
            a: Lines(
                slopes[a],
                upper_slopes[a] - slopes[a],
                lines[a].lower_intercept,
                lines[a].intercept_gap,
                True,
            )
            for a in free
        }
        record = {}
        best = torch.minimum(best, value_upper_bound(plan, node, rows, lines, *box, record))
        now = best.sum()
        gained, total = float(before - now), start - float(now)
        before = now
        idle = idle + 1 if gained <= search.least_gain * total else 0
        if idle == search.patience:
            break
    return best
