"""The library call: a network, a point, a radius -> certified bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lipschitz.bounds.lirpa.bounds import LirpaEngine
from lipschitz.bounds.methods import (
    GLOBAL,
    METHODS,
    Bounder,
    MethodOptions,
    check_measure,
    choose_engine,
    class_upper_bounds,
    run_bounder,
)
from lipschitz.bounds.outcome import Outcome, interrupted_at_once, nothing_found
from lipschitz.bounds.true_gradients import GradientNorms, Sampling, sample_gradients
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.network.tracing import build_graph, placement
from lipschitz.norms import norm_name
from lipschitz.precision import disable_tf32
from lipschitz.problem import EXACT, INTERRUPTED, LipschitzResult, LocalProblem, make_problem
from lipschitz.search.interface import Progress
from lipschitz.search.options import BranchOptions, check_branching
from lipschitz.search.run import bound_by_branching


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
        disable_tf32()
        self.options, self.branching = options or MethodOptions(), branching
        if branching is None:
            self.method, self.engine = (
                method,
                choose_engine(method, engine, norm_name(norm), inputs),
            )
        else:
            self.method, self.engine = "bab", engine or "native"
            check_branching(branching, self.engine)
        graph = model if isinstance(model, Graph) else build_graph(model, tuple(input_shape or ()))
        self.graph = graph if dtype is None else graph.to(graph.device, dtype)
        self._bounder: Bounder | None = None
        self._search_engine: LirpaEngine | None = None
        if branching is None:
            self._bounder = METHODS[method].prepare[self.engine](self.graph, self.options)
        elif self.engine == "auto_lirpa":
            self._search_engine = LirpaEngine(
                self.graph, self.options.memory_budget, self.options.slopes
            )

    def upper_bounds(self, problem: LocalProblem) -> Tensor:
        """The method's upper bounds alone, without branching, [R] or of all rows together [1].

        Raises:
            InputError: A bound is NaN or infinite, or one that the method does not have.
        """
        if self._bounder is None:
            raise InputError("this network is prepared for branch and bound: use bound()")
        check_measure(self.method, self.engine, problem.measure)
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
        check_measure(self.method, self.engine, problem.measure)
        begin = time.perf_counter()
        outcome, found = self._outcome(problem, sampling)
        upper_bounds, root_bounds = outcome.class_upper_bounds, outcome.root_upper_bounds
        best = int(found.norms.argmax())
        upper_bound, lower_bound = float(upper_bounds.max()), float(found.norms[best])
        is_exact = upper_bound <= lower_bound * (1 + tolerance)
        return LipschitzResult(
            upper_bound=upper_bound,
            lower_bound=lower_bound,
            class_upper_bounds=tuple(upper_bounds.tolist()),
            root_upper_bound=upper_bound if root_bounds is None else float(root_bounds.max()),
            status=EXACT if is_exact and outcome.status != INTERRUPTED else outcome.status,
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
        )

    def _outcome(
        self, problem: LocalProblem, sampling: Sampling | None
    ) -> tuple[Outcome, GradientNorms]:
        """What the method finds, and true gradients: its own, as it looks harder, or sampled ones.

        Ctrl-C in a method that searches is the status of what it has found by then.
        """
        outcome = None
        try:
            outcome = run_bounder(self._bounder, problem)
            return outcome, outcome.found or sample_gradients(problem, sampling)
        except KeyboardInterrupt:
            method = METHODS[self.method]
            if not method.searches:
                raise
            if outcome is None:
                outcome = interrupted_at_once(problem, everywhere=method.scope == GLOBAL)
            return replace(outcome, status=INTERRUPTED), outcome.found or nothing_found(problem)


def local_lipschitz(
    model: nn.Module,
    x: Tensor,
    eps: float | Tensor | None = None,
    *,
    method: str = "crown",
    engine: str | None = None,
    norm: str | float = "inf",
    outputs: str | None = None,
    inputs: str = "all",
    classes: Sequence[int] | None = None,
    margin_of: int | None = None,
    pairs: bool = False,
    x_lower: Tensor | float | None = None,
    x_upper: Tensor | float | None = None,
    clip: tuple[Tensor | float, Tensor | float] | None = None,
    optimize: bool = True,
    dtype: torch.dtype | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    branching: BranchOptions | None = None,
) -> LipschitzResult:
    """Certified bounds of the local Lipschitz constant of a network around a point.

    The constant is the largest operator norm of the Jacobian over the box ``x +- eps``: for Linf
    the largest l1 norm of any output's gradient (Shi et al. 2022, eq. 1), for L1 the largest
    column sum, for L2 the largest singular value. Units are those of the network's input: no
    normalisation is undone.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipschitz import local_lipschitz
        >>> weights = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(weights), model[0].bias.zero_()
        ...     _ = model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
        >>> x = torch.tensor([1.0, 0.0])  # both neurons stay active within 0.1
        >>> result = local_lipschitz(model, x, eps=0.1)
        >>> result.status, round(result.upper_bound, 4), round(result.lower_bound, 4)
        ('exact', 2.5, 2.5)
        >>> from lipschitz import BranchOptions
        >>> result = local_lipschitz(model, x, eps=2.0, branching=BranchOptions(timeout=10))
        >>> result.status, round(result.upper_bound, 4), result.branch
        ('exact', 3.0, 'relu')
        >>> round(local_lipschitz(model, x, eps=0.1, norm=2).upper_bound, 4)
        1.8028

    Args:
        model: A network in eval mode mapping [B, *input_shape] to [B, C].
        x: The centre, [*input_shape] or [1, *input_shape].
        eps: Box radius, a number or a tensor broadcastable to ``x``; 0 leaves an input fixed.
        norm: ``inf``, ``1`` or ``2``, of the input and of the output.
        outputs: ``all`` (the operator norm of the Jacobian) or ``each`` (the largest dual norm of a
            single output's gradient); the same for Linf. Margins are taken one by one unless
            ``all`` is asked for.
        inputs: ``all`` inputs count in the norm, or only the ``free`` ones that the box lets
            change.
        method: A name of :data:`lipschitz.METHODS`, such as ``crown``, ``alpha`` or ``lipmip``.
        engine: ``auto_lirpa`` or ``native``; the method's default if None.
        classes: Outputs to bound, all if None.
        margin_of: A label y; then the margins ``f_y - f_c`` are bounded instead of the outputs.
        pairs: Bound the margins ``f_i - f_j`` of all pairs of outputs.
        x_lower, x_upper: Instead of ``eps``: the ends of the box, broadcastable to ``x``.
        clip: Smallest and largest value of an input, to which the box is cut.
        optimize: Optimise the slopes of pre-activation bounds (method ``crown``).
        dtype: Precision to compute in; the model's own if None.
        tolerance: Relative gap up to which the result is called exact.
        seed: Seed of the points sampled for the lower bound.
        branching: Refine by branch and bound, with these options; ``method`` then has no effect
            and ``engine`` is ``native`` unless given.

    Returns:
        Certified bounds, a witness of the lower one, and how they were found.

    Raises:
        InputError: A ValueError: something about the model, ``x`` or ``eps`` that the caller can
            mend, said in one line.
        NotImplementedError: A layer that is not supported, by name.
    """
    prepared = Prepared(
        model,
        input_shape_of(model, x),
        method=method,
        engine=engine,
        options=MethodOptions(optimize=optimize, seed=seed),
        dtype=dtype,
        branching=branching,
        norm=norm,
        inputs=inputs,
    )
    problem = make_problem(
        prepared.graph,
        x,
        eps,
        x_lower=x_lower,
        x_upper=x_upper,
        clip=clip,
        classes=classes,
        margin_of=margin_of,
        pairs=pairs,
        norm=norm,
        outputs=outputs,
        inputs=inputs,
    )
    return prepared.bound(problem, tolerance=tolerance, sampling=Sampling(seed=seed))


def input_shape_of(model: nn.Module | Graph, x: Tensor) -> torch.Size:
    """Shape of one input: that of ``x``, less a batch dimension of 1 if the network takes it so.

    Two examples tell, since a convolution takes one without a batch dimension too.
    """
    if isinstance(model, Graph):
        return model.input_shape
    if x.shape[:1] != (1,):
        return x.shape
    two = x.detach().to(*placement(model)).expand(2, *x.shape[1:])
    try:
        with torch.no_grad():
            output = model(two)
    except (RuntimeError, ValueError, IndexError):
        return x.shape
    return x.shape[1:] if output.shape[:1] == (2,) else x.shape
