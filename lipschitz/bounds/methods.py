"""The single table of methods: name -> what it needs and how it bounds.

A method's code, torch included, is loaded when it is used: the table costs nothing to read, and an
optional package is missed only by whoever asks for what needs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lipschitz.bounds.lirpa import HOW_TO_INSTALL
from lipschitz.bounds.options import MethodOptions
from lipschitz.errors import InputError, suggest
from lipschitz.words import Asked

if TYPE_CHECKING:
    from torch import Tensor

    from lipschitz.bounds.clock import Clock
    from lipschitz.bounds.outcome import Bounder, Outcome
    from lipschitz.network.graph import Graph
    from lipschitz.problem import LocalProblem

LOCAL, GLOBAL = "local", "global"
UPPER, EXACT_IN_TIME, LOWER = "upper bound", "exact given time", "lower bound"
# Share of the time limit for the upper bounds of methods that find no true gradients themselves;
# the rest is for sampling these. A choice: it matters only where the limit is too short for both.
_SHARE_OF_UPPER = 0.75
# ||J||_1 <= sqrt(D) ||J||_2 for D inputs.
FROM_L2 = "L2 x sqrt(D)"
# Engine -> the package it needs, and how it is got.
_PACKAGES = {"auto_lirpa": ("auto_LiRPA", HOW_TO_INSTALL)}


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
        products: Bounds networks that multiply two values which both depend on the input, on the
            native engine.
        scope: Where its bound holds: ``local`` (in the box) or ``global`` (everywhere).
        certifies: ``upper bound``, ``exact given time`` or ``lower bound``.
        converted: How a constant of another norm was made one of Linf; None if it was not.
        searches: Stops at a time limit, 60 s unless ``MethodOptions.timeout`` says otherwise, or at
            Ctrl-C, with the certified bounds reached by then.
        timed_on: Engines on which ``MethodOptions.timeout`` is kept.
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
    products: bool = False
    searches: bool = False
    timed_on: tuple[str, ...] = ()
    extra: str | None = None

    def kind(self, norm: str = "inf") -> str:
        """What its number is, such as ``global L2 x sqrt(D), upper bound``; for rows and tables."""
        converted = self.converted if norm == "inf" else None
        return f"{' '.join(filter(None, (self.scope, converted)))}, {self.certifies}"


def _clock(options: MethodOptions) -> Clock:
    """The time of a method's own; the rest is for true gradients."""
    from lipschitz.bounds.clock import Clock

    return Clock.of(options.timeout).part(_SHARE_OF_UPPER)


def _crown_auto_lirpa(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.lirpa.bounds import LirpaEngine
    from lipschitz.bounds.outcome import in_time

    engine = LirpaEngine(graph, options.memory_budget, options.slopes)

    def bound(problem: LocalProblem) -> Outcome:
        clock = _clock(options)
        root = engine.crown(
            problem, optimize=options.optimize, rows_at_once=options.rows_at_once, clock=clock
        )
        return in_time(root.class_upper_bounds.detach(), clock)

    return bound


def _crown_native(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.native.crown import native_crown
    from lipschitz.bounds.outcome import in_time

    def bound(problem: LocalProblem) -> Outcome:
        clock = _clock(options)
        root = native_crown(problem, memory_budget=options.memory_budget, clock=clock)
        return in_time(root.class_upper_bounds, clock)

    return bound


def _alpha_native(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.native.alpha import native_alpha
    from lipschitz.bounds.outcome import in_time

    def bound(problem: LocalProblem) -> Outcome:
        clock = _clock(options)
        root = native_alpha(problem, memory_budget=options.memory_budget, clock=clock)
        return in_time(root.class_upper_bounds, clock)

    return bound


def _joint_native(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.native.crown import native_crown
    from lipschitz.bounds.native.joint import with_planes
    from lipschitz.bounds.native.products import product_bounds
    from lipschitz.bounds.native.terms.linear import PlaneSearch
    from lipschitz.bounds.outcome import in_time

    def bound(problem: LocalProblem) -> Outcome:
        clock = _clock(options)
        budget = options.memory_budget
        search = PlaneSearch() if options.optimize else PlaneSearch(steps=0)
        if graph.product_nodes:
            found = product_bounds(problem, search=search, memory_budget=budget, clock=clock)
            return in_time(found.class_upper_bounds, clock)
        root = native_crown(problem, memory_budget=budget, clock=clock.part(0.5))
        found = with_planes(problem, root, search=search, memory_budget=budget, clock=clock)
        return in_time(found.class_upper_bounds, clock)

    return bound


def _ibp_auto_lirpa(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.lirpa.bounds import LirpaEngine

    return LirpaEngine(graph, optimization=options.slopes).ibp


def _ibp_native(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.native.terms.jacobian import interval_bound

    def bound(problem: LocalProblem) -> Tensor:
        return interval_bound(graph, problem.lower, problem.upper, problem.rows, problem.measure)

    return bound


def _global(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.global_norm import check_bounded_slopes, global_norm_bound

    check_bounded_slopes(graph)
    return lambda problem: global_norm_bound(graph, problem.rows, problem.measure)


def _recurjac(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.baselines.recurjac import recurjac_bound

    return lambda problem: recurjac_bound(problem, memory_budget=options.memory_budget)


def _fastlip(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.baselines.fastlip import fastlip_bound

    return lambda problem: fastlip_bound(problem, memory_budget=options.memory_budget)


def _sdp(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.sdp.bound import LastSolutions, SdpOptions, sdp_bounds

    limits = SdpOptions(
        timeout=options.search_seconds, memory_budget=options.memory_budget, seed=options.seed
    )
    last = LastSolutions()
    return lambda problem: sdp_bounds(problem, limits, last)


def _lipmip(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.baselines.lipmip import lipmip_bounds

    return lambda problem: lipmip_bounds(problem, timeout=options.search_seconds, seed=options.seed)


def _lipbab(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.baselines.lipbab import lipbab_bounds

    return lambda problem: lipbab_bounds(problem, timeout=options.search_seconds, seed=options.seed)


def _lipsdp(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.baselines.extras import require_extra
    from lipschitz.bounds.baselines.lipsdp import chain_of, lipsdp_bounds

    chain_of(graph)  # what is wrong with the network comes before what is missing here
    require_extra("lipsdp", "cvxpy")
    return lambda problem: lipsdp_bounds(problem, timeout=options.search_seconds)


def _eclipse(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.baselines.eclipse import eclipse_bounds, relu_chain
    from lipschitz.bounds.baselines.extras import require_extra

    relu_chain(graph)
    require_extra("eclipse", "eclipse-nn", "eclipse_nn")
    return eclipse_bounds


def _sampling(graph: Graph, options: MethodOptions) -> Bounder:
    from lipschitz.bounds.baselines.sampling import sampled_lower_bounds
    from lipschitz.bounds.clock import Clock

    return lambda problem: sampled_lower_bounds(problem, options.seed, Clock.of(options.timeout))


METHODS: dict[str, Method] = {
    "crown": Method(
        "linear bound propagation on the Jacobian (Shi et al. 2022)",
        {"auto_lirpa": _crown_auto_lirpa, "native": _crown_native},
        products=True,
        timed_on=("auto_lirpa", "native"),
    ),
    "alpha": Method(
        "the same with slopes optimised for the Jacobian's norm, on the native engine",
        {"native": _alpha_native},
        products=True,
        timed_on=("native",),
    ),
    "joint": Method(
        "crown with planes of slope and cotangent on curved activations; alpha has them too",
        {"native": _joint_native},
        products=True,
        timed_on=("native",),
    ),
    "sdp": Method(
        "semidefinite bound, nearly exact on wide boxes; of outputs that may hold the maximum",
        {"native": _sdp},
        norms=("inf", "2"),
        joint=(),
        searches=True,
        timed_on=("native",),
    ),
    "ibp": Method(
        "interval bound propagation on the Jacobian",
        {"native": _ibp_native, "auto_lirpa": _ibp_auto_lirpa},
        products=True,
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
        timed_on=("native",),
    ),
    "lipbab": Method(
        "branching on activation patterns, for small networks (Bhowmick et al. 2021)",
        {"native": _lipbab},
        certifies=EXACT_IN_TIME,
        joint=(),
        searches=True,
        timed_on=("native",),
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
        timed_on=("native",),
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
        products=True,
        timed_on=("native",),
    ),
}
# What branch and bound, which is no method of the table but refines two of them, finds.
BRANCHING_KIND = f"{LOCAL}, {EXACT_IN_TIME}"


def is_installed(engine: str) -> bool:
    """Whether the package that an engine needs is there."""
    return engine not in _PACKAGES or importlib.util.find_spec(_PACKAGES[engine][0]) is not None


def require_engine(engine: str) -> None:
    """Refuse an engine that is not installed.

    Raises:
        InputError: With how to get it.
    """
    if not is_installed(engine):
        package, command = _PACKAGES[engine]
        raise InputError(
            f"engine {engine!r} needs the package {package}: {command}; or use engine native"
        )


def choose_engine(method: str, engine: str | None, asked: Asked | None = None) -> str:
    """The engine that will compute a method's bound.

    Args:
        method: Name in :data:`METHODS`.
        engine: The engine asked for; None for the method's first that is installed and bounds
            ``asked``.
        asked: What is to be bounded; the paper's norm if None.

    Raises:
        InputError: An unknown method or engine, one that the method does not run on, or one whose
            package is missing.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(
            f"unknown method {method!r}{suggest(str(method), METHODS)}; known: {', '.join(METHODS)}"
        )
    engines = METHODS[method].prepare
    if engine is None:
        plain = asked is None or asked.is_plain
        usable = [e for e in engines if is_installed(e) and (plain or e == "native")]
        return usable[0] if usable else next(iter(engines))
    if not isinstance(engine, str) or engine not in engines:
        raise InputError(
            f"method {method!r} does not run on engine {engine!r}: use {' or '.join(engines)}"
        )
    require_engine(engine)
    return engine


def kind_of(method: str, norm: str = "inf") -> str:
    """What the number of a method, or of ``bab``, is; see :meth:`Method.kind`."""
    return METHODS[method].kind(norm) if method in METHODS else BRANCHING_KIND


def check_measure(method: str, engine: str, asked: Asked) -> None:
    """Refuse what a method does not bound.

    Raises:
        InputError: With what it does.
    """
    known = METHODS[method]
    if engine == "auto_lirpa" and not asked.is_plain:
        raise InputError(f"engine 'auto_lirpa' does not bound {asked}: use engine native")
    if asked.norm not in known.norms:
        raise InputError(
            f"method {method!r} does not bound norm {asked.norm}: it knows "
            f"{', '.join(known.norms)}; use crown or alpha"
        )
    if asked.joint and asked.norm not in known.joint:
        raise InputError(
            f"method {method!r} bounds single outputs in norm {asked.norm}: ask for outputs "
            "'each', or use crown or alpha"
        )
    if asked.only_free and not known.counts_free:
        raise InputError(f"method {method!r} counts all inputs: leave out inputs 'free'")


def check_products(graph: Graph, method: str, engine: str) -> None:
    """Refuse a network with products of two values where a method does not bound these.

    Args:
        graph: The network.
        method: A name in :data:`METHODS`, or ``bab``.
        engine: Its engine.

    Raises:
        InputError: With the methods that do.
    """
    from lipschitz.network.graph import refuse_products

    known = [name for name, m in METHODS.items() if m.products]
    advice = f"use method {' or '.join(known)} on engine native"
    if method in METHODS and method not in known:
        refuse_products(graph, f"method {method!r}", advice)
    elif engine != "native":
        refuse_products(graph, f"engine {engine!r}", advice)
