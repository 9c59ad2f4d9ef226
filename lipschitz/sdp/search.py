"""Subdomains bounded by semidefinite programs, one for each that reaches the top.

A linear bound of a subdomain costs microseconds and is off by factors near the root; a program
costs milliseconds to seconds and is nearly exact. This search splits few subdomains and solves a
program for each; :mod:`lipschitz.sdp.portfolio` divides the time between it and linear bounds.

The program also says what to split: a multiplier is what the bound pays for not knowing a variable,
and the mean of the vectors how much of that is open.

Shapes: B subdomains, N neurons, D entries, as in :mod:`lipschitz.subdomains`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipschitz.native.crown import RootBounds
from lipschitz.native.interval import Interval
from lipschitz.native.search import NativeSearch
from lipschitz.sdp.boxes import Effort, Solved, seconds_per_program, solve_boxes, warm_starts
from lipschitz.sdp.program import Facts
from lipschitz.sdp.recovery import paid, points_to_try
from lipschitz.search_types import Report
from lipschitz.subdomains import Subdomains, concatenate

# A program is solved to this relative gap, or for so many sweeps: what it decides is only where to
# look closer, and its children go on from where it ends.
_TOLERANCE = 3e-3
_SWEEPS, _COLD_SWEEPS = 12, 48
# Seconds of programs per round, so that the search keeps watching its limits.
_ROUND_SECONDS = 0.5
_AT_ONCE = 32
_LATEST = 0.3  # weight of the latest batch in the average time of a program


@dataclass(frozen=True)
class ProgrammedSubdomains(Subdomains):
    """Subdomains that know whether a program has been solved for them.

    Attributes:
        solved: Whether ``upper_bound`` and ``choice`` are from the subdomain's own program, [B].
        origin: Number of the latest program's solution on the way from the root, -1 if none, [B].
    """

    solved: Tensor
    origin: Tensor


class ProgramSearch:
    """What branch and bound asks of an engine, answered by semidefinite programs.

    Args:
        native: Bounds and splits by linear relaxation; the programs start from its intervals.
        root: The bounds of the whole box.
        deadline: ``time.monotonic()`` after which no program is begun or continued.
    """

    def __init__(self, native: NativeSearch, root: RootBounds, deadline: float) -> None:
        self.native, self.deadline = native, deadline
        self.problem, self.layout = native.problem, native.layout
        self.seconds_per_program = seconds_per_program(self.problem, root)
        self.solved, self.inputs = 0, self.problem.centre.numel()
        self.starts = warm_starts(self.problem, root)

    def root(self) -> ProgrammedSubdomains:
        """One subdomain per row of the problem: the whole box."""
        root = self.native.root()
        known = (getattr(root, f.name) for f in fields(Subdomains))
        unsolved = torch.zeros_like(root.row, dtype=torch.bool)
        return ProgrammedSubdomains(*known, unsolved, torch.full_like(root.row, -1))

    def children(self, parents: ProgrammedSubdomains) -> ProgrammedSubdomains:
        """Both closed halves of every parent, bounded linearly."""
        children = self.native.children(parents)
        return children.having(solved=torch.zeros_like(children.solved))

    def settle(self, leaves: ProgrammedSubdomains) -> Report:
        """What the native search finds out about leaves."""
        return self.native.settle(leaves)

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True gradient norms at points."""
        return self.native.witness_norms(points, rows)

    def linear(self, subdomains: ProgrammedSubdomains) -> Subdomains:
        """The same subdomains for the native search."""
        return Subdomains(*(getattr(subdomains, f.name) for f in fields(Subdomains)))

    def refine(self, subdomains: ProgrammedSubdomains, threshold: float = 0.0) -> Report:
        """Programs for the strongest subdomains that have none; the weaker ones wait.

        Args:
            subdomains: What has reached the top.
            threshold: What is below this needs no program.
        """
        ordered = subdomains.take(subdomains.upper_bound.argsort(descending=True))
        count = self._affordable()
        first, rest = ordered.take(slice(count)), ordered.take(slice(count, None))
        ready = first.solved | (first.choice < 0)
        late = time.monotonic() + self.seconds_per_program > self.deadline
        if bool(ready.all()) or late:
            nothing = subdomains.row[:0]
            points = self.problem.centre[None][:0]
            return Report(first, points, nothing, postponed=rest)
        report = self.native.refine(first.take(~ready), threshold)
        open_ = report.subdomains
        solved, points, rows = self._solve(open_.take(open_.upper_bound > threshold))
        done = open_.take(open_.upper_bound <= threshold)
        return Report(
            first.take(ready),
            torch.cat([report.points, points]),
            torch.cat([report.point_rows, rows]),
            report.programs,
            report.closed,
            concatenate([solved, done, rest]),
        )

    def _affordable(self) -> int:
        """How many programs fit into a round."""
        return max(1, min(_AT_ONCE, int(_ROUND_SECONDS / self.seconds_per_program)))

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
        """Subdomains with their programs' bounds and choices, and points to try with their rows."""
        if not len(subdomains):
            nothing = self.problem.centre[None][:0]
            return subdomains, nothing, subdomains.row
        begin = time.perf_counter()
        bound = subdomains.upper_bound
        warm = bool((subdomains.origin >= 0).all())
        effort = Effort(_TOLERANCE, _SWEEPS if warm else _COLD_SWEEPS, self.deadline)
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
            choice=self._choice(subdomains, solved),
            solved=torch.ones_like(subdomains.solved),
            origin=self.starts.keep(solved.sweeps),
        )
        return found, points, subdomains.row[best].expand(len(points))

    def _choice(self, subdomains: Subdomains, solved: Solved) -> Tensor:
        """The variable whose being unknown costs most, the linear choice if none does, [B]."""
        sweeps, total = solved.sweeps, self.layout.total
        score = torch.zeros_like(subdomains.upper_bound)[:, None].repeat(1, total + self.inputs)
        score[:, sweeps.program.neuron] = paid(sweeps).sum(0).to(score)
        if sweeps.signs is not None:  # what a sign leaves open in the l2 norm is all of an entry
            open_ = 1 - sweeps.u[:, 0].square().clamp(max=1)
            score[:, total:] = (sweeps.signs.box * open_ * sweeps.program.is_free).to(score)
        is_open = self.layout.is_open(subdomains.preact_lower, subdomains.preact_upper)
        every = torch.ones_like(subdomains.entry_sign, dtype=torch.bool)
        splittable = torch.cat([is_open, every], 1) & (score > 0)
        best, choice = score.masked_fill(~splittable, -torch.inf).max(1)
        worth = (best > 1e-6 * subdomains.upper_bound) & (subdomains.choice >= 0)
        return torch.where(worth, choice, subdomains.choice)
