"""Programs of boxes: built from what bound propagation knows, solved and certified.

The steps are taken in float32 where the programs are large, twice as fast; the certificate is
always in float64, so the precision of the steps can cost tightness, nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.native.crown import RootBounds
from lipschitz.native.interval import Interval, slope_intervals
from lipschitz.native.memory import free_memory
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound
from lipschitz.sdp.certificate import certified_bound
from lipschitz.sdp.constraints import Multipliers
from lipschitz.sdp.interior_point import SolveOptions, Solver, solve
from lipschitz.sdp.program import Facts, Program, build_program
from lipschitz.sdp.warm import WarmStarts

# Above this size the steps are taken in float32.
_DOUBLE_UP_TO = 96
# Matrices of the size of the Schur complement that are alive at once.
_COPIES = 16
# Time of one step over that of one matrix product of its size, measured from N = 131 to 1419.
_PRODUCTS_PER_STEP = 30


@dataclass(frozen=True)
class Solved:
    """Certified bounds of B programs and what they were read off.

    Attributes:
        upper_bound: [B], in the dtype of the known bounds.
        program, multipliers: The programs and their solutions.
    """

    upper_bound: Tensor
    program: Program
    multipliers: Multipliers


def _working(program: Program, scale: Tensor) -> tuple[Program, Tensor]:
    """The programs in the precision of the steps, and positive numbers to divide by."""
    working = program.to(torch.float32) if program.size > _DOUBLE_UP_TO else program
    return working, scale.clamp(min=torch.finfo(torch.float32).tiny).to(working.objective)


def _certified(program: Program, multipliers: Multipliers, like: Tensor) -> Solved:
    multipliers = multipliers.to(torch.float64)
    # With signs fixed by splits the program's value may be negative; the norm is not.
    bound = certified_bound(program, multipliers).clamp(min=0).to(like.dtype)
    return Solved(raise_upper_bound(bound), program, multipliers)


def solve_boxes(
    problem: LocalProblem,
    facts: Facts,
    scale: Tensor,
    options: SolveOptions,
    starts: tuple[WarmStarts, Tensor] | None = None,
) -> Solved:
    """Semidefinite bounds of B boxes (class x subdomain) in one batch.

    Args:
        problem: The problem they belong to.
        facts: What bound propagation knows about them.
        scale: A bound of each that is known already, [B].
        options: When to stop; ``stop_below`` [B].
        starts: Remembered solutions, and the number of the one to begin each program from, [B].
    """
    program = build_program(problem.graph.double, facts, problem.norm)
    start = None if starts is None else starts[0].begin(starts[1], program)
    return _certified(program, solve(*_working(program, scale), options, start=start), scale)


class BoxSolver:
    """The program of one box, solved step by step, with a certified bound at any time.

    Args:
        problem: The problem the box belongs to.
        facts: What bound propagation knows about it, B = 1.
        scale: A bound that is known already, [1].
    """

    def __init__(self, problem: LocalProblem, facts: Facts, scale: Tensor) -> None:
        self.program = build_program(problem.graph.double, facts, problem.norm)
        self.upper_bound, self.steps = scale, 0
        self.solver = Solver(*_working(self.program, scale))

    def step(self) -> None:
        """One more step; the bound is certified anew where it may have become smaller."""
        self.solver.step()
        self.steps += 1
        if bool(self.solver.value * self.solver.scale < self.upper_bound):
            self.upper_bound = torch.minimum(self.upper_bound, self.solved.upper_bound)

    @property
    def solved(self) -> Solved:
        """The point that the steps have come to, certified."""
        return _certified(self.program, self.solver.point, self.upper_bound)

    def is_done(self, options: SolveOptions) -> bool:
        """Whether more steps promise nothing."""
        stopped = bool(self.solver.stuck) or self.steps >= options.iterations
        return stopped or float(self.solver.gap) <= options.tolerance


def root_facts(problem: LocalProblem, root: RootBounds, rows: Tensor) -> Facts:
    """What the root bounds say about some rows of the problem, ``rows`` [B] integers."""

    def chosen(interval: Interval) -> Interval:
        return Interval(*(end if len(end) == 1 else end[rows] for end in interval))

    slopes = slope_intervals(problem.graph, root.preacts)
    cotangents = {i: chosen(c) for i, c in root.norm.cotangents.items()}
    return Facts(
        problem.rows[rows],
        slopes,
        cotangents,
        chosen(root.norm.entries),
        counted=problem.measure.free,
    )


def largest_size(problem: LocalProblem, root: RootBounds) -> int:
    """N of the problem's programs, if every entry's sign is open."""
    slopes = slope_intervals(problem.graph, root.preacts)
    open_slopes = sum(int((s.lower < s.upper).sum()) for s in slopes.values())
    return 1 + problem.centre.numel() + open_slopes


def programs_at_once(problem: LocalProblem, root: RootBounds) -> int:
    """How many programs of this problem fit into memory together; 0 if not even one does."""
    size = largest_size(problem, root)
    largest = max(node.shape.numel() for node in problem.graph.nodes)
    numbers = _COPIES * (2 * size) ** 2 + 4 * size * largest
    return free_memory(problem.graph.device) // 2 // (8 * numbers)


def seconds_per_step(problem: LocalProblem, root: RootBounds) -> float:
    """What one step of a program will take, judged by one matrix product of its size."""
    size = largest_size(problem, root)
    matrix = torch.ones(size, size, device=problem.graph.device)
    seconds = 0.0
    for _ in range(2):  # the first call may set things up
        begin = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        seconds = time.perf_counter() - begin
    return _PRODUCTS_PER_STEP * seconds
