"""Bounds of single Jacobian entries and of directional derivatives of one problem.

The relaxations are those of the norm (Shi et al. 2022, sections 3.2 and 3.3), without its last
step, the chords of ``|J_i|``; the result has a margin against rounding and keeps every sign that
the network's structure proves (:mod:`lipschitz.bounds.native.backward.path_sums`). Where
activations are curved, planes (:mod:`lipschitz.bounds.native.plane_rows`) narrow it; where the
network has products of two values, planes are all there is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.methods import require_engine
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.backward.cotangent_pass import cotangent_upper_bound
from lipschitz.bounds.native.backward.path_sums import PathSums
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import Interval, intersect, jacobian_interval, slope_intervals
from lipschitz.bounds.native.lines import product_lines
from lipschitz.bounds.native.memory.budget import default_memory_budget, row_chunks, take
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.plane_rows import ProblemPlanes
from lipschitz.bounds.native.root import RootBounds
from lipschitz.errors import InputError, suggest
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard
from lipschitz.words import ENGINES


def root_bounds(
    problem: LocalProblem, engine: str, *, optimize: bool, clock: Clock = UNLIMITED
) -> RootBounds:
    """Bounds of pre-activations, cotangents and entries by the named engine, by chords.

    Args:
        problem: What to bound.
        engine: ``native`` or ``auto_lirpa``.
        optimize: Optimise the slopes of pre-activation bounds.
        clock: When to stop.

    Raises:
        InputError: No such engine.
    """
    if not isinstance(engine, str) or engine not in ENGINES:
        close = suggest(str(engine), ENGINES)
        raise InputError(f"unknown engine {engine!r}{close}; use {' or '.join(ENGINES)}")
    require_engine(engine)
    if engine == "auto_lirpa":
        from lipschitz.bounds.lirpa.bounds import LirpaEngine  # its package is optional

        return LirpaEngine(problem.graph).crown(problem, optimize=optimize, clock=clock)
    if optimize:
        return native_alpha(problem, clock=clock, planes=False)
    return native_crown(problem, clock=clock)


@torch.no_grad()
def certified_entries(
    problem: LocalProblem, root: RootBounds, *, planes: ProblemPlanes | None = None
) -> Interval:
    """Entry intervals of the root, those of interval arithmetic if tighter, with a margin.

    Args:
        problem: What to bound.
        root: Its root bounds.
        planes: Narrow the intervals, if given.

    Returns:
        [R, *input_shape].
    """
    if problem.graph.product_nodes:
        found = root.norm.entries
    else:
        slopes = slope_intervals(problem.graph, root.preacts)
        plain = jacobian_interval(problem.graph, problem.rows, slopes)
        sums = PathSums(problem.graph)(problem.rows, slopes, root.norm.cotangents)
        found = sums.enclose(intersect(root.norm.entries, plain))
    return found if planes is None else narrowed(found, planes.entries())


def narrowed(bounds: Interval, planes: Interval) -> Interval:
    """Certified bounds within others that are certified too, margins included in both.

    A bound by planes that is not a number, where something overflows, says nothing.
    """
    return Interval(
        torch.fmax(bounds.lower, planes.lower) + 0.0,  # no -0.
        torch.fmin(bounds.upper, planes.upper) + 0.0,
    )


@torch.no_grad()
def certified_products(
    problem: LocalProblem,
    root: RootBounds,
    vectors: Tensor,
    *,
    planes: ProblemPlanes | None = None,
) -> Interval:
    """Intervals of ``(J(x)^T row) . v`` for every row and vector, with a margin.

    Args:
        problem: What to bound.
        root: Its root bounds.
        vectors: [V, *input_shape].
        planes: Narrow the intervals, if given, by rows of their own.

    Returns:
        [R, V].
    """
    flat = vectors.flatten(1)
    entries = [end.flatten(1) for end in certified_entries(problem, root)]
    plus, minus = flat.clamp(min=0).T, flat.clamp(max=0).T
    found = Interval(entries[0] @ plus + entries[1] @ minus, entries[1] @ plus + entries[0] @ minus)
    if problem.graph.product_nodes:
        size = torch.maximum(entries[0].abs(), entries[1].abs()) @ flat.abs().T
        margin = guard(size.dtype) * size
        found = Interval(found.lower - margin, found.upper + margin)
    else:
        slopes = slope_intervals(problem.graph, root.preacts)
        found = intersect(found, _by_chords(problem, root, slopes, vectors))
        sums = PathSums(problem.graph)(problem.rows, slopes, root.norm.cotangents)
        found = sums.each(lambda t: t.flatten(1)).along(flat).enclose(found)
    return found if planes is None else narrowed(found, planes.along(vectors))


def _by_chords(
    problem: LocalProblem, root: RootBounds, slopes: dict[int, Interval], vectors: Tensor
) -> Interval:
    """A row of its own for both ends of every ``(J(x)^T row) . v``, without margin, [R, V]."""
    plan, rows = Plan(problem.graph), problem.rows
    lines = {i: product_lines(g, slopes[i]) for i, g in root.norm.cotangents.items()}
    upper = rows.new_empty(len(rows), len(vectors))
    lower = torch.empty_like(upper)
    budget = default_memory_budget(rows.device)
    for part, chosen in row_chunks(
        len(rows), len(vectors), plan.largest, budget, rows.element_size()
    ):
        both = torch.cat([vectors[chosen], -vectors[chosen]]).unsqueeze(0)
        cut = {i: line.take(part) for i, line in lines.items()}
        found = cotangent_upper_bound(plan, 0, both, cut, take(rows, part))
        above, below = found.chunk(2, dim=1)
        upper[part, chosen], lower[part, chosen] = above, -below
    return Interval(lower, upper)


def checked(bounds: Interval) -> Interval:
    """The bounds, refused if they are no bounds.

    Raises:
        InputError: One is NaN or infinite.
        ArithmeticError: They cross.
    """
    if not bool((torch.isfinite(bounds.lower) & torch.isfinite(bounds.upper)).all()):
        raise InputError(
            "a bound is not a finite number: the network's values overflow on this box; use "
            "dtype=torch.float64 or a smaller box"
        )
    if bool((bounds.lower > bounds.upper).any()):
        raise ArithmeticError("bounds cross by more than rounding explains; try torch.float64")
    return bounds
