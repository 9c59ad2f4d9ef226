"""Writing out what a network computes, in affine maps, unary functions and products.

A :class:`Writer` adds one node for each step and gives back the branch that it is. Shapes and
dimensions leave the batch out everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lipschitz.network.activations import Activation, PiecewiseLinear, Power, Square
from lipschitz.network.activations.smooth import Sigmoid, Tanh
from lipschitz.network.affine import (
    AffineMap,
    Applied,
    Branch,
    Combination,
    Linear,
    Positive,
    Reshape,
    Scale,
    Value,
)
from lipschitz.network.affine.layout import Centre, Expand, Permute, Sum
from lipschitz.network.ranges import Rising


class Nodes(Protocol):
    """Where nodes are added."""

    def add_value(self, name: str, value: Value) -> Branch:
        """The branch of an affine map applied to branches."""
        ...

    def add_function(self, name: str, parent: Branch, function: Activation) -> Branch:
        """The branch of a unary function."""
        ...

    def add_product(self, name: str, first: Branch, second: Branch) -> Branch:
        """The branch of the product of two branches of one shape."""
        ...

    def sample(self, branch: Branch) -> Tensor:
        """Its value on the sample of inputs, [batch, *shape]."""
        ...

    def maximum(self, name: str, parent: Branch, windows: Tensor, shape: torch.Size) -> Branch:
        """The largest entry of every window of flat positions."""
        ...

    def mark(self, branch: Branch, **known: object) -> None:
        """What is known besides of a branch's node, which has just been added."""
        ...

    def call_module(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What a layer gives."""
        ...

    def call_function(self, name: str, function: Callable[..., Tensor], x: Branch) -> Branch:
        """What a function or layer of one value gives."""
        ...


class Writer:
    """Steps of one call.

    Args:
        nodes: Where they are added.
        name: Of the call, for messages.
    """

    def __init__(self, nodes: Nodes, name: str) -> None:
        self.nodes, self.name = nodes, name

    def named(self, part: str) -> Writer:
        """For a part of the call."""
        return Writer(self.nodes, f"{self.name}.{part}")

    # -- affine maps -------------------------------------------------------------------------------

    def apply(self, affine: AffineMap, *inputs: Branch) -> Branch:
        """An affine map."""
        return self.nodes.add_value(self.name, Applied(affine, inputs))

    def moved(self, operation: Callable[..., Tensor], shape: Sequence[int], *x: Branch) -> Branch:
        """A torch operator on batches that only moves entries."""
        return self.apply(Positive(operation, [part.shape for part in x], torch.Size(shape)), *x)

    def reshape(self, x: Branch, shape: Sequence[int]) -> Branch:
        """The same entries in another shape."""
        return x if x.shape == torch.Size(shape) else self.apply(Reshape(x.shape, shape), x)

    def permute(self, x: Branch, order: Sequence[int]) -> Branch:
        """Another order of dimensions."""
        order = [i % len(order) for i in order]
        return x if order == sorted(order) else self.apply(Permute(order, x.shape), x)

    def move(self, x: Branch, source: int, target: int) -> Branch:
        """One dimension moved."""
        order = list(range(len(x.shape)))
        place = order.pop(source)
        order.insert(target % len(x.shape), place)
        return self.permute(x, order)

    def transpose(self, x: Branch) -> Branch:
        """The last two dimensions swapped."""
        n = len(x.shape)
        return self.permute(x, [*range(n - 2), n - 1, n - 2])

    def unsqueeze(self, x: Branch, dim: int) -> Branch:
        """A dimension of size 1 put in front of a dimension, or at the end (-1)."""
        shape = list(x.shape)
        shape.insert(dim if dim >= 0 else len(shape) + 1 + dim, 1)
        return self.reshape(x, shape)

    def expand(self, x: Branch, shape: Sequence[int]) -> Branch:
        """Repeated along dimensions of size 1.

        Raises:
            NotImplementedError: It has fewer dimensions, so its batch would not stay first.
        """
        shape = torch.Size(shape)
        if x.whole and len(x.shape) < len(shape):
            x = self.reshape(x, [1] * (len(shape) - len(x.shape)) + [*x.shape])
        if x.shape == shape:
            return x
        if len(x.shape) != len(shape):
            raise NotImplementedError("its operands differ in their number of dimensions")
        return self.apply(Expand(x.shape, shape), x)

    def together(self, first: Branch, second: Branch) -> tuple[Branch, Branch]:
        """Two values broadcast against each other."""
        if len(first.shape) != len(second.shape) and not (first.whole and second.whole):
            raise NotImplementedError("its operands differ in their number of dimensions")
        shape = torch.broadcast_shapes(first.shape, second.shape)
        return self.expand(first, shape), self.expand(second, shape)

    def plus(self, first: Branch, second: Branch, sign: int = 1) -> Branch:
        """``first + sign * second``."""
        first, second = self.together(first, second)
        return self.apply(Combination((1, sign), first.shape), first, second)

    def scale(
        self, x: Branch, factor: Tensor | float, shift: Tensor | float | None = None
    ) -> Branch:
        """``factor x + shift`` with constants that broadcast against x."""
        factor, shift = (
            part
            if part is None or isinstance(part, Tensor)
            else torch.tensor(float(part), dtype=torch.float64)
            for part in (factor, shift)
        )
        return self.apply(Scale(factor, shift, x.shape), x)

    def linear(self, x: Branch, weight: Tensor, bias: Tensor | None = None) -> Branch:
        """A linear layer over the last dimension."""
        return self.apply(Linear(weight, bias, x.shape), x)

    def sum(
        self, x: Branch, dims: Sequence[int], *, keep: bool = True, mean: bool = False
    ) -> Branch:
        """Sum or mean over dimensions."""
        dims = [dim % len(x.shape) for dim in dims]
        count = math.prod(x.shape[dim] for dim in dims)
        if not count:
            raise NotImplementedError("it sums over no entries")
        operation = Sum(dims, x.shape, 1 / count if mean else 1.0)
        setattr(operation, "averaged" if mean else "summed", tuple(dims))
        total = self.apply(operation, x)
        if keep:
            return total
        return self.reshape(total, [size for i, size in enumerate(x.shape) if i not in dims])

    def centre(self, x: Branch, dims: Sequence[int]) -> Branch:
        """Entries minus their mean over dimensions."""
        return self.apply(Centre([dim % len(x.shape) for dim in dims], x.shape), x)

    def narrow(self, x: Branch, dim: int, start: int, length: int) -> Branch:
        """A range of entries along a dimension."""
        dim %= len(x.shape)
        shape = [length if i == dim else size for i, size in enumerate(x.shape)]
        return self.moved(lambda t: t.narrow(dim + 1, start, length), shape, x)

    def parts(self, x: Branch, dim: int, count: int) -> list[Branch]:
        """Equal parts along a dimension.

        Raises:
            NotImplementedError: It cannot be divided.
        """
        length, rest = divmod(x.shape[dim], count)
        if rest:
            raise NotImplementedError(f"its dimension of {x.shape[dim]} is no multiple of {count}")
        return [self.narrow(x, dim, i * length, length) for i in range(count)]

    def join(self, parts: Sequence[Branch], dim: int) -> Branch:
        """Parts one after the other along a dimension."""
        if len(parts) == 1:
            return parts[0]
        dim %= len(parts[0].shape)
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        return self.moved(lambda *t: torch.cat(t, dim + 1), shape, *parts)

    def with_row(self, x: Branch, row: Tensor) -> Branch:
        """One constant row put after the rows of a matrix."""
        count, size = x.shape
        padded = self.moved(
            lambda t: torch.nn.functional.pad(t, (0, 0, 0, 1)), [count + 1, size], x
        )
        shift = torch.zeros(count + 1, size, dtype=row.dtype, device=row.device)
        shift[-1] = row.detach()
        return self.scale(padded, 1.0, shift)

    # -- functions and products --------------------------------------------------------------------

    def function(self, x: Branch, function: Activation) -> Branch:
        """A unary function."""
        if x.shape:
            return self.nodes.add_function(self.name, x, function)
        # One number for each example: everything else reads neurons as a vector.
        return self.reshape(self.function(self.reshape(x, [1]), function), [])

    def sigmoid(self, x: Branch) -> Branch:
        """The logistic function."""
        return self.function(x, Sigmoid())

    def tanh(self, x: Branch) -> Branch:
        """The hyperbolic tangent."""
        return self.function(x, Tanh())

    def square(self, x: Branch) -> Branch:
        """The square."""
        return self.function(x, Square())

    def product(self, first: Branch, second: Branch) -> Branch:
        """The product of two values broadcast against each other; the square of one with itself."""
        if first.index == second.index and first.shape == second.shape:
            return self.square(first)
        first, second = self.together(first, second)
        if not first.shape:
            pair = (self.reshape(part, [1]) for part in (first, second))
            return self.reshape(self.product(*pair), [])
        return self.nodes.add_product(self.name, first, second)

    def quotient(self, first: Branch, second: Branch) -> Branch:
        """``first / second``."""
        return self.product(first, self.function(second, Power(-1.0)))

    def largest(self, first: Branch, second: Branch) -> Branch:
        """``max(a, b) = b + relu(a - b)``."""
        first, second = self.together(first, second)
        excess = self.function(self.plus(first, second, -1), PiecewiseLinear())
        return self.rising(self.plus(second, excess), torch.maximum, first, second)

    def smallest(self, first: Branch, second: Branch) -> Branch:
        """``min(a, b) = b - relu(b - a)``."""
        first, second = self.together(first, second)
        excess = self.function(self.plus(second, first, -1), PiecewiseLinear())
        return self.rising(self.plus(second, excess, -1), torch.minimum, first, second)

    def rising(
        self, x: Branch, function: Callable[..., Tensor], *of: Branch, margin: float = 0.0
    ) -> Branch:
        """A value that has just been added and is a function of others that falls in none."""
        parents = tuple(part.index for part in of)
        self.nodes.mark(x, range=Rising(parents, function, margin))
        return x

    def extreme(self, x: Branch, dims: Sequence[int], *, keep: bool, sign: int = 1) -> Branch:
        """The largest (1) or smallest (-1) entry over dimensions."""
        dims = [dim % len(x.shape) for dim in dims]
        places = torch.arange(x.shape.numel()).reshape(x.shape)
        rest = [i for i in range(len(x.shape)) if i not in dims]
        shape = [x.shape[i] for i in rest]
        windows = places.permute(*rest, *dims).reshape(math.prod(shape), -1)
        if keep:
            shape = [1 if i in dims else size for i, size in enumerate(x.shape)]
        x = x if sign > 0 else self.scale(x, -1.0)
        if windows.shape[1] == 1:
            found = self.reshape(x, shape)
        else:
            flat = self.nodes.maximum(self.name, x, windows, torch.Size([len(windows)]))
            found = self.reshape(flat, shape)
        return found if sign > 0 else self.scale(found, -1.0)

    def matmul(self, first: Branch, second: Branch) -> Branch:
        """``first @ second``: [..., n, k] and [..., k, m] to [..., n, m]."""
        left, right = self.unsqueeze(first, -2), self.unsqueeze(self.transpose(second), -3)
        return self.sum(self.product(left, right), [-1], keep=False)
