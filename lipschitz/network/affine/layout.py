"""Maps that repeat, reorder, sum and compare entries: what products and softmax are made of.

Each has its adjoint in closed form. All coefficients are 0, 1 or -1, but for means.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.affine.base import AffineMap


class Expand(AffineMap):
    """Repeats entries along dimensions of size 1; the number of dimensions stays."""

    is_spread = True

    def __init__(self, input_shape: torch.Size, output_shape: torch.Size) -> None:
        super().__init__([input_shape], output_shape)
        pairs = zip(self.input_shapes[0], self.output_shape, strict=True)
        self.repeated = tuple(i for i, (a, b) in enumerate(pairs, start=1) if a != b)

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].expand(-1, *self.output_shape)

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (cotangent.sum(self.repeated, keepdim=True) if self.repeated else cotangent,)

    def magnitude(self) -> AffineMap:
        return self


class Permute(AffineMap):
    """Another order of dimensions.

    Args:
        order: For each dimension of the output, that of the input, both without the batch.
        input_shape: Without the batch dimension.
    """

    def __init__(self, order: Sequence[int], input_shape: torch.Size) -> None:
        super().__init__([input_shape], [input_shape[i] for i in order])
        self.order = (0, *(i + 1 for i in order))
        self.inverse = tuple(self.order.index(i) for i in range(len(self.order)))

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(self.order)

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (cotangent.permute(self.inverse),)

    def magnitude(self) -> AffineMap:
        return self


class Sum(AffineMap):
    """Sums over dimensions, which keep the size 1, times a factor above 0.

    Args:
        dims: Dimensions without the batch, 0 or larger.
        input_shape: Without the batch dimension.
        factor: 1 for sums; one over the number of entries for means.
    """

    def __init__(self, dims: Sequence[int], input_shape: torch.Size, factor: float = 1.0) -> None:
        shape = [1 if i in dims else size for i, size in enumerate(input_shape)]
        super().__init__([input_shape], shape)
        self.dims, self.factor = tuple(i + 1 for i in dims), factor

    def linear(self, *inputs: Tensor) -> Tensor:
        total = inputs[0].sum(self.dims, keepdim=True) if self.dims else inputs[0]
        return total if self.factor == 1 else total * self.factor

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        if self.factor != 1:
            cotangent = cotangent * self.factor
        return (cotangent.expand(-1, *self.input_shapes[0]),)

    def magnitude(self) -> AffineMap:
        return self


class Centre(AffineMap):
    """Entries minus their mean over dimensions.

    Args:
        dims: Dimensions without the batch, 0 or larger.
        shape: Without the batch dimension.
    """

    def __init__(self, dims: Sequence[int], shape: torch.Size) -> None:
        super().__init__([shape], shape)
        self.dims = tuple(i + 1 for i in dims)
        count = math.prod(shape[i] for i in dims)
        # Coefficients of an entry itself, and of all others with which it is averaged.
        self.own, self.others = 1 - 1 / count, 1 / count
        self.signs = (1, -1)

    def linear(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if self.signs == (1, -1):
            return x - x.mean(self.dims, keepdim=True)
        own, others = self.signs[0] * self.own, self.signs[1] * self.others
        return (own - others) * x + others * x.sum(self.dims, keepdim=True)

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (self.linear(cotangent),)

    def _having(self, *signs: int) -> Centre:
        changed = copy.copy(self)
        changed.signs = signs
        return changed

    def magnitude(self) -> AffineMap:
        return self._having(*map(abs, self.signs))

    def of_sign(self, sign: int) -> Centre:
        """Its coefficients of one sign, as magnitudes."""
        return self._having(*(int(sign * part > 0) for part in self.signs))


class Differences(AffineMap):
    """``z_j - z_i`` of all ordered pairs of different entries along the last dimension.

    Its output has one more dimension: i, then the other j in their order.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__([shape], (*shape, shape[-1] - 1))
        self.first, self.second = 1, -1

    def linear(self, *inputs: Tensor) -> Tensor:
        (z,) = inputs
        total: Tensor | int = 0
        if self.first:
            total = total + self.first * self.others(z)
        if self.second:
            total = total + self.second * z.unsqueeze(-1)
        return total.expand(-1, *self.output_shape)

    def others(self, z: Tensor) -> Tensor:
        """``z_j`` for every i and the other j: [..., T] to [..., T, T - 1]."""
        count = z.shape[-1]
        pairs = z.unsqueeze(-2).expand(*z.shape[:-1], count, count).flatten(-2)[..., 1:]
        without = pairs.unflatten(-1, (count - 1, count + 1))[..., :-1]
        return without.flatten(-2).unflatten(-1, (count, count - 1))

    def adjoint(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        total = cotangent.new_zeros(())
        if self.first:
            count = cotangent.shape[-2]
            with_gaps = F.pad(cotangent.flatten(-2).unflatten(-1, (count - 1, count)), (0, 1))
            pairs = F.pad(with_gaps.flatten(-2), (1, 0)).unflatten(-1, (count, count))
            total = total + self.first * pairs.sum(-2)
        if self.second:
            total = total + self.second * cotangent.sum(-1)
        return (total,)

    def _having(self, first: int, second: int) -> Differences:
        changed = copy.copy(self)
        changed.first, changed.second = first, second
        return changed

    def magnitude(self) -> AffineMap:
        return self._having(abs(self.first), abs(self.second))

    def of_sign(self, sign: int) -> Differences:
        """Its coefficients of one sign, as magnitudes."""
        return self._having(*(int(sign * part > 0) for part in (self.first, self.second)))
