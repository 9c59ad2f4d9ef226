"""Bounds by branch and bound: which engine bounds subdomains, what is split, and the limits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import bab
from lipschitz.branching import HEURISTICS, chooser
from lipschitz.combined_search import PROGRAMS, combined_search
from lipschitz.errors import InputError
from lipschitz.lirpa.bounds import LirpaEngine
from lipschitz.lirpa.search import LirpaSearch
from lipschitz.lower_bound import Sampling, sample_gradients
from lipschitz.native.alpha import native_alpha
from lipschitz.native.crown import RootBounds, native_crown
from lipschitz.native.entry_search import EntrySearch
from lipschitz.native.input_search import InputSearch
from lipschitz.native.interval import interval_norm_bound
from lipschitz.native.search import NativeSearch
from lipschitz.norms import Measure
from lipschitz.problem import (
    DOMAIN_LIMIT,
    EXACT,
    INTERRUPTED,
    TIMEOUT,
    LipschitzResult,
    LocalProblem,
)
from lipschitz.search_types import Bounding, Limits, Progress

BRANCHES = ("relu", "input", "auto")
_REFRESH = {"on": 1, "off": 0, "auto": None}
# Cutting the box pays for a handful of inputs at most; up to these a short trial decides.
_FEW_INPUTS = 8
# Curved activations have no pieces to be found: there the box is worth a trial up to here.
_FEW_INPUTS_IF_CURVED = 64
_TRIAL_SECONDS = 0.5
# Measured on MLPs of width 64 and 128: a tenth fewer seconds, or a tighter bound in the same time.
_BETA_STEPS = 8
_POOL_BYTES = 2 * 2**30


@dataclass(frozen=True)
class BranchOptions:
    """How to search.

    Attributes:
        timeout: Seconds, root bound included.
        tolerance: Relative gap up to which the result is called exact.
        batch_size: Subdomains split per round; by the network's size if None.
        max_domains: Open subdomains kept; by memory if None.
        heuristic: ``sign``, ``slope``, ``area`` or ``babsr``; None is ``sign`` on the native engine
            (in norm 2 ``slope``; in norm 1 always that) and ``area``, the paper's, on auto_LiRPA's.
        branch: ``relu`` (neurons and signs of entries), ``input`` (the box) or ``auto``.
        beta_steps: Steps with which multipliers of the splits (beta-CROWN) tighten recomputed
            intervals; 0 leaves them out, None is 8 on the native engine.
        refresh: ``on`` (intervals recomputed in every subdomain that reaches the top), ``off``, or
            ``auto``: by cost.
        sdp: Semidefinite bounds of subdomains: ``auto`` (where linear bounds lag far behind),
            ``always`` (for every subdomain that is split) or ``never``.
    """

    timeout: float = 60.0
    tolerance: float = 1e-4
    batch_size: int | None = None
    max_domains: int | None = None
    heuristic: str | None = None
    branch: str = "auto"
    refresh: str = "auto"
    beta_steps: int | None = None
    sdp: str = "auto"

    def having(self, **changes: object) -> BranchOptions:
        """The same with some options replaced."""
        return replace(self, **changes)


def check_branching(options: BranchOptions, engine: str) -> None:
    """Refuse options that do not exist or that an engine does not have.

    Raises:
        InputError: With what to use instead.
    """
    for name, known in (
        ("branch", BRANCHES),
        ("refresh", tuple(_REFRESH)),
        ("sdp", PROGRAMS),
    ):
        if getattr(options, name) not in known:
            raise InputError(f"{name} {getattr(options, name)!r}: expected {', '.join(known)}")
    if options.heuristic is not None:
        chooser(options.heuristic)
    if options.beta_steps is not None and options.beta_steps < 0:
        raise InputError(f"beta steps {options.beta_steps}: expected 0 or more")
    if engine == "native":
        return
    if engine != "auto_lirpa":
        raise InputError(f"unknown engine {engine!r}: use native or auto_lirpa")
    if options.heuristic is not None and HEURISTICS[options.heuristic][1]:
        raise InputError(
            f"heuristic {options.heuristic!r} splits signs of entries, which only the native "
            "engine bounds: use slope, area or babsr with auto_lirpa"
        )
    if options.sdp == "always":
        raise InputError("auto_lirpa's search has no semidefinite bounds: use engine native")
    if options.branch == "input" or options.refresh == "on" or options.beta_steps:
        raise InputError("auto_lirpa splits neurons and keeps the root's intervals: use native")


def check_searched(measure: Measure, options: BranchOptions, engine: str) -> None:
    """Refuse what no search bounds.

    Raises:
        InputError: With what to use instead.
    """
    if measure.joint:
        raise InputError(
            f"branch and bound searches single outputs in norm {measure.norm}: ask for outputs "
            "'each', or leave it out"
        )
    if measure.norm == "inf" and measure.free is None:
        return
    what = f"norm {measure.norm}" if measure.norm != "inf" else "inputs 'free'"
    if options.sdp == "always" and measure.norm == "1":
        raise InputError("semidefinite programs do not bound norm 1: use sdp auto or never")
    if engine == "auto_lirpa":
        raise InputError(f"engine 'auto_lirpa' does not search {what}: use engine native")


def bound_by_branching(
    problem: LocalProblem,
    options: BranchOptions | None = None,
    watch: Callable[[Progress], None] | None = None,
    *,
    sampling: Sampling | None = None,
    engine: LirpaEngine | None = None,
    optimize: bool = True,
    memory_budget: int | None = None,
) -> LipschitzResult:
    """Certified bounds by branch and bound.

    Ctrl-C returns the certified bounds reached so far: those of the search, before it has begun
    those of its root, or, before these, of interval arithmetic.

    Args:
        problem: What to bound.
        options: How to search.
        watch: Called once per round.
        sampling: How hard to look for the first lower bound.
        engine: Bounds subdomains by auto_LiRPA; the native engine if None.
        optimize: Optimise the slopes of the root's pre-activation bounds.
        memory_budget: Bytes for the rows of one chunk of the native engine; a part of what is
            free if None.

    Raises:
        InputError: Unknown options, ones that the engine does not have, or values that overflow.
    """
    options = options or BranchOptions()
    check_branching(options, "native" if engine is None else "auto_lirpa")
    check_searched(problem.measure, options, "native" if engine is None else "auto_lirpa")
    begin = time.perf_counter()
    graph = problem.graph
    known = LipschitzResult(
        upper_bound=float("inf"),
        lower_bound=0.0,
        class_upper_bounds=(),
        root_upper_bound=float("inf"),
        status=INTERRUPTED,
        witness=None,
        method="bab",
        engine="native" if engine is None else "auto_lirpa",
        seconds=0.0,
        dtype=str(graph.dtype).removeprefix("torch."),
        device=graph.device.type,
        norm=problem.norm,
        outputs=problem.outputs,
        inputs=problem.inputs,
    )
    try:
        root = _root_bounds(problem, engine, optimize, options.timeout / 2, memory_budget)
        found = sample_gradients(problem, sampling)
    except KeyboardInterrupt:
        rows = interval_norm_bound(
            graph, problem.lower, problem.upper, problem.rows, problem.measure
        )
        return replace(
            known,
            upper_bound=float(rows.max()),
            class_upper_bounds=tuple(rows.tolist()),
            root_upper_bound=float(rows.max()),
            seconds=time.perf_counter() - begin,
        )
    largest = int(found.norms.argmax())
    lower_bound = float(found.norms[largest])
    witness = found.witnesses[largest] if lower_bound > 0 else None
    root_upper = float(root.class_upper_bounds.max())
    if not math.isfinite(root_upper):
        raise InputError(
            "the bound is not a finite number: the network's values overflow on this box; "
            "use --dtype float64 or a smaller eps"
        )
    limits = _limits(problem, options, begin)
    searches = _searches(problem, options, engine, root, lower_bound, memory_budget)
    settled = root_upper <= lower_bound * (1 + options.tolerance)
    try:
        branch = "relu" if settled else _choose_branch(options, problem, searches, lower_bound)
        bounding = searches[branch]()
    except KeyboardInterrupt:
        return replace(
            known,
            upper_bound=root_upper,
            lower_bound=lower_bound,
            class_upper_bounds=tuple(root.class_upper_bounds.tolist()),
            root_upper_bound=root_upper,
            witness=witness,
            seconds=time.perf_counter() - begin,
        )
    best = (lower_bound, witness)
    if type(bounding) is NativeSearch:
        result = combined_search(problem, root, bounding, best, options.sdp, limits, watch)
    else:
        result = bab.branch_and_bound(bounding, *best, limits, watch)
    rows, upper_bound, status = result.row_upper_bounds, result.upper_bound, result.status
    if isinstance(bounding, EntrySearch):
        rows, left_out = bounding.row_bounds(rows), float(bounding.left_out.max())
        upper_bound = max(upper_bound, left_out)
        if status == EXACT and left_out > result.lower_bound * (1 + options.tolerance):
            status = DOMAIN_LIMIT
    rows, upper_bound = torch.minimum(rows, root.class_upper_bounds), min(upper_bound, root_upper)
    if status != INTERRUPTED and upper_bound <= result.lower_bound * (1 + options.tolerance):
        status = EXACT
    return replace(
        known,
        upper_bound=upper_bound,
        lower_bound=result.lower_bound,
        class_upper_bounds=tuple(rows.tolist()),
        root_upper_bound=root_upper,
        status=status,
        witness=result.witness,
        seconds=time.perf_counter() - begin,
        domains=result.domains,
        leaves_checked=result.leaves_checked,
        branch=branch,
    )


def _root_bounds(
    problem: LocalProblem,
    engine: LirpaEngine | None,
    optimize: bool,
    seconds: float,
    budget: int | None,
) -> RootBounds:
    if engine is not None:
        return engine.crown(problem, optimize=optimize)
    if not optimize:
        return native_crown(problem, memory_budget=budget)
    deadline = time.monotonic() + seconds
    return native_alpha(problem, memory_budget=budget, deadline=deadline)


def _searches(
    problem: LocalProblem,
    options: BranchOptions,
    engine: LirpaEngine | None,
    root: RootBounds,
    lower_bound: float,
    budget: int | None,
) -> dict[str, Callable[[], Bounding]]:
    """What can be split, and how subdomains are then bounded."""
    if engine is not None:
        choose = chooser(options.heuristic or "area")
        return {"relu": lambda: LirpaSearch(problem, engine, root, choose)}
    # A square keeps a gap on both sides of a sign; neurons alone are many times faster there.
    choose = chooser(options.heuristic or ("slope" if problem.norm == "2" else "sign"))

    def split_neurons() -> Bounding:
        if problem.norm == "1":
            room = _POOL_BYTES // (4 * _numbers(problem) * problem.rows.element_size())
            return EntrySearch(
                problem, root, lower_bound, largest=max(1, room), memory_budget=budget
            )
        return NativeSearch(
            problem,
            root,
            choose,
            refresh_every=_REFRESH[options.refresh],
            beta_steps=_BETA_STEPS if options.beta_steps is None else options.beta_steps,
            memory_budget=budget,
        )

    return {
        "relu": split_neurons,
        "input": lambda: InputSearch(problem, memory_budget=budget),
    }


def _limits(problem: LocalProblem, options: BranchOptions, begin: float) -> Limits:
    """Limits with the sizes filled in from the network's."""
    numbers = _numbers(problem)
    fitting = _POOL_BYTES // (numbers * problem.rows.element_size())
    return Limits(
        options.timeout,
        options.tolerance,
        options.batch_size or max(8, min(512, 4_000_000 // numbers)),
        options.max_domains or max(64, min(500_000, fitting)),
        begin,
    )


def _numbers(problem: LocalProblem) -> int:
    """Numbers of one subdomain in the pool."""
    graph = problem.graph
    neurons = sum(graph.nodes[i].shape.numel() for i in graph.activation_nodes)
    return 4 * neurons + 3 * problem.centre.numel() + 8


def _choose_branch(
    options: BranchOptions,
    problem: LocalProblem,
    searches: dict[str, Callable[[], Bounding]],
    lower_bound: float,
) -> str:
    """Neurons or input: by whose bound is lower after a moment, if there are few inputs.

    Where several kinks meet, no small box is free of open neurons, so cutting the box may stop
    short of the exact value; it is chosen only where it is ahead.
    """
    if options.branch != "auto":
        return options.branch
    graph = problem.graph
    kinds = [graph.nodes[i].activation for i in graph.activation_nodes]
    curved = any(curvature for kind in kinds for curvature in kind.curvatures)
    few = _FEW_INPUTS_IF_CURVED if curved else _FEW_INPUTS
    if problem.centre.numel() > few or "input" not in searches:
        return "relu"
    trial = Limits(min(_TRIAL_SECONDS, options.timeout / 20), options.tolerance, 64, 10_000)
    neurons, inputs = (
        bab.branch_and_bound(searches[name](), lower_bound, None, trial)
        for name in ("relu", "input")
    )
    if INTERRUPTED in (neurons.status, inputs.status):
        raise KeyboardInterrupt  # the trials have caught it; whoever waits has to see it
    ahead = inputs.status == TIMEOUT and inputs.upper_bound < neurons.upper_bound
    return "input" if ahead else "relu"
