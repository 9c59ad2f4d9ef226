"""Engine A: CROWN bounds of the Jacobian norm, computed by auto_LiRPA.

The Jacobian-augmented graph is handed to ``BoundedModule`` once per network. For one box, bounds
are then found layer by layer, each from the ones before: every pre-activation ``z``, then, from
the output back, every ``g`` that meets an uncertain slope, the Jacobian's entries and at last
their absolute sum. Only neurons that need a bound get one (unstable after interval arithmetic),
and rows of bounds go through in chunks of bounded memory.

Pre-activation bounds do not depend on the class, so they are computed once, with a batch of one;
from there on the output directions are the batch.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.lirpa.compat import (
    KNOWN_BOUNDS_ARGUMENT,
    Bound,
    BoundedModule,
    BoundedTensor,
    PerturbationLpNorm,
)
from lipschitz.bounds.lirpa.jacobian_module import JacobianModule
from lipschitz.bounds.lirpa.operators import BoundSlopeProduct, custom_operators
from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.crown import interval_bounds, native_crown, root_bounds
from lipschitz.bounds.native.interval import (
    ForwardIntervals,
    Interval,
    forward_intervals,
    slope_intervals,
)
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.options import SlopeOptimization
from lipschitz.network.graph import Graph, refuse_products
from lipschitz.problem import LocalProblem
from lipschitz.relaxation import absolute_value_chord
from lipschitz.rounding import raise_upper_bound

# Bytes for one chunk of rows. A choice: a smaller one means more calls of auto_LiRPA.
_MEMORY_BUDGET = 512 * 2**20
# With a time limit chunks begin small, since a call of auto_LiRPA cannot be stopped: with so many
# bytes, whose arithmetic takes less than what every call costs by itself (0.1 s with optimised
# slopes, MLP of width 32), at least one row. They grow by a factor as long as they are expected to
# take less than so many seconds. Choices.
_SMALL_CHUNK = 4 * 2**20
_CHUNK_SECONDS, _GROWTH = 0.5, 4
# Share of the time, at most, for the native engine's bound, which then stands in. A choice.
_SHARE_OF_NATIVE = 0.2
STAGE, JACOBIAN = "auto_LiRPA's bounds", "auto_LiRPA's bounds of the Jacobian"


class OutOfTimeError(Exception):
    """The Jacobian will not be bounded in time."""


class LirpaEngine:
    """CROWN bounds of one network's Jacobian through auto_LiRPA.

    Args:
        graph: The network.
        memory_budget: Bytes the coefficient tensors of one chunk of rows may take; 512 MiB if
            None.
        optimization: Options of the slope optimisation.

    Raises:
        InputError: The network has products of two values.
    """

    def __init__(
        self,
        graph: Graph,
        memory_budget: int | None = None,
        optimization: SlopeOptimization | None = None,
    ) -> None:
        refuse_products(graph, "engine auto_lirpa", "use method crown or joint on engine native")
        self.graph = graph
        self.memory_budget = memory_budget or _MEMORY_BUDGET
        optimization = optimization or SlopeOptimization()
        shape = graph.input_shape
        sample = torch.zeros(2, *shape, device=graph.device, dtype=graph.dtype)
        rows = torch.ones(2, graph.num_outputs, device=graph.device, dtype=graph.dtype)
        # auto_LiRPA 0.3 stores the slopes of unstable neurons alone for these shapes only.
        compact = all(len(graph.nodes[i].shape) in (1, 3) for i in graph.activation_nodes)
        # Traced with a batch of 2: a dimension of 1 might be taken for one to broadcast.
        self.module = BoundedModule(
            JacobianModule(graph),
            (sample, rows),
            device=graph.device,
            custom_ops=custom_operators(graph),
            bound_opts={
                "conv_mode": "matrix",
                "sparse_features_alpha": compact,
                # Whatever their share: 0.3 mixes the two layouts up when most are unstable.
                "minimum_sparsity": 1.0,
                "optimize_bound_args": {
                    "iteration": optimization.iterations,
                    "lr_alpha": optimization.learning_rate,
                    "lr_decay": optimization.decay,
                    # Set up below, with the bounds already known.
                    "init_alpha": False,
                },
            },
        )
        self._products: dict[int, BoundSlopeProduct] = {
            node.attr["node"]: node
            for node in self.module._modules.values()
            if isinstance(node, BoundSlopeProduct)
        }

    def ibp(self, problem: LocalProblem) -> Tensor:
        """Interval bounds of the norm per row by auto_LiRPA's IBP, [R]."""
        with _quiet(self.graph), torch.no_grad():
            x, rows = self._inputs(problem, problem.rows)
            lower, upper = self.module.compute_bounds(x=(x, rows), method="IBP")
        norms = torch.maximum(lower.abs(), upper.abs()).flatten(1).sum(1)
        return raise_upper_bound(norms)

    def crown(
        self,
        problem: LocalProblem,
        *,
        optimize: bool,
        rows_at_once: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> RootBounds:
        """CROWN bounds of the norm and of the Jacobian's entries.

        Args:
            problem: What to bound.
            optimize: Optimise the slopes of the pre-activation bounds (alpha-CROWN, Xu et al.
                2021), each layer's own bounds being the objective.
            rows_at_once: Output directions per batch; None takes as many as the memory budget
                allows, at least one.
            clock: When to stop. Neurons not reached then keep interval arithmetic's bounds; a
                Jacobian not bounded in half of what is left is left to the native engine.
        """
        if clock.is_limited:  # for the case that this engine does not come far
            quick = native_crown(problem, clock=clock.part(_SHARE_OF_NATIVE).without_notes())
            quick = torch.fmin(quick.class_upper_bounds, interval_bounds(problem))
        preacts, rounding = self.preactivation_bounds(
            problem, optimize=optimize, clock=clock.part(0.5)
        )
        if rows_at_once is None:
            largest = max(node.shape.numel() for node in self.graph.nodes)
            per_row = 16 * largest * min(largest, 64) * problem.rows.element_size()
            rows_at_once = max(1, self.memory_budget // per_row)
        backward = clock.part(0.5)
        try:
            parts = [
                self.norm_bounds(problem, rows, preacts, backward)
                for rows in problem.rows.split(rows_at_once)
            ]
        except OutOfTimeError:
            clock.miss(JACOBIAN)
            budget = default_memory_budget(self.graph.device)
            plan = Plan(self.graph)
            found = root_bounds(
                plan, problem, preacts, rounding, budget=budget, tighten=True, clock=clock
            )
        else:
            bounds = torch.cat([part.upper_bound for part in parts])
            found = RootBounds(bounds, preacts, _joined(parts), rounding)
        if not clock.missed:
            return found
        bounds = torch.fmin(found.class_upper_bounds, quick)
        return replace(found, class_upper_bounds=bounds)

    def preactivation_bounds(
        self, problem: LocalProblem, *, optimize: bool, clock: Clock = UNLIMITED
    ) -> tuple[dict[int, Interval], dict[int, Tensor]]:
        """Pre-activation interval by activation node, and the rounding margin it contains.

        Both [1, *shape].
        """
        graph = self.graph
        intervals = forward_intervals(graph, problem.lower[None], problem.upper[None])
        x, rows = self._inputs(problem, problem.rows[:1])
        margins = _rounding_so_far(graph, intervals)
        known: dict[str, Interval] = {}
        preacts: dict[int, Interval] = {}
        for index in graph.activation_nodes:
            parent = graph.nodes[index].parents[0]
            interval = intervals.bounds[parent]
            if index not in self._products or parent == 0:
                preacts[index] = interval  # nothing to tighten: the output ignores it, or the box
                continue
            bound_node = self._products[index].inputs[1]
            if bound_node.name in known:  # two activations of one pre-activation
                preacts[index] = known[bound_node.name]
                continue
            uncertain = slope_intervals(graph, {index: interval})[index]
            neurons = (uncertain.lower != uncertain.upper)[0].flatten().nonzero()[:, 0]
            found = self._bounds_of(
                (x, rows), bound_node, neurons, known, optimize, clock.part(0.5)
            )
            if found.lower.shape[1] < len(neurons):
                clock.miss(STAGE, graph.activation_nodes.index(index) + 1)
                neurons = neurons[: found.lower.shape[1]]
            margin = margins[parent].flatten(1)[:, neurons]
            known[bound_node.name] = preacts[index] = Interval(
                _with_entries(interval.lower, neurons, found.lower - margin),
                _with_entries(interval.upper, neurons, found.upper + margin),
            )
        return preacts, {i: intervals.rounding[graph.nodes[i].parents[0]] for i in preacts}

    def norm_bounds(
        self,
        problem: LocalProblem,
        rows: Tensor,
        preacts: dict[int, Interval],
        clock: Clock = UNLIMITED,
    ) -> NormBounds:
        """Bounds of the Jacobian for a batch of output directions, each with its own intervals.

        Args:
            problem: The box.
            rows: Output directions [B, C].
            preacts: Pre-activation interval by activation node, [B or 1, *shape].
            clock: When to give up, with :class:`OutOfTimeError`.
        """
        batch, shape = rows.shape[0], self.graph.input_shape
        if not self._products:
            # An affine network: its one gradient is the bound.
            gradient = self.graph.gradients(problem.centre.expand(batch, *shape), rows)
            norm = raise_upper_bound(gradient.abs().flatten(1).sum(1))
            return NormBounds(norm, Interval(gradient, gradient), {}, {})
        inputs = self._inputs(problem, rows)
        known = {
            product.inputs[1].name: Interval(*(b.expand(batch, *b.shape[1:]) for b in preacts[i]))
            for i, product in self._products.items()
        }
        slopes = slope_intervals(self.graph, preacts)
        for i, product in self._products.items():
            product.slopes = Interval(*(s.expand(batch, *s.shape[1:]) for s in slopes[i]))
        cotangents: dict[int, Interval] = {}
        for index in sorted(self._products, reverse=True):
            bound_node = self._products[index].inputs[0]
            if bound_node.name not in known:
                uncertain = (slopes[index].lower != slopes[index].upper).any(0)
                neurons = uncertain.flatten().nonzero()[:, 0]
                found = self._all_bounds_of(inputs, bound_node, neurons, known, clock)
                # Where the slope is certain the relaxation does not look at g: any number will do.
                nothing = torch.zeros(batch, *uncertain.shape, dtype=rows.dtype, device=rows.device)
                known[bound_node.name] = Interval(
                    _with_entries(nothing, neurons, found.lower),
                    _with_entries(nothing, neurons, found.upper),
                )
            cotangents[index] = known[bound_node.name]
        jacobian = self.module.final_node()
        every = torch.arange(shape.numel(), device=rows.device)
        entries = self._all_bounds_of(inputs, jacobian, every, known, clock)
        entries = Interval(*(b.reshape(batch, *shape) for b in entries))
        slope, intercept = absolute_value_chord(*entries)
        upper = self._compute(inputs, jacobian, slope[:, None], known, bound_lower=False)[1]
        # auto_LiRPA leaves the coefficients of the last bound on the nodes it went through.
        coefficients = {i: product.uA[0] for i, product in self._products.items()}
        norm = upper.flatten() + intercept.flatten(1).sum(1)
        # The entries' own bounds, summed, are sound too and now and then the tighter.
        simple = torch.maximum(entries.lower.abs(), entries.upper.abs()).flatten(1).sum(1)
        return NormBounds(
            raise_upper_bound(torch.minimum(norm, simple)), entries, cotangents, coefficients
        )

    def _inputs(self, problem: LocalProblem, rows: Tensor) -> tuple[BoundedTensor, Tensor]:
        batch = rows.shape[0]
        centre, lower, upper = (
            t.expand(batch, *t.shape).contiguous()
            for t in (problem.centre, problem.lower, problem.upper)
        )
        return BoundedTensor(centre, PerturbationLpNorm(x_L=lower, x_U=upper)), rows

    def _bounds_of(
        self,
        inputs: tuple[BoundedTensor, Tensor],
        bound_node: Bound,
        neurons: Tensor,
        known: dict[str, Interval],
        optimize: bool,
        clock: Clock,
    ) -> Interval:
        """Bounds of some neurons of one node, [B, K], in chunks of rows.

        K is the number of neurons, or of the first of them that there was time for.
        """
        batch, shape = inputs[1].shape[0], bound_node.output_shape[1:]
        if not len(neurons):
            empty = inputs[1].new_zeros(batch, 0)
            return Interval(empty, empty)
        largest = max(node.shape.numel() for node in self.graph.nodes)
        # Live at once: both sides, their positive and negative parts, the result; optimising
        # keeps those of every layer, the slopes, their gradients and two Adam moments.
        copies = 40 if optimize else 8
        per_row = copies * batch * largest * inputs[1].element_size()
        chunk = max(1, self.memory_budget // per_row)
        if len(shape) > 1:
            # Given exactly as many rows as the node has neurons, auto_LiRPA takes them for the
            # node itself and returns them in its shape, which its slope optimiser cannot handle.
            chunk = min(chunk, max(1, shape.numel() - 1))
        sides: list[tuple[Tensor, Tensor]] = []
        for part in _in_time(neurons, max(1, min(chunk, _SMALL_CHUNK // per_row)), chunk, clock):
            selection = torch.zeros(
                len(part), shape.numel(), dtype=inputs[1].dtype, device=inputs[1].device
            )
            selection[torch.arange(len(part)), part] = 1
            selection = selection.reshape(1, len(part), *shape).expand(
                batch, -1, *[-1] * len(shape)
            )
            lower, upper = (self._optimized if optimize else self._compute)(
                inputs, bound_node, selection, known
            )
            sides.append((lower.reshape(batch, -1), upper.reshape(batch, -1)))
        if not sides:
            empty = inputs[1].new_zeros(batch, 0)
            return Interval(empty, empty)
        return Interval(*(torch.cat(side, dim=1) for side in zip(*sides, strict=True)))

    def _all_bounds_of(
        self,
        inputs: tuple[BoundedTensor, Tensor],
        bound_node: Bound,
        neurons: Tensor,
        known: dict[str, Interval],
        clock: Clock,
    ) -> Interval:
        """:meth:`_bounds_of` all of the neurons, without optimisation."""
        found = self._bounds_of(inputs, bound_node, neurons, known, False, clock)
        if found.lower.shape[1] < len(neurons) or clock.is_over:
            raise OutOfTimeError
        return found

    def _compute(
        self,
        inputs: tuple[BoundedTensor, Tensor],
        bound_node: Bound,
        selection: Tensor,
        known: dict[str, Interval],
        bound_lower: bool = True,
    ) -> tuple[Tensor, Tensor]:
        with _quiet(self.graph), torch.no_grad():
            return self.module.compute_bounds(
                x=inputs,
                C=selection,
                method="CROWN",
                final_node_name=bound_node.name,
                bound_lower=bound_lower,
                **{KNOWN_BOUNDS_ARGUMENT: known},
            )

    def _optimized(
        self,
        inputs: tuple[BoundedTensor, Tensor],
        bound_node: Bound,
        selection: Tensor,
        known: dict[str, Interval],
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`_compute`, with the lower slopes of the layers before optimised."""
        plain = self._compute(inputs, bound_node, selection, known)
        used = [n for n in self.module.optimizable_activations if n.used and n.perturbed]
        unstable = [n for n in used if ((n.inputs[0].lower < 0) & (n.inputs[0].upper > 0)).any()]
        if not unstable:
            return plain
        arguments = {
            "final_node_name": bound_node.name,
            KNOWN_BOUNDS_ARGUMENT: known,
        }
        with _quiet(self.graph), torch.enable_grad():
            self.module.init_slope(inputs, c=selection, **arguments)
            lower, upper = self.module.compute_bounds(
                x=inputs, C=selection, method="CROWN-Optimized", **arguments
            )
        shape = plain[0].shape
        return (
            torch.maximum(plain[0], lower.detach().reshape(shape)),
            torch.minimum(plain[1], upper.detach().reshape(shape)),
        )


def _in_time(neurons: Tensor, first: int, most: int, clock: Clock) -> Iterator[Tensor]:
    """Neurons in parts of ``first`` to ``most``, as long as there is time."""
    if not clock.is_limited:
        yield from neurons.split(most)
        return
    size, expected = first, 0.0
    while len(neurons) and clock.allows(expected):
        begin = clock.now()
        yield neurons[:size]
        neurons = neurons[size:]
        seconds = clock.now() - begin
        larger = min(most, _GROWTH * size)
        expected = seconds * larger / size
        if expected <= _CHUNK_SECONDS:
            size = larger
        else:
            expected = seconds


def _rounding_so_far(graph: Graph, intervals: ForwardIntervals) -> list[Tensor]:
    """How far rounding may have moved a value since the input, by node, [1, *shape].

    The intervals' ``rounding`` starts anew at every activation; a bound that goes back through all
    layers also meets the rounding of the earlier ones, times the magnitude of the maps in between
    and the steepest slope over the interval of each activation.
    """
    rounding = intervals.rounding
    earlier = [torch.zeros_like(rounding[0])]
    for node in graph.nodes[1:]:
        if node.affine is None:
            parent = node.parents[0]
            slopes = node.activation.slope_interval(*intervals.bounds[parent])
            steepest = torch.maximum(slopes[0].abs(), slopes[1].abs())
            earlier.append(steepest * (earlier[parent] + rounding[parent]))
        else:
            earlier.append(node.affine.magnitude().linear(*(earlier[p] for p in node.parents)))
    return [before + here for before, here in zip(earlier, rounding, strict=True)]


def _joined(parts: list[NormBounds]) -> NormBounds:
    """Bounds of several batches as those of one."""
    if len(parts) == 1:
        return parts[0]

    def intervals(some: list[Interval]) -> Interval:
        return Interval(torch.cat([i.lower for i in some]), torch.cat([i.upper for i in some]))

    return NormBounds(
        torch.cat([p.upper_bound for p in parts]),
        intervals([p.entries for p in parts]),
        {i: intervals([p.cotangents[i] for p in parts]) for i in parts[0].cotangents},
        {i: torch.cat([p.coefficients[i] for p in parts]) for i in parts[0].coefficients},
    )


def _with_entries(base: Tensor, neurons: Tensor, values: Tensor) -> Tensor:
    """A copy of ``base`` [B, *shape] with the entries ``neurons`` (flat) set to ``values``."""
    flat = base.flatten(1).clone()
    flat[:, neurons] = values
    return flat.reshape(base.shape)


@contextlib.contextmanager
def _quiet(graph: Graph) -> Iterator[None]:
    """Drop what auto_LiRPA prints, and make its buffers of the network's dtype.

    It casts optimised bounds to torch's default dtype, which would round float64 ones.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(graph.dtype)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        torch.set_default_dtype(default)
