"""A small evaluator of ONNX files in float64, for the attack; nothing of the library is used.

Shapes and other whole numbers are computed as they stand in the file, at batch size one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.others.evaluator import Function, Kinks

Operator = Callable[[list[Any], dict[str, Any], Kinks], Any]


def onnx_function(path: Path) -> Function:
    """The file's network as a function of one example.

    Raises:
        ValueError: An operator that is not known here, or several inputs or outputs.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {t.name: _tensor(numpy_helper.to_array(t)) for t in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError(f"the attack evaluates one input and one output, {path} has others")
    nodes = []
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attributes = {
            name: _tensor(numpy_helper.to_array(value))
            if isinstance(value, onnx.TensorProto)
            else value
            for name, value in attributes.items()
        }
        if node.op_type not in _OPERATORS:
            raise ValueError(f"the attack knows no operator {node.op_type}")
        nodes.append((_OPERATORS[node.op_type], list(node.input), node.output[0], attributes))
    entry, result = inputs[0].name, graph.output[0].name
    dimensions = inputs[0].type.tensor_type.shape.dim
    sizes = [dimension.dim_value or 1 for dimension in dimensions]

    def function(x: Tensor, kinks: Kinks) -> Tensor:
        known: dict[str, Any] = {**stored, entry: x.reshape(sizes)}
        for operator, names, output, attributes in nodes:
            arguments = [known[name] if name else None for name in names]
            known[output] = operator(arguments, attributes, kinks)
        return known[result]

    return function


def _tensor(array: Any) -> Tensor:
    tensor = torch.tensor(array)
    return tensor.double() if tensor.is_floating_point() else tensor


def _pads(attributes: dict[str, Any]) -> list[int]:
    """Of a window, in the order of ``F.pad``: the last dimension first."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError(f"the attack knows no auto_pad {attributes['auto_pad']!r}")
    pads = attributes.get("pads")
    if pads is None:
        return []
    half = len(pads) // 2
    return [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]


def _gemm(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    left = a[0].transpose(-1, -2) if at.get("transA") else a[0]
    right = a[1].transpose(-1, -2) if at.get("transB") else a[1]
    product = at.get("alpha", 1.0) * (left @ right)
    return product if len(a) < 3 else product + at.get("beta", 1.0) * a[2]


def _conv(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    x = F.pad(a[0], _pads(at)) if _pads(at) else a[0]
    dims = a[1].dim() - 2
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    ones = [1] * dims
    strides, dilations = at.get("strides", ones), at.get("dilations", ones)
    bias = a[2] if len(a) > 2 else None
    return convolve(x, a[1], bias, strides, 0, dilations, at.get("group", 1))


def _windows(x: Tensor, at: dict[str, Any], filler: float) -> Tensor:
    """The windows of images [1, C, H, W], [1, C, H', W', K]."""
    if at.get("ceil_mode") or len(at["kernel_shape"]) != 2:
        raise ValueError("the attack knows pooling of images without ceil_mode only")
    x = F.pad(x, _pads(at), value=filler) if _pads(at) else x
    (height, width), strides = at["kernel_shape"], at.get("strides", [1, 1])
    cut = x.unfold(2, height, strides[0]).unfold(3, width, strides[1])
    return cut.flatten(4)


def _max_pool(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    return kinks.largest(_windows(a[0], at, -torch.inf))


def _average_pool(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    windows = _windows(a[0], at, 0.0)
    if at.get("count_include_pad") or not any(at.get("pads", [])):
        return windows.mean(-1)
    counts = _windows(torch.ones_like(a[0]), at, 0.0).sum(-1)
    return windows.sum(-1) / counts


def _reshape(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Any:
    shape = [int(s) for s in a[1]]
    if not at.get("allowzero"):
        shape = [a[0].shape[i] if s == 0 else s for i, s in enumerate(shape)]
    return a[0].reshape(shape)


def _flatten(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    axis = at.get("axis", 1)
    rows = 1
    for size in a[0].shape[:axis]:
        rows *= size
    return a[0].reshape(rows, -1)


def _axes(a: list[Any], at: dict[str, Any]) -> list[int]:
    return [int(i) for i in (a[1] if len(a) > 1 and a[1] is not None else at["axes"])]


def _unsqueeze(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    x, axes = a[0], _axes(a, at)
    rank = x.dim() + len(axes)
    for axis in sorted(i % rank for i in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    x = a[0]
    for axis in sorted((i % x.dim() for i in _axes(a, at)), reverse=True):
        x = x.squeeze(axis)
    return x


def _reduce(mean: bool) -> Operator:
    def reduce(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
        axes, kept = _axes(a, at), bool(at.get("keepdims", 1))
        return a[0].mean(axes, kept) if mean else a[0].sum(axes, kept)

    return reduce


def _slice(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    x = a[0]
    if len(a) == 1:
        starts, ends, axes, steps = at["starts"], at["ends"], at.get("axes"), None
    else:
        starts, ends = a[1].tolist(), a[2].tolist()
        axes = a[3].tolist() if len(a) > 3 and a[3] is not None else None
        steps = a[4].tolist() if len(a) > 4 else None
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[place] if axes is not None else place
        step = steps[place] if steps is not None else 1
        indices = torch.arange(x.shape[axis])[slice(start, end) if step == 1 else slice(None)]
        if step != 1:
            indices = torch.tensor(range(x.shape[axis])[start:end:step])
        x = x.index_select(axis, indices)
    return x


def _gather(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    axis = at.get("axis", 0) % a[0].dim()
    indices = a[1] % a[0].shape[axis]
    taken = a[0].index_select(axis, indices.reshape(-1))
    return taken.reshape(*a[0].shape[:axis], *indices.shape, *a[0].shape[axis + 1 :])


def _filled(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    value = at.get("value", torch.zeros(1, dtype=torch.float64))
    return value.reshape(()).expand(a[0].tolist()).clone()


def _constant(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    value = next(iter(at.values()))
    return value if isinstance(value, Tensor) else _tensor(value)


def _pad(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    pads = at["pads"] if len(a) == 1 else a[1].tolist()
    if at.get("mode", b"constant") != b"constant":
        raise ValueError("the attack knows padding with a constant only")
    value = float(a[2]) if len(a) > 2 and a[2] is not None else at.get("value", 0.0)
    return F.pad(a[0], _pads({"pads": pads}), value=value)


def _normalise(a: list[Any], at: dict[str, Any], kinks: Kinks) -> Tensor:
    x, scale, shift, mean, variance = a
    shape = [1, -1] + [1] * (x.dim() - 2)
    factor = scale / (variance + at.get("epsilon", 1e-5)).sqrt()
    return (x - mean.reshape(shape)) * factor.reshape(shape) + shift.reshape(shape)


_OPERATORS: dict[str, Operator] = {
    "Add": lambda a, at, k: a[0] + a[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _normalise,
    "Concat": lambda a, at, k: torch.cat(a, at["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Div": lambda a, at, k: a[0] / a[1],
    "Dropout": lambda a, at, k: a[0],
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, at, k: a[0].mean((2, 3), keepdim=True),
    "Identity": lambda a, at, k: a[0],
    "LeakyRelu": lambda a, at, k: k.relu(a[0]) - at.get("alpha", 0.01) * k.relu(-a[0]),
    "MatMul": lambda a, at, k: a[0] @ a[1],
    "MaxPool": _max_pool,
    "Mul": lambda a, at, k: a[0] * a[1],
    "Neg": lambda a, at, k: -a[0],
    "Pad": _pad,
    "ReduceMean": _reduce(mean=True),
    "ReduceSum": _reduce(mean=False),
    "Relu": lambda a, at, k: k.relu(a[0]),
    "Reshape": _reshape,
    "Shape": lambda a, at, k: torch.tensor(a[0].shape),
    "Sigmoid": lambda a, at, k: torch.sigmoid(a[0]),
    "Slice": _slice,
    "Softmax": lambda a, at, k: torch.softmax(a[0], at.get("axis", -1)),
    "Squeeze": _squeeze,
    "Sub": lambda a, at, k: a[0] - a[1],
    "Tanh": lambda a, at, k: torch.tanh(a[0]),
    "Transpose": lambda a, at, k: a[0].permute(at["perm"]),
    "Unsqueeze": _unsqueeze,
}
