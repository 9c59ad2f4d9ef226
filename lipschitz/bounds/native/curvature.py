"""Bounds of products of the Hessian with directions, ``H_r(x) v``, over boxes.

``H_r`` is the Hessian of ``r . f``. The gradient of ``v . (J(x)^T r)`` is ``H_r(x) v``, so the
network's terms differentiated twice are its value (:mod:`lipschitz.network.derivative`), and bounds
of values bound it: interval arithmetic, affine forms carried forward where there are few inputs,
and linear bounds backward through planes and lines
(:mod:`lipschitz.bounds.native.terms`). Each is intersected with the ones before.

Over a box of radius eps, lines and planes are off by O(eps^2), and so is a bound of any linear
combination of the entries of ``H v``.

Shapes: B boxes, each with a row and a direction of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.terms.forward import Form, forward_forms, norm_upper_bound
from lipschitz.bounds.native.terms.gradient import GradientTerms
from lipschitz.bounds.native.terms.intervals import TermIntervals, term_intervals
from lipschitz.bounds.native.terms.linear import ONE_PASS, LinearBounds, PlaneSearch
from lipschitz.bounds.native.terms.relaxations import Relaxations
from lipschitz.errors import InputError
from lipschitz.network.activations import Activation
from lipschitz.network.activations.derivative import derivative_of
from lipschitz.network.derivative import Term
from lipschitz.network.graph import Graph, Node
from lipschitz.norms import Measure, upper_magnitude
from lipschitz.relaxation import LineBounds
from lipschitz.rounding import raise_upper_bound

# What is noted where the time did not suffice.
STAGE = "linear bounds of the Hessian"
# Copies of a term's numbers that are alive at once in a forward pass of affine forms, or of rows.
# Counted, not measured: a wrong one costs memory or speed.
_COPIES = 6
# Numbers of the first chunk where time is limited. A choice: some milliseconds on one core.
_FIRST = 10**6
# Chunks may take so many times the memory budget of a single pass. A choice.
_BUDGETS = 16


def nonlinear_nodes(graph: Graph) -> list[int]:
    """The activations and products that the output depends on; none if the network is affine."""
    live = {len(graph.nodes) - 1}
    for index in range(len(graph.nodes) - 1, 0, -1):
        if index in live:
            live.update(graph.nodes[index].parents)
    return [i for i in sorted(live - {0}) if graph.nodes[i].affine is None]


def check_curvature(graph: Graph) -> None:
    """Refuse a network whose gradient has no Lipschitz constant, or none that says anything.

    Raises:
        InputError: Naming the activation.
    """
    for index in nonlinear_nodes(graph):
        node = graph.nodes[index]
        if node.activation is None:
            continue
        slope = derivative_of(node.activation)
        if slope is None:
            raise InputError(
                f"{_name(graph, node)} is made of straight pieces: the Hessian is zero wherever it "
                "exists and says nothing about how the gradient changes; curvature is for smooth "
                "activations, such as tanh, SiLU or Softplus"
            )
        try:
            slope.derivative  # noqa: B018 (it raises where the slope jumps)
        except NotImplementedError:
            raise InputError(
                f"the slope of {_name(graph, node)} jumps, so the gradient has no Lipschitz "
                "constant; curvature is for activations whose slope is continuous, such as tanh, "
                "SiLU, or ELU with alpha 1"
            ) from None


def _name(graph: Graph, node: Node) -> str:
    is_pooling = graph.nodes[node.parents[0]].name.endswith(".compare")
    kind = "max pooling" if is_pooling else str(node.activation)
    return f"{kind} ({node.name.removesuffix('.relu')!r})"


class _AnyDirection(Activation):
    """Stands for every number in [-1, 1], whatever its argument: a direction of Linf norm 1."""

    name, free_lines = "any direction", False

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """All of them."""
        return torch.full_like(lower, -1.0), torch.full_like(lower, 1.0)

    def lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        """Constants."""
        least, most = self.interval(lower, upper)
        zero = torch.zeros_like(least)
        return LineBounds(zero, least, zero, most)


@torch.no_grad()
def row_sums(graph: Graph, box: Interval, rows: Tensor) -> Tensor:
    """Upper bounds of every row sum of magnitudes of the Hessians, [R, D], by interval arithmetic.

    In one pass, whatever the number of inputs: the direction is an interval too.

    Args:
        graph: The network.
        box: [1, *input_shape].
        rows: [R, C].
    """
    first = GradientTerms(graph)
    terms = first.terms
    direction = terms.add(Term((0,), graph.input_shape, function=_AnyDirection()))
    product, _ = terms.gradient(first.gradient, direction)
    found = term_intervals(terms, *box, {first.row: rows}, {}).bounds[product]
    return raise_upper_bound(upper_magnitude(*found).flatten(1).expand(len(rows), -1))


class HessianTerms:
    """The terms of ``H_r(x) v``, and bounds of them.

    Args:
        graph: A network that is not affine, whose slopes do not jump.
        budget: Bytes for one chunk of a pass.

    Attributes:
        first: The terms of the gradient.
        terms: The network differentiated twice, the same terms and more.
        row, direction: The constant terms r [C] and v [*input_shape].
        product: The term ``H_r(x) v``.
        size: Numbers of all terms.
    """

    def __init__(self, graph: Graph, budget: int) -> None:
        self.graph, self.budget = graph, budget
        self.first = GradientTerms(graph)
        self.terms, self.row = self.first.terms, self.first.row
        self.direction = self.terms.constant(graph.input_shape)
        self.product, _ = self.terms.gradient(self.first.gradient, self.direction)
        self.size = sum(term.shape.numel() for term in self.terms.terms)

    def values(self, x: Tensor, rows: Tensor, directions: Tensor) -> Tensor:
        """``H_r(x) v`` as computed, without bounds: [B, *input_shape].

        Args:
            x: [B, *input_shape].
            rows: [B, C].
            directions: [B, *input_shape].
        """
        constants = {self.row: rows, self.direction: directions}
        return self.terms.values(x, constants)[self.product]

    def forward_cost(self) -> int:
        """Numbers that affine forms of one box take."""
        return self.size * (1 + self.graph.input_shape.numel())

    def at_once(self, *, forward: bool) -> int:
        """How many boxes fit in memory, with one row backward each."""
        numbers = _COPIES * (self.forward_cost() if forward else self.size)
        return max(1, _BUDGETS * self.budget // (numbers * self.graph.dtype.itemsize))

    def chunks(
        self, count: int, *, forward: bool, clock: Clock = UNLIMITED, stage: str | None = None
    ) -> Iterator[slice]:
        """Boxes, of ``count``, in parts that fit in memory, as long as they fit in time too."""
        first = _FIRST // (self.forward_cost() if forward else self.size)
        return clock.growing(count, first, self.at_once(forward=forward), stage)

    def over(
        self,
        box: Interval,
        rows: Tensor,
        directions: Tensor,
        known: dict[int, Interval] | None = None,
        *,
        forward: bool = True,
    ) -> HessianProducts:
        """Bounds of every term over boxes.

        Args:
            box: [B or 1, *input_shape].
            rows: [B, C].
            directions: [B, *input_shape].
            known: Intervals by term, [B or 1, *shape].
            forward: Carry affine forms forward, besides interval arithmetic.
        """
        constants = {self.row: rows, self.direction: directions}
        arguments = (self.terms, *box, constants, known or {})
        form = None
        if forward:
            intervals, forms = forward_forms(*arguments, kept=(self.product,))
            form = forms[self.product]
        else:
            intervals = term_intervals(*arguments)
        found = intervals.bounds[self.product]
        entries = Interval(*(end.expand(directions.shape) for end in found))
        return HessianProducts(self, box, constants, intervals, entries, form)


@dataclass(frozen=True)
class HessianProducts:
    """Bounds of ``H_r(x) v`` over B boxes.

    Attributes:
        source: The terms.
        box: [B or 1, *input_shape].
        constants: r and v, by term.
        intervals: Of all terms.
        entries: Of ``H v``, [B, *input_shape].
        form: Affine forms around it, or None.
    """

    source: HessianTerms
    box: Interval
    constants: dict[int, Tensor]
    intervals: TermIntervals
    entries: Interval
    form: Form | None

    def upper_bounds(
        self, coefficients: Tensor, search: PlaneSearch = ONE_PASS, clock: Clock = UNLIMITED
    ) -> Tensor:
        """Upper bounds of ``coefficients . (H v)`` over every box by a backward pass.

        Args:
            coefficients: [B, K, *input_shape].
            search: How weights and slopes are optimised.
            clock: When to stop; rows not reached are left at infinity.

        Returns:
            [B, K].
        """
        return self.linear.upper_bounds(self.source.product, coefficients, search, clock, STAGE)

    @cached_property
    def linear(self) -> LinearBounds:
        """Backward passes through the terms."""
        relaxations = Relaxations(self.source.terms, self.intervals)
        return LinearBounds(relaxations, self.constants, *self.box, self.source.budget)

    def linear_entries(self, search: PlaneSearch = ONE_PASS, clock: Clock = UNLIMITED) -> Interval:
        """Every entry of ``H v`` by rows of its own, within the known: [B, *input_shape]."""
        return self.linear.numbers(self.source.product, self.entries, search, clock, STAGE)

    def norm(
        self,
        measure: Measure,
        entries: Interval,
        search: PlaneSearch = ONE_PASS,
        clock: Clock = UNLIMITED,
    ) -> Tensor:
        """Upper bound of the norm of ``H v`` as :class:`Measure` takes it of a gradient, [B].

        Args:
            measure: The norm.
            entries: The narrowest intervals known of it, [B, *input_shape].
            search, clock: As in :meth:`upper_bounds`.
        """
        bound = measure.upper_bound(*entries)
        if self.form is not None:
            bound = torch.fmin(bound, norm_upper_bound(self.form, entries, measure))
        if measure.norm == "1":
            return bound
        arguments = (self.source.product, entries, measure, search, clock, STAGE)
        return torch.fmin(bound, self.linear.norms(*arguments))
