"""What exporters write around the operators of a network, worked out when a file is read.

Operators of constants alone are computed. A matrix multiplied from the left of a transposed batch,
and transposed back, is one from the right. And a shape that the file leaves out is found by running
it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipschitz.errors import InputError, first_line
from lipschitz.network.formats.onnx_operators import OPERATORS
from lipschitz.network.formats.onnx_shapes import Context


@dataclass(frozen=True)
class Step:
    """One operator of the file.

    Attributes:
        operator: Its ONNX name.
        context: Attributes and shapes.
        inputs, outputs: Names of values; an input that is left out has the name ''.
    """

    operator: str
    context: Context
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _found(step: Step, inputs: list[Any]) -> list[Any]:
    found = OPERATORS[step.operator](step.context, *inputs)
    return list(found) if len(step.outputs) > 1 else [found]


def folded(path: Path, steps: list[Step], constants: dict[str, Tensor]) -> list[Step]:
    """The steps that depend on the input; what the others give is added to the constants.

    Raises:
        InputError: An operator of constants does not run.
    """
    left = []
    for step in steps:
        if not all(name in constants or not name for name in step.inputs) or not step.inputs:
            left.append(step)
            continue
        inputs = [constants.get(name) for name in step.inputs]
        shapes = tuple(None if value is None else tuple(value.shape) for value in inputs)
        try:
            if step.operator == "Expand":
                shape = torch.broadcast_shapes(shapes[0], inputs[1].tolist())
                values: list[Any] = [inputs[0].expand(shape)]
            elif step.operator == "Shape":
                values = [torch.tensor(shapes[0], dtype=torch.long)]
            else:
                context = replace(step.context, shapes=shapes)
                values = _found(replace(step, context=context), inputs)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(
                f"{path}: the operator {step.operator} of constants does not run in torch "
                f"({first_line(error)})"
            ) from error
        for name, value in zip(step.outputs, values, strict=True):
            constants[name] = value if isinstance(value, Tensor) else torch.tensor(value)
    return left


def without_guards(steps: list[Step], constants: dict[str, Tensor]) -> list[Step]:
    """Softplus with a threshold as one step, and no look for what is no number.

    Exporters write ``softplus(x) if x <= 20 else x``, and of a softmax 0 where all its row is
    masked, which is refused when the network is traced.
    """
    makers = {name: step for step in steps for name in step.outputs}
    same: dict[str, str] = {}
    result = []
    for step in steps:
        inputs = tuple(same.get(name, name) for name in step.inputs)
        step = replace(step, inputs=inputs)
        makers.update(dict.fromkeys(step.outputs, step))
        condition = makers.get(inputs[0]) if step.operator == "Where" else None
        other = makers.get(inputs[2]) if condition is not None else None
        if (
            condition is not None
            and condition.operator == "IsNaN"
            and condition.inputs == inputs[2:]
        ):
            same[step.outputs[0]] = inputs[2]
            continue
        is_softplus = other is not None and other.operator == "Softplus"
        if is_softplus and condition.operator == "Greater" and other.inputs == inputs[1:2]:
            least = constants.get(condition.inputs[1])
            if condition.inputs[0] == inputs[1] and least is not None and least.numel() == 1:
                shapes = other.context.shapes
                context = replace(
                    other.context, attributes={"threshold": float(least)}, shapes=shapes
                )
                step = Step("Softplus with threshold", context, inputs[1:2], step.outputs)
        result.append(step)
    return result


def used(steps: list[Step], output: str) -> list[Step]:
    """The steps that a value depends on."""
    needed, result = {output}, []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            needed.update(step.inputs)
            result.append(step)
    return result[::-1]


def of_one_example(
    path: Path,
    steps: list[Step],
    constants: dict[str, Tensor],
    input_name: str,
    shape: tuple[int, ...],
) -> tuple[list[Step], dict[str, Tensor]]:
    """The steps on one example, whose sizes are all numbers, and the constants with these.

    Args:
        path: Of the file, for messages.
        steps, constants: Of the file.
        input_name: Of the input.
        shape: Of one example, [1, *input_shape].

    Raises:
        InputError: They do not run.
    """
    dtype = next((c.dtype for c in constants.values() if c.is_floating_point()), torch.float32)
    values: dict[str, Any] = {"": None, **constants, input_name: torch.zeros(shape, dtype=dtype)}
    constants, left = dict(constants), []
    for step in steps:
        inputs = [values[name] for name in step.inputs]
        shapes = tuple(None if value is None else tuple(value.shape) for value in inputs)
        context = replace(step.context, shapes=shapes, batch=None, alone=True)
        step = replace(step, context=context)
        try:
            with torch.no_grad():
                found = (
                    [torch.tensor(shapes[0], dtype=torch.long)]
                    if step.operator == "Shape"
                    else _found(step, inputs)
                )
        except NotImplementedError:
            raise
        except Exception as error:  # whatever torch says of operators that do not fit together
            raise InputError(f"{path} does not run in torch: {first_line(error)}") from error
        found = [v if isinstance(v, Tensor) else torch.tensor(v) for v in found]
        values.update(pair for pair in zip(step.outputs, found, strict=False) if pair[0])
        is_constant = all(name in constants or not name for name in step.inputs)
        if step.operator == "Shape" or is_constant:
            constants.update(zip(step.outputs, found, strict=False))
        else:
            left.append(step)
    return left, constants


def without_transposes(steps: list[Step], constants: dict[str, Tensor]) -> list[Step]:
    """``(A x^T)^T`` as ``x A^T``, so that the batch comes first all the way."""
    makers = {name: step for step in steps for name in step.outputs}
    readers = Counter(name for step in steps for name in step.inputs)
    result, dropped = [], set()
    for step in steps:
        inner = makers.get(step.inputs[0]) if step.operator == "Transpose" and step.inputs else None
        before = makers.get(inner.inputs[1]) if _is_product_of_constant(inner, constants) else None
        if not (_swaps(step) and _swaps(before) and readers[inner.outputs[0]] == 1):
            result.append(step)
            continue
        weight = f"{inner.inputs[0]} transposed for {step.outputs[0]}"
        constants[weight] = constants[inner.inputs[0]].T.contiguous()
        inputs = (before.inputs[0], weight)
        shapes = (before.context.shapes[0], tuple(constants[weight].shape))
        context = replace(inner.context, shapes=shapes)
        result.append(Step("MatMul", context, inputs, step.outputs))
        dropped.add(inner.outputs)
        if readers[before.outputs[0]] == 1:
            dropped.add(before.outputs)
    return [step for step in result if step.outputs not in dropped]


def _is_product_of_constant(step: Step | None, constants: dict[str, Tensor]) -> bool:
    if step is None or step.operator != "MatMul":
        return False
    weight = constants.get(step.inputs[0])
    return weight is not None and weight.dim() == 2


def _swaps(step: Step | None) -> bool:
    """Whether a step swaps two dimensions, all that there are."""
    return step is not None and step.operator == "Transpose" and step.context("perm") == [1, 0]


def with_ranks(
    path: Path,
    steps: list[Step],
    constants: dict[str, Tensor],
    input_name: str,
    shape: tuple[int, ...],
) -> list[Step]:
    """The steps with shapes of their inputs where the file has none, by running them.

    Raises:
        InputError: They do not run.
    """
    dtype = next((c.dtype for c in constants.values() if c.is_floating_point()), torch.float32)
    values: dict[str, Any] = {"": None, **constants, input_name: torch.zeros(shape, dtype=dtype)}
    result = []
    for step in steps:
        inputs = [values[name] for name in step.inputs]
        shapes = tuple(
            known if known is not None else _shape_of(value, shape[0])
            for known, value in zip(step.context.shapes, inputs, strict=True)
        )
        step = replace(step, context=replace(step.context, shapes=shapes))
        try:
            with torch.no_grad():
                found = _found(step, inputs)
        except NotImplementedError:
            raise
        except Exception as error:  # whatever torch says of operators that do not fit together
            raise InputError(f"{path} does not run in torch: {error}") from error
        values.update(zip(step.outputs, found, strict=False))
        result.append(step)
    return result


def _shape_of(value: Any, batch: int) -> tuple[int | None, ...] | None:
    """A value's shape, None for a size that may be the batch; () and (n,) of sizes."""
    if isinstance(value, Tensor):
        first = [None if size == batch else size for size in value.shape[:1]]
        return (*first, *value.shape[1:])
    if isinstance(value, list):
        return (len(value),)
    return () if isinstance(value, int) else None
