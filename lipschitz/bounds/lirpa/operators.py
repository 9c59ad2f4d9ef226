"""The four operators engine A adds to auto_LiRPA.

``AffineMap`` and its adjoint carry any :class:`lipschitz.network.affine.AffineMap` through
auto_LiRPA, so that one rule covers every layer, stride, padding, group and pooling in both
directions of the network; the layers of auto_LiRPA 0.3 cover only some. ``SlopeProduct`` is the
multiplication ``h = g * act'(z)`` of a backward pass, with the relaxation of Shi et al. 2022.
``Activation`` is any activation but ReLU and LeakyReLU, whose lower slopes auto_LiRPA optimises
itself.

Each has two halves. An autograd function gives the operator a value and a name in the traced
graph; a ``Bound`` subclass propagates bounds through it. Coefficient tensors of auto_LiRPA have
shape [spec, B, *shape] here (matrix mode; S specs are rows of the bounds asked for).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lipschitz.bounds.lirpa.compat import Bound
from lipschitz.bounds.native.interval import Interval, product_interval
from lipschitz.network.graph import Graph
from lipschitz.relaxation import LineBounds, slope_product_lines

Coefficients = Tensor | None


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Pause the tracer inside an operator's value, which it would otherwise record as well.

    A weight seen in the forward and again in the adjoint would be looked up in the record of the
    wrong operator and the trace would fail.
    """
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def _shaped(output, like, shape: torch.Size):
    """Tell the exporter the type of an operator it does not know: batch of ``like``, ``shape``."""
    batch = like.type().sizes()[0]
    output.setType(like.type().with_sizes([batch, *shape]))
    return output


class AffineFunction(torch.autograd.Function):
    """``graph.nodes[node].affine`` applied to its inputs."""

    @staticmethod
    def forward(ctx, graph: Graph, node: int, *inputs: Tensor) -> Tensor:
        with _untraced():
            return graph.nodes[node].affine.forward(*inputs)

    @staticmethod
    def symbolic(g, graph: Graph, node: int, *inputs):
        output = g.op("lipschitz::Affine", *inputs, node_i=node)
        return _shaped(output, inputs[0], graph.nodes[node].shape)


class AdjointFunction(torch.autograd.Function):
    """The adjoint of ``graph.nodes[node].affine`` towards its parent number ``parent``."""

    @staticmethod
    def forward(ctx, graph: Graph, node: int, parent: int, cotangent: Tensor) -> Tensor:
        with _untraced():
            return graph.nodes[node].affine.adjoint(cotangent)[parent]

    @staticmethod
    def symbolic(g, graph: Graph, node: int, parent: int, cotangent):
        output = g.op("lipschitz::Adjoint", cotangent, node_i=node, parent_i=parent)
        parent_node = graph.nodes[graph.nodes[node].parents[parent]]
        return _shaped(output, cotangent, parent_node.shape)


class SlopeProductFunction(torch.autograd.Function):
    """``g * act'(z)`` for the activation of ``graph.nodes[node]``."""

    @staticmethod
    def forward(ctx, graph: Graph, node: int, cotangent: Tensor, preact: Tensor) -> Tensor:
        with _untraced():
            return cotangent * graph.nodes[node].activation.slope(preact)

    @staticmethod
    def symbolic(g, graph: Graph, node: int, cotangent, preact):
        output = g.op("lipschitz::SlopeProduct", cotangent, preact, node_i=node)
        return _shaped(output, cotangent, graph.nodes[node].shape)


class ActivationFunction(torch.autograd.Function):
    """The activation of ``graph.nodes[node]``."""

    @staticmethod
    def forward(ctx, graph: Graph, node: int, preact: Tensor) -> Tensor:
        with _untraced():
            return graph.nodes[node].activation.forward(preact)

    @staticmethod
    def symbolic(g, graph: Graph, node: int, preact):
        output = g.op("lipschitz::Activation", preact, node_i=node)
        return _shaped(output, preact, graph.nodes[node].shape)


def _rows(coefficients: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a batched linear operation to coefficients [S, B, *shape]."""
    flat = operation(coefficients.flatten(0, 1))
    return flat.unflatten(0, coefficients.shape[:2])


def _total(coefficients: Tensor, intercept: Tensor) -> Tensor:
    """``sum of coefficients * intercept`` over a node's shape: [S, B]."""
    values = coefficients * intercept
    return values.reshape(*values.shape[:2], -1).sum(2)  # of a single number too


class BoundAffine(Bound):
    """Bounds through an affine map: its coefficients are pulled back by the adjoint."""

    def __init__(self, graph: Graph, attr, inputs, output_index, options) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.map = graph.nodes[attr["node"]].affine

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.map.forward(*inputs)

    def bound_backward(self, last_lA: Coefficients, last_uA: Coefficients, *x: Bound):
        lower = self._pull_back(last_lA)
        upper = self._pull_back(last_uA)
        pairs = list(zip(lower[0], upper[0], strict=True))
        return pairs, lower[1], upper[1]

    def _pull_back(self, coefficients: Coefficients) -> tuple[list[Coefficients], Tensor | int]:
        if coefficients is None:
            return [None] * len(self.inputs), 0
        pulled = self.map.adjoint(coefficients.flatten(0, 1))
        bias = 0 if self.map.bias is None else _total(coefficients, self.map.bias)
        return [p.unflatten(0, coefficients.shape[:2]) for p in pulled], bias

    def interval_propagate(self, *v: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.map.interval(*[(bounds[0], bounds[1]) for bounds in v])


class BoundAdjoint(Bound):
    """Bounds through the adjoint of an affine map: pulled back by its linear part."""

    def __init__(self, graph: Graph, attr, inputs, output_index, options) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.map = graph.nodes[attr["node"]].affine
        self.parent = attr["parent"]

    def forward(self, cotangent: Tensor) -> Tensor:
        return self.map.adjoint(cotangent)[self.parent]

    def bound_backward(self, last_lA: Coefficients, last_uA: Coefficients, *x: Bound):
        pull_back = partial(self.map.linear_from, self.parent)
        pair = tuple(None if a is None else _rows(a, pull_back) for a in (last_lA, last_uA))
        return [pair], 0, 0

    def interval_propagate(self, *v: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        lower, upper = v[0][0], v[0][1]
        centre = self.map.adjoint((lower + upper) / 2)[self.parent]
        radius = self.map.magnitude().adjoint((upper - lower) / 2)[self.parent]
        return centre - radius, centre + radius


class _BoundLines(Bound):
    """Base of what is bounded by two lines."""

    @staticmethod
    def _one_side(
        coefficients: Coefficients,
        where_positive: tuple[Tensor, Tensor],
        where_negative: tuple[Tensor, Tensor],
    ) -> tuple[Coefficients, Tensor | int]:
        """One side's coefficients and bias after a line (slope, intercept) for each sign."""
        if coefficients is None:
            return None, 0
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        bias = _total(positive, where_positive[1]) + _total(negative, where_negative[1])
        return positive * where_positive[0] + negative * where_negative[0], bias

    def _both_sides(self, last_lA: Coefficients, last_uA: Coefficients, lines: LineBounds):
        above = (lines.upper_slope, lines.upper_intercept)
        below = (lines.lower_slope, lines.lower_intercept)
        uA, upper_bias = self._one_side(last_uA, above, below)
        lA, lower_bias = self._one_side(last_lA, below, above)
        return (lA, uA), lower_bias, upper_bias


class BoundActivationLines(_BoundLines):
    """Bounds through an activation by the lines of its table entry."""

    def __init__(self, graph: Graph, attr, inputs, output_index, options) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.activation = graph.nodes[attr["node"]].activation
        self.requires_input_bounds = [0]

    def forward(self, preact: Tensor) -> Tensor:
        return self.activation.forward(preact)

    def bound_backward(self, last_lA: Coefficients, last_uA: Coefficients, preact: Bound):
        lines = self.activation.lines(preact.lower, preact.upper)
        pair, lower_bias, upper_bias = self._both_sides(last_lA, last_uA, lines)
        return [pair], lower_bias, upper_bias

    def interval_propagate(self, *v: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return tuple(self.activation.interval(v[0][0], v[0][1]))


class BoundSlopeProduct(_BoundLines):
    """Bounds through ``h = g * act'(z)``: two lines in g, chosen by the interval of the slope.

    Attributes:
        slopes: The slope's interval, [B, *shape]; None takes it from the bounds that auto_LiRPA
            holds of z. These are not always those it was given: where z is the network's input,
            they are the box, whatever a split says.
    """

    def __init__(self, graph: Graph, attr, inputs, output_index, options) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.activation = graph.nodes[attr["node"]].activation
        self.slopes: Interval | None = None
        self.requires_input_bounds = [0, 1]

    def forward(self, cotangent: Tensor, preact: Tensor) -> Tensor:
        return cotangent * self.activation.slope(preact)

    def bound_backward(
        self, last_lA: Coefficients, last_uA: Coefficients, cotangent: Bound, preact: Bound
    ):
        slopes = self.slopes or self.activation.slope_interval(preact.lower, preact.upper)
        lines = slope_product_lines(
            cotangent.lower.expand_as(slopes[0]), cotangent.upper.expand_as(slopes[0]), *slopes
        )
        pair, lower_bias, upper_bias = self._both_sides(last_lA, last_uA, lines)
        return [pair, (None, None)], lower_bias, upper_bias

    def interval_propagate(self, *v: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        cotangent, preact = (Interval(bounds[0], bounds[1]) for bounds in v)
        slope = Interval(*self.activation.slope_interval(*preact))
        return tuple(product_interval(cotangent, slope))


def custom_operators(graph: Graph) -> dict[str, Callable[..., Bound]]:
    """The table to hand to ``BoundedModule(custom_ops=...)`` for modules built on ``graph``."""
    return {
        "lipschitz::Affine": partial(BoundAffine, graph),
        "lipschitz::Adjoint": partial(BoundAdjoint, graph),
        "lipschitz::Activation": partial(BoundActivationLines, graph),
        "lipschitz::SlopeProduct": partial(BoundSlopeProduct, graph),
    }
