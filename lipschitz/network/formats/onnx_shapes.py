"""ONNX operators that move numbers, and the arithmetic of sizes that comes with them.

An operator is a function of its context and its inputs. An input is a tensor or, where it came from
``Shape``, a list of sizes or one of them. Nothing here asks whether the operator can be bounded;
that is decided when the network is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What an operator knows besides its inputs.

    Attributes:
        attributes: By name.
        shapes: Of each input, None where unknown; a size that is left open is None.
        outputs: How many outputs are asked for.
        batch: Number of examples that the file fixes; None if it leaves that open.
        opset: Version of the operators.
        alone: Whether one example is given, so that every shape is known.
    """

    attributes: dict[str, Any]
    shapes: tuple[tuple[int | None, ...] | None, ...]
    outputs: int
    batch: int | None
    opset: int = 13
    alone: bool = False

    def __call__(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)

    @property
    def rank(self) -> int:
        """Dimensions of the first input.

        Raises:
            NotImplementedError: They are unknown.
        """
        if self.shapes[0] is None:
            raise NotImplementedError("the number of dimensions of its input is unknown")
        return len(self.shapes[0])

    @property
    def is_size(self) -> bool:
        """Whether the first input is one of the sizes of Shape, if it is no tensor."""
        return self.shapes[0] == ()


def numbers_of(value: Any) -> list[int]:
    """A list of whole numbers, from a constant or from sizes."""
    if isinstance(value, Tensor):
        return value.flatten().tolist()
    return list(value) if isinstance(value, list) else [value]


def _shape(context: Context, x: Any) -> list[int]:
    """Only the number of examples is left open."""
    first = [] if context.rank == 0 else [x.shape[0]]
    rest = context.shapes[0][1:]
    return first + [x.shape[i] if size is None else size for i, size in enumerate(rest, start=1)]


def on_sizes(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """A function of two numbers, of sizes and constants one by one."""
    scalar = not any(isinstance(v, list) or (isinstance(v, Tensor) and v.dim()) for v in (a, b))
    first, second = numbers_of(a), numbers_of(b)
    count = max(len(first), len(second))
    pairs = zip(first * (count // len(first)), second * (count // len(second)), strict=True)
    found = [function(x, y) for x, y in pairs]
    return found[0] if scalar else found


def _reshape(context: Context, x: Any, shape: Any) -> Any:
    sizes = numbers_of(shape)
    if isinstance(x, list):
        return x
    if context("allowzero", 0) == 0:
        sizes = [
            x.shape[i] if isinstance(size, int) and size == 0 else size
            for i, size in enumerate(sizes)
        ]
    if sizes and isinstance(sizes[0], int) and sizes[0] == context.batch:
        sizes[0] = x.shape[0]
    return x.reshape(*sizes)


def _flatten(context: Context, x: Any) -> Any:
    if context("axis", 1) != 1:
        raise NotImplementedError("an axis other than 1 mixes the examples of a batch")
    return torch.flatten(x, 1)


def _squeeze(context: Context, x: Any, axes: Any = None) -> Any:
    axes = context("axes") if axes is None else numbers_of(axes)
    if isinstance(x, list):
        return x[0]
    if axes is None:
        raise NotImplementedError("without axes")
    return x.squeeze(tuple(axes))


def _unsqueeze(context: Context, x: Any, axes: Any = None) -> Any:
    axes = context("axes") if axes is None else numbers_of(axes)
    if context.is_size and not isinstance(x, Tensor):
        return [x]
    for axis in sorted(axis % (context.rank + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(context: Context, *parts: Any) -> Any:
    if any(isinstance(part, list) for part in parts):
        return [size for part in parts for size in numbers_of(part)]
    return torch.cat(parts, context("axis"))


def _gather(context: Context, x: Any, indices: Any) -> Any:
    axis = context("axis", 0)
    if isinstance(x, list):
        return x[int(indices)] if indices.dim() == 0 else [x[int(i)] for i in indices]
    if indices.dim() == 0:
        return x.select(axis, int(indices))
    if indices.dim() > 1 or bool((indices < 0).any()):
        raise NotImplementedError("negative indices, or indices of more than one dimension")
    return x.index_select(axis, indices.to(x.device))


def _slice(context: Context, x: Any, *bounds: Any) -> Any:
    given = [numbers_of(b) if b is not None else None for b in bounds]
    given += [None] * (4 - len(given))
    starts = context("starts") if given[0] is None else given[0]
    ends = context("ends") if given[1] is None else given[1]
    axes = given[2] or context("axes") or list(range(len(starts)))
    steps = given[3] or [1] * len(starts)
    parts = [slice(s, e, p) for s, e, p in zip(starts, ends, steps, strict=True)]
    if isinstance(x, list):
        return x[parts[0]]
    index = [slice(None)] * context.rank
    for axis, part in zip(axes, parts, strict=True):
        if part.step > 0:
            index[axis] = part
        elif part.step == -1 and part.start == -1 and part.stop < -(2**30):
            x = x.flip(axis)
        else:
            raise NotImplementedError("a negative step, other than reversing")
    return x[tuple(index)]


def _expand(context: Context, x: Any, shape: Any) -> Any:
    sizes = numbers_of(shape)
    if context.alone:
        return x.expand(torch.broadcast_shapes(context.shapes[0], sizes))
    if len(sizes) != context.rank:
        raise NotImplementedError("it adds dimensions in front of the batch")
    return x.expand(-1, *[-1 if size == 1 else size for size in sizes[1:]])


def _constant_of_shape(context: Context, shape: Any) -> Tensor:
    value = context("value", torch.zeros(1))
    return value.expand(numbers_of(shape)).clone()


def _split(context: Context, x: Any, sizes: Any = None) -> Any:
    sizes = context("split") if sizes is None else numbers_of(sizes)
    if sizes is None:
        return x.chunk(context("num_outputs", context.outputs), context("axis", 0))
    return torch.split(x, sizes, context("axis", 0))


_DTYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def _cast(context: Context, x: Any) -> Any:
    if isinstance(x, list) or (context.is_size and not isinstance(x, Tensor)):
        return x
    return x.to(_DTYPES[context("to")])


def _of_constants(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is computed of constants alone: elsewhere tracing refuses it by its name in torch."""

    def compute(context: Context, *inputs: Any) -> Any:
        if any(isinstance(value, (list, int)) for value in inputs):
            inputs = tuple([torch.as_tensor(value) for value in inputs])
        return function(*inputs)

    return compute


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


_COMPARISONS: dict[str, Callable[..., Any]] = {
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
    "Mod": torch.remainder,
    "Range": _range,
}


def _trilu(context: Context, x: Any, k: Any = None) -> Any:
    shift = 0 if k is None else int(k)
    return torch.triu(x, shift) if context("upper", 1) else torch.tril(x, shift)


def _tile(context: Context, x: Any, repeats: Any) -> Any:
    return x.repeat(*numbers_of(repeats))


SHAPE_OPERATORS: dict[str, Callable[..., Any]] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda context, x: x.permute(context("perm")),
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Identity": lambda context, x: x,
    "Dropout": lambda context, x, *_: x,
    "Cast": _cast,
    "Shape": _shape,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Trilu": _trilu,
    "Tile": _tile,
    "Where": lambda context, condition, a, b: torch.where(condition, a, b),
    "Equal": lambda context, a, b: torch.eq(a, b),
    **{name: _of_constants(function) for name, function in _COMPARISONS.items()},
}
