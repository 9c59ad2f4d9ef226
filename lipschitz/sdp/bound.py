"""The method ``sdp``: the semidefinite bound of a whole problem.

Method card
    Needs: intervals from bound propagation; any network of this package.
    Returns: an upper bound per output, never above the linear bound with optimised slopes
        (``alpha``), and a lower bound with a witness.
    Idea: the Jacobian's norm as a quadratic program in the signs of its entries and the uncertain
        slopes, relaxed to a semidefinite program over products of intervals
        (:mod:`lipschitz.sdp.program`), solved by an interior-point method
        (:mod:`lipschitz.sdp.interior_point`).
    Sound: every value is the dual bound of the multipliers at hand, computed anew and proved in
        float64 (:mod:`lipschitz.sdp.certificate`). Exact: rarely; on wide boxes within a few per
        cent, where linear bounds are off by factors.
    Reference: quadratic relaxations of ReLU gradients as in Raghunathan, Steinhardt and Liang 2018
        (one hidden layer, global), Chen, Lasserre, Magron and Pauwels 2020 and Wang et al. 2022
        (GeoLIP); local boxes, several layers, convolutions and the McCormick products are ours.

Outputs are bounded in the order of their linear bounds; one whose bound is below a true gradient
of another cannot hold the maximum and is left where it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.baselines.outcome import Outcome, better
from lipschitz.lower_bound import GradientNorms, Sampling, sample_gradients
from lipschitz.native.alpha import native_alpha
from lipschitz.native.crown import RootBounds
from lipschitz.native.interval import Interval, slope_intervals
from lipschitz.native.memory import default_memory_budget
from lipschitz.problem import BOUND, INTERRUPTED, TIMEOUT, LocalProblem
from lipschitz.rounding import raise_upper_bound
from lipschitz.sdp.certificate import certified_bound
from lipschitz.sdp.interior_point import Multipliers, SolveOptions, solve
from lipschitz.sdp.program import Facts, Program, build_program
from lipschitz.sdp.recovery import points_to_try

# Above this size the steps are taken in float32, twice as fast; the certificate is in float64.
_DOUBLE_UP_TO = 96
# Matrices of the size of the Schur complement that are alive at once.
_COPIES = 16
# Time of a program over that of one matrix product of its size, measured from N = 131 to 1419.
_PRODUCTS_PER_PROGRAM = 400


@dataclass(frozen=True)
class SdpOptions:
    """How hard to try.

    Attributes:
        timeout: Seconds for the whole problem.
        tolerance: Relative gap between dual and primal value at which a program is done.
        iterations: Steps per program, at most.
        memory_budget: Bytes for the programs solved at once; a part of what is free if None.
        seed: Seed of the sampled points.
    """

    timeout: float = 60.0
    tolerance: float = 1e-3
    iterations: int = 40
    memory_budget: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Solved:
    """Certified bounds of B programs and what they were read off.

    Attributes:
        upper_bound: [B], in the dtype of the facts.
        program, multipliers: The programs and their solutions.
    """

    upper_bound: Tensor
    program: Program
    multipliers: Multipliers


def solve_boxes(
    problem: LocalProblem,
    facts: Facts,
    scale: Tensor,
    options: SolveOptions,
    norm: str = "inf",
) -> Solved:
    """Semidefinite bounds of B boxes (class x subdomain) in one batch.

    Args:
        problem: The problem they belong to.
        facts: What bound propagation knows about them.
        scale: A bound of each that is known already, [B].
        options: When to stop; ``stop_below`` [B].
        norm: ``inf`` or ``2``.
    """
    program = build_program(problem.graph.double, facts, norm)
    working = program.to(torch.float32) if program.size > _DOUBLE_UP_TO else program
    positive = scale.clamp(min=torch.finfo(torch.float32).tiny).to(working.objective)
    found = solve(working, positive, options)
    multipliers = found.to(torch.float64)
    bound = certified_bound(program, multipliers).to(scale.dtype)
    return Solved(raise_upper_bound(bound), program, multipliers)


def root_facts(problem: LocalProblem, root: RootBounds, rows: Tensor) -> Facts:
    """What the root bounds say about some rows of the problem, ``rows`` [B] integers."""

    def chosen(interval: Interval) -> Interval:
        return Interval(*(end if len(end) == 1 else end[rows] for end in interval))

    slopes = slope_intervals(problem.graph, root.preacts)
    cotangents = {i: chosen(c) for i, c in root.norm.cotangents.items()}
    return Facts(problem.rows[rows], slopes, cotangents, chosen(root.norm.entries))


def expected_seconds(problem: LocalProblem, root: RootBounds) -> float:
    """What one program of this problem will take, judged by one matrix product of its size."""
    size = _largest_size(problem, root)
    if 8 * size**2 * _COPIES > default_memory_budget(problem.graph.device):
        return float("inf")
    matrix = torch.ones(size, size, device=problem.graph.device)
    times = []
    for _ in range(2):  # the first call may set things up
        begin = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        times.append(time.perf_counter() - begin)
    return _PRODUCTS_PER_PROGRAM * times[-1]


def _largest_size(problem: LocalProblem, root: RootBounds) -> int:
    slopes = slope_intervals(problem.graph, root.preacts)
    open_slopes = sum(int((s.lower < s.upper).sum()) for s in slopes.values())
    return 1 + problem.centre.numel() + open_slopes


def rows_at_once(problem: LocalProblem, root: RootBounds, memory_budget: int | None) -> int:
    """How many programs of this problem fit into memory together."""
    size = _largest_size(problem, root)
    budget = memory_budget or default_memory_budget(problem.graph.device)
    largest = max(node.shape.numel() for node in problem.graph.nodes)
    numbers = _COPIES * (2 * size) ** 2 + 4 * size * largest
    return max(1, budget // (8 * numbers))


@torch.no_grad()
def sdp_bounds(problem: LocalProblem, options: SdpOptions | None = None) -> Outcome:
    """Upper bounds of ``||J(x)^T r||_1`` over the box by the semidefinite program.

    Ctrl-C and the time limit return the bounds certified so far.

    Args:
        problem: What to bound, R rows.
        options: How hard to try.
    """
    options = options or SdpOptions()
    begin = time.monotonic()
    deadline = begin + options.timeout
    root = native_alpha(
        problem, memory_budget=options.memory_budget, deadline=begin + options.timeout / 2
    )
    found = sample_gradients(problem, Sampling(seed=options.seed))
    bounds = root.class_upper_bounds.clone()
    status = BOUND
    try:
        for rows in _in_order(problem, root, found, options):
            if time.monotonic() > deadline:
                status = TIMEOUT
                break
            rows = rows[bounds[rows] > found.norms.max() * (1 + options.tolerance / 10)]
            if not len(rows):
                continue
            limits = SolveOptions(
                options.tolerance,
                options.iterations,
                deadline,
                found.norms.max().double().expand(len(rows)),
            )
            solved = solve_boxes(problem, root_facts(problem, root, rows), bounds[rows], limits)
            bounds[rows] = torch.minimum(bounds[rows], solved.upper_bound)
            found = better(found, _climb(problem, solved, rows, found, options))
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == BOUND and time.monotonic() > deadline:
        status = TIMEOUT
    return Outcome(bounds, found, root.class_upper_bounds, status)


def _in_order(
    problem: LocalProblem, root: RootBounds, found: GradientNorms, options: SdpOptions
) -> list[Tensor]:
    """Rows to bound, the largest linear bounds first, in groups that fit into memory."""
    order = root.class_upper_bounds.argsort(descending=True)
    order = order[root.class_upper_bounds[order] > found.norms.max()]
    count = rows_at_once(problem, root, options.memory_budget)
    # The first alone: what it finds may rule out others.
    return [order[:1], *order[1:].split(min(count, 8))] if len(order) else []


def _climb(
    problem: LocalProblem,
    solved: Solved,
    rows: Tensor,
    found: GradientNorms,
    options: SdpOptions,
) -> GradientNorms:
    """True gradients near the points that the solutions suggest, all rows of the problem."""
    points = points_to_try(problem, solved.program, solved.multipliers)
    some = replace(
        problem, rows=problem.rows[rows], row_names=tuple(problem.row_names[i] for i in rows)
    )
    climbed = sample_gradients(some, Sampling(num_random=1, seed=options.seed), starts=points)
    norms, witnesses = found.norms.clone(), found.witnesses.clone()
    norms[rows], witnesses[rows] = climbed.norms, climbed.witnesses
    return GradientNorms(norms, witnesses)
