"""Subdomains bounded by semidefinite programs, one for each that reaches the top.

A linear bound of a subdomain costs microseconds and is off by factors near the root; a program
costs milliseconds to seconds and is nearly exact. This search splits few subdomains and solves a
program for each; :mod:`lipschitz.sdp.portfolio` divides the time between it and linear bounds.

The program also says what to split: the multiplier ``d_i`` is what the bound pays for not knowing
``y_i``, and the first moment how much of that is open, so the score is ``d_i (1 - E[y_i]^2)``.

Shapes: B subdomains, N neurons, D entries, as in :mod:`lipschitz.subdomains`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipschitz.native.interval import Interval
from lipschitz.native.search import NativeSearch
from lipschitz.sdp.boxes import Solved, solve_boxes
from lipschitz.sdp.constraints import group_of
from lipschitz.sdp.interior_point import SolveOptions
from lipschitz.sdp.program import Facts
from lipschitz.sdp.recovery import points_to_try
from lipschitz.sdp.warm import WarmStarts
from lipschitz.search_types import Report
from lipschitz.subdomains import Subdomains, concatenate

# A program is solved to this relative gap: what it decides is only where to look closer.
_TOLERANCE = 3e-3
_ITERATIONS = 30
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
        deadline: ``time.monotonic()`` after which no program is begun or continued.
    """

    def __init__(self, native: NativeSearch, deadline: float) -> None:
        self.native, self.deadline = native, deadline
        self.problem, self.layout = native.problem, native.layout
        self.seconds_per_program = 0.0
        self.solved = 0
        inputs = self.problem.centre.numel()
        self.starts = WarmStarts(inputs, self.layout.total, self.problem.rows)

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
            threshold: A program whose bound falls below this is not continued.
        """
        ordered = subdomains.take(subdomains.upper_bound.argsort(descending=True))
        count = self._affordable()
        first, rest = ordered.take(slice(count)), ordered.take(slice(count, None))
        ready = first.solved | (first.choice < 0)
        if bool(ready.all()) or time.monotonic() > self.deadline:
            nothing = subdomains.row[:0]
            points = self.problem.centre[None][:0]
            return Report(first, points, nothing, postponed=rest)
        report = self.native.refine(first.take(~ready), threshold)
        open_ = report.subdomains
        solved, points, rows = self._solve(open_.take(open_.upper_bound > threshold), threshold)
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
        if self.seconds_per_program == 0:
            return 1
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
        self, subdomains: ProgrammedSubdomains, threshold: float
    ) -> tuple[ProgrammedSubdomains, Tensor, Tensor]:
        """Subdomains with their programs' bounds and choices, and points to try with their rows."""
        if not len(subdomains):
            nothing = self.problem.centre[None][:0]
            return subdomains, nothing, subdomains.row
        begin = time.perf_counter()
        bound = subdomains.upper_bound
        below = bound.new_full((len(bound),), threshold, dtype=torch.float64)
        limits = SolveOptions(_TOLERANCE, _ITERATIONS, self.deadline, below)
        starts = self.starts, subdomains.origin
        solved = solve_boxes(self.problem, self.facts(subdomains), bound, limits, starts)
        better = torch.minimum(bound, solved.upper_bound)
        seconds = (time.perf_counter() - begin) / len(bound)
        known = self.seconds_per_program
        self.seconds_per_program = seconds if known == 0 else known + _LATEST * (seconds - known)
        self.solved += len(bound)
        best = int(better.argmax())
        points = points_to_try(self.problem, solved.program, solved.multipliers)
        points = points[:, best]
        found = subdomains.having(
            upper_bound=better,
            choice=self._choice(subdomains, solved),
            solved=torch.ones_like(subdomains.solved),
            origin=self.starts.keep(solved.program, solved.multipliers),
        )
        return found, points, subdomains.row[best].expand(len(points))

    def _choice(self, subdomains: Subdomains, solved: Solved) -> Tensor:
        """The variable whose being unknown costs most, the linear choice if none does, [B]."""
        program, multipliers = solved.program, solved.multipliers
        moments = multipliers.moments
        mean = moments[:, 0] / moments[:, :1, 0].clamp(min=1e-12)
        paid = multipliers.diagonal[:, group_of(program)]
        score = paid * (1 - mean.clamp(-1, 1) ** 2)
        entry = torch.where(program.entry >= 0, self.layout.total + program.entry, -1)
        if program.ball:  # what a sign leaves open of an entry in the l2 norm is all of its size
            entry = torch.full_like(entry, -1)
        constant = entry.new_full((len(entry), 1), -1)
        variable = torch.cat([constant, entry, program.neuron], 1)
        is_open = self.layout.is_open(subdomains.preact_lower, subdomains.preact_upper)
        every = torch.ones_like(subdomains.entry_sign, dtype=torch.bool)
        splittable = torch.cat([is_open, every], 1)
        usable = (variable >= 0) & splittable.gather(1, variable.clamp(min=0))
        best, place = score.masked_fill(~usable, -torch.inf).max(1)
        found = variable.gather(1, place.unsqueeze(1))[:, 0]
        worth = (best > 1e-6 * subdomains.upper_bound) & (subdomains.choice >= 0)
        return torch.where(worth, found, subdomains.choice)
