"""Convolutions and their transposes, of one to three dimensions."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.affine.base import AffineMap

_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLUTION_TRANSPOSE = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class _Kernel(AffineMap):
    """What both have: a kernel, moved over one to three dimensions.

    Attributes:
        output_padding: Rows and columns of the larger side that no position of the kernel starts
            from; going from the smaller side they must be added.
    """

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
        self.output_padding = tuple(
            size - ((positions - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, positions, s, p, d, k in zip(
                self._larger[1:],
                self._smaller[1:],
                stride,
                padding,
                dilation,
                weight.shape[2:],
                strict=True,
            )
        )

    @property
    def _smaller(self) -> torch.Size:
        """Shape of the side with one number per position of the kernel."""
        raise NotImplementedError

    @property
    def _larger(self) -> torch.Size:
        """Shape of the side that the kernel moves over."""
        raise NotImplementedError

    def magnitude(self) -> AffineMap:
        absolute = copy.copy(self)
        absolute.weight, absolute.bias = self.weight.abs(), None
        return absolute

    def _gather(self, larger: Tensor) -> Tensor:
        """The convolution, from the larger side to the smaller one."""
        found = _CONVOLUTION[self.weight.dim() - 2](
            larger, self.weight, None, self.stride, self.padding, self.dilation, self.groups
        )
        # With output padding of the transposed convolution there may be further positions: cut off.
        for dim, size in enumerate(self._smaller[1:], start=2):
            found = found.narrow(dim, 0, size)
        return found

    def _spread(self, smaller: Tensor) -> Tensor:
        """Its adjoint, from the smaller side to the larger one."""
        return _CONVOLUTION_TRANSPOSE[self.weight.dim() - 2](
            smaller,
            self.weight,
            None,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )


class Convolution(_Kernel):
    """``nn.Conv1d/2d/3d`` with zero padding, any stride, padding, dilation and groups."""

    @property
    def _smaller(self) -> torch.Size:
        return self.output_shape

    @property
    def _larger(self) -> torch.Size:
        return self.input_shapes[0]

    def linear(self, *inputs: Tensor) -> Tensor:
        return self._gather(inputs[0])

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (self._spread(cotangent),)


class TransposedConvolution(_Kernel):
    """``nn.ConvTranspose1d/2d/3d``: the adjoint of a convolution with the same geometry.

    Its output padding is what its output shape says.
    """

    @property
    def _smaller(self) -> torch.Size:
        return self.input_shapes[0]

    @property
    def _larger(self) -> torch.Size:
        return self.output_shape

    def linear(self, *inputs: Tensor) -> Tensor:
        return self._spread(inputs[0])

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (self._gather(cotangent),)
