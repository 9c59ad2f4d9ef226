"""A call of a torch operator, and the maps that can be made from one without knowing it well.

:func:`positive` and :func:`weighted` keep the operator itself as the map. That it is linear, and
that it treats every example of a batch by itself, is tried out before it is believed: an operator
that moves numbers from one example to another would pass every comparison of whole batches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.affine.base import Applied, Branch, Value
from lipschitz.network.affine.maps import Positive, Reshape, Weighted

_NAMESPACES = (F, torch, operator, torch.Tensor, torch._C._nn, torch._C._linalg)
_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}
_WRITES = frozenset(["setitem", "delitem", *_IN_PLACE])


@dataclass(frozen=True)
class Call:
    """One call that depends on the input.

    Attributes:
        args, kwargs: Its arguments, with a :class:`Branch` for each that depends on the input.
        result: Its result on the sample, [batch, *shape].
        run: The operator itself, from ``(args, kwargs)`` with tensors in the place of branches.
    """

    args: tuple
    kwargs: dict[str, Any]
    result: Tensor
    run: Callable[[tuple, dict[str, Any]], Any]

    @property
    def whole(self) -> bool:
        """Whether the result is that of one example, see :class:`Branch`."""
        return any(branch.whole for branch in self.branches)

    @property
    def shape(self) -> torch.Size:
        """Shape of the result without the batch dimension."""
        return self.result.shape if self.whole else self.result.shape[1:]

    @property
    def batch(self) -> int:
        """Examples in the sample."""
        return self.result.shape[0]

    @property
    def branches(self) -> list[Branch]:
        """What depends on the input, in the order of the arguments."""
        return list(branches_of((self.args, self.kwargs)))

    def constant(self, value: Any) -> Tensor:
        """A constant of the call as a tensor that broadcasts against the result.

        Raises:
            NotImplementedError: It is not finite, or differs between the examples of a batch.
        """
        like = self.result
        tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()
        if not torch.isfinite(tensor).all():
            raise NotImplementedError("its constant is not finite")
        if tensor.dim() > self.result.dim():
            raise NotImplementedError("its constant has more dimensions than a batch of values")
        if not self.whole and tensor.dim() == self.result.dim() and tensor.shape[0] != 1:
            tensor = _one_row(tensor)
        return tensor

    def operation(self, *inputs: Tensor) -> Tensor:
        """The result with the branches replaced, in order, by batches of any size."""
        if self.whole:
            return torch.vmap(self._computed)(*inputs)
        return self._computed(*inputs)

    def _computed(self, *inputs: Tensor) -> Tensor:
        remaining = iter(inputs)

        def fill(argument: Any) -> Any:
            if isinstance(argument, Branch):
                return next(remaining)
            if isinstance(argument, Tensor):
                return self._constant_for(argument, inputs[0])
            if isinstance(argument, (tuple, list)) and not isinstance(argument, torch.Size):
                return type(argument)([fill(a) for a in argument])
            return argument

        args = tuple([fill(a) for a in self.args])
        return self.run(args, {key: fill(a) for key, a in self.kwargs.items()})

    def _constant_for(self, constant: Tensor, like: Tensor) -> Tensor:
        dtype = like.dtype if constant.is_floating_point() else constant.dtype
        constant = constant.detach().to(device=like.device, dtype=dtype)
        if self.whole:
            return constant
        per_example = constant.dim() == self.result.dim() and constant.shape[0] == self.batch
        if per_example and constant.dtype != torch.long:  # those are indices
            return _one_row(constant).expand(len(like), *constant.shape[1:])
        return constant


def _one_row(constant: Tensor) -> Tensor:
    if not (constant == constant[:1]).all():
        raise NotImplementedError("its constant has a batch dimension")
    return constant[:1]


def branches_of(argument: Any) -> Iterator[Branch]:
    """Every branch inside a nested argument."""
    if isinstance(argument, Branch):
        yield argument
    elif isinstance(argument, dict):
        for value in argument.values():
            yield from branches_of(value)
    elif isinstance(argument, (tuple, list)):
        for value in argument:
            yield from branches_of(value)
    elif isinstance(argument, slice):
        yield from branches_of((argument.start, argument.stop, argument.step))


def operator_names(target: Any) -> tuple[str, ...]:
    """Names under which a traced target is looked up; none for a function that is not torch's.

    An in-place form has the name of the other form. An ATen operator has its own name first, since
    a few of them order their arguments in another way.
    """
    if isinstance(target, torch._ops.OpOverload):
        if target.namespace != "aten":
            return ()
        name = _plain(target._opname)
        return (f"aten::{name}", name)
    if isinstance(target, str):
        return (_plain(target),)
    name = getattr(target, "__name__", "")
    if target is getattr or any(getattr(space, name, None) is target for space in _NAMESPACES):
        return (_plain(name),)
    return ()


def is_in_place(target: Any) -> bool:
    """Whether a traced target changes its first argument."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if isinstance(target, torch._ops.OpOverload):
        name = target._opname
    return name in _WRITES or (name.endswith("_") and not name.endswith("__"))


def _plain(name: str) -> str:
    if name in _IN_PLACE:
        return _IN_PLACE[name]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def positive(call: Call) -> Applied:
    """The operator as a map whose coefficients are never negative, which the caller vouches for."""
    shapes = [branch.shape for branch in call.branches]
    offset = _try_out(call.operation, shapes, call)
    with torch.no_grad():
        ones = call.operation(*[offset.new_ones(1, *shape) for shape in shapes])
    if bool((ones - offset < -1e3 * torch.finfo(offset.dtype).eps * (1 + offset.abs())).any()):
        raise NotImplementedError("it has negative coefficients")
    operation = Positive(
        call.operation, shapes, call.shape, offset if bool((offset != 0).any()) else None
    )
    return Applied(operation, tuple(call.branches))


def weighted(
    call: Call, branch: Branch, weight: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
) -> Applied:
    """``operation(x, weight)``, linear in both."""
    weight = weight.detach().to(call.result.dtype).clone()
    if call.whole:
        operation = torch.vmap(operation, in_dims=(0, None))
    _try_out(lambda x: operation(x, weight), [branch.shape], call)
    return Applied(Weighted(operation, weight, None, branch.shape, call.shape), (branch,))


def broadcast(value: Value, shape: torch.Size) -> Value:
    """A value repeated along dimensions of size 1.

    Raises:
        NotImplementedError: It has fewer dimensions, so its batch dimension would not stay first.
    """
    if value.shape == shape:
        return value
    if len(value.shape) < len(shape) and isinstance(value, Branch) and value.whole:
        value = reshaped(value, torch.Size([1] * (len(shape) - len(value.shape)) + [*value.shape]))
    if len(value.shape) != len(shape):
        raise NotImplementedError("its operands differ in their number of dimensions")
    operation = Positive(lambda x: x.expand(len(x), *shape), [value.shape], shape)
    operation.is_spread = True
    return Applied(operation, (value,))


def reshaped(value: Value, shape: torch.Size) -> Value:
    """The same numbers in another shape."""
    return Applied(Reshape(value.shape, shape), (value,))


def _try_out(operation: Callable[..., Tensor], shapes: Sequence[torch.Size], call: Call) -> Tensor:
    """Its value at zero, [1, *output_shape], if it is affine and keeps examples apart.

    Raises:
        NotImplementedError: It is or does not.
    """
    generator = torch.Generator().manual_seed(0)
    like = call.result

    def batch_of(count: int) -> list[Tensor]:
        shaped = [(count, *shape) for shape in shapes]
        return [torch.randn(s, generator=generator, dtype=torch.float64).to(like) for s in shaped]

    values = batch_of(3)
    try:
        with torch.no_grad():
            offset = operation(*[torch.zeros_like(v[:1]) for v in values])
            alone = [operation(*[v[i : i + 1] for v in values]) for i in range(3)]
            batch, scaled = operation(*values), operation(*[-2 * v for v in values])
    except (RuntimeError, IndexError, ValueError) as error:
        raise NotImplementedError("it does not accept every batch size") from error
    if batch.shape != (3, *call.shape) or offset.shape != (1, *call.shape):
        raise NotImplementedError("it does not keep the batch dimension first")
    if not torch.isfinite(offset).all():
        raise NotImplementedError("its constant is not finite")
    size = (batch - offset).abs().amax() + offset.abs().amax() if batch.numel() else 0

    def equal(first: Tensor, second: Tensor) -> bool:
        return bool(((first - second).abs() <= 1e3 * torch.finfo(like.dtype).eps * size).all())

    if not equal(batch, torch.cat(alone)):
        raise NotImplementedError("it mixes the examples of a batch")
    if not equal(scaled - offset, -2 * (batch - offset)):
        raise NotImplementedError("it is not affine")
    return offset
