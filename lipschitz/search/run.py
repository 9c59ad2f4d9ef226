"""Bounds by branch and bound: which engine bounds subdomains, what is split, and the limits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.lower.attack import Attack
from lipschitz.bounds.lower.record import Record
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import interval_bounds, native_crown
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.true_gradients import Sampling, sample_gradients
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph, refuse_products
from lipschitz.problem import LocalProblem
from lipschitz.result import LipschitzResult
from lipschitz.rounding import rounded_up
from lipschitz.search.boxes_first import BoxesFirst, can_cut_first
from lipschitz.search.engines.inputs import InputSearch
from lipschitz.search.engines.largest_entry import EntrySearch
from lipschitz.search.engines.lirpa import LirpaSearch
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.engines.regions import RegionSearch, can_search_regions
from lipschitz.search.heuristics import chooser
from lipschitz.search.interface import Bounding, Limits, Progress, SearchResult
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.options import BranchOptions, check_branching, check_searched
from lipschitz.search.trials import choose_branch, try_search
from lipschitz.search.with_programs import combined_search
from lipschitz.words import BOTH, BOUND, DOMAIN_LIMIT, EXACT, INTERRUPTED, TIMEOUT

if TYPE_CHECKING:
    from lipschitz.bounds.lirpa.bounds import LirpaEngine

# Option ``refresh`` to neuron splits between two CROWN passes: each, never, or (None) by cost.
_REFRESH_EVERY = {"on": 1, "off": 0, "auto": None}
# Steps of the splits' multipliers. Measured, when chosen, on MLPs of width 64 and 128: a tenth
# fewer seconds, or a tighter bound in the same time. Not so everywhere: on one of width 64 (eps
# 0.2, six seconds, no programs) the search reached 25.03 with them and 24.74 without.
_BETA_STEPS = 8
# Inputs up to which one search cuts boxes and splits neurons, where all activations are ReLU or
# LeakyReLU. Measured up to 8 inputs, see docs/theory/input-splits.md; the limit is a choice.
_FEW_INPUTS = 10
# Memory for the open subdomains. A choice: with less, weak subdomains are given up earlier, and the
# bound stays sound but may not become exact.
_POOL_BYTES = 2 * 2**30
# Most of the time limit that the root's bounds may take, and most of what is then left that sampled
# true gradients may take. Choices: they matter only where the limit is too short for both.
_SHARE_OF_ROOT, _SHARE_OF_SAMPLING = 0.75, 0.3


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
    check_searched(problem.measure.asked, options, "native" if engine is None else "auto_lirpa")
    _check_split(problem.graph, options)
    begin, clock = time.perf_counter(), Clock.of(options.timeout)
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
    # Boxes of few inputs are bounded so quickly that optimising the root's bounds does not pay.
    boxes_first = engine is None and options.branch != "relu" and options.sdp != "always"
    boxes_first = boxes_first and (can_cut_first(graph) or bool(graph.product_nodes))
    regions_first = engine is None and options.branch == "auto" and options.sdp != "always"
    boxes_first = boxes_first or (regions_first and _has_few_regions(graph))

    def bound_root(optimize: bool) -> RootBounds:
        part = clock.part(_SHARE_OF_ROOT)
        return _root_bounds(problem, engine, optimize, part, memory_budget)

    try:
        root = bound_root(optimize and not boxes_first)
        found = sample_gradients(problem, sampling, clock=clock.part(_SHARE_OF_SAMPLING))
    except KeyboardInterrupt:
        rows = interval_bounds(problem)
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
    seed = 0 if sampling is None else sampling.seed
    attack = Attack(problem, Record.of(problem, found, seed), seed, clock, begin)
    settled = root_upper <= lower_bound * (1 + options.tolerance)
    of_root = replace(
        known,
        upper_bound=root_upper,
        lower_bound=lower_bound,
        class_upper_bounds=tuple(root.class_upper_bounds.tolist()),
        root_upper_bound=root_upper,
        witness=witness,
    )
    if not settled:
        try:
            attack.turn(root_upper, root.class_upper_bounds)
        except KeyboardInterrupt:
            return replace(of_root, seconds=time.perf_counter() - begin)
        if attack.lower_bound > lower_bound:
            lower_bound, witness = attack.lower_bound, attack.witness
            of_root = replace(of_root, lower_bound=lower_bound, witness=witness)
            settled = root_upper <= lower_bound * (1 + options.tolerance)
    limits = _limits(problem, options, begin)
    searches = _searches(problem, options, engine, root, lower_bound, memory_budget, clock)
    # auto_LiRPA bounds a subdomain in the same way as the root: if it ran out of time on the root,
    # it would on every subdomain.
    if (clock.is_over or (engine is not None and clock.missed)) and not settled:
        clock.miss("search")
        return replace(
            of_root,
            status=TIMEOUT,
            not_reached=clock.not_reached,
            seconds=time.perf_counter() - begin,
        )

    def engine_of(branch: str) -> Bounding:
        """What is searched, with what looks for large gradients beside; not for entries of L1."""
        bounding = searches[branch]()
        if not isinstance(bounding, EntrySearch):
            bounding.attack = attack
        return bounding

    def search(branch: str, best: tuple[float, Tensor | None]) -> SearchResult:
        return _search(engine_of(branch), problem, root, best, options, limits, watch)

    def search_neurons(so_far: SearchResult) -> SearchResult:
        return _better(so_far, search("relu", (so_far.lower_bound, so_far.witness)))

    def try_neurons(lower_bound: float, seconds: float) -> SearchResult:
        return try_search(searches["relu"], lower_bound, options, seconds)

    def boxes_are_ahead(boxes: BoxesFirst) -> bool:
        if boxes.is_stuck:
            return False
        tried = try_neurons(boxes.state.lower_bound, boxes.seconds / 2)
        return boxes.is_ahead_of(tried, float(root.class_upper_bounds.max()))

    def optimise_root() -> None:
        nonlocal root, searches
        root = _lower(bound_root(optimize), root.class_upper_bounds)
        lower = lower_bound if result is None else result.lower_bound
        searches = _searches(problem, options, engine, root, lower, memory_budget, clock)

    branch, result = next(iter(searches)), None
    first = BOTH if BOTH in searches else "input"
    both, alone = options.branch == "auto" and len(searches) > 1, "relu" not in searches
    try:
        if boxes_first and (both or alone) and not settled:
            boxes = BoxesFirst(engine_of(first), lower_bound, witness)
            result, branch = boxes.begin(limits), first
            root = _lower(root, boxes.state.root_bounds)
            if boxes.is_promising:
                result = boxes.go_on(limits, watch)
            elif result.status != INTERRUPTED:
                optimise_root()
                if alone or boxes_are_ahead(boxes):
                    result = boxes.go_on(limits, watch)
                else:
                    branch, result = "relu", search_neurons(result)
        else:
            if not settled:
                branch = choose_branch(options, problem, searches, lower_bound)
            result = search(branch, (lower_bound, witness))
        if result.status == BOUND and branch == first and both:
            # Every box around a point where several kinks meet has unstable neurons, so bisecting
            # cannot close it. Splitting neurons can.
            if boxes_first:
                optimise_root()
            result = search_neurons(result)
    except KeyboardInterrupt:
        if result is None:
            return replace(of_root, seconds=time.perf_counter() - begin)
        result = replace(result, status=INTERRUPTED)
    root_upper = float(root.class_upper_bounds.max())
    rows, upper_bound, status = result.row_upper_bounds, result.upper_bound, result.status
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
        not_reached=() if status == EXACT else clock.not_reached,
    )


def _has_few_regions(graph: Graph) -> bool:
    """Whether boxes are cut and neurons split in one search."""
    return graph.input_shape.numel() <= _FEW_INPUTS and can_search_regions(graph)


def _check_split(graph: Graph, options: BranchOptions) -> None:
    """Refuse splits of neurons, and programs, of networks with products of two values.

    Raises:
        InputError: With what to use instead.
    """
    if options.branch == "relu":
        refuse_products(graph, "branch relu", "use branch input or auto")
    if options.sdp == "always":
        refuse_products(graph, "sdp always", "use sdp auto or never")


def _search(
    bounding: Bounding,
    problem: LocalProblem,
    root: RootBounds,
    best: tuple[float, Tensor | None],
    options: BranchOptions,
    limits: Limits,
    watch: Callable[[Progress], None] | None,
) -> SearchResult:
    """Run one search. In L1, entries that were left out of it count with their root bounds."""
    if type(bounding) is NeuronSearch:
        return combined_search(problem, root, bounding, best, options.sdp, limits, watch)
    result = branch_and_bound(bounding, *best, limits, watch)
    if not isinstance(bounding, EntrySearch):
        return result
    left_out, status = float(bounding.left_out.max()), result.status
    if status == EXACT and left_out > result.lower_bound * (1 + options.tolerance):
        status = DOMAIN_LIMIT
    return replace(
        result,
        row_upper_bounds=bounding.row_bounds(result.row_upper_bounds),
        upper_bound=max(result.upper_bound, left_out),
        status=status,
    )


def _lower(root: RootBounds, bounds: Tensor) -> RootBounds:
    """The same with other bounds [R] where these are lower, in the precision that it has."""
    known = root.class_upper_bounds
    if bounds.dtype != known.dtype:
        bounds = rounded_up(bounds, known.dtype)
    return replace(root, class_upper_bounds=torch.minimum(bounds, known))


def _better(first: SearchResult, second: SearchResult) -> SearchResult:
    """Result of two searches, of which the second began with the first's lower bound."""
    return replace(
        second,
        upper_bound=min(first.upper_bound, second.upper_bound),
        row_upper_bounds=torch.minimum(first.row_upper_bounds, second.row_upper_bounds),
        domains=first.domains + second.domains,
        leaves_checked=first.leaves_checked + second.leaves_checked,
    )


def _root_bounds(
    problem: LocalProblem,
    engine: LirpaEngine | None,
    optimize: bool,
    clock: Clock,
    budget: int | None,
) -> RootBounds:
    if engine is not None:
        return engine.crown(problem, optimize=optimize, clock=clock)
    linear = native_alpha if optimize else native_crown
    return linear(problem, memory_budget=budget, clock=clock)


def _searches(
    problem: LocalProblem,
    options: BranchOptions,
    engine: LirpaEngine | None,
    root: RootBounds,
    lower_bound: float,
    budget: int | None,
    clock: Clock,
) -> dict[str, Callable[[], Bounding]]:
    """What can be split (``relu``, ``input``), and for each a function that makes the engine."""
    if engine is not None:
        choose = chooser(options.heuristic or "area")
        return {"relu": lambda: LirpaSearch(problem, engine, root, choose, clock)}
    # The L2 bound has J_i^2, whose chord keeps its gap when the sign of J_i is fixed. So there only
    # neurons are split, which is many times faster.
    choose = chooser(options.heuristic or ("slope" if problem.norm == "2" else "sign"))

    def split_neurons() -> Bounding:
        if problem.norm == "1":
            room = _POOL_BYTES // (4 * _numbers(problem) * problem.rows.element_size())
            return EntrySearch(
                problem,
                root,
                lower_bound,
                largest=max(1, room),
                memory_budget=budget,
                clock=clock,
            )
        return NeuronSearch(
            problem,
            root,
            choose,
            refresh_every=_REFRESH_EVERY[options.refresh],
            beta_steps=_BETA_STEPS if options.beta_steps is None else options.beta_steps,
            memory_budget=budget,
            clock=clock,
        )

    def cut_boxes() -> Bounding:
        known = root.class_upper_bounds
        return InputSearch(problem, known, memory_budget=budget, clock=clock)

    def do_both() -> Bounding:
        known = root.class_upper_bounds
        return RegionSearch(problem, known, root.preacts, memory_budget=budget, clock=clock)

    if problem.graph.product_nodes:  # a neuron's half is no linear constraint on products
        return {"input": cut_boxes}
    if options.branch == "auto" and options.sdp != "always" and _has_few_regions(problem.graph):
        return {"relu": split_neurons, BOTH: do_both}
    return {"relu": split_neurons, "input": cut_boxes}


def _limits(problem: LocalProblem, options: BranchOptions, begin: float) -> Limits:
    """The search's limits; sizes that were not asked for go by the size of the network.

    The numbers in here are choices: a round is at most 512 subdomains and about 4 million numbers,
    and the pool keeps 64 to 500,000 subdomains, as memory allows.
    """
    numbers = _numbers(problem)
    fitting = _POOL_BYTES // (numbers * problem.rows.element_size())
    return Limits(
        options.timeout,
        options.tolerance,
        options.batch_size or max(1, min(512, 4_000_000 // numbers)),
        options.max_domains or max(64, min(500_000, fitting)),
        begin,
    )


def _numbers(problem: LocalProblem) -> int:
    """About how many numbers the pool stores for one subdomain."""
    graph = problem.graph
    neurons = sum(graph.nodes[i].shape.numel() for i in graph.activation_nodes)
    return 4 * neurons + 3 * problem.centre.numel() + 8
