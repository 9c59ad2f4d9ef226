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
from lipschitz.problem import BOUND, INTERRUPTED, TIMEOUT, LocalProblem
from lipschitz.sdp.boxes import (
    BoxSolver,
    Solved,
    largest_size,
    programs_at_once,
    root_facts,
    seconds_per_step,
    solve_boxes,
)
from lipschitz.sdp.interior_point import SolveOptions
from lipschitz.sdp.recovery import points_to_try
from lipschitz.sdp.warm import WarmStarts

# Programs up to this size are solved in batches, larger ones a step at a time.
LARGEST_IN_BATCH = 512


@dataclass(frozen=True)
class SdpOptions:
    """How hard to try.

    Attributes:
        timeout: Seconds for the whole problem.
        tolerance: Relative gap between dual and primal value at which a program is done.
        iterations: Steps per program, at most.
        memory_budget: Bytes for one chunk of rows of the linear bounds; chosen if None.
        seed: Seed of the sampled points.
    """

    timeout: float = 60.0
    tolerance: float = 1e-3
    iterations: int = 40
    memory_budget: int | None = None
    seed: int = 0


class LastSolutions:
    """Solutions for the last point, to begin the programs of another radius around it from."""

    def __init__(self) -> None:
        self.centre: Tensor | None = None
        self.rows: Tensor | None = None
        self.starts: WarmStarts | None = None
        self.numbers: Tensor | None = None

    def of(self, problem: LocalProblem, rows: Tensor) -> tuple[WarmStarts, Tensor]:
        """Remembered solutions, and the number of the one for each of some rows."""
        same = self.centre is not None and torch.equal(self.centre, problem.centre)
        if not (same and torch.equal(self.rows, problem.rows)):
            graph = problem.graph
            neurons = sum(graph.nodes[a].shape.numel() for a in graph.activation_nodes)
            self.centre, self.rows = problem.centre, problem.rows
            self.starts = WarmStarts(problem.centre.numel(), neurons, problem.rows)
            self.numbers = torch.full_like(problem.rows[:, 0], -1, dtype=torch.long)
        return self.starts, self.numbers[rows]

    def keep(self, rows: Tensor, solved: Solved) -> None:
        """Remember the solutions of some rows of the problem :meth:`of` was asked for."""
        self.numbers[rows] = self.starts.keep(solved.program, solved.multipliers)


@torch.no_grad()
def sdp_bounds(
    problem: LocalProblem,
    options: SdpOptions | None = None,
    last: LastSolutions | None = None,
) -> Outcome:
    """Upper bounds of ``||J(x)^T r||_1`` over the box by the semidefinite program.

    Ctrl-C and the time limit return the bounds certified so far.

    Args:
        problem: What to bound, R rows.
        options: How hard to try.
        last: What was solved before with the same network.
    """
    options = options or SdpOptions()
    begin = time.monotonic()
    root = native_alpha(
        problem, memory_budget=options.memory_budget, deadline=begin + options.timeout / 2
    )
    return tightened(problem, root, begin + options.timeout, options, last)


@torch.no_grad()
def tightened(
    problem: LocalProblem,
    root: RootBounds,
    deadline: float,
    options: SdpOptions,
    last: LastSolutions | None = None,
    found: GradientNorms | None = None,
) -> Outcome:
    """What the programs make of linear bounds, see :func:`sdp_bounds`.

    Args:
        problem: What to bound.
        root: Its linear bounds.
        deadline: ``time.monotonic()`` to stop at.
        options: How hard to try until then.
        last: What was solved before with the same network.
        found: True gradients that are known already; sampled if None.
    """
    found = found or sample_gradients(problem, Sampling(seed=options.seed))
    bounding = _Bounding(problem, root, options, deadline, last or LastSolutions(), found)
    status = BOUND
    try:
        if largest_size(problem, root) > LARGEST_IN_BATCH:
            bounding.step_by_step()
        else:
            bounding.in_batches()
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == BOUND and bounding.out_of_time:
        status = TIMEOUT
    return Outcome(bounding.upper_bounds, bounding.found, root.class_upper_bounds, status)


class _Bounding:
    """The rows of a problem on their way, with the certified bounds and gradients so far."""

    def __init__(
        self,
        problem: LocalProblem,
        root: RootBounds,
        options: SdpOptions,
        deadline: float,
        last: LastSolutions,
        found: GradientNorms,
    ) -> None:
        self.problem, self.root, self.options, self.deadline = problem, root, options, deadline
        self.last, self.found = last, found
        self.upper_bounds = root.class_upper_bounds.clone()
        self.out_of_time = False

    @property
    def threshold(self) -> Tensor:
        """A row with a bound below this cannot hold the maximum."""
        return self.found.norms.max() * (1 + self.options.tolerance / 10)

    def limits(self, count: int) -> SolveOptions:
        """When to stop with each of some programs."""
        below = self.threshold.double().expand(count)
        return SolveOptions(self.options.tolerance, self.options.iterations, self.deadline, below)

    def in_batches(self) -> None:
        """Rows in the order of their linear bounds, as many at once as fit into memory."""
        order = self.upper_bounds.argsort(descending=True)
        count = max(1, programs_at_once(self.problem, self.root))
        # The first alone: what it finds may rule out others.
        for rows in [order[:1], *order[1:].split(min(count, 8))]:
            rows = rows[self.upper_bounds[rows] > self.threshold]
            if not len(rows):
                continue
            self.out_of_time = time.monotonic() > self.deadline
            if self.out_of_time:
                return
            facts = root_facts(self.problem, self.root, rows)
            limits, starts = self.limits(len(rows)), self.last.of(self.problem, rows)
            solved = solve_boxes(self.problem, facts, self.upper_bounds[rows], limits, starts)
            self.last.keep(rows, solved)
            self._take_in(rows, solved)

    def step_by_step(self) -> None:
        """Always one more step for the row with the largest bound: the maximum is what counts."""
        problem, root = self.problem, self.root
        most = programs_at_once(problem, root)
        if not most:
            return
        price = seconds_per_step(problem, root)
        solvers: dict[int, BoxSolver] = {}
        done = torch.zeros_like(self.upper_bounds, dtype=torch.bool)
        while True:
            is_open = (self.upper_bounds > self.threshold) & ~done
            solvers = {row: solver for row, solver in solvers.items() if bool(is_open[row])}
            if len(solvers) >= most:  # no room for another program
                is_open = torch.zeros_like(is_open).index_fill(0, self._index(*solvers), True)
            if not bool(is_open.any()):
                break
            if time.monotonic() + price > self.deadline:
                self.out_of_time = True
                break
            row = int(self.upper_bounds.masked_fill(~is_open, -torch.inf).argmax())
            index = self._index(row)
            if row not in solvers:
                facts = root_facts(problem, root, index)
                solvers[row] = BoxSolver(problem, facts, self.upper_bounds[index])
            solver = solvers[row]
            solver.step()
            self.upper_bounds[index] = torch.minimum(self.upper_bounds[index], solver.upper_bound)
            if solver.is_done(self.limits(1)):
                self._take_in(index, solvers.pop(row).solved)
                done[row] = True
        for row, solver in solvers.items():
            self._take_in(self._index(row), solver.solved)

    def _index(self, *rows: int) -> Tensor:
        return torch.tensor(rows, device=self.problem.rows.device)

    def _take_in(self, rows: Tensor, solved: Solved) -> None:
        """Bounds of some rows, and true gradients near the points that their solutions suggest."""
        self.upper_bounds[rows] = torch.minimum(self.upper_bounds[rows], solved.upper_bound)
        problem = self.problem
        points = points_to_try(problem, solved.program, solved.multipliers).flatten(0, 1)
        some = replace(
            problem, rows=problem.rows[rows], row_names=tuple(problem.row_names[i] for i in rows)
        )
        sampling = Sampling(num_random=1, seed=self.options.seed)
        climbed = sample_gradients(some, sampling, starts=points)
        norms, witnesses = self.found.norms.clone(), self.found.witnesses.clone()
        norms[rows], witnesses[rows] = climbed.norms, climbed.witnesses
        self.found = better(self.found, GradientNorms(norms, witnesses))
