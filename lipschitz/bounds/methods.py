"""The single table of methods: name -> what it needs and how it bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipschitz.bounds.baselines.eclipse import eclipse_bounds, relu_chain
from lipschitz.bounds.baselines.extras import require_extra
from lipschitz.bounds.baselines.fastlip import fastlip_bound
from lipschitz.bounds.baselines.lipbab import lipbab_bounds
from lipschitz.bounds.baselines.lipmip import lipmip_bounds
from lipschitz.bounds.baselines.lipsdp import chain_of, lipsdp_bounds
from lipschitz.bounds.baselines.recurjac import recurjac_bound
from lipschitz.bounds.baselines.sampling import LOWER_BOUND_ONLY, sampled_lower_bounds
from lipschitz.bounds.global_norm import check_bounded_slopes, global_norm_bound
from lipschitz.bounds.lirpa.bounds import LirpaEngine, SlopeOptimization
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import interval_norm_bound
from lipschitz.bounds.outcome import Outcome
from lipschitz.bounds.sdp.bound import LastSolutions, SdpOptions, sdp_bounds
from lipschitz.errors import InputError, suggest
from lipschitz.network.graph import Graph
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem

# Bounds one problem: upper bound per row, [R], or of all rows together, [1]; or these and what else
# the method found.
Bounder = Callable[[LocalProblem], Tensor | Outcome]

LOCAL, GLOBAL = "local", "global"
UPPER, EXACT_IN_TIME, LOWER = "upper bound", "exact given time", "lower bound"
# ||J||_1 <= sqrt(D) ||J||_2 for D inputs.
FROM_L2 = "L2 x sqrt(D)"


@dataclass(frozen=True)
class MethodOptions:
    """Options of the methods; each uses those that concern it.

    Attributes:
        optimize: Optimise the slopes of pre-activation bounds (``crown``).
        slopes: How.
        rows_at_once: Output directions per batch, None for as many as fit.
        memory_budget: Bytes for the coefficients of one chunk of rows; the engine chooses if None.
        timeout: Seconds per problem, for the methods that search.
        seed: Seed of the points that ``sampling`` and the searching methods draw.
    """

    optimize: bool = True
    slopes: SlopeOptimization = field(default_factory=SlopeOptimization)
    rows_at_once: int | None = None
    memory_budget: int | None = None
    timeout: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """One way of bounding.

    Attributes:
        help: One line.
        prepare: Engine name -> function that prepares a bounder for a network. The first engine
            is the default.
        norms: Norms of single outputs and margins that it bounds, best known first.
        joint: Norms in which it bounds several outputs together as well; Linf is always so.
        counts_free: Can leave out inputs that the box does not let change.
        scope: Where its bound holds: ``local`` (in the box) or ``global`` (everywhere).
        certifies: ``upper bound``, ``exact given time`` or ``lower bound``.
        converted: How a constant of another norm was made one of Linf; None if it was not.
        searches: Stops at ``MethodOptions.timeout`` or Ctrl-C, with the certified bounds reached
            by then.
        extra: Optional package that it needs.
    """

    help: str
    prepare: dict[str, Callable[[Graph, MethodOptions], Bounder]]
    scope: str = LOCAL
    certifies: str = UPPER
    converted: str | None = None
    norms: tuple[str, ...] = ("inf", "1", "2")
    joint: tuple[str, ...] = ("1", "2")
    counts_free: bool = True
    searches: bool = False
    extra: str | None = None

    def kind(self, norm: str = "inf") -> str:
        """What its number is, such as ``global L2 x sqrt(D), upper bound``; for rows and tables."""
        converted = self.converted if norm == "inf" else None
        return f"{' '.join(filter(None, (self.scope, converted)))}, {self.certifies}"


def _crown_auto_lirpa(graph: Graph, options: MethodOptions) -> Bounder:
    engine = LirpaEngine(graph, options.memory_budget, options.slopes)

    def bound(problem: LocalProblem) -> Tensor:
        return engine.crown(
            problem, optimize=options.optimize, rows_at_once=options.rows_at_once
        ).class_upper_bounds

    return bound


def _crown_native(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: (
        native_crown(problem, memory_budget=options.memory_budget).class_upper_bounds
    )


def _alpha_native(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: (
        native_alpha(problem, memory_budget=options.memory_budget).class_upper_bounds
    )


def _ibp_auto_lirpa(graph: Graph, options: MethodOptions) -> Bounder:
    return LirpaEngine(graph, optimization=options.slopes).ibp


def _ibp_native(graph: Graph, options: MethodOptions) -> Bounder:
    def bound(problem: LocalProblem) -> Tensor:
        return interval_norm_bound(
            graph, problem.lower, problem.upper, problem.rows, problem.measure
        )

    return bound


def _global(graph: Graph, options: MethodOptions) -> Bounder:
    check_bounded_slopes(graph)
    return lambda problem: global_norm_bound(graph, problem.rows, problem.measure)


def _recurjac(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: recurjac_bound(problem, memory_budget=options.memory_budget)


def _fastlip(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: fastlip_bound(problem, memory_budget=options.memory_budget)


def _sdp(graph: Graph, options: MethodOptions) -> Bounder:
    limits = SdpOptions(
        timeout=options.timeout, memory_budget=options.memory_budget, seed=options.seed
    )
    last = LastSolutions()
    return lambda problem: sdp_bounds(problem, limits, last)


def _lipmip(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: lipmip_bounds(problem, timeout=options.timeout, seed=options.seed)


def _lipbab(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: lipbab_bounds(problem, timeout=options.timeout, seed=options.seed)


def _lipsdp(graph: Graph, options: MethodOptions) -> Bounder:
    chain_of(graph)  # what is wrong with the network comes before what is missing here
    require_extra("lipsdp", "cvxpy")
    return lambda problem: lipsdp_bounds(problem, timeout=options.timeout)


def _eclipse(graph: Graph, options: MethodOptions) -> Bounder:
    relu_chain(graph)
    require_extra("eclipse", "eclipse-nn", "eclipse_nn")
    return eclipse_bounds


def _sampling(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: sampled_lower_bounds(problem, options.seed)


METHODS: dict[str, Method] = {
    "crown": Method(
        "linear bound propagation on the Jacobian (Shi et al. 2022)",
        {"auto_lirpa": _crown_auto_lirpa, "native": _crown_native},
    ),
    "alpha": Method(
        "the same with slopes optimised for the Jacobian's norm, on the native engine",
        {"native": _alpha_native},
    ),
    "sdp": Method(
        "semidefinite bound, nearly exact on wide boxes; of outputs that may hold the maximum",
        {"native": _sdp},
        norms=("inf", "2"),
        joint=(),
        searches=True,
    ),
    "ibp": Method(
        "interval bound propagation on the Jacobian",
        {"native": _ibp_native, "auto_lirpa": _ibp_auto_lirpa},
    ),
    "global": Method(
        "product of the layers' operator norms",
        {"native": _global},
        scope=GLOBAL,
    ),
    "recurjac": Method(
        "recursive bounds of the Jacobian's entries (Zhang et al. 2019)", {"native": _recurjac}
    ),
    "fastlip": Method(
        "interval bounds of the Jacobian from Fast-Lin's neuron bounds (Weng et al. 2018)",
        {"native": _fastlip},
    ),
    "lipmip": Method(
        "mixed-integer programming, for small networks (Jordan and Dimakis 2020)",
        {"native": _lipmip},
        certifies=EXACT_IN_TIME,
        norms=("inf",),
        joint=(),
        counts_free=False,
        searches=True,
    ),
    "lipbab": Method(
        "branching on activation patterns, for small networks (Bhowmick et al. 2021)",
        {"native": _lipbab},
        certifies=EXACT_IN_TIME,
        joint=(),
        searches=True,
    ),
    "lipsdp": Method(
        "semidefinite programming (Fazlyab et al. 2019); needs cvxpy",
        {"native": _lipsdp},
        scope=GLOBAL,
        converted=FROM_L2,
        norms=("inf", "2"),
        joint=(),
        counts_free=False,
        searches=True,
        extra="cvxpy",
    ),
    "eclipse": Method(
        "layer-wise matrix inequalities (Xu and Sivaranjani 2024, 2026); needs eclipse-nn",
        {"native": _eclipse},
        norms=("inf", "2"),
        joint=(),
        counts_free=False,
        converted=FROM_L2,
        extra="eclipse-nn",
    ),
    "sampling": Method(
        "sampled and climbed gradients; nothing certified above",
        {"native": _sampling},
        certifies=LOWER,
    ),
}
# What branch and bound, which is no method of the table but refines two of them, finds.
BRANCHING_KIND = f"{LOCAL}, {EXACT_IN_TIME}"


def choose_engine(method: str, engine: str | None, norm: str = "inf", inputs: str = "all") -> str:
    """The engine that will compute a method's bound.

    Raises:
        InputError: An unknown method or engine, or one that the method does not run on, or not in
            this norm.
    """
    if method not in METHODS:
        raise InputError(
            f"unknown method {method!r}{suggest(method, METHODS)}; known: {', '.join(METHODS)}"
        )
    engines = METHODS[method].prepare
    plain = norm == "inf" and inputs == "all"
    if engine is None:
        return "native" if not plain and "native" in engines else next(iter(engines))
    if engine not in engines:
        raise InputError(
            f"method {method!r} does not run on engine {engine!r}: use {' or '.join(engines)}"
        )
    return engine


def kind_of(method: str, norm: str = "inf") -> str:
    """What the number of a method, or of ``bab``, is; see :meth:`Method.kind`."""
    return METHODS[method].kind(norm) if method in METHODS else BRANCHING_KIND


def check_measure(method: str, engine: str, measure: Measure) -> None:
    """Refuse what a method does not bound.

    Raises:
        InputError: With what it does.
    """
    known = METHODS[method]
    if engine == "auto_lirpa" and (measure.norm != "inf" or measure.free is not None):
        what = f"norm {measure.norm}" if measure.norm != "inf" else "inputs 'free'"
        raise InputError(f"engine 'auto_lirpa' does not bound {what}: use engine native")
    if measure.norm not in known.norms:
        raise InputError(
            f"method {method!r} does not bound norm {measure.norm}: it knows "
            f"{', '.join(known.norms)}; use crown or alpha"
        )
    if measure.joint and measure.norm not in known.joint:
        raise InputError(
            f"method {method!r} bounds single outputs in norm {measure.norm}: ask for outputs "
            "'each', or use crown or alpha"
        )
    if measure.free is not None and not known.counts_free:
        raise InputError(f"method {method!r} counts all inputs: leave out inputs 'free'")


def run_bounder(bounder: Bounder, problem: LocalProblem) -> Outcome:
    """What a method finds, refused if its upper bounds are not numbers.

    Raises:
        InputError: A bound is NaN, or infinite from a method that should certify one.
    """
    found = bounder(problem)
    outcome = found if isinstance(found, Outcome) else Outcome(found)
    bounds = outcome.class_upper_bounds
    lower_only = outcome.status == LOWER_BOUND_ONLY and not bool(bounds.isnan().any())
    if not lower_only and not bool(torch.isfinite(bounds).all()):
        raise InputError(
            "the bound is not a finite number: the network's values overflow on this box; "
            "use --dtype float64 or a smaller eps"
        )
    return outcome


def class_upper_bounds(bounder: Bounder, problem: LocalProblem) -> Tensor:
    """A method's upper bounds [R], refused if they are not numbers.

    Raises:
        InputError: As :func:`run_bounder`.
    """
    return run_bounder(bounder, problem).class_upper_bounds
