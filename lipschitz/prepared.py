"""A network made ready for one method, to be bounded on many boxes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lipschitz.arguments import check_dtype
from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.methods import (
    GLOBAL,
    METHODS,
    check_measure,
    check_products,
    choose_engine,
)
from lipschitz.bounds.native.terms.gradient import MOST_FORWARD_INPUTS
from lipschitz.bounds.options import MethodOptions
from lipschitz.bounds.outcome import (
    Bounder,
    Outcome,
    class_upper_bounds,
    interrupted_at_once,
    nothing_found,
    run_bounder,
)
from lipschitz.bounds.true_gradients import GradientNorms, Sampling, sample_gradients
from lipschitz.checks import check_kind, check_number, shown
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.network.tracing import build_graph
from lipschitz.precision import disable_tf32
from lipschitz.problem import LocalProblem
from lipschitz.result import LipschitzResult
from lipschitz.search.interface import Progress
from lipschitz.search.options import BranchOptions, check_branching
from lipschitz.search.run import bound_by_branching
from lipschitz.words import BOUND, EXACT, INTERRUPTED, TIMEOUT, Asked, norm_name

if TYPE_CHECKING:
    from lipschitz.bounds.lirpa.bounds import LirpaEngine


class Prepared:
    """A network made ready for one method, to be bounded on many boxes.

    Args:
        model: The network, in eval mode, or its graph.
        input_shape: Shape of one input; not needed for a graph.
        method: A name of :data:`lipschitz.METHODS`, such as ``crown``, ``alpha`` or ``lipmip``.
        engine: ``auto_lirpa`` or ``native``; the method's default if None.
        options: Options of the method.
        dtype: Precision to compute in; the model's own if None.
        branching: Refine by branch and bound, with these options; ``method`` then has no effect.
        norm, inputs: What its problems will ask for, as in :func:`make_problem`; they decide the
            default engine.

    Raises:
        InputError, NotImplementedError: As :func:`lipschitz.network.tracing.build_graph`, or an
            unknown method or engine.
    """

    def __init__(
        self,
        model: nn.Module | Graph,
        input_shape: Sequence[int] | None = None,
        *,
        method: str = "crown",
        engine: str | None = None,
        options: MethodOptions | None = None,
        dtype: torch.dtype | None = None,
        branching: BranchOptions | None = None,
        norm: str | float = "inf",
        inputs: str = "all",
    ) -> None:
        check_kind("options", options, MethodOptions)
        check_dtype(dtype)
        disable_tf32()
        self.options, self.branching = options or MethodOptions(), branching
        if branching is None:
            asked = Asked(norm_name(norm), only_free=inputs == "free")
            self.method, self.engine = method, choose_engine(method, engine, asked)
        else:
            self.method, self.engine = "bab", engine or "native"
            check_branching(branching, self.engine)
        graph = model if isinstance(model, Graph) else build_graph(model, input_shape)
        self.graph = graph if dtype is None else graph.to(graph.device, dtype)
        if self.graph.product_nodes and engine is None and branching is None:
            self.engine = choose_engine(method, "native")  # no other bounds products
        check_products(self.graph, self.method, self.engine)
        self._bounder: Bounder | None = None
        self._search_engine: LirpaEngine | None = None
        if branching is None:
            self._bounder = METHODS[method].prepare[self.engine](self.graph, self.options)
        elif self.engine == "auto_lirpa":
            from lipschitz.bounds.lirpa.bounds import LirpaEngine  # its package is optional

            self._search_engine = LirpaEngine(
                self.graph, self.options.memory_budget, self.options.slopes
            )

    @property
    def can_search(self) -> bool:
        """Whether branch and bound may gain anything.

        Of networks with products only the box is cut, and boxes of many inputs do not get small.
        """
        few = self.graph.input_shape.numel() <= MOST_FORWARD_INPUTS
        return few or not self.graph.product_nodes

    def upper_bounds(self, problem: LocalProblem) -> Tensor:
        """The method's upper bounds alone, without branching, [R] or of all rows together [1].

        Raises:
            InputError: A bound is NaN or infinite, or one that the method does not have.
        """
        if self._bounder is None:
            raise InputError("this network is prepared for branch and bound: use bound()")
        check_measure(self.method, self.engine, problem.measure.asked)
        return class_upper_bounds(self._bounder, problem)

    def bound(
        self,
        problem: LocalProblem,
        *,
        tolerance: float = 1e-4,
        sampling: Sampling | None = None,
        watch: Callable[[Progress], None] | None = None,
    ) -> LipschitzResult:
        """Certified bounds of one problem on this network.

        Ctrl-C in branch and bound, or in a method that searches, returns those reached so far.

        Args:
            problem: What to bound, made with this object's ``graph``.
            tolerance: Relative gap up to which the result is called exact.
            sampling: How hard to look for the lower bound.
            watch: Called with the state of a branch and bound, once per round.

        Raises:
            InputError: A bound is NaN or infinite, or one that the method does not have.
        """
        if not isinstance(problem, LocalProblem):
            raise InputError(f"problem {shown(problem)}: expected a problem, of make_problem")
        check_number("tolerance", tolerance, zero=True)
        check_kind("sampling", sampling, Sampling)
        if self.branching is not None:
            return bound_by_branching(
                problem,
                self.branching.having(tolerance=tolerance),
                watch,
                sampling=sampling,
                engine=self._search_engine,
                optimize=self.options.optimize,
                memory_budget=self.options.memory_budget,
            )
        check_measure(self.method, self.engine, problem.measure.asked)
        begin = time.perf_counter()
        timed = self.engine in METHODS[self.method].timed_on
        clock = Clock.of(self.options.timeout) if timed else UNLIMITED
        outcome, found = self._outcome(problem, sampling, clock)
        status, not_reached = outcome.status, (*outcome.not_reached, *clock.not_reached)
        if not_reached and status == BOUND:
            status = TIMEOUT
        upper_bounds, root_bounds = outcome.class_upper_bounds, outcome.root_upper_bounds
        best = int(found.norms.argmax())
        upper_bound, lower_bound = float(upper_bounds.max()), float(found.norms[best])
        if status != INTERRUPTED and upper_bound <= lower_bound * (1 + tolerance):
            status, not_reached = EXACT, ()
        return LipschitzResult(
            upper_bound=upper_bound,
            lower_bound=lower_bound,
            class_upper_bounds=tuple(upper_bounds.tolist()),
            root_upper_bound=upper_bound if root_bounds is None else float(root_bounds.max()),
            status=status,
            witness=found.witnesses[best] if lower_bound > 0 else None,
            method=self.method,
            engine=self.engine,
            seconds=time.perf_counter() - begin,
            domains=outcome.domains,
            leaves_checked=outcome.leaves_checked,
            dtype=str(self.graph.dtype).removeprefix("torch."),
            device=self.graph.device.type,
            norm=problem.norm,
            outputs=problem.outputs,
            inputs=problem.inputs,
            solver_gap=outcome.solver_gap,
            not_reached=not_reached,
        )

    def _outcome(
        self, problem: LocalProblem, sampling: Sampling | None, clock: Clock
    ) -> tuple[Outcome, GradientNorms]:
        """What the method finds, and true gradients: its own, as it looks harder, or sampled ones.

        Ctrl-C in a method that searches is the status of what it has found by then.
        """
        outcome = None
        try:
            outcome = run_bounder(self._bounder, problem)
            return outcome, outcome.found or sample_gradients(problem, sampling, clock=clock)
        except KeyboardInterrupt:
            method = METHODS[self.method]
            if not method.searches:
                raise
            if outcome is None:
                outcome = interrupted_at_once(problem, everywhere=method.scope == GLOBAL)
            return replace(outcome, status=INTERRUPTED), outcome.found or nothing_found(problem)
