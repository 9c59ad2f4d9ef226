"""The method ``sdp``: the semidefinite bound of a whole problem.

Method card
    Needs: intervals from bound propagation; any network of this package.
    Returns: an upper bound per output, never above the linear bound with optimised slopes
        (``alpha``), and a lower bound with a witness.
    Idea: the Jacobian's norm as a quadratic program in the signs of its entries and the uncertain
        slopes, relaxed to a semidefinite program over products of intervals
        (:mod:`lipschitz.bounds.sdp.program`), solved by sweeps of vectors back and forth through
        the network (:mod:`lipschitz.bounds.sdp.sweeps`).
    Sound: every value is the dual bound of the multipliers at hand, computed anew and proved in
        float64 (:mod:`lipschitz.bounds.sdp.certificate`). Exact: rarely; on wide boxes within a few
        per cent, where linear bounds are off by factors.
    Reference: quadratic relaxations of ReLU gradients as in Raghunathan, Steinhardt and Liang 2018
        (one hidden layer, global), Chen, Lasserre, Magron and Pauwels 2020 and Wang et al. 2022
        (GeoLIP); local boxes, several layers, convolutions and the McCormick products are ours.

Outputs are bounded in the order of their linear bounds; one whose bound is below a true gradient
of another cannot hold the maximum and is left where it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.coupled.root import coupled_root
from lipschitz.bounds.lower.attack import Attack
from lipschitz.bounds.lower.record import Record
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.outcome import Outcome, better
from lipschitz.bounds.sdp.boxes import (
    Effort,
    Solved,
    programs_at_once,
    root_facts,
    seconds_per_program,
    solve_boxes,
    warm_starts,
)
from lipschitz.bounds.sdp.recovery import points_to_try
from lipschitz.bounds.sdp.warm import WarmStarts
from lipschitz.bounds.true_gradients import GradientNorms, Sampling, sample_gradients
from lipschitz.problem import LocalProblem
from lipschitz.words import BOUND, INTERRUPTED, TIMEOUT

# Outputs whose programs are solved in one batch. A choice: a true gradient that is found for one
# may rule out others, which a larger batch would solve for nothing.
_MOST_AT_ONCE = 16
# Programs expected to take more than so many seconds are solved one by one, and only to this
# relative gap: time is better spent on the next output. Choices; ``solver_gap`` says what was left.
_LONG, _TOLERANCE_OF_LONG = 0.1, 5e-3
# Most of the time limit that the linear bounds may take, and most of what is then left that sampled
# gradients may take. Choices: they matter only where the limit is too short for all.
_SHARE_OF_LINEAR, _SHARE_OF_SAMPLING = 0.6, 0.25
# Bounds that programs leave above the first multiple of a true gradient get coupled pre-activation
# bounds, which may take the last share of the time left, and then programs again; linear bounds
# above the second multiple get them at once. Choices.
_WORTH_MORE, _FAR, _SHARE_OF_COUPLED = 1.05, 3.0, 0.6
# Share of a program's expected time that is kept for its first certificate. An estimate; what later
# ones take is measured.
_SHARE_OF_CERTIFICATE = 0.5


@dataclass(frozen=True)
class SdpOptions:
    """How hard to try.

    Attributes:
        timeout: Seconds for the whole problem.
        tolerance: Relative gap between dual and primal value at which a program is done.
        sweeps: Sweeps per program, at most.
        memory_budget: Bytes for one chunk of rows of the linear bounds; chosen if None.
        seed: Seed of the sampled points.
    """

    timeout: float = 60.0
    tolerance: float = 1e-3
    sweeps: int = 500
    memory_budget: int | None = None
    seed: int = 0


class LastSolutions:
    """Solutions for the last point, to begin the programs of another radius around it from."""

    def __init__(self) -> None:
        self.centre: Tensor | None = None
        self.rows: Tensor | None = None
        self.starts: WarmStarts | None = None
        self.numbers: Tensor | None = None

    def of(self, problem: LocalProblem, root: RootBounds) -> WarmStarts:
        """Remembered solutions; :attr:`numbers` has the one for each row of the problem."""
        same = self.centre is not None and torch.equal(self.centre, problem.centre)
        if not (same and torch.equal(self.rows, problem.rows)):
            self.centre, self.rows = problem.centre, problem.rows
            self.starts = warm_starts(problem, root)
            self.numbers = torch.full_like(problem.rows[:, 0], -1, dtype=torch.long)
        return self.starts


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
    clock = Clock.of(options.timeout)
    root = native_alpha(
        problem, memory_budget=options.memory_budget, clock=clock.part(_SHARE_OF_LINEAR)
    )
    return tightened(problem, root, clock, options, last)


@torch.no_grad()
def tightened(
    problem: LocalProblem,
    root: RootBounds,
    clock: Clock,
    options: SdpOptions,
    last: LastSolutions | None = None,
) -> Outcome:
    """What the programs make of linear bounds, see :func:`sdp_bounds`.

    Args:
        problem: What to bound.
        root: Its linear bounds.
        clock: When to stop.
        options: How hard to try until then.
        last: What was solved before with the same network.
    """
    sampling = clock.part(_SHARE_OF_SAMPLING)
    found = sample_gradients(problem, Sampling(seed=options.seed), clock=sampling)
    bounding = _Bounding(problem, root, options, clock, last or LastSolutions(), found)
    status = BOUND
    try:
        if bounding.is_above(_FAR):
            bounding.couple()
        bounding.run()
        if bounding.is_above(_WORTH_MORE) and bounding.couple():
            bounding.run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == BOUND and clock.missed:
        status = TIMEOUT
    return Outcome(
        bounding.upper_bounds,
        bounding.found,
        root.class_upper_bounds,
        status,
        solver_gap=bounding.solver_gap,
        not_reached=clock.not_reached,
    )


class _Bounding:
    """The rows of a problem on their way, with the certified bounds and gradients so far."""

    def __init__(
        self,
        problem: LocalProblem,
        root: RootBounds,
        options: SdpOptions,
        clock: Clock,
        last: LastSolutions,
        found: GradientNorms,
    ) -> None:
        self.problem, self.root, self.options, self.clock = problem, root, options, clock
        self.last, self.found = last, found
        record = Record.of(problem, found, options.seed)
        self.attack = Attack(problem, record, options.seed, clock)
        self.upper_bounds = root.class_upper_bounds.clone()
        self.is_coupled = False
        self.gaps = torch.full_like(self.upper_bounds, torch.nan)  # of rows without a program

    @property
    def threshold(self) -> Tensor:
        """A row with a bound below this cannot hold the maximum."""
        return self.found.norms.max() * (1 + self.options.tolerance / 10)

    @property
    def solver_gap(self) -> float | None:
        """That of the row with the largest bound; None if it has no program."""
        gap = float(self.gaps[self.upper_bounds.argmax()])
        return None if math.isnan(gap) else gap

    def run(self) -> None:
        """Rows in the order of their linear bounds, as many at once as fit into memory."""
        problem, root = self.problem, self.root
        most = min(programs_at_once(problem, root), _MOST_AT_ONCE)
        if not most:
            return
        if self.clock.is_over:
            self._note(len(self.upper_bounds))
            return
        seconds = seconds_per_program(problem, root)
        tolerance = self.options.tolerance
        if seconds > _LONG:
            most, tolerance = 1, max(tolerance, _TOLERANCE_OF_LONG)
        starts = self.last.of(problem, root)
        order = self.upper_bounds.argsort(descending=True)
        # The first alone: what it finds may rule out others.
        waiting = len(order)
        for rows in [order[:1], *order[1:].split(most)]:
            waiting -= len(rows)
            rows = rows[self.upper_bounds[rows] > self.threshold]
            if not len(rows):
                continue
            if not self.clock.allows(len(rows) * seconds):
                self._note(len(rows) + waiting)
                return
            certificate = len(rows) * seconds * _SHARE_OF_CERTIFICATE
            effort = Effort(tolerance, self.options.sweeps, self.clock, certificate)
            facts = root_facts(problem, root, rows)
            numbers = self.last.numbers[rows]
            solved = solve_boxes(problem, facts, self.upper_bounds[rows], effort, starts, numbers)
            self.last.numbers[rows] = starts.keep(solved.sweeps)
            self._take_in(rows, solved)
            if self.clock.allows((waiting + 1) * seconds):  # programs come first
                self._attack()
            if self.clock.is_over and bool((solved.gap > tolerance).any()):
                self._note(len(rows) + waiting)
                return

    def is_above(self, multiple: float) -> bool:
        """Whether the bound is above this multiple of a true gradient."""
        return float(self.upper_bounds.max()) > multiple * float(self.found.norms.max())

    def couple(self) -> bool:
        """Go on from narrower pre-activation intervals, once; whether there are any."""
        if self.is_coupled:
            return False
        self.is_coupled = True
        budget, part = self.options.memory_budget, self.clock.part(_SHARE_OF_COUPLED)
        root = coupled_root(self.problem, self.root, memory_budget=budget, clock=part)
        if root is self.root:
            return False
        self.root = root
        self.upper_bounds = torch.minimum(self.upper_bounds, root.class_upper_bounds)
        return True

    def _note(self, outputs: int) -> None:
        self.clock.miss(f"semidefinite programs of {outputs} output{'s' * (outputs > 1)}")

    def _take_in(self, rows: Tensor, solved: Solved) -> None:
        """Bounds of some rows, and true gradients near the points that their solutions suggest."""
        self.gaps[rows] = solved.gap.to(self.gaps)
        self.upper_bounds[rows] = torch.minimum(self.upper_bounds[rows], solved.upper_bound)
        problem = self.problem
        if self.clock.is_over:
            return
        points = points_to_try(problem, solved.sweeps).flatten(0, 1)
        some = replace(
            problem, rows=problem.rows[rows], row_names=tuple(problem.row_names[i] for i in rows)
        )
        sampling = Sampling(num_random=1, seed=self.options.seed)
        climbed = sample_gradients(some, sampling, starts=points, clock=self.clock.without_notes())
        norms, witnesses = self.found.norms.clone(), self.found.witnesses.clone()
        norms[rows], witnesses[rows] = climbed.norms, climbed.witnesses
        self.found = better(self.found, GradientNorms(norms, witnesses))

    def _attack(self) -> None:
        """Go on from the largest gradient, for a share of the time."""
        best = int(self.found.norms.argmax())
        if not bool((self.upper_bounds > self.threshold).any()):
            return
        self.attack.learn(self.found.witnesses[best], best, float(self.found.norms[best]))
        if self.attack.turn(float(self.upper_bounds.max()), self.upper_bounds):
            self.found = better(self.found, self.attack.record.found)
