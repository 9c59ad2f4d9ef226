"""How far rows go, where going all the way would take too long.

The rows of deep networks with many neurons that need one cost about the square of the network: each
goes through all layers before it (or behind it, in the Jacobian). Where that is more than an
allowance, the rows of the dearest layers end earlier, at a *horizon*: at the nodes there the
intervals are known already, and a row's largest value over them is a bound too, looser than that
over the input but tighter than interval arithmetic, which ends after one step. All layers share one
limit of work, so cheap layers keep all of their depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native.memory.effort import (
    Estimate,
    Extent,
    cotangent_effort,
    value_effort,
)
from lipschitz.bounds.native.plan import Plan

# Largest work, in multiplications, of all rows of values, and of all of cotangents: on one core
# about one minute, and two. A GPU is taken to be a hundred times as fast. A choice: no network of
# the paper reaches it, torchvision's resnet18 does.
_ALLOWANCE = {"cpu": 2.5e12, "cuda": 2.5e14}
_COTANGENTS = 2
# Multiplications a second that a limited time is taken to be good for, on one core; a GPU as above.
# Measured: 2e10 to 5e10.
_RATE = {"cpu": 4e10, "cuda": 4e12}
# Positions of a window from which the work of a layer's rows is judged, in each dimension.
_TILE = 2


class Depth(NamedTuple):
    """Where the rows of each layer end.

    Attributes:
        horizons: Node at which rows end early, by layer.
        work: Multiplications that the rows are expected to take, by layer.
        for_time: Whether rows end early because the time is short.
    """

    horizons: dict[int, int]
    work: dict[int, float]
    for_time: bool = False


def value_depth(plan: Plan, rows: dict[int, int], batch: int, clock: Clock) -> Depth:
    """Where rows of pre-activations end, for those that do not go to the input.

    Args:
        plan: The graph.
        rows: How many there will be, by activation node.
        batch: Boxes.
        clock: When to stop.

    Returns:
        By activation node; a horizon is the last node at which rows end.
    """

    def ends(activation: int) -> Iterable[int]:
        node = plan.preact_node(activation)
        return (a for a in plan.activations if a < node)

    starts = {a: plan.preact_node(a) for a in rows}
    return _depth(plan, starts, rows, ends, batch, value_effort, clock, 1)


def cotangent_depth(plan: Plan, rows: dict[int, int], batch: int, clock: Clock) -> Depth:
    """The same of cotangents, by their node; a horizon is the first node at which rows end."""

    def ends(node: int) -> Iterable[int]:
        later = [a for a in reversed(plan.activations) if a > node]
        return (p for p in map(plan.preact_node, later) if p > node)

    starts = {node: node for node in rows}
    return _depth(plan, starts, rows, ends, batch, cotangent_effort, clock, _COTANGENTS)


def _depth(
    plan: Plan,
    starts: dict[int, int],
    rows: dict[int, int],
    ends: Callable[[int], Iterable[int]],
    batch: int,
    estimate: Estimate,
    clock: Clock,
    share: float,
) -> Depth:
    """Depth by the keys of ``starts``; ``ends`` gives the horizons of a key, the farthest first."""

    def work(key: int, horizon: int | None) -> float:
        shape = plan.graph.nodes[starts[key]].shape
        sizes = tuple(min(_TILE, size) for size in shape[1:])
        middle = tuple((s - t) // 2 for s, t in zip(shape[1:], sizes, strict=True))
        effort = estimate(plan, starts[key], Extent.at(shape, (middle, sizes)), horizon)
        return 2 * batch * rows[key] * effort.per_row

    full = {key: work(key, None) for key in starts if rows[key]}
    kind = "cuda" if plan.graph.device.type == "cuda" else "cpu"
    allowed, in_time = share * _ALLOWANCE[kind], clock.left * _RATE[kind]
    for_time, allowed = in_time < min(allowed, sum(full.values())), min(allowed, in_time)
    if sum(full.values()) <= allowed:
        return Depth({}, full)
    limit, horizons = _level(list(full.values()), allowed), {}
    for key in [key for key, total in full.items() if total > limit]:
        for horizon in ends(key):
            horizons[key], full[key] = horizon, work(key, horizon)
            if full[key] <= limit:
                break
    return Depth(horizons, full, for_time)


def _level(amounts: list[float], total: float) -> float:
    """The level to which amounts are cut so that they sum to a total below their sum."""
    left = len(amounts)
    for amount in sorted(amounts):
        if amount * left >= total:
            return total / left
        total, left = total - amount, left - 1
    return max(amounts)
