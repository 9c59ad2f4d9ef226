"""What an affine map is, and where it stands in an expression.

A network is built from two kinds of node only, affine maps and activations. An affine map
``y = sum_i M_i x_i + b`` needs three things for bound propagation: the linear part ``M``, its
adjoint ``M^T`` (one step of the network's backward pass) and the same map with every coefficient
replaced by its magnitude, ``|M|`` (interval arithmetic). torch computes all three; no matrix is
ever formed.

Shapes: ``B`` is any leading batch dimension (classes, subdomains, rows of a coefficient matrix);
the shapes stored on a map leave it out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class AffineMap:
    """Base of all affine maps; a subclass writes :meth:`linear` and, where cheap, :meth:`adjoint`.

    Attributes:
        input_shapes: Shape of each input without the batch dimension.
        output_shape: Shape of the output without the batch dimension.
        bias: Constant term, broadcastable to ``[B, *output_shape]``, or None.
        averaged, summed: Dimensions, without the batch, of which it is the mean or the sum, if it
            is no more than that and they keep the size 1; else None.
        is_spread: Whether it repeats entries along dimensions of size 1, and no more.
    """

    bias: Tensor | None = None
    averaged: tuple[int, ...] | None = None
    summed: tuple[int, ...] | None = None
    is_spread: bool = False

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
        return torch.autograd.grad(
            output,
            zeros,
            cotangent,
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,  # an input of which nothing is read
        )

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


@dataclass(frozen=True)
class Branch:
    """A value of the network that depends on its input.

    Attributes:
        index: Node of the graph that computes it.
        shape: Its shape without the batch dimension.
        whole: Whether the network's code sees it in that shape, that is, one example's value with
            no batch dimension of ours; else the batch comes first in the code too.
    """

    index: int
    shape: torch.Size
    whole: bool = False

    @property
    def rank(self) -> int:
        """Number of dimensions that the network's code sees."""
        return len(self.shape) + (not self.whole)


@dataclass(frozen=True)
class Applied:
    """An affine map applied to branches, or to other maps' results: what a rule answers with."""

    map: AffineMap
    inputs: tuple[Branch | Applied, ...]

    @property
    def shape(self) -> torch.Size:
        """Its shape without the batch dimension."""
        return self.map.output_shape


Value = Branch | Applied
