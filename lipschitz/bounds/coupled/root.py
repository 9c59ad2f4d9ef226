"""Root bounds from pre-activation intervals that keep the neurons of a layer together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.coupled.certificate import proved_bounds
from lipschitz.bounds.coupled.chain import Layer, read_chain
from lipschitz.bounds.coupled.descent import RANK, Descent
from lipschitz.bounds.coupled.elementwise import Grid, Parts, grid_of, parts_of
from lipschitz.bounds.native.crown import root_bounds
from lipschitz.bounds.native.interval import Interval, intersect
from lipschitz.bounds.native.joint import with_planes
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.native.rows import needed_indices
from lipschitz.problem import LocalProblem
from lipschitz.rounding import rounded_up

STAGE = "coupled pre-activation bounds"
# Steps of the descent. A choice: more cost time, fewer tightness.
_STEPS = 80
# Places of a neuron's interval that the descent looks at.
_PLACES = 24
# Numbers of the largest tensor of one chunk of rows (32 MB in float32). A choice.
_CHUNK = 2**23
# Rows of the first chunk where the time is limited, from which the time of others is judged.
_FIRST_ROWS = 8
# Part of the time that the intervals may take; the rest is for the bound that they lead to.
_SHARE_OF_INTERVALS = 0.75


@torch.no_grad()
def coupled_root(
    problem: LocalProblem,
    root: RootBounds,
    *,
    memory_budget: int | None = None,
    clock: Clock = UNLIMITED,
) -> RootBounds:
    """The root bounds with narrower pre-activation intervals, where the network is a chain.

    Args:
        problem: What to bound.
        root: Its bounds so far.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop. Rows not reached keep their intervals.

    Returns:
        Bounds that are nowhere above those given; the very same where nothing is gained, or the
        network is no chain of layers small enough for matrices.
    """
    if problem.graph.product_nodes:
        return root
    plan = Plan(problem.graph)
    layers = read_chain(problem, plan)
    if layers is None or len(layers) < 2:
        return root
    preacts = coupled_preactivations(layers, root, clock.part(_SHARE_OF_INTERVALS))
    if preacts is root.preacts or clock.is_over:
        return root
    budget = memory_budget or default_memory_budget(problem.graph.device)
    found = root_bounds(
        plan, problem, preacts, root.rounding, budget=budget, tighten=True, clock=clock
    )
    found = with_planes(problem, found, memory_budget=memory_budget, clock=clock)
    bounds = torch.fmin(found.class_upper_bounds, root.class_upper_bounds)
    return replace(found, class_upper_bounds=bounds)


def coupled_preactivations(
    layers: list[Layer], root: RootBounds, clock: Clock = UNLIMITED
) -> dict[int, Interval]:
    """Pre-activation intervals, nowhere wider than the root's.

    Args:
        layers: The network.
        root: Its intervals so far, [1, *shape].
        clock: When to stop.

    Returns:
        Interval by activation node, in the dtype of the root; the root's own dictionary where none
        became narrower.
    """
    preacts, before = dict(root.preacts), root.preacts
    grids: list[Grid] = []
    parts: list[Parts] = []
    for number, layer in enumerate(layers):
        if number:
            # A row costs about as much in every layer behind it.
            later = sum(range(number, len(layers)))
            part = clock.part(number / later)
            found = _narrowed(layers[: number + 1], preacts[layer.node], grids, parts, root, part)
            if found is not None:
                preacts = {**preacts, layer.node: found}
        interval = Interval(*(end.double().flatten() for end in preacts[layer.node]))
        grids.append(grid_of(layer, interval, _PLACES, torch.float32))
        parts.append(parts_of(layer, interval))
    same = all(preacts[node] is before[node] for node in before)
    return root.preacts if same else preacts


def _narrowed(
    layers: list[Layer],
    known: Interval,
    grids: list[Grid],
    parts: list[Parts],
    root: RootBounds,
    clock: Clock,
) -> Interval | None:
    """The interval of the last layer's pre-activations; None if nothing was reached or gained."""
    layer = layers[-1]
    indices = needed_indices(layer.activation.is_open(*known))
    if not len(indices):
        return None
    matrices = _in_units(layers[:-1], grids)
    single = [matrix.float() for matrix in matrices]
    lower, upper = (end.double().flatten() for end in known)
    lower, upper = lower.clone(), upper.clone()
    widest = max(len(m[0]) for m in matrices)
    most = max(1, _CHUNK // (2 * RANK * widest))
    generator = torch.Generator().manual_seed(0)
    margin = root.rounding[layer.node].flatten()
    is_reached = False
    for chunk in clock.growing(len(indices), _FIRST_ROWS, most, STAGE):
        some = indices[chunk]
        width = (upper - lower)[some]
        both = torch.cat([layer.matrix[some], -layer.matrix[some]])
        unit = torch.cat([width, width]).unsqueeze(1)
        rows = both * grids[-1].value_unit / unit
        descent = Descent(grids, single, rows.float(), generator)
        descent.go_on(_STEPS)
        bound = proved_bounds(descent.layers, matrices, grids, parts, rows) * unit[:, 0]
        above, below = bound.chunk(2)
        centre = layer.centre[some]
        room = margin.double()[some] + 1e-10 * centre.abs()
        upper[some] = torch.fmin(upper[some], centre + above + room)
        lower[some] = torch.fmax(lower[some], centre - below - room)
        is_reached = True
    if not is_reached:
        return None
    shape, dtype = known.lower.shape, known.lower.dtype
    ends = -rounded_up(-lower, dtype), rounded_up(upper, dtype)
    return intersect(known, Interval(*(end.reshape(shape) for end in ends)))


def _in_units(layers: list[Layer], grids: list[Grid]) -> list[Tensor]:
    """Matrices from units of one layer's values to units of the next one's pre-activations."""
    found = []
    for number, (layer, grid) in enumerate(zip(layers, grids, strict=True)):
        matrix = layer.matrix / grid.preact_unit.unsqueeze(1)
        found.append(matrix if number == 0 else matrix * grids[number - 1].value_unit)
    return found
