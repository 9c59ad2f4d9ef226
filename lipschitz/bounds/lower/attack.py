"""Large gradients for as much time as one has: whichever way of looking gains most.

Three ways take turns: ascents from points drawn anew, ascents with small steps from good points,
and good points changed at random. Each has its share of the time; that of the one that has gained
most in its time of late is a multiple. Rounds, and with them ascents, get longer with
the time spent, so that a fraction of a second is enough to begin.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.lower.ascent import Paces, ascend
from lipschitz.bounds.lower.elites import Elites
from lipschitz.bounds.lower.norms_at import inside, norms_at, numbers_of
from lipschitz.bounds.lower.record import Record
from lipschitz.bounds.lower.softness import Softness
from lipschitz.bounds.lower.variation import FEW_INPUTS, vary
from lipschitz.problem import LocalProblem

# The ways. Random changes seldom gain anything with many inputs, so they get less time then. And
# how many times its share the one gets that has gained most.
ANEW, ON, CHANGES = "anew", "on", "changes"
_SHARE_OF_MANY = 0.2
_OF_BEST = 3.0
# Seconds of a round: a share of what has been spent so far, within limits.
_SHARE_OF_ROUND, _SHORTEST, _LONGEST = 0.1, 0.05, 1.0
# Climbers of a round: at least, at most, and numbers that their values may take, up to which more
# of them cost little. And steps of an ascent: at least, of the fewest climbers, and at most.
_FEWEST, _CLIMBERS, _MOST_CLIMBERS, _NUMBERS_OF_CLIMBERS = 4, 16, 128, 2**16
_LEAST_STEPS, _STEPS_OF_FEW, _MOST_STEPS = 30, 80, 200
# Points whose gradients are certified at a time, at most.
_CERTIFIED = 8
# First steps of ascents as shares of the box's radius: anew, and from good points.
_LONG_STEPS, _SHORT_STEPS = (0.1, 0.6), (0.01, 0.15)
# Points of a round of changes, and numbers that the values of one batch may take.
_POINTS, _NUMBERS = 512, 2**25
# Share of a search's time, by how far its upper bound is above the lower one, at least: where much
# is open the lower bound may be what is wrong. Half of it once nothing was gained for twice the
# time that gains have taken, which counts from the first number of seconds on.
_SHARES = ((3.0, 0.2), (1.2, 0.1), (1.02, 0.1), (1.0, 0.05))
_GRACE, _FRUITLESS = 0.5, 3.0
# Seconds of a turn, at least and at most.
_SHORTEST_TURN, _LONGEST_TURN = 0.02, 1.0
# How quickly gains are forgotten.
_LATEST = 0.4
# Rounds without a gain after which a population is given up, at least, and as a share of those in
# which it has gained.
_PATIENCE, _SHARE_OF_PATIENCE = 24, 1.0
# Points of a new population, and numbers that their values may take. Choices.
_NEW, _NUMBERS_OF_NEW = 256, 2**21
# Mean place, in the order of their largest norms, of the rows of new points.
_MEAN_PLACE = 1.5


class Attack:
    """A search for large gradients that can be gone on with.

    Args:
        problem: The problem.
        record: The best certified gradients so far, which it adds to.
        seed: Of its random numbers.
        clock: When to stop.
        begin: ``time.perf_counter()`` when what it is a part of has begun; now if None.

    Attributes:
        spent: Seconds so far.
    """

    def __init__(
        self,
        problem: LocalProblem,
        record: Record,
        seed: int = 0,
        clock: Clock = UNLIMITED,
        begin: float | None = None,
    ) -> None:
        self.problem, self.record, self.clock = problem, record, clock.without_notes()
        self._start = time.perf_counter() if begin is None else begin
        self.elites, self._before = Elites(problem), Elites(problem)
        self.spent = self._fruitful = 0.0
        self._populations = self._gaining = self._idle = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._softness: Softness | None = None
        self._open = torch.ones_like(record.norms, dtype=torch.bool)
        self._waiting = record.norms.argsort(descending=True)  # rows that have not been climbed
        few = problem.centre.numel() <= FEW_INPUTS
        self._weights = {ANEW: 1.0, ON: 1.0, CHANGES: 1.0 if few else _SHARE_OF_MANY}
        self._seconds = dict.fromkeys(self._weights, 0.0)
        self._gains = dict.fromkeys(self._weights, 0.0)
        self._cost: dict[str, float] = {}  # seconds of a step of all climbers, or of a new point
        each = len(problem.rows) if problem.measure.joint else 1
        numbers = numbers_of(problem.graph) * each
        self._at_once = max(1, _NUMBERS // numbers)
        climbers = max(_CLIMBERS, min(_MOST_CLIMBERS, _NUMBERS_OF_CLIMBERS // numbers))
        self._climbers = min(climbers, self._at_once)

    @property
    def lower_bound(self) -> float:
        """The largest certified norm, lowered by the rounding guard."""
        return self.record.largest

    @property
    def witness(self) -> Tensor | None:
        """Where it is, [*input_shape]; None where nothing is found."""
        return self.record.points[self.record.norms.argmax()] if self.lower_bound > 0 else None

    def rule_out(self, upper_bounds: Tensor) -> None:
        """Leave rows alone whose norm is nowhere above what is found, by upper bounds [R]."""
        if len(upper_bounds) == len(self._open):
            self._open &= upper_bounds.to(self.record.norms) > self.lower_bound
            for elites in (self.elites, self._before):
                elites.only(self._open)

    def learn(self, point: Tensor, row: int, norm: float) -> None:
        """A certified gradient that was found elsewhere, to go on from.

        Args:
            point: Where, [*input_shape].
            row: Its row.
            norm: Its norm, the rounding guard included.
        """
        row = 0 if self.problem.measure.joint else row
        known, points = self.record.norms, point[None].to(self.problem.centre)
        rows = torch.tensor([row], device=known.device)
        if norm > known[row]:
            known[row], self.record.points[row] = norm, points[0]
        if self._open[row]:
            self.elites.add(points, rows, known.new_tensor([norm]))

    def seconds_due(self, upper_bound: float) -> float:
        """Seconds of its next turn, 0 if it has had its share of the time since the beginning.

        Args:
            upper_bound: Of the norms of all rows.
        """
        lower = self.lower_bound
        gap = upper_bound / lower if lower > 0 else float("inf")
        share = next((share for least, share in _SHARES if gap >= least), 0.0)
        if self.spent > max(_GRACE, _FRUITLESS * self._fruitful):
            share /= 2
        due = share * (time.perf_counter() - self._start) - self.spent
        return 0.0 if due < _SHORTEST_TURN else min(due, _LONGEST_TURN)

    def turn(self, upper_bound: float, row_upper_bounds: Tensor) -> bool:
        """Its share of the time; whether something was gained.

        Args:
            upper_bound: Of the norms of all rows.
            row_upper_bounds: Of every row, [R].
        """
        seconds = self.seconds_due(upper_bound)
        if not seconds:
            return False
        self.rule_out(row_upper_bounds)
        gained = self.go_on(seconds)
        if gained:
            self._fruitful = self.spent
        return gained

    @torch.no_grad()
    def go_on(self, seconds: float) -> bool:
        """Look for so many seconds more; whether the largest certified norm has grown."""
        begin, before = time.perf_counter(), self.lower_bound
        is_point = not bool((self.problem.upper > self.problem.lower).any())
        if is_point or not bool(self._open.any()):
            return False
        end = begin + min(seconds, self.clock.left)
        while (left := end - time.perf_counter()) > 0:
            if self._is_stale:
                self._begin()
            if not len(self.elites):
                break
            way, height = self._way(), float(self.elites.norms[0])
            start = time.perf_counter()
            if not self._run(way, left):
                self.spent += time.perf_counter() - start
                break
            passed = max(time.perf_counter() - start, 1e-6)
            gain = max(0.0, float(self.elites.norms[0]) / max(height, 1e-300) - 1) / passed
            self._gains[way] += _LATEST * (gain - self._gains[way])
            self._seconds[way] += passed
            self.spent += passed
            self._idle += 1
            if gain > 0:
                self._gaining, self._idle = self._gaining + self._idle, 0
        self._certify()
        return self.lower_bound > before

    def _certify(self) -> None:
        for elites in (self._before, self.elites):
            if len(elites) and float(elites.norms[0]) > self.lower_bound:
                some = (e[:_CERTIFIED] for e in (elites.points, elites.rows, elites.norms))
                self.record.offer(*some, largest_only=True)

    @property
    def _is_stale(self) -> bool:
        """Whether another population is to be begun."""
        patience = max(_PATIENCE, _SHARE_OF_PATIENCE * self._gaining)
        return self._idle > patience or not self._populations

    def _begin(self) -> None:
        """A new population: points drawn at random, or the best of the populations before."""
        begin = time.perf_counter()
        if self._populations:
            self._before.add(self.elites.points, self.elites.rows, self.elites.norms)
        if self._populations % 2 == 0:
            self.elites = Elites(self.problem)
            count = _NUMBERS_OF_NEW // numbers_of(self.problem.graph)
            points = self._drawn(max(16, min(_NEW, count)))
            if self._softness is None:
                self._softness = Softness(self.problem, points)
                rows = (self.record.norms.isfinite() & self._open).nonzero()[:, 0]
                self.elites.add(self.record.points[rows], rows, self.record.norms[rows])
            rows = self._rows(len(points))
            for part in torch.arange(len(points), device=rows.device).split(self._at_once):
                norms = norms_at(self.problem, points[part], rows[part])
                self.elites.add(points[part], rows[part], norms)
        else:
            self.elites.add(self._before.points, self._before.rows, self._before.norms)
        self._populations += 1
        self.spent += time.perf_counter() - begin
        self._gaining = self._idle = 0

    def _drawn(self, count: int) -> Tensor:
        """Points drawn from the box; every other one is a corner of it."""
        problem = self.problem
        share = torch.rand(count, *problem.centre.shape, generator=self._generator)
        share[1::2] = share[1::2].round()
        width = problem.upper - problem.lower
        return inside(problem, problem.lower + share.to(problem.lower) * width)

    def _rows(self, count: int) -> Tensor:
        """Rows for new points: the more often, the larger the gradients found of them."""
        height = self.record.norms.clone()
        for elites in (self._before, self.elites):
            height = height.scatter_reduce(0, elites.rows, elites.norms, "amax")
        height = torch.where(self._open, height, -torch.inf)
        order = height.argsort(descending=True)[: int(self._open.sum())]
        # Every other place is any, since rows that begin low may end high.
        place = torch.empty(count).exponential_(1 / _MEAN_PLACE, generator=self._generator).long()
        place[1::2] = torch.randint(len(order), (count,), generator=self._generator)[1::2]
        return order[place.to(order.device) % len(order)]

    def _way(self) -> str:
        weights, best = dict(self._weights), max(self._gains, key=self._gains.get)
        if self._gains[best] > 0:
            weights[best] *= _OF_BEST
        return min(weights, key=lambda way: self._seconds[way] / weights[way])

    def _run(self, way: str, left: float) -> bool:
        """One round in at most about so many seconds; whether there was time for it."""
        seconds = min(left, _LONGEST, max(_SHORTEST, _SHARE_OF_ROUND * self.spent))
        cost, begin = self._cost.get(way), time.perf_counter()
        if way == CHANGES:
            count = 32 if cost is None else int(seconds / cost)
            count = min(count, _POINTS, self._at_once)
            if count < 1:
                return False
            points, rows = vary(self.problem, self.elites, count, self._generator)
            norms, units = norms_at(self.problem, points, rows), count
        else:
            count, steps = self._climbers, _LEAST_STEPS
            is_large = count <= _CLIMBERS
            if cost is None and is_large:  # a few, to see what they cost
                count = min(_FEWEST, count)
            elif cost is not None:
                fitting = int(seconds / cost)  # steps of all climbers
                if is_large and fitting < _STEPS_OF_FEW:  # fewer climbers that go far
                    count = max(min(_FEWEST, count), count * fitting // _STEPS_OF_FEW)
                    fitting = _STEPS_OF_FEW
                steps = max(steps, min(_MOST_STEPS, fitting))
                fitting = int(left / (cost * count / self._climbers))
                if fitting < steps and left < _LONGEST:
                    return False  # a whole ascent later rather than a part of one now
                steps = max(1, min(steps, fitting))
            points, rows, norms = self._climb(way, count, steps, Clock.of(left))
            units = steps * len(rows) / self._climbers
        self._cost[way] = (time.perf_counter() - begin) / units
        self.elites.add(points, rows, norms)
        return True

    def _climb(
        self, way: str, count: int, steps: int, clock: Clock
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._waiting = self._waiting[self._open[self._waiting]]
        if way == ANEW and len(self._waiting):  # every row once before any twice
            rows, self._waiting = self._waiting[:count], self._waiting[count:]
            count = len(rows)
            points, paces = self._drawn(count), Paces.usual(count)
        elif way == ANEW:
            points, rows = self._drawn(count), self._rows(count)
            paces = Paces.drawn(count, _LONG_STEPS, self._generator)
        else:
            chosen = self.elites.draw(count, self._generator)
            points, rows = self.elites.points[chosen], self.elites.rows[chosen]
            paces = Paces.drawn(count, _SHORT_STEPS, self._generator)
        climbed = ascend(self.problem, self._softness, points, rows, paces, steps, clock)
        return climbed.points, rows, climbed.norms
