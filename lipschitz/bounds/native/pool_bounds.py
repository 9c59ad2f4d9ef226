"""What is known of the windows of a maximum, and the lines and the tree's intervals it gives.

Everything follows from ``U_ij``, an upper bound of ``x_i - x_j`` for two entries of a window: which
entries can be the largest, the constant of a line above, and the tree's neurons, which compare two
blocks A and B of entries,

    max of A - max of B  <=  max over i in A of min over j in B of U_ij.

Back from the tree: a block that has lost a comparison, by bounds or by a split, holds no candidate.

Shapes: B boxes, W windows of n entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.bounds.native.interval import Interval, product_interval
from lipschitz.bounds.native.memory.windows import Window
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_lines import MaximumLines, Routes, placement
from lipschitz.network.pooled import Pooled, gathered

# Steps in which the weights of a line above are looked for. A choice: any weights are sound.
_STEPS = 40
# Numbers of one step at once.
_LARGEST_GAME = 2**23


class WindowFacts(NamedTuple):
    """What is known of the windows of a maximum.

    Attributes:
        excess: ``U_ij``, upper bounds of ``x_i - x_j``, [B, W, n, n].
        lower, upper: Intervals of the entries, [B, W, n].
        rounding: How far rounding may have moved them, [B or 1, W, n].
    """

    excess: Tensor
    lower: Tensor
    upper: Tensor
    rounding: Tensor

    @staticmethod
    def of(pool: Pooled, value: Interval, rounding: Tensor, excess: Tensor) -> WindowFacts:
        """From intervals and rounding of the entries' node, [B, *shape], and U."""
        parts = (gathered(t.flatten(1), pool.windows) for t in (*value, rounding))
        return WindowFacts(excess, *parts)


def interval_excess(pool: Pooled, value: Interval) -> Tensor:
    """``U_ij`` from intervals of the entries' node, [B, *shape]: [B, W, n, n]; 0 for absent."""
    lower, upper = (gathered(end.flatten(1), pool.windows) for end in value)
    size = torch.maximum(lower.abs(), upper.abs())
    unit = 2 * torch.finfo(size.dtype).eps
    excess = upper.unsqueeze(3) - lower.unsqueeze(2)
    excess = excess + unit * (size.unsqueeze(3) + size.unsqueeze(2))
    present = pool.windows >= 0
    both = present.unsqueeze(2) & present.unsqueeze(1)
    same = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return excess.masked_fill(~both | same, 0)


def candidates_of(pool: Pooled, excess: Tensor) -> Tensor:
    """Entries that can be the largest of their window, [B, W, n].

    An entry that only touches another one from below is none, as a ReLU whose interval ends at 0
    is off; where that leaves no entry, those that are not certainly below another.
    """
    present = pool.windows >= 0
    both = present.unsqueeze(2) & present.unsqueeze(1)
    below = (excess < 0) & both
    touching = (excess <= 0) & (excess.transpose(2, 3) > 0) & both
    found = present & ~(below | touching).any(3)
    strict = present & ~below.any(3)
    found = torch.where(found.any(2, keepdim=True), found, strict)
    return torch.where(found.any(2, keepdim=True), found, present)


def surviving(pool: Pooled, slopes: dict[int, Interval]) -> Tensor:
    """Entries that have lost no comparison of the tree, [B or 1, W, n].

    Args:
        pool: The maximum.
        slopes: Slope interval of the tree's activations, [B or 1, *shape].
    """
    alive = (pool.windows[:, :1] >= 0).unsqueeze(0)
    for level in reversed(pool.levels):
        slope = slopes[level.activation]
        wins = gathered(slope.upper.flatten(1), level.pairs, 1.0) > 0
        loses = gathered(slope.lower.flatten(1), level.pairs, 0.0) == 1
        count = level.pairs.shape[1]
        alive = torch.stack([alive[:, :, :count] & ~loses, alive[:, :, :count] & wins], dim=3)
        alive = alive.flatten(2)
    alive = alive[:, :, : pool.windows.shape[1]] & (pool.windows >= 0)
    # Splits that no input satisfies may leave none.
    return torch.where(alive.any(2, keepdim=True), alive, pool.windows >= 0)


def narrowed_candidates(candidates: Tensor, alive: Tensor) -> Tensor:
    """Candidates by both kinds of knowledge; by the first where nothing is left."""
    both = candidates & alive
    return torch.where(both.any(2, keepdim=True), both, candidates)


def comparison_intervals(pool: Pooled, excess: Tensor) -> dict[int, Interval]:
    """Intervals of the tree's pre-activations, by activation node, [B, neurons]."""
    batch, windows, entries, _ = excess.shape
    size = 2 ** len(pool.levels)
    rest = size - entries
    table = F.pad(excess, (0, rest, 0, rest))
    present = F.pad(pool.windows >= 0, (0, rest))
    found = {}
    for k, level in enumerate(pool.levels):
        step, count = 2**k, level.pairs.shape[1]
        blocks = table.reshape(batch, windows, -1, 2, step, size // (2 * step), 2, step)
        # Pairs along the diagonal: [B, W, side, entry, side, entry, pair].
        pairs = blocks.diagonal(dim1=2, dim2=5)[..., :count]
        counted = present.reshape(windows, -1, 2, step)[:, :count].permute(0, 2, 3, 1)
        ends = []
        for mine in (1, 0):
            other = 1 - mine
            rows = pairs[:, :, mine, :, other]  # [B, W, entry of mine, entry of the other, pair]
            rows = rows.masked_fill(~counted[:, other].unsqueeze(1), torch.inf).amin(3)
            ends.append(rows.masked_fill(~counted[:, mine], -torch.inf).amax(2))
        valid = level.pairs >= 0
        found[level.activation] = Interval(-ends[1][:, valid], ends[0][:, valid])
    return found


def comparison_cotangents(
    pool: Pooled, cotangent: Interval, slopes: dict[int, Interval]
) -> dict[int, Interval]:
    """Intervals of the tree's cotangents, by activation node, [B, neurons].

    All of the maximum's cotangent goes down one path, so at a comparison there arrives either all
    of it or nothing.

    Args:
        pool: The maximum.
        cotangent: Interval of the maximum's, [B, W].
        slopes: Slope interval of the tree's activations, [B or 1, *shape].
    """
    found = {}
    here = Interval(*(end.unsqueeze(2) for end in cotangent))
    for level in reversed(pool.levels):
        count, valid = level.pairs.shape[1], level.pairs >= 0
        here = Interval(*(end[:, :, :count] for end in here))
        found[level.activation] = Interval(*(end[:, valid] for end in here))
        slope = Interval(
            *(gathered(end.flatten(1), level.pairs) for end in slopes[level.activation])
        )
        first = product_interval(here, Interval(1 - slope.upper, 1 - slope.lower))
        second = product_interval(here, slope)
        here = Interval(
            *(torch.stack(ends, 3).flatten(2) for ends in zip(first, second, strict=True))
        )
    return found


def comparison_coefficients(
    pool: Pooled, coefficients: Tensor, candidates: Tensor
) -> dict[int, Tensor]:
    """How much of a bound each comparison can move per cotangent, by activation node.

    Args:
        pool: The maximum.
        coefficients: Of the entries' cotangents, [B, K, N].
        candidates: [B or 1, W, n].

    Returns:
        Largest difference between the coefficients of one block and of the other, [B, K, neurons].
    """
    entries, others = gathered(coefficients, pool.windows), ~candidates.unsqueeze(1)
    largest = entries.masked_fill(others, -torch.inf)
    least = entries.masked_fill(others, torch.inf)
    found = {}
    for level in pool.levels:
        rest = (0, 2 * level.pairs.shape[1] - largest.shape[3])
        largest = F.pad(largest, rest, value=-torch.inf).unflatten(3, (-1, 2))
        least = F.pad(least, rest, value=torch.inf).unflatten(3, (-1, 2))
        # A block without candidates is infinitely low: nothing is to be gained there.
        moved = (largest - least.flip(4)).amax(4).clamp(min=0)
        found[level.activation] = moved[:, :, level.pairs >= 0]
        largest, least = largest.amax(4), least.amin(4)
    return found


def entry_cotangents(cotangent: Interval, routes: Routes) -> Interval:
    """Intervals of what the cotangent [B, W] behind a maximum gives each entry, [B, W, n]."""
    bounds = Interval(*(end.unsqueeze(2) for end in cotangent))
    if routes.least is not None:
        bounds = product_interval(bounds, Interval(routes.least, routes.most))
    candidates = routes.candidates
    several = candidates.sum(2, keepdim=True) > 1
    least = torch.where(several, bounds.lower.clamp(max=0), bounds.lower)
    most = torch.where(several, bounds.upper.clamp(min=0), bounds.upper)
    return Interval(torch.where(candidates, least, 0), torch.where(candidates, most, 0))


def maximum_lines(
    facts: WindowFacts, candidates: Tensor, known: tuple[Tensor, MaximumLines] | None = None
) -> MaximumLines:
    """Lines around a maximum.

    The one below is the entry whose largest excess by another is least; the one above has the least
    height in the middle of the box, as the chord of a ReLU has; or it is the constant.

    Args:
        facts: What is known of its windows, [B or 1, ...].
        candidates: Entries that can be the largest, [B or 1, W, n].
        known: Other candidates, [1, W, n], and their lines, which serve where these are the same.
    """
    excess, rounding = facts.excess, facts.rounding
    batch = max(len(facts.lower), len(excess), len(candidates))
    middle = (facts.lower + facts.upper) / 2
    middle, candidates, most = (
        t.expand(batch, *t.shape[1:]) for t in (middle, candidates, facts.upper)
    )
    if known is None:
        lower, upper = torch.zeros_like(middle), torch.zeros_like(middle)
        gap, settled = middle.new_zeros(middle.shape[:2]), torch.zeros_like(candidates[:, :, 0])
    else:
        before, lines = known
        settled = (candidates == before).all(2)
        parts = (lines.lower, lines.upper, lines.gap)
        lower, upper, gap = (p[:, 0].expand(batch, *p.shape[2:]).clone() for p in parts)
    only = (candidates.sum(2) == 1) & ~settled
    upper[only] = lower[only] = candidates[only].to(middle)
    gap[only] = 0
    box, window = (~only & ~settled).nonzero(as_tuple=True)
    step = max(1, _LARGEST_GAME // excess.shape[3] ** 2)
    for start in range(0, len(box), step):
        b, w = box[start : start + step], window[start : start + step]
        of = b if len(excess) > 1 else torch.zeros_like(b)
        lower[b, w], upper[b, w], gap[b, w] = _weights(
            excess[of, w], candidates[b, w], middle[b, w], most[b, w]
        )
    # The weights sum to 1 but for rounding, which the sizes of the entries multiply.
    largest = torch.maximum(facts.lower.abs(), facts.upper.abs())
    unit = 4 * largest.shape[2] * torch.finfo(largest.dtype).eps
    moved = (rounding + unit * largest).amax(2).unsqueeze(1)
    return MaximumLines(lower.unsqueeze(1), upper.unsqueeze(1), gap.unsqueeze(1), moved)


def gap_above(weights: Tensor, excess: Tensor, candidates: Tensor) -> Tensor:
    """``max_j sum_i v_i U_ji``: weights [..., n], excess [..., n, n], candidates [..., n]."""
    sums = (excess @ weights.unsqueeze(-1)).squeeze(-1)
    return sums.masked_fill(~candidates, -torch.inf).amax(-1)


def _weights(
    excess: Tensor, candidates: Tensor, middle: Tensor, most: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights below and above, and the constant above, of windows [M, n].

    Args:
        excess: U, [M, n, n].
        candidates: [M, n].
        middle, most: The entries in the middle of the box, and at most.
    """
    pairs = candidates.unsqueeze(2) & candidates.unsqueeze(1)
    excess = excess.masked_fill(~pairs, 0)
    regret = excess.amax(1).masked_fill(~candidates, torch.inf)
    lower = F.one_hot(regret.argmin(1), regret.shape[1]).to(excess)
    top = middle.masked_fill(~candidates, -torch.inf).amax(1, keepdim=True)
    middle = torch.where(candidates, middle - top, 0)
    # Height of the line above in the middle: largest over j of ``payoff_j . weights``.
    payoff = excess + middle.unsqueeze(1)
    upper = lower
    best = (middle * upper).sum(1) + gap_above(upper, excess, candidates)
    for trial in (_equal(payoff, candidates), _played(payoff, candidates)):
        total = trial.sum(1, keepdim=True)
        trial = trial / torch.where(total > 0, total, 1)
        height = (middle * trial).sum(1) + gap_above(trial, excess, candidates)
        better = (total[:, 0] > 0) & (height < best)
        upper = torch.where(better.unsqueeze(1), trial, upper)
        best = torch.where(better, height, best)
    gap = gap_above(upper, excess, candidates).clamp(min=0)
    constant = most.masked_fill(~candidates, -torch.inf).amax(1)
    better = constant - top[:, 0] < best
    return lower, upper.masked_fill(better.unsqueeze(1), 0), torch.where(better, constant, gap)


def _equal(payoff: Tensor, candidates: Tensor) -> Tensor:
    """Weights for which all candidates' heights are equal, cut at 0: exact for two of them."""
    count, entries = candidates.shape
    system = payoff.new_zeros(count, entries + 1, entries + 1)
    pairs = candidates.unsqueeze(2) & candidates.unsqueeze(1)
    alone = torch.diag_embed((~candidates).to(payoff))
    system[:, :entries, :entries] = torch.where(pairs, payoff, alone)
    system[:, :entries, entries] = -candidates.to(payoff)
    system[:, entries, :entries] = candidates.to(payoff)
    right = torch.zeros_like(system[:, :, :1])
    right[:, entries] = 1
    found = torch.linalg.solve_ex(system, right)[0][:, :entries, 0]
    return torch.where(candidates, found, 0).nan_to_num(0, 0, 0).clamp(min=0)


def _played(payoff: Tensor, candidates: Tensor) -> Tensor:
    """Weights of least height by optimistic multiplicative weights (Rakhlin & Sridharan 2013)."""
    pairs = candidates.unsqueeze(2) & candidates.unsqueeze(1)
    spread = payoff.masked_fill(~pairs, 0).abs().amax((1, 2)).clamp(min=1e-30)
    payoff = payoff / spread[:, None, None]
    others = ~candidates
    rate = 2.0
    ours = theirs = torch.zeros_like(payoff[:, 0])
    last_ours, last_theirs = ours, theirs
    total = torch.zeros_like(ours)
    for _ in range(_STEPS):
        mine = (ours + last_ours).mul(-rate).masked_fill(others, -torch.inf).softmax(1)
        yours = (theirs + last_theirs).mul(rate).masked_fill(others, -torch.inf).softmax(1)
        last_theirs = (payoff @ mine.unsqueeze(2)).squeeze(2)
        last_ours = (payoff.transpose(1, 2) @ yours.unsqueeze(2)).squeeze(2)
        ours, theirs, total = ours + last_ours, theirs + last_theirs, total + mine
    return total


def routes_by_maximum(
    plan: Plan, slopes: dict[int, Interval], windows: dict[int, WindowFacts] | None
) -> dict[int, Routes]:
    """Where the cotangent behind every maximum can go.

    Args:
        plan: The graph.
        slopes: Slope interval by activation node, of the trees too, [B or 1, *shape].
        windows: What is known by maximum, [B or 1, ...].
    """
    found = {}
    for end, pool in plan.pools.items():
        facts = None if windows is None else windows.get(end)
        candidates = surviving(pool, slopes)
        if facts is not None:
            candidates = narrowed_candidates(candidates_of(pool, facts.excess), candidates)
        if end not in plan.onward:
            found[end] = Routes(candidates)
            continue
        activation = plan.onward[end]
        least, most = (part.flatten(1).unsqueeze(2) for part in slopes[activation])
        if facts is not None:
            kind = plan.graph.nodes[activation].activation
            own = kind.slope_interval(facts.lower, facts.upper)
            # An entry that has won has a slope in both intervals; if these are apart it has not.
            inside = torch.maximum(least, own[0]), torch.minimum(most, own[1])
            meets = inside[0] <= inside[1]
            candidates = narrowed_candidates(candidates, meets)
            least, most = (
                torch.where(meets, part, whole)
                for part, whole in zip(inside, (least, most), strict=True)
            )
        found[end] = Routes(candidates, least, most)
    return found


def shaped(plan: Plan, parts: dict[int, Interval]) -> dict[int, Interval]:
    """Intervals [B, N] by node in the nodes' shapes."""
    nodes = plan.graph.nodes
    return {i: Interval(*(e.unflatten(1, nodes[i].shape) for e in p)) for i, p in parts.items()}


def entries_interval(plan: Plan, end: int, cotangent: Interval, routes: Routes) -> Interval:
    """Interval of what the cotangent [B, W] behind a maximum adds to its entries' node."""
    whole = Window.whole(cotangent.lower.reshape(1, -1, *plan.graph.nodes[end].shape))
    place = placement(plan, end, whole, forward=False)
    sums = (place.spread(part) for part in entry_cotangents(cotangent, routes))
    return Interval(*(place.window(total.unsqueeze(0)).full()[0] for total in sums))
