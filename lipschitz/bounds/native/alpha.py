"""Root bounds with optimised slopes, layer by layer, for the Jacobian's norm.

The backward relaxation has no free slopes: the chords of ``h = g * s`` are the tightest lines there
are, and for ReLU they depend on the pre-activations only through which neurons are stable. So what
slopes can do for the norm is to make pre-activation intervals as tight as possible; a tighter
interval is better for everything behind it, hence each layer is optimised once, in forward order,
every row for itself, with all earlier intervals already at their tightest. (Optimising all layers
jointly for the output, as alpha-CROWN does, has the same limit and pays for all layers at every
step.) Where activations are curved, planes that keep what a slope has to do with the input come
last (:mod:`lipschitz.bounds.native.joint`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.spectral import spectral_bounds
from lipschitz.bounds.native.crown import root_bounds
from lipschitz.bounds.native.forward.maxima import (
    entries_of,
    narrowed_facts,
    settle_maximum,
)
from lipschitz.bounds.native.forward.preactivations import preactivation_bounds
from lipschitz.bounds.native.interval import Interval, forward_intervals, intersect, slope_intervals
from lipschitz.bounds.native.joint import with_planes
from lipschitz.bounds.native.lines import Lines
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.memory.depth import value_depth
from lipschitz.bounds.native.plan import Exactness, Plan
from lipschitz.bounds.native.pool_bounds import WindowFacts
from lipschitz.bounds.native.pool_lines import MaximumLines
from lipschitz.bounds.native.products import product_bounds
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.bounds.native.slopes.optimise import (
    STAGE,
    Maximum,
    SlopeSearch,
    optimised_preactivation_rows,
)
from lipschitz.bounds.native.terms.gradient import has_curves
from lipschitz.bounds.native.terms.linear import PlaneSearch
from lipschitz.problem import LocalProblem

# Most of the time limit that plain CROWN of the pre-activations may take; the rest is for slopes
# and the Jacobian. A choice: it matters only where the limit is too short for all of them.
_SHARE_OF_PLAIN = 0.6
# Where a first search of planes leaves the bound by more than this share above gradients at a few
# points of the box, a longer one follows, which optimises the intervals of cotangents too. Measured
# on a sigmoid MLP of width 100 with one input: the bound over the truth fell from 2.28 to 1.99 on a
# wide box and from 1.31 to 1.15 on a smaller one, for about ten times the seconds.
_WORTH_MORE = 0.01
_LONGER = PlaneSearch(steps=60, patience=10, cotangent_steps=15)


@torch.no_grad()
def native_alpha(
    problem: LocalProblem,
    *,
    search: SlopeSearch | None = None,
    memory_budget: int | None = None,
    clock: Clock = UNLIMITED,
    progress: Callable[[str], None] | None = None,
    planes: bool = True,
) -> RootBounds:
    """Upper bound of the problem's norm over the box, with optimised slopes.

    Never above :func:`lipschitz.bounds.native.crown.native_crown` but for rounding: every interval
    is intersected with plain CROWN's and with interval arithmetic's, and with narrower intervals
    the backward relaxation, which CROWN solves exactly, has fewer solutions.

    Args:
        problem: What to bound.
        search: How slopes are optimised; the default if None.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop; slopes are left as they are after half of the time, or where it would
            not suffice for plain CROWN besides. What was not reached is as loose as interval
            arithmetic, and the bounds are never above those of interval arithmetic.
        progress: Gets one line per layer.
        planes: Bound the norm by planes where activations are curved.

    Returns:
        The bounds, in the dtype of the problem.
    """
    if problem.graph.product_nodes:
        return product_bounds(problem, search=_LONGER, memory_budget=memory_budget, clock=clock)
    search = search or SlopeSearch()
    plan = Plan(problem.graph)
    budget = memory_budget or default_memory_budget(problem.graph.device)
    lower, upper = problem.lower[None], problem.upper[None]
    intervals = forward_intervals(problem.graph, lower, upper)
    optimising, begin = clock.part(0.5), clock.now() if clock.is_limited else 0.0
    plain_windows: dict[int, WindowFacts] = {}
    plain = preactivation_bounds(
        plan,
        lower,
        upper,
        intervals,
        budget=budget,
        clock=clock.part(_SHARE_OF_PLAIN),
        windows=plain_windows,
    )
    margins = {i: intervals.rounding[plan.preact_node(i)] for i in plan.activations}
    # Time for the Jacobian is set aside first, since its bounds are worth more than better slopes.
    # For every output they need about as many rows as plain CROWN of the pre-activations did.
    reserve = clock.before(len(problem.rows) * (clock.now() - begin)) if clock.is_limited else clock
    optimising = reserve if optimising.ends_after(reserve) else optimising
    is_cut = bool(clock.missed)
    loose = {
        a
        for a in plan.activations
        if plan.value_exactness[plan.preact_node(a)] is Exactness.LOOSE
        and (a not in plan.tree or a == plan.pools[plan.tree[a]].levels[0].activation)
    }
    if is_cut:
        clock.miss(STAGE)
    # Slopes of layers for which that takes too long are left as they are.
    passes = {a: 2 * search.steps * int(_open(problem, plain, a).sum()) for a in loose}
    searches = value_depth(plan, passes, 1, optimising)
    for activation in searches.horizons if searches.for_time and not is_cut else ():
        clock.miss(STAGE, plan.layer(activation))
    chosen = loose - set(searches.horizons)
    preacts: dict[int, Interval] = {}
    windows: dict[int, WindowFacts] = {}
    maxima: dict[int, Maximum] = {}

    def optimised_rows(node: int, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Rows of an activation's or a maximum's node, with all that is known before it."""
        return optimised_preactivation_rows(
            plan,
            node,
            first,
            preacts,
            margins,
            lower,
            upper,
            search,
            budget=budget,
            clock=optimising,
            maxima=maxima,
            second=second,
        )

    for activation in plan.activations:
        if activation in preacts:  # of a maximum's tree
            continue
        if activation in plan.tree:
            end = plan.tree[activation]
            of = plan.pools[end].of
            windows[end] = plain_windows[end]
            dear = activation in searches.horizons
            if not is_cut and not dear and plan.value_exactness[of] is Exactness.LOOSE:
                rows_of = partial(optimised_rows, end)
                value = entries_of(plan, end, intervals, preacts)
                margin = intervals.rounding[of]
                windows[end] = narrowed_facts(
                    plan.pools[end], plain_windows[end], value, margin, rows_of
                )
            lines: dict[int, Lines | MaximumLines] = {}
            candidates = settle_maximum(plan, end, windows[end], intervals, preacts, lines)
            maxima[end] = Maximum(lines[end], candidates)
            continue
        node = plan.preact_node(activation)
        bounds = intersect(intervals.bounds[node], plain[activation])
        is_open = problem.graph.nodes[activation].activation.is_open
        mask = is_open(*bounds)
        before = int(mask.sum())
        if before and not is_cut and activation in chosen:
            indices = needed_indices(mask)
            rows = optimised_rows(activation, indices)
            rows = rows + margins[activation].flatten(1)[:, indices]
            bounds = intersect(bounds, place(bounds, rows, indices, mask))
            if progress is not None:
                left = int(is_open(*bounds).sum())
                progress(f"{problem.graph.nodes[activation].name}: {left} of {before} unstable")
        preacts[activation] = bounds
    found = root_bounds(
        plan,
        problem,
        preacts,
        margins,
        budget=budget,
        tighten=True,
        clock=clock,
        windows=windows,
    )
    if problem.norm == "2" and not clock.is_over:
        # Spectral bounds may be lower with plain CROWN's wider intervals, so these are tried too.
        around = spectral_bounds(plan, problem, slope_intervals(problem.graph, plain), {})
        around = torch.minimum(found.class_upper_bounds, around)
        found = replace(found, class_upper_bounds=around)
    if not planes:
        return found
    found = with_planes(problem, found, memory_budget=memory_budget, clock=clock)
    if not has_curves(problem.graph) or not _is_loose(problem, found) or clock.is_over:
        return found
    return with_planes(problem, found, search=_LONGER, memory_budget=memory_budget, clock=clock)


def _open(problem: LocalProblem, preacts: dict[int, Interval], activation: int) -> Tensor:
    """Which neurons of an activation are open in the box."""
    return problem.graph.nodes[activation].activation.is_open(*preacts[activation])


def _is_loose(problem: LocalProblem, root: RootBounds) -> bool:
    """Whether the bound is well above the gradients in the middle and at two corners of the box."""
    points = torch.stack([problem.centre, problem.lower, problem.upper])
    count, rows = len(points), problem.rows
    points = points.repeat_interleave(len(rows), 0)
    gradients = problem.graph.gradients(points, rows.repeat(count, 1)).flatten(1)
    norms = problem.measure(gradients.unflatten(0, (count, len(rows))))
    return bool(root.class_upper_bounds.max() > (1 + _WORTH_MORE) * norms.max())
