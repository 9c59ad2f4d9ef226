"""Bounds of curvature: the largest norm of a row's Hessian over a box, with and without a search.

Whatever ends the work, Ctrl-C or the time limit, what has been certified by then is returned: of
row sums by interval arithmetic at first, then of intervals of the Hessian's entries, of
single directions, and of the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native.curvature import HessianTerms, check_curvature, row_sums
from lipschitz.bounds.native.hessian_norms import (
    FEW_SIGNS,
    hessian_norm_bound,
    sign_vectors,
)
from lipschitz.bounds.native.hessian_root import RootProducts, first_order, is_affine
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.true_curvature import TrueCurvature, sample_curvature
from lipschitz.bounds.true_gradients import GradientNorms, Sampling
from lipschitz.errors import InputError
from lipschitz.norms import Measure, upper_magnitude
from lipschitz.problem import LocalProblem
from lipschitz.result import LipschitzResult
from lipschitz.rounding import guard, raise_upper_bound
from lipschitz.search.engines.hessians import DirectionSearch, HessianSearch, MatrixSearch
from lipschitz.search.interface import Limits, Progress
from lipschitz.search.loop import branch_and_bound
from lipschitz.words import BOUND, EXACT, INTERRUPTED, TIMEOUT

# The name of the method in results.
CURVATURE = "curvature"
# Inputs up to which boxes are cut. A choice: with more, halves of a box are hardly better.
MOST_INPUTS = 64
# Shares of the time left: for sampled Hessians, for intervals of first order, for the root's
# matrices and entries. Choices: they matter only where the limit is too short for all.
_SHARE_OF_SAMPLING, _SHARE_OF_FIRST_ORDER = 0.2, 0.3
_SHARE_OF_MATRICES, _SHARE_OF_ENTRIES = 0.5, 0.5
# Before anything of the kind has been timed: seconds for the norm of one matrix over the cube of
# its size, and for a number of affine forms; how many times as long as interval arithmetic affine
# forms, bounds of first order and a round of the search take at least. Guesses, measured on one
# core; they matter only where time is short.
_SECONDS_OF_MATRIX, _SECONDS_OF_NUMBER = 1e-9, 3e-8
_TIMES_OF_FORMS, _TIMES_OF_FIRST_ORDER, _TIMES_OF_ROUND = 10, 20, 20
_NORMS = "norms of the Hessian's bounds"
# Subdomains split in a round, and open ones kept. Choices.
_BATCH, _MOST_DOMAINS = 128, 500_000


@dataclass(frozen=True)
class CurvatureOptions:
    """How to bound curvature.

    Attributes:
        timeout: Seconds, all included; infinity for no limit.
        tolerance: Relative gap up to which the result is called exact.
        search: Cut the box until the bounds meet.
        optimize: Optimise weights and slopes of the root's bounds where that is cheap.
        batch_size: Subdomains split per round; 128 if None.
        max_domains: Open subdomains kept; 500,000 if None.
        memory_budget: Bytes for one chunk of rows; by the device's memory if None.
    """

    timeout: float = 60.0
    tolerance: float = 1e-4
    search: bool = True
    optimize: bool = True
    batch_size: int | None = None
    max_domains: int | None = None
    memory_budget: int | None = None

    def having(self, **changes: object) -> CurvatureOptions:
        """The same with some options replaced."""
        return replace(self, **changes)


class _Curvature:
    """Certified bounds so far.

    Args:
        problem: Whose curvature.
        clock: When to stop.
        options: How to bound it.
    """

    def __init__(self, problem: LocalProblem, clock: Clock, options: CurvatureOptions) -> None:
        self.problem, self.clock, self.optimize = problem, clock, options.optimize
        self.measure = Measure(problem.norm)
        graph, rows = problem.graph, problem.rows
        box, begin = Interval(problem.lower[None], problem.upper[None]), clock.now()
        sums = row_sums(graph, box, rows)
        self.bounds = sums.sum(1) if problem.norm == "inf" else sums.amax(1)
        self.bounds = raise_upper_bound(self.bounds)
        self.seconds_of_intervals = clock.now() - begin
        self.found = GradientNorms(
            torch.zeros_like(rows[:, 0]), problem.centre.expand(len(rows), *problem.centre.shape)
        )
        budget = options.memory_budget or default_memory_budget(graph.device)
        self.terms = HessianTerms(graph, budget)
        self.true = TrueCurvature.of(problem, self.terms)
        self.directions: Tensor | None = None
        self.direction_bounds: Tensor | None = None

    def sample(self, sampling: Sampling | None) -> None:
        """Look for large Hessians."""
        clock = self.clock.part(_SHARE_OF_SAMPLING)
        self.found = sample_curvature(self.true, sampling, clock)

    def root(self) -> None:
        """Bound the whole box."""
        problem, clock = self.problem, self.clock
        known: dict[int, Interval] = {}
        if clock.allows(_TIMES_OF_FIRST_ORDER * self.seconds_of_intervals):
            first = clock.part(_SHARE_OF_FIRST_ORDER)
            known = first_order(problem, self.terms, optimize=self.optimize, clock=first)
        else:
            clock.miss("bounds of the gradient")
        options = {"optimize": self.optimize}
        whole = RootProducts(problem, self.terms, known, clock=clock, **options)
        few = problem.centre.numel() <= FEW_SIGNS
        by_directions = problem.norm == "1" or (problem.norm == "inf" and few)
        if not by_directions and clock.allows(self._seconds_of_forms()):
            part = clock.part(_SHARE_OF_MATRICES)
            found = RootProducts(problem, self.terms, known, clock=part, **options).matrices()
            self._lower(found)
        part = clock.part(_SHARE_OF_ENTRIES)
        entries = RootProducts(problem, self.terms, known, clock=part, **options).hessians()
        self._lower(_by_matrices(problem.norm, entries, clock))
        if by_directions and self._is_small:
            self._bound_directions(entries, whole)

    @property
    def _is_small(self) -> bool:
        return self.problem.centre.numel() <= MOST_INPUTS

    def _seconds_of_forms(self) -> float:
        """A guess at how long affine forms of one matrix take."""
        numbers = self.problem.centre.numel() * self.terms.forward_cost()
        return _TIMES_OF_FORMS * self.seconds_of_intervals + _SECONDS_OF_NUMBER * numbers

    def _lower(self, bounds: Tensor) -> None:
        self.bounds = torch.fmin(self.bounds, bounds.to(self.bounds))

    def _bound_directions(self, entries: Interval, root: RootProducts) -> None:
        """Bounds of every direction; the ones that may be the largest of a row by passes."""
        problem, shape = self.problem, self.problem.centre.shape
        count = shape.numel()
        if problem.norm == "inf":
            directions = sign_vectors(count, problem.rows)
        else:
            directions = torch.eye(count, dtype=problem.rows.dtype, device=problem.rows.device)
        many = len(directions)
        bounds = _by_entries(self.measure, entries, directions)
        bounds = torch.fmin(bounds, self.bounds.unsqueeze(1))
        self.directions, self.direction_bounds = directions.reshape(many, *shape), bounds
        if problem.norm == "1":
            return  # the entries have had rows of their own
        row, which = (bounds > self.found.norms.unsqueeze(1)).nonzero().unbind(1)
        order = bounds[row, which].argsort(descending=True)
        row, which = row[order], which[order]
        found = root.norms(row, self.directions[which], self.measure)
        bounds[row, which] = torch.fmin(bounds[row, which], found)
        self._lower(bounds.amax(1))

    def engine(self) -> HessianSearch | None:
        """What is searched; None with too many inputs."""
        if not self._is_small:
            return None
        if self.directions is None:
            return MatrixSearch(self.true, self.bounds.clone(), self.clock)
        return DirectionSearch(self.true, self.directions, self.direction_bounds, self.clock)


def _by_matrices(norm: str, entries: Interval, clock: Clock) -> Tensor:
    """Upper bounds of the norm from intervals of the entries, [R]; infinity where one is.

    Row sums at first where time is limited, as no norm is above their sum or, for L2 and symmetric
    matrices, the largest of them.
    """
    known = (torch.isfinite(entries.lower) & torch.isfinite(entries.upper)).flatten(1).all(1)
    bounds = entries.lower.new_full(known.shape, torch.inf)
    rows = known.nonzero().squeeze(1)
    if clock.is_limited and norm != "1":
        sums = upper_magnitude(*(end[rows] for end in entries)).sum(2)
        bounds[rows] = raise_upper_bound(sums.sum(1) if norm == "inf" else sums.amax(1))
        if not clock.allows(_SECONDS_OF_MATRIX * sums.shape[1] ** 3):
            clock.miss(_NORMS)
            return bounds
    for part in clock.growing(len(rows), 1, max(1, len(rows)), _NORMS):
        row = rows[part]
        found = hessian_norm_bound(norm, *(end[row] for end in entries))
        bounds[row] = torch.fmin(bounds[row], found)
    return bounds


def _by_entries(measure: Measure, entries: Interval, directions: Tensor) -> Tensor:
    """Upper bounds of the norm of ``H v`` from intervals of H's entries, [R, V]."""
    lower, upper = (end.double() for end in entries)
    mean, radius = (lower + upper) / 2, (upper - lower) / 2
    along = directions.double().mT
    size = upper_magnitude(lower, upper) @ along.abs()
    images = (mean @ along).abs() + radius @ along.abs()
    images = images + guard(torch.float64) * len(along) * size
    return raise_upper_bound(measure.of_rows(images.mT).to(entries.lower))


@torch.no_grad()
def bound_curvature(
    problem: LocalProblem,
    options: CurvatureOptions | None = None,
    *,
    sampling: Sampling | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> LipschitzResult:
    """Certified bounds of the Lipschitz constant of every row's gradient over the box.

    Ctrl-C returns the certified bounds reached so far.

    Args:
        problem: What to bound; its norm is that of the inputs, rows are taken one by one.
        options: How to bound it.
        sampling: How hard to look for the first lower bound.
        watch: Called once per round of the search.

    Raises:
        InputError: An activation whose curvature says nothing or is infinite, by name, or values
            that overflow.
    """
    options = options or CurvatureOptions()
    begin, clock, tolerance = time.perf_counter(), Clock.of(options.timeout), options.tolerance
    check_curvature(problem.graph)
    rows = problem.rows

    def result(upper: Tensor, lower: float, witness: Tensor | None, **more: object) -> object:
        return LipschitzResult(
            upper_bound=float(upper.max()),
            lower_bound=lower,
            class_upper_bounds=tuple(upper.tolist()),
            witness=witness,
            method=CURVATURE,
            engine="native",
            seconds=time.perf_counter() - begin,
            dtype=str(problem.graph.dtype).removeprefix("torch."),
            device=problem.graph.device.type,
            norm=problem.norm,
            outputs="each",
            inputs=problem.inputs,
            **more,
        )

    if is_affine(problem):
        zero = torch.zeros_like(rows[:, 0])
        return result(zero, 0.0, None, root_upper_bound=0.0, status=EXACT)
    state = _Curvature(problem, clock, options)

    def best() -> tuple[float, Tensor | None]:
        largest = int(state.found.norms.argmax())
        lower = float(state.found.norms[largest])
        return lower, state.found.witnesses[largest] if lower > 0 else None

    try:
        state.sample(sampling)
        state.root()
    except KeyboardInterrupt:
        root = float(state.bounds.max())
        return result(state.bounds, *best(), root_upper_bound=root, status=INTERRUPTED)
    bounds, root = state.bounds, float(state.bounds.max())
    if not bool(torch.isfinite(bounds).all()):
        raise InputError(
            "the bound is not a finite number: the network's values overflow on this box; "
            "use --dtype float64 or a smaller eps"
        )
    lower, witness = best()
    engine = state.engine() if options.search else None
    status, domains = BOUND, 0
    if engine is not None and root > lower * (1 + tolerance):
        if not clock.allows(_TIMES_OF_ROUND * state.seconds_of_intervals):
            clock.miss("search")
        else:
            limits = Limits(
                options.timeout,
                tolerance,
                options.batch_size or _BATCH,
                options.max_domains or _MOST_DOMAINS,
                begin,
            )
            found = branch_and_bound(engine, lower, witness, limits, watch)
            bounds = torch.minimum(bounds, engine.row_bounds(found.row_upper_bounds))
            lower, witness = found.lower_bound, found.witness
            status, domains = found.status, found.domains
    upper = float(bounds.max())
    if status != INTERRUPTED and upper <= lower * (1 + tolerance):
        status = EXACT
    elif status == BOUND and clock.not_reached:
        status = TIMEOUT
    return result(
        bounds,
        lower,
        witness,
        root_upper_bound=root,
        status=status,
        domains=domains,
        branch="input" if domains else None,
        not_reached=() if status == EXACT else clock.not_reached,
    )
