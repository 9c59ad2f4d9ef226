"""Affine maps: every operator whose backward pass is its adjoint.

A network is built from two kinds of node only, affine maps and activations. An affine map
``y = sum_i M_i x_i + b`` needs three things for bound propagation: the linear part ``M``, its
adjoint ``M^T`` (one step of the network's backward pass) and the same map with every coefficient
replaced by its magnitude, ``|M|`` (interval arithmetic). torch computes all three; no matrix is
ever formed. :data:`AFFINE_MODULES`, :data:`AFFINE_FUNCTIONS` and :data:`AFFINE_METHODS` say which
PyTorch operators are affine; an operator in none of them is refused by :mod:`lipschitz.graph`.

Shapes: ``B`` is any leading batch dimension (classes, subdomains, rows of a coefficient matrix);
the shapes stored on a map leave it out.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AffineMap:
    """Base of all affine maps; a subclass writes :meth:`linear` and, where cheap, :meth:`adjoint`.

    Attributes:
        input_shapes: Shape of each input without the batch dimension.
        output_shape: Shape of the output without the batch dimension.
        bias: Constant term, broadcastable to ``[B, *output_shape]``, or None.
    """

    bias: Tensor | None = None

    def __init__(self, input_shapes: Sequence[torch.Size], output_shape: torch.Size) -> None:
        self.input_shapes = tuple(torch.Size(shape) for shape in input_shapes)
        self.output_shape = torch.Size(output_shape)

    def linear(self, *inputs: Tensor) -> Tensor:
        """Linear part of the map applied to its inputs, each ``[B, *input_shape]``."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> Tensor:
        """The map itself, bias included; returns ``[B, *output_shape]``."""
        output = self.linear(*inputs)
        return output if self.bias is None else output + self.bias

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        """The adjoint of the linear part: ``[B, *output_shape]`` to one tensor per input.

        The default asks autograd for the vector-Jacobian product, which for a linear map is the
        adjoint wherever it is taken; it stays differentiable in ``cotangent``.
        """
        batch = cotangent.shape[0]
        with torch.enable_grad():
            zeros = [
                torch.zeros(
                    batch, *s, dtype=cotangent.dtype, device=cotangent.device, requires_grad=True
                )
                for s in self.input_shapes
            ]
            output = self.linear(*zeros)
        return torch.autograd.grad(output, zeros, cotangent, create_graph=torch.is_grad_enabled())

    def linear_from(self, index: int, value: Tensor) -> Tensor:
        """Linear part applied to input ``index`` alone, the other inputs being zero."""
        inputs = [
            value
            if i == index
            else torch.zeros(value.shape[0], *shape, dtype=value.dtype, device=value.device)
            for i, shape in enumerate(self.input_shapes)
        ]
        return self.linear(*inputs)

    def magnitude(self) -> AffineMap:
        """The linear map with every coefficient replaced by its absolute value."""
        raise NotImplementedError

    def to(self, device: torch.device | str, dtype: torch.dtype) -> AffineMap:
        """A copy whose floating-point tensors have this device and dtype."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device=device, dtype=dtype))
        return moved

    def interval(self, *bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Interval image of a box, ``(lower, upper)`` each ``[B, *output_shape]``."""
        centre = self.forward(*[(lower + upper) / 2 for lower, upper in bounds])
        radius = self.magnitude().linear(*[(upper - lower) / 2 for lower, upper in bounds])
        return centre - radius, centre + radius


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


_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLUTION_TRANSPOSE = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class Convolution(AffineMap):
    """``nn.Conv1d/2d/3d`` with zero padding, any stride, padding, dilation and groups."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
        input_shape: torch.Size,
        output_shape: torch.Size,
    ) -> None:
        super().__init__([input_shape], output_shape)
        self.weight = weight
        self.bias = None if bias is None else bias.reshape(-1, *[1] * (len(input_shape) - 1))
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        # Rows and columns the stride never reaches (fewer than one stride): the adjoint must give
        # them back as zeros.
        self.output_padding = tuple(
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                input_shape[1:],
                output_shape[1:],
                stride,
                padding,
                dilation,
                weight.shape[2:],
                strict=True,
            )
        )

    @property
    def _dimensions(self) -> int:
        return self.weight.dim() - 2

    def linear(self, *inputs: Tensor) -> Tensor:
        return _CONVOLUTION[self._dimensions](
            inputs[0], self.weight, None, self.stride, self.padding, self.dilation, self.groups
        )

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (
            _CONVOLUTION_TRANSPOSE[self._dimensions](
                cotangent,
                self.weight,
                None,
                self.stride,
                self.padding,
                self.output_padding,
                self.groups,
                self.dilation,
            ),
        )

    def magnitude(self) -> AffineMap:
        absolute = copy.copy(self)
        absolute.weight, absolute.bias = self.weight.abs(), None
        return absolute


class Positive(AffineMap):
    """A linear torch operator whose coefficients are never negative (moving, averaging)."""

    def __init__(
        self,
        operation: Callable[[Tensor], Tensor],
        input_shape: torch.Size,
        output_shape: torch.Size,
    ) -> None:
        super().__init__([input_shape], output_shape)
        self.operation = operation

    def linear(self, *inputs: Tensor) -> Tensor:
        return self.operation(inputs[0])

    def magnitude(self) -> AffineMap:
        return self


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


# A rule turns a module into its affine map; it gets the shapes of the module's input and output
# with the batch dimension left out, and raises NotImplementedError with the reason it cannot.
ModuleRule = Callable[[nn.Module, torch.Size, torch.Size], AffineMap]


def _linear_module(module: nn.Linear, input_shape: torch.Size, _: torch.Size) -> AffineMap:
    return Linear(module.weight, module.bias, input_shape)


def _convolution_module(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d, input_shape: torch.Size, output_shape: torch.Size
) -> AffineMap:
    if module.padding_mode != "zeros":
        raise NotImplementedError(f"padding_mode={module.padding_mode!r}: only 'zeros' is covered")
    dimensions = len(module.kernel_size)
    padding = module.padding
    if padding == "valid":
        padding = (0,) * dimensions
    elif padding == "same":
        extents = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(extent % 2 for extent in extents):
            raise NotImplementedError("padding='same' with an even kernel pads one side more")
        padding = tuple(extent // 2 for extent in extents)
    return Convolution(
        module.weight,
        module.bias,
        module.stride,
        padding,
        module.dilation,
        module.groups,
        input_shape,
        output_shape,
    )


def _batch_norm_module(
    module: nn.modules.batchnorm._BatchNorm, input_shape: torch.Size, _: torch.Size
) -> AffineMap:
    if module.running_mean is None or module.running_var is None:
        raise NotImplementedError("it keeps no running statistics, so it is not affine")
    factor = torch.rsqrt(module.running_var + module.eps)
    if module.weight is not None:
        factor = factor * module.weight
    shift = -module.running_mean * factor
    if module.bias is not None:
        shift = shift + module.bias
    per_channel = (-1, *[1] * (len(input_shape) - 1))
    return Scale(factor.reshape(per_channel), shift.reshape(per_channel), input_shape)


def _positive_module(
    module: nn.Module, input_shape: torch.Size, output_shape: torch.Size
) -> AffineMap:
    return Positive(module, input_shape, output_shape)


def _reshape_module(
    module: nn.Module, input_shape: torch.Size, output_shape: torch.Size
) -> AffineMap:
    return Reshape(input_shape, output_shape)


AFFINE_MODULES: dict[type[nn.Module], ModuleRule] = {
    nn.Linear: _linear_module,
    nn.Conv1d: _convolution_module,
    nn.Conv2d: _convolution_module,
    nn.Conv3d: _convolution_module,
    nn.BatchNorm1d: _batch_norm_module,
    nn.BatchNorm2d: _batch_norm_module,
    nn.BatchNorm3d: _batch_norm_module,
    nn.AvgPool1d: _positive_module,
    nn.AvgPool2d: _positive_module,
    nn.AvgPool3d: _positive_module,
    nn.Flatten: _reshape_module,
    nn.Unflatten: _reshape_module,
}

# Modules that pass their input on unchanged in eval mode.
IDENTITY_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
)

IDENTITY_METHODS = frozenset({"contiguous", "clone"})
RESHAPE_METHODS = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"})
RESHAPE_FUNCTIONS = frozenset({torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze})
POSITIVE_FUNCTIONS = frozenset({F.avg_pool1d, F.avg_pool2d, F.avg_pool3d})

# Binary arithmetic: name -> (sign of the left branch, sign of the right branch), or a product.
SUM_OPERATORS: dict[object, tuple[int, int]] = {
    operator.add: (1, 1),
    operator.iadd: (1, 1),
    torch.add: (1, 1),
    "add": (1, 1),
    operator.sub: (1, -1),
    operator.isub: (1, -1),
    torch.sub: (1, -1),
    "sub": (1, -1),
}
PRODUCT_OPERATORS = frozenset({operator.mul, operator.imul, torch.mul, "mul"})
QUOTIENT_OPERATORS = frozenset({operator.truediv, operator.itruediv, torch.div, "div"})
NEGATION_OPERATORS = frozenset({operator.neg, torch.neg, "neg"})
