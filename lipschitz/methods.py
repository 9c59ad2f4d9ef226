"""The single table of methods: name -> what it needs and how it bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipschitz.global_norm import global_norm_bound
from lipschitz.graph import Graph
from lipschitz.lirpa.bounds import LirpaEngine, SlopeOptimization
from lipschitz.native.alpha import native_alpha
from lipschitz.native.crown import native_crown
from lipschitz.native.interval import interval_norm_bound
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound
from utils import InputError, suggest

# Bounds one problem: upper bound per row, [R].
Bounder = Callable[[LocalProblem], Tensor]


@dataclass(frozen=True)
class MethodOptions:
    """Options of the methods; each uses those that concern it.

    Attributes:
        optimize: Optimise the slopes of pre-activation bounds (``crown``).
        slopes: How.
        rows_at_once: Output directions per batch, None for as many as fit.
    """

    optimize: bool = True
    slopes: SlopeOptimization = field(default_factory=SlopeOptimization)
    rows_at_once: int | None = None


@dataclass(frozen=True)
class Method:
    """One way of bounding.

    Attributes:
        help: One line.
        prepare: Engine name -> function that prepares a bounder for a network. The first engine
            is the default.
    """

    help: str
    prepare: dict[str, Callable[[Graph, MethodOptions], Bounder]]


def _crown_auto_lirpa(graph: Graph, options: MethodOptions) -> Bounder:
    engine = LirpaEngine(graph, optimization=options.slopes)

    def bound(problem: LocalProblem) -> Tensor:
        return engine.crown(
            problem, optimize=options.optimize, rows_at_once=options.rows_at_once
        ).class_upper_bounds

    return bound


def _crown_native(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: native_crown(problem).class_upper_bounds


def _alpha_native(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: native_alpha(problem).class_upper_bounds


def _ibp_auto_lirpa(graph: Graph, options: MethodOptions) -> Bounder:
    return LirpaEngine(graph, optimization=options.slopes).ibp


def _ibp_native(graph: Graph, options: MethodOptions) -> Bounder:
    def bound(problem: LocalProblem) -> Tensor:
        return raise_upper_bound(
            interval_norm_bound(graph, problem.lower, problem.upper, problem.rows)
        )

    return bound


def _global(graph: Graph, options: MethodOptions) -> Bounder:
    return lambda problem: global_norm_bound(graph, problem.rows)


METHODS: dict[str, Method] = {
    "crown": Method(
        "linear bound propagation on the Jacobian (Shi et al. 2022)",
        {"auto_lirpa": _crown_auto_lirpa, "native": _crown_native},
    ),
    "alpha": Method(
        "the same with slopes optimised for the Jacobian's norm, on the native engine",
        {"native": _alpha_native},
    ),
    "ibp": Method(
        "interval bound propagation on the Jacobian",
        {"native": _ibp_native, "auto_lirpa": _ibp_auto_lirpa},
    ),
    "global": Method(
        "product of the layers' operator norms; the box does not matter",
        {"native": _global},
    ),
}


def choose_engine(method: str, engine: str | None) -> str:
    """The engine that will compute a method's bound.

    Raises:
        InputError: An unknown method or engine, or one that the method does not run on.
    """
    if method not in METHODS:
        raise InputError(
            f"unknown method {method!r}{suggest(method, METHODS)}; known: {', '.join(METHODS)}"
        )
    engines = METHODS[method].prepare
    if engine is None:
        return next(iter(engines))
    if engine not in engines:
        raise InputError(
            f"method {method!r} does not run on engine {engine!r}: use {' or '.join(engines)}"
        )
    return engine


def class_upper_bounds(bounder: Bounder, problem: LocalProblem) -> Tensor:
    """A method's upper bounds [R], refused if they are not numbers.

    Raises:
        InputError: A bound is NaN or infinite.
    """
    bounds = bounder(problem)
    if not torch.isfinite(bounds).all():
        raise InputError(
            "the bound is not a finite number: the network's values overflow on this box; "
            "use --dtype float64 or a smaller eps"
        )
    return bounds
