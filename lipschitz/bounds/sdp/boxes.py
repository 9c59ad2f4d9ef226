"""Programs of boxes: built from what bound propagation knows, solved and certified.

The sweeps are in float32 where the programs are large, twice as fast; the certificate is always in
float64, so the precision of the sweeps can cost tightness, nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.interval import Interval, slope_intervals
from lipschitz.bounds.native.memory.budget import free_memory
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.sdp.certificate import certified_bound
from lipschitz.bounds.sdp.program import Facts, Program, build_program
from lipschitz.bounds.sdp.sweeps import Sweeps, rank_for
from lipschitz.bounds.sdp.warm import WarmStarts
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound

# Variables above which the sweeps are in float32. A choice: the certificate is in float64 anyway.
_DOUBLE_UP_TO = 96
# Float64 matrices of a program's size that are alive at once: an estimate, for what fits in memory.
_COPIES = 6
# Seconds of a program over those of one matrix product of its size, measured on programs of 1,419
# and 4,140 variables. The product is timed on this machine, at the size below at most, and scaled
# up.
_PRODUCTS_PER_PROGRAM = 1.4
_MEASURED_SIZE = 512


@dataclass(frozen=True)
class Effort:
    """How hard to try.

    Attributes:
        tolerance: Gap between certified bound and the value of the vectors, relative to the bound,
            at which a program is done.
        sweeps: At most so many.
        clock: When to stop.
        certificate: Seconds to keep for the first certificate; what later ones take is measured.
    """

    tolerance: float = 1e-3
    sweeps: int = 500
    clock: Clock = UNLIMITED
    certificate: float = 0.0


# Sweeps before the first certificate; their number doubles before each further one. A certificate
# costs the cube of the size, so a large program is certified after more of them. Choices: only
# speed depends on them.
_FEWEST_SWEEPS, _VARIABLES_PER_SWEEP = 12, 20


@dataclass(frozen=True)
class Solved:
    """Certified bounds of B programs and what they were read off.

    Attributes:
        upper_bound: [B], in the dtype of the known bounds.
        gap: What the solver may have left: the part of the bound that lies above the norm that the
            vectors stand for; but for rounding the program's optimum is not below that, [B].
        program: The programs, in float64.
        sweeps: The vectors.
    """

    upper_bound: Tensor
    gap: Tensor
    program: Program
    sweeps: Sweeps


@torch.no_grad()
def solve_boxes(
    problem: LocalProblem,
    facts: Facts,
    known: Tensor,
    effort: Effort,
    starts: WarmStarts,
    numbers: Tensor,
) -> Solved:
    """Semidefinite bounds of B boxes (class x subdomain) in one batch.

    Args:
        problem: The problem they belong to.
        facts: What bound propagation knows about them.
        known: A bound of each that is known already, [B].
        effort: How hard to try.
        starts: Remembered solutions.
        numbers: The one to begin each program from, [B].
    """
    program = build_program(problem.graph.double, facts, problem.norm)
    size = int(program.sizes.max())
    working = program.to(torch.float32) if size > _DOUBLE_UP_TO else program
    sweeps = Sweeps(working, starts.rank, starts.begin(numbers, working))
    bound, count = (
        known.double().nan_to_num(torch.inf),
        max(_FEWEST_SWEEPS, size // _VARIABLES_PER_SWEEP),
    )
    left = torch.arange(len(program), device=bound.device)
    gap = torch.full_like(bound, torch.inf)
    clock, certificate = effort.clock, effort.certificate
    while clock.allows(certificate):
        sweeps.go_on(count, clock.before(certificate))
        begin = clock.now()
        # With signs fixed by splits the program's value may be negative; the norm is not.
        found = certified_bound(program.take(left), sweeps.multipliers().take(left)).clamp(min=0)
        bound[left] = torch.minimum(bound[left], found)
        apart = bound[left] - sweeps.value[left].double().nan_to_num(-torch.inf)
        part = torch.where(bound[left] > 0, apart / bound[left], 0.0)
        gap[left] = part.nan_to_num(torch.inf, torch.inf).clamp(min=0)
        left = left[gap[left] > effort.tolerance]
        if not len(left) or sweeps.done >= effort.sweeps:
            break
        certificate = clock.now() - begin
        count = max(1, sweeps.done)
    raised = torch.fmin(known, raise_upper_bound(bound.to(known.dtype)))
    return Solved(raised, gap, program, sweeps)


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
    """N of the problem's largest program, if the cotangent of every open slope may vary."""
    slopes = slope_intervals(problem.graph, root.preacts)
    open_slopes = sum(int((s.lower < s.upper).sum()) for s in slopes.values())
    entries = problem.centre.numel()
    if problem.norm == "inf":
        lower, upper = root.norm.entries
        entries = int(((lower < 0) & (upper > 0)).flatten(1).sum(1).max())
    return 1 + entries + open_slopes


def programs_at_once(problem: LocalProblem, root: RootBounds) -> int:
    """How many programs of this problem fit into memory together; 0 if not even one does."""
    numbers = _COPIES * largest_size(problem, root) ** 2
    return free_memory(problem.graph.device) // 2 // (8 * numbers)


def seconds_per_program(problem: LocalProblem, root: RootBounds) -> float:
    """What solving and certifying one program will take, judged by a matrix product."""
    size = largest_size(problem, root)
    side = min(size, _MEASURED_SIZE)
    matrix = torch.ones(side, side, dtype=torch.float64, device=problem.graph.device)
    seconds = 0.0
    for _ in range(2):  # the first call may set things up
        begin = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        seconds = time.perf_counter() - begin
    return _PRODUCTS_PER_PROGRAM * seconds * (size / side) ** 3


def warm_starts(problem: LocalProblem, root: RootBounds) -> WarmStarts:
    """Room for the solutions of this problem's programs."""
    graph = problem.graph
    neurons = sum(graph.nodes[a].shape.numel() for a in graph.activation_nodes)
    return WarmStarts(neurons, rank_for(largest_size(problem, root)), problem.rows)
