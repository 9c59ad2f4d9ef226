"""The kinds of affine maps other than convolutions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lipschitz.network.affine.base import AffineMap


class Linear(AffineMap):
    """``nn.Linear``: the last dimension is multiplied by ``weight^T`` ([out, in])."""

    def __init__(self, weight: Tensor, bias: Tensor | None, input_shape: torch.Size) -> None:
        super().__init__([input_shape], (*input_shape[:-1], weight.shape[0]))
        self.weight = weight
        self.bias = bias

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0] @ self.weight.T

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (cotangent @ self.weight,)

    def magnitude(self) -> AffineMap:
        return Linear(self.weight.abs(), None, self.input_shapes[0])


class Positive(AffineMap):
    """A torch operator whose coefficients are never negative: moving, averaging, summing.

    Constants that it mixes in (padding, a branch of ``cat``) become the bias.
    """

    def __init__(
        self,
        operation: Callable[..., Tensor],
        input_shapes: Sequence[torch.Size],
        output_shape: torch.Size,
        offset: Tensor | None = None,
    ) -> None:
        """Keeps the operator.

        Args:
            operation: From batched inputs to the batched output, constants included.
            input_shapes, output_shape: Without the batch dimension.
            offset: Its value at zero, [1, *output_shape], if that is not zero.
        """
        super().__init__(input_shapes, output_shape)
        self.operation = operation
        self.offset = offset
        self.bias = offset

    def linear(self, *inputs: Tensor) -> Tensor:
        # An input that is the same for the whole batch may come as a batch of one.
        batch = next((len(value) for value in inputs if len(value) != 1), 1)
        output = self.operation(*(value.expand(batch, *value.shape[1:]) for value in inputs))
        # The difference is exact: where the operator moves an input to, the offset is zero; where
        # it fills in a constant, output and offset are the same number.
        return output if self.offset is None else output - self.offset

    def to(self, device: torch.device | str, dtype: torch.dtype) -> AffineMap:
        moved = super().to(device, dtype)
        if self.offset is not None:  # its numbers are rounded to the dtype inside the operator
            zeros = [torch.zeros(1, *s, device=device, dtype=dtype) for s in self.input_shapes]
            with torch.no_grad():
                moved.offset = self.operation(*zeros)
            moved.bias = None if self.bias is None else moved.offset
        return moved

    def magnitude(self) -> AffineMap:
        if self.bias is None:
            return self
        linear_part = copy.copy(self)
        linear_part.bias = None
        return linear_part


class Weighted(AffineMap):
    """``operation(x, weight)``, linear in each: products with a constant that no other map covers.

    Attributes:
        weight: The constant; ``operation(x, |weight|)`` has the magnitudes of the coefficients.
    """

    def __init__(
        self,
        operation: Callable[[Tensor, Tensor], Tensor],
        weight: Tensor,
        bias: Tensor | None,
        input_shape: torch.Size,
        output_shape: torch.Size,
    ) -> None:
        super().__init__([input_shape], output_shape)
        self.operation = operation
        self.weight = weight
        self.bias = bias

    def linear(self, *inputs: Tensor) -> Tensor:
        return self.operation(inputs[0], self.weight)

    def magnitude(self) -> AffineMap:
        return Weighted(
            self.operation, self.weight.abs(), None, self.input_shapes[0], self.output_shape
        )


class Reshape(AffineMap):
    """Flatten, view, reshape, squeeze and unsqueeze: the same numbers in another shape."""

    def __init__(self, input_shape: torch.Size, output_shape: torch.Size) -> None:
        super().__init__([input_shape], output_shape)

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(-1, *self.output_shape)

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (cotangent.reshape(-1, *self.input_shapes[0]),)

    def magnitude(self) -> AffineMap:
        return self


class Scale(AffineMap):
    """``x * factor + shift`` with constants: BatchNorm in eval mode, ``-x``, ``x / 2``, ``x + b``.

    ``factor`` and ``shift`` broadcast against ``[B, *shape]``.
    """

    def __init__(self, factor: Tensor, shift: Tensor | None, shape: torch.Size) -> None:
        super().__init__([shape], shape)
        self.factor = factor
        self.bias = shift

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.factor

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (cotangent * self.factor,)

    def magnitude(self) -> AffineMap:
        return Scale(self.factor.abs(), None, self.output_shape)


class Combination(AffineMap):
    """``+-x_1 +- x_2 ...`` of branches of equal shape (residual connections)."""

    def __init__(self, signs: tuple[int, ...], shape: torch.Size) -> None:
        super().__init__([shape] * len(signs), shape)
        self.signs = signs

    def linear(self, *inputs: Tensor) -> Tensor:
        total = inputs[0] if self.signs[0] > 0 else -inputs[0]
        for sign, value in zip(self.signs[1:], inputs[1:], strict=True):
            total = total + value if sign > 0 else total - value
        return total

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return tuple(cotangent if sign > 0 else -cotangent for sign in self.signs)

    def linear_from(self, index: int, value: Tensor) -> Tensor:
        return value if self.signs[index] > 0 else -value

    def magnitude(self) -> AffineMap:
        return Combination((1,) * len(self.signs), self.output_shape)
