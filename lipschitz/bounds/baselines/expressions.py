"""Affine expressions of program variables, carried through a graph without forming its matrices.

An expression has one coefficient tensor per variable, of the shape of the value it describes, so
an affine node is applied to all of them as to a batch.

Shapes: V variables, N entries of a flat value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.network.affine import AffineMap
from lipschitz.network.graph import Graph


@dataclass(frozen=True)
class Expression:
    """``constant + sum over variables v of coefficients[v] * v``.

    Attributes:
        coefficients: [V, *shape]; variables beyond V do not occur.
        constant: [1, *shape].
    """

    coefficients: Tensor
    constant: Tensor

    def padded(self, count: int) -> Tensor:
        """Coefficients of ``count`` variables, [count, *shape]."""
        missing = count - len(self.coefficients)
        if not missing:
            return self.coefficients
        shape = self.coefficients.shape[1:]
        return torch.cat([self.coefficients, self.coefficients.new_zeros(missing, *shape)])

    def __add__(self, other: Expression) -> Expression:
        count = max(len(self.coefficients), len(other.coefficients))
        return Expression(self.padded(count) + other.padded(count), self.constant + other.constant)

    def __sub__(self, other: Expression) -> Expression:
        return self + other * -1

    def __mul__(self, factor: Tensor | float) -> Expression:
        """Entrywise, by numbers broadcastable to [1, *shape]."""
        return Expression(self.coefficients * factor, self.constant * factor)

    def plus(self, number: Tensor | float) -> Expression:
        """With a constant added, broadcastable to [1, *shape]."""
        return Expression(self.coefficients, self.constant + number)

    def flat(self) -> Expression:
        """The same with [V, N] coefficients."""
        return Expression(self.coefficients.flatten(1), self.constant.flatten(1))

    def take(self, indices: Tensor) -> Expression:
        """Some entries of a flat expression."""
        return Expression(self.coefficients[:, indices], self.constant[:, indices])

    def put(self, indices: Tensor, other: Expression) -> Expression:
        """A flat expression with some entries replaced."""
        count = max(len(self.coefficients), len(other.coefficients))
        return Expression(
            self.padded(count).index_copy(1, indices, other.padded(count)),
            self.constant.index_copy(1, indices, other.constant),
        )

    def reshape(self, shape: torch.Size) -> Expression:
        """A flat expression in the shape of a node's value."""
        return Expression(self.coefficients.reshape(-1, *shape), self.constant.reshape(1, *shape))


def through(affine: AffineMap, inputs: Sequence[Expression]) -> Expression:
    """An affine map of expressions, bias included."""
    count = max(len(e.coefficients) for e in inputs)
    coefficients = affine.linear(*[e.padded(count) for e in inputs])
    return Expression(coefficients, affine.forward(*[e.constant for e in inputs]))


def input_expression(centre: Tensor, radius: Tensor) -> Expression:
    """``x = centre + radius * u``, the first D variables being u; arguments [*input_shape]."""
    size = centre.numel()
    scale = torch.diag(radius.flatten()).reshape(size, *centre.shape)
    return Expression(scale, centre[None])


def forward_expressions(
    graph: Graph,
    start: Expression,
    activate: Callable[[int, Expression], Expression],
) -> dict[int, Expression]:
    """Expression of every live node's value, in forward order.

    Args:
        graph: The network.
        start: That of the input.
        activate: From an activation node and its flat pre-activation to its flat value.
    """
    live = {len(graph.nodes) - 1}
    for index in range(len(graph.nodes) - 1, 0, -1):
        if index in live:
            live.update(graph.nodes[index].parents)
    found = {0: start}
    for index, node in enumerate(graph.nodes[1:], start=1):
        if index not in live:
            continue
        inputs = [found[p] for p in node.parents]
        if node.affine is not None:
            found[index] = through(node.affine, inputs)
        else:
            found[index] = activate(index, inputs[0].flat()).reshape(node.shape)
    return found


def backward_expression(
    graph: Graph,
    row: Tensor,
    multiply: Callable[[int, Expression], Expression],
) -> Expression:
    """Flat expression of ``J(x)^T row``.

    Args:
        graph: The network.
        row: Output direction, [1, C].
        multiply: From an activation node and its flat cotangent g to the flat product g * s.
    """
    none = row.new_zeros(0, row.shape[1])
    cotangents: dict[int, Expression] = {len(graph.nodes) - 1: Expression(none, row)}
    for index in range(len(graph.nodes) - 1, 0, -1):
        cotangent = cotangents.pop(index, None)
        if cotangent is None:
            continue
        node = graph.nodes[index]
        if node.affine is None:
            shares = [multiply(index, cotangent.flat()).reshape(node.shape)]
        else:
            both = torch.cat([cotangent.coefficients, cotangent.constant])
            shares = [Expression(t[:-1], t[-1:]) for t in node.affine.adjoint(both)]
        for parent, share in zip(node.parents, shares, strict=True):
            cotangents[parent] = cotangents[parent] + share if parent in cotangents else share
    if 0 not in cotangents:  # the output does not depend on the input
        size = graph.input_shape.numel()
        return Expression(row.new_zeros(0, size), row.new_zeros(1, size))
    return cotangents[0].flat()
