"""Convolutions and their transposes, of one to three dimensions."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.affine.base import AffineMap

_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLUTION_TRANSPOSE = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class _Kernel(AffineMap):
    """What both have: a kernel, moved over one to three dimensions."""

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

    @property
    def _dimensions(self) -> int:
        return self.weight.dim() - 2

    def magnitude(self) -> AffineMap:
        absolute = copy.copy(self)
        absolute.weight, absolute.bias = self.weight.abs(), None
        return absolute


class Convolution(_Kernel):
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
        super().__init__(weight, bias, stride, padding, dilation, groups, input_shape, output_shape)
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


class TransposedConvolution(_Kernel):
    """``nn.ConvTranspose1d/2d/3d``: the adjoint of a convolution with the same geometry."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        output_padding: tuple[int, ...],
        groups: int,
        dilation: tuple[int, ...],
        input_shape: torch.Size,
        output_shape: torch.Size,
    ) -> None:
        super().__init__(weight, bias, stride, padding, dilation, groups, input_shape, output_shape)
        self.output_padding = output_padding

    def linear(self, *inputs: Tensor) -> Tensor:
        return _CONVOLUTION_TRANSPOSE[self._dimensions](
            inputs[0],
            self.weight,
            None,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        # The convolution may also reach positions that only output padding has made.
        found = _CONVOLUTION[self._dimensions](
            cotangent, self.weight, None, self.stride, self.padding, self.dilation, self.groups
        )
        for dim, size in enumerate(self.input_shapes[0][1:], start=2):
            found = found.narrow(dim, 0, size)
        return (found,)
