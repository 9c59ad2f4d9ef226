"""The network and its derivatives as one graph of values.

The backward pass of a network is just more graph: every step back is an affine map's adjoint, or
the product of one cotangent and one forward value, the activation's slope at its pre-activation.
So a graph of four kinds of terms, affine maps, unary functions, products and constants, is closed
under differentiation, and a bound of its *values* bounds the Jacobian; differentiated twice, the
Hessian (Shi et al. 2022 for the idea; Laurel et al. 2023, "Synthesizing precise static analyzers
for automatic differentiation", for what the relation between slope and input gains).

Shapes leave the batch dimension out: B boxes, each with its own constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.network.activations import Activation
from lipschitz.network.activations.derivative import derivative_of
from lipschitz.network.affine import AffineMap, Combination, Linear, Scale
from lipschitz.network.affine.layout import Expand, Sum
from lipschitz.network.graph import Graph, Range
from lipschitz.relaxation import LineBounds


class Adjoint(AffineMap):
    """The adjoint of an affine map's linear part, with respect to one of its inputs."""

    def __init__(self, affine: AffineMap, slot: int) -> None:
        super().__init__([affine.output_shape], affine.input_shapes[slot])
        self.affine, self.slot = affine, slot

    def linear(self, *inputs: Tensor) -> Tensor:
        return self.affine.adjoint(inputs[0])[self.slot]

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (self.affine.linear_from(self.slot, cotangent),)

    def magnitude(self) -> AffineMap:
        return Adjoint(self.affine.magnitude(), self.slot)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> AffineMap:
        return Adjoint(self.affine.to(device, dtype), self.slot)


class Step(Activation):
    """The slope of an activation made of straight pieces: a value in an interval, without lines."""

    free_lines = False

    def __init__(self, activation: Activation) -> None:
        self.activation, self.name = activation, f"{activation}'"

    def forward(self, preact: Tensor) -> Tensor:
        """The slope, any shape."""
        return self.activation.slope(preact)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of slopes, rounded outwards."""
        return self.activation.slope_interval(lower, upper)

    def lines(self, lower: Tensor, upper: Tensor) -> LineBounds:
        """Constants."""
        least, most = self.interval(lower, upper)
        zero = torch.zeros_like(least)
        return LineBounds(zero, least, zero, most)


@dataclass(frozen=True)
class Term:
    """One value of the graph: exactly one of the last four is set, or none for the input.

    Attributes:
        parents: Indices of the terms it reads.
        shape: Shape of its value without the batch dimension.
        affine: An affine map of its parents.
        function: A unary function of its parent.
        is_product: The product of its two parents, element by element.
        is_constant: A value of its own for every box.
        range: Another way to its interval, see :class:`lipschitz.network.ranges.Rising`.
    """

    parents: tuple[int, ...]
    shape: torch.Size
    affine: AffineMap | None = None
    function: Activation | None = None
    is_product: bool = False
    is_constant: bool = False
    range: Range | None = None


class Terms:
    """A graph of values in topological order; term 0 is the input.

    Attributes:
        terms: The values so far.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.terms = [Term((), graph.input_shape)]
        self._slopes: dict[int, int] = {}
        for node in graph.nodes[1:]:
            kind = (node.affine, node.activation, node.is_product)
            self.terms.append(Term(node.parents, node.shape, *kind, range=node.range))

    @property
    def output(self) -> int:
        """The network's output."""
        return len(self.graph.nodes) - 1

    def add(self, term: Term) -> int:
        """Index of a new term."""
        self.terms.append(term)
        return len(self.terms) - 1

    def constant(self, shape: Sequence[int]) -> int:
        """A value that every box has its own of, and that does not depend on the input."""
        return self.add(Term((), torch.Size(shape), is_constant=True))

    def depends(self) -> list[bool]:
        """Of every term, whether it depends on the input."""
        found: list[bool] = []
        for index, term in enumerate(self.terms):
            found.append(index == 0 or any(found[p] for p in term.parents))
        return found

    def gradient(self, output: int, cotangent: int) -> tuple[int, dict[int, int]]:
        """Adds the terms of ``J(x)^T r``, J the Jacobian of a term and r another term's value.

        Args:
            output: The term to differentiate.
            cotangent: r, a term of the same shape, such as a constant.

        Returns:
            The index of the gradient with respect to the input, and of the cotangent of every term
            before ``output`` that depends on the input.

        Raises:
            NotImplementedError: The output does not depend on the input, or the slope of an
                activation of straight pieces would have to be differentiated.
        """
        depends, shares = self.depends(), {output: [cotangent]}
        if not depends[output]:
            raise NotImplementedError("the output does not depend on the input")
        found: dict[int, int] = {}
        for index in range(output, -1, -1):
            if index not in shares:
                continue
            parts = shares[index]
            found[index] = parts[0] if len(parts) == 1 else self._sum(parts)
            for parent, share in self._shares(index, found[index], depends):
                shares.setdefault(parent, []).append(share)
        return found[0], found

    def _sum(self, parts: list[int]) -> int:
        shape = self.terms[parts[0]].shape
        return self.add(Term(tuple(parts), shape, Combination((1,) * len(parts), shape)))

    def _shares(self, index: int, cotangent: int, depends: list[bool]) -> list[tuple[int, int]]:
        """What a term's cotangent adds to those of its parents, or of those before these."""
        term = self.terms[index]
        closed = self.graph.nodes[index].closed if index < len(self.graph.nodes) else None
        if closed is not None:
            form = self._softmax if closed.kind == "softmax" else self._norm
            return form(index, cotangent, *closed.of)
        if term.affine is not None:
            return [
                (parent, self.add(Term((cotangent,), adjoint.output_shape, adjoint)))
                for slot, parent in enumerate(term.parents)
                if depends[parent]
                for adjoint in (Adjoint(term.affine, slot),)
            ]
        if term.function is not None:
            slope = self.slope(index)
            return [(term.parents[0], self._product(slope, cotangent))]
        if term.is_product:
            first, second = term.parents
            both = ((first, second), (second, first))
            return [
                (parent, self._product(other, cotangent))
                for parent, other in both
                if depends[parent]
            ]
        return []

    def _softmax(self, index: int, cotangent: int, logits: int) -> list[tuple[int, int]]:
        """``y (g - <y, g>)``, which reads the value y and none of the steps that lead to it.

        Since y sums to 1 it is ``y_i ((1 - y_i) g_i - sum over j != i of y_j g_j)``, in which
        nothing cancels where one share is nearly 1, or is 1 because a mask leaves out the others.
        """
        shape = self.terms[index].shape
        one = torch.ones((), device=self.graph.device, dtype=self.graph.dtype)
        rest = self.add(Term((index,), shape, Scale(-one, one, shape)))
        own = self._product(rest, cotangent)
        others = Linear(one - torch.eye(shape[-1]).to(one), None, shape)
        mixed = self.add(Term((self._product(index, cotangent),), shape, others))
        return [(logits, self._product(index, self._minus(own, mixed)))]

    def _norm(self, index: int, cotangent: int, values: int, factor: int) -> list[tuple[int, int]]:
        """``s (g - y mean(y g))`` for ``y = s x``, s one over the root of the mean square of x.

        With eps in the root it is the same: the derivative of s is ``-s^3 x / n``.
        """
        size = self.terms[index].shape[-1]
        mean = self._summed(self._product(index, cotangent), 1 / size)
        rest = self._minus(cotangent, self._product(index, mean))
        scale = self._spread(factor, self.terms[index].shape)
        return [(values, self._product(scale, rest))]

    def _summed(self, index: int, factor: float = 1.0) -> int:
        """A term summed over its last dimension, and repeated along it."""
        shape = self.terms[index].shape
        total = Sum([len(shape) - 1], shape, factor)
        return self._spread(self.add(Term((index,), total.output_shape, total)), shape)

    def _spread(self, index: int, shape: torch.Size) -> int:
        """A term repeated along its dimensions of size 1."""
        before = self.terms[index].shape
        return index if before == shape else self.add(Term((index,), shape, Expand(before, shape)))

    def _minus(self, first: int, second: int) -> int:
        shape = self.terms[first].shape
        return self.add(Term((first, second), shape, Combination((1, -1), shape)))

    def _product(self, first: int, second: int) -> int:
        return self.add(Term((first, second), self.terms[first].shape, is_product=True))

    def slope(self, index: int) -> int:
        """The derivative of a unary term, as a term of its own; each is added once."""
        term = self.terms[index]
        if index not in self._slopes:
            if isinstance(term.function, Step):
                raise NotImplementedError(
                    f"the slope of {term.function.activation} has no derivative: it jumps"
                )
            slope = derivative_of(term.function) or Step(term.function)
            self._slopes[index] = self.add(Term(term.parents, term.shape, function=slope))
        return self._slopes[index]

    def values(
        self, x: Tensor, constants: dict[int, Tensor], last: int | None = None
    ) -> list[Tensor]:
        """Value of every term at points, or of those up to one.

        Args:
            x: Points, [B, *input_shape].
            constants: Values of the constant terms, [B, *shape].
            last: The last term that is asked for.
        """
        found: list[Tensor] = [x]
        stop = None if last is None else last + 1
        for index, term in enumerate(self.terms[1:stop], start=1):
            inputs = [found[p] for p in term.parents]
            if term.is_constant:
                found.append(constants[index])
            elif term.is_product:
                found.append(inputs[0] * inputs[1])
            elif term.affine is not None:
                found.append(term.affine.forward(*inputs))
            else:
                found.append(term.function.forward(inputs[0]))
        return found
