"""Branch and bound with semidefinite programs ("programs" below) as well as linear bounds.

A linear bound costs microseconds and is off by factors near the root; a program costs milliseconds
to seconds and is nearly exact. Children inherit the bound of the latest program on the way from the
root, so what counts is how far a subdomain's linear bound lags behind it. If splits with linear
bounds, as measured, make up for that in less time than a program takes, the subdomain is split;
otherwise its program is solved. So programs work near the root and linear bounds in the depth.

Shapes: B subdomains, N neurons, D entries, as in :mod:`lipschitz.search.subdomains`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.sdp.boxes import (
    Effort,
    programs_at_once,
    seconds_per_program,
    solve_boxes,
    warm_starts,
)
from lipschitz.bounds.sdp.program import Facts
from lipschitz.bounds.sdp.recovery import points_to_try
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.interface import Report
from lipschitz.search.subdomains import Subdomains, concatenate

# A program is solved to this relative gap, or for so many sweeps: fewer where it starts from the
# solution of an ancestor, more where it starts cold. Choices; a loose solution is still certified,
# and the programs of its children go on from it.
_TOLERANCE = 3e-3
_SWEEPS, _COLD_SWEEPS = 12, 48
# Programs per round: one for every ``_PART`` subdomains of the batch, from the largest bound down,
# since their witnesses and bounds may make the others needless; at least and at most so many; and
# no more than take ``_ROUND_SECONDS``, so that the loop sees its clock. Choices: only speed depends
# on them.
_PART = 4
_FEWEST, _MOST = 8, 64
_ROUND_SECONDS = 0.5
# Weight of the latest batch in the moving averages of a program's seconds, and of a split's seconds
# and gain, of which there are many more. Choices: the averages only decide what is tried next.
_LATEST = 0.3
_LATEST_SPLITS = 0.1


@dataclass(frozen=True)
class ProgrammedSubdomains(Subdomains):
    """Subdomains that keep what either kind of bound says about them.

    Attributes:
        linear: Upper bound by linear relaxation alone, [B].
        program: That of the latest program on the way from the root, infinity if there was none,
            [B]. ``upper_bound`` is the smaller of both.
        solved: Whether that program was the subdomain's own, [B].
        origin: Number of that program's solution in :class:`WarmStarts`, -1 if none, [B].
    """

    linear: Tensor
    program: Tensor
    solved: Tensor
    origin: Tensor

    def bounded_linearly(self) -> ProgrammedSubdomains:
        """The same as if there had been no program."""
        return self.having(upper_bound=self.linear)

    def bounded_by_both(self) -> ProgrammedSubdomains:
        """What linear relaxation now says, together with what programs have said."""
        bound = self.upper_bound
        return self.having(linear=bound, upper_bound=torch.minimum(bound, self.program))


class ProgramSearch:
    """What branch and bound asks of an engine, answered by programs and linear bounds.

    Args:
        native: Bounds and splits by linear relaxation; the programs start from its intervals.
        root: The bounds of the whole box.
        clock: When no program is begun or continued any more.
        always: Solve a program for every subdomain that is split.

    Attributes:
        seconds_per_program, seconds_per_split: As measured of late.
        gain_of_split: How much lower, relatively, the linear bound of the worse half is than that
            of the whole, on average of late.
        solved: Programs so far.
    """

    def __init__(
        self, native: NeuronSearch, root: RootBounds, clock: Clock, *, always: bool = False
    ) -> None:
        self.native, self.clock, self.always = native, clock, always
        self.problem, self.layout = native.problem, native.layout
        self.attack = native.attack
        self.seconds_per_program = seconds_per_program(self.problem, root)
        self.most = max(1, min(_MOST, programs_at_once(self.problem, root)))
        self.seconds_per_split, self.gain_of_split = self.seconds_per_program, 0.0
        self.solved = 0
        self.starts = warm_starts(self.problem, root)

    def root(self) -> ProgrammedSubdomains:
        """One subdomain per row of the problem: the whole box."""
        root = self.native.root()
        return ProgrammedSubdomains(
            *(getattr(root, f.name) for f in fields(Subdomains)),
            linear=root.upper_bound,
            program=torch.full_like(root.upper_bound, torch.inf),
            solved=torch.zeros_like(root.row, dtype=torch.bool),
            origin=torch.full_like(root.row, -1),
        )

    def children(self, parents: ProgrammedSubdomains) -> ProgrammedSubdomains:
        """Both closed halves of every parent, bounded linearly."""
        begin = time.perf_counter()
        children = self.native.children(parents.bounded_linearly())
        worse = children.upper_bound.reshape(2, -1).amax(0).clamp(min=0)
        gain = float((1 - worse / parents.linear).mean())
        seconds = (time.perf_counter() - begin) / len(parents)
        self.gain_of_split += _LATEST_SPLITS * (gain - self.gain_of_split)
        self.seconds_per_split += _LATEST_SPLITS * (seconds - self.seconds_per_split)
        return children.having(solved=torch.zeros_like(children.solved)).bounded_by_both()

    @property
    def lag(self) -> float:
        """How far a linear bound comes down, relatively, by splits that take as long as a program.

        So much time is enough for a tree whose depth is the logarithm of the number of splits, and
        with every level the bound falls by ``gain_of_split``.
        """
        splits = self.seconds_per_program / self.seconds_per_split
        return self.gain_of_split * math.log2(1 + splits)

    def settle(self, leaves: ProgrammedSubdomains) -> Report:
        """What the native search finds out about leaves."""
        return self.native.settle(leaves)

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True gradient norms at points."""
        return self.native.witness_norms(points, rows)

    def refine(self, subdomains: ProgrammedSubdomains, threshold: float = 0.0) -> Report:
        """Solve programs where they are wanted, largest bounds first; what is left over waits.

        Args:
            subdomains: What has reached the top.
            threshold: What is below this needs no program.
        """
        wanting = self._wanting(subdomains)
        order = subdomains.upper_bound.masked_fill(~wanting, -torch.inf).argsort(descending=True)
        wanted = int(wanting.sum())
        count = min(wanted, self._affordable(len(subdomains)))
        chosen = torch.zeros_like(wanting)
        chosen[order[:count]] = True
        looked_at = subdomains.take(chosen | ~wanting)
        report = self.native.refine(looked_at.bounded_linearly(), threshold)
        open_ = report.subdomains.bounded_by_both()
        # Wanting a program is decided again: refining may have been enough.
        due = self._wanting(open_) & (open_.upper_bound > threshold)
        solved, points, rows = self._solve(open_.take(due))
        return Report(
            concatenate([open_.take(~due), solved]),
            torch.cat([report.points, points]),
            torch.cat([report.point_rows, rows]),
            report.programs,
            report.closed,
            subdomains.take(order[count:wanted]),
        )

    def _wanting(self, subdomains: ProgrammedSubdomains) -> Tensor:
        """Whether a program is wanted before a subdomain is split, [B]."""
        if not self.clock.allows(self.seconds_per_program):
            return torch.zeros_like(subdomains.solved)
        lags = subdomains.linear > (1 + self.lag) * subdomains.upper_bound
        first = subdomains.origin < 0
        return ~subdomains.solved & (subdomains.choice >= 0) & (lags | first | self.always)

    def _affordable(self, looked_at: int) -> int:
        """How many programs a round may have."""
        count = min(self.most, max(_FEWEST, looked_at // _PART))
        return max(1, min(count, int(_ROUND_SECONDS / self.seconds_per_program)))

    def facts(self, subdomains: Subdomains) -> Facts:
        """What is known on each subdomain, for its program."""
        layout, shape = self.layout, (len(subdomains), *self.problem.centre.shape)
        cotangents = {
            i: Interval(
                layout.part(subdomains.cotangent_lower, i),
                layout.part(subdomains.cotangent_upper, i),
            )
            for i in layout.slices
        }
        return Facts(
            self.problem.rows[subdomains.row],
            self.native.slopes(subdomains),
            cotangents,
            Interval(subdomains.entry_lower.reshape(shape), subdomains.entry_upper.reshape(shape)),
            subdomains.entry_sign.reshape(shape),
            self.problem.measure.free,
        )

    def _solve(
        self, subdomains: ProgrammedSubdomains
    ) -> tuple[ProgrammedSubdomains, Tensor, Tensor]:
        """Subdomains with the bounds of their programs, and points to try with their rows."""
        if not len(subdomains):
            return subdomains, self.problem.centre[None][:0], subdomains.row
        begin = time.perf_counter()
        bound = subdomains.upper_bound
        warm = bool((subdomains.origin >= 0).all())
        effort = Effort(_TOLERANCE, _SWEEPS if warm else _COLD_SWEEPS, self.clock)
        solved = solve_boxes(
            self.problem, self.facts(subdomains), bound, effort, self.starts, subdomains.origin
        )
        better = solved.upper_bound
        seconds = (time.perf_counter() - begin) / len(bound)
        self.seconds_per_program += _LATEST * (seconds - self.seconds_per_program)
        self.solved += len(bound)
        best = int(better.argmax())
        points = points_to_try(self.problem, solved.sweeps.take(slice(best, best + 1)))[:, 0]
        found = subdomains.having(
            upper_bound=better,
            program=better,
            solved=torch.ones_like(subdomains.solved),
            origin=self.starts.keep(solved.sweeps),
        )
        return found, points, subdomains.row[best].expand(len(points))
