"""What ONNX operators compute, in torch: layers, arithmetic and activations.

Source: the operator schemas of ONNX, opset 7 to 23 (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network.formats.onnx_recurrent import RECURRENT_OPERATORS
from lipschitz.network.formats.onnx_shapes import SHAPE_OPERATORS, Context, numbers_of, on_sizes

_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LARGEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _padding(context: Context, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Begin of every dimension, then end of every dimension."""
    kind, strides = context("auto_pad", "NOTSET"), context("strides", [1] * len(kernel))
    if kind == "NOTSET":
        return context("pads", [0] * 2 * len(kernel))
    if kind == "VALID":
        return [0] * 2 * len(kernel)
    if any(stride != 1 for stride in strides):
        raise NotImplementedError(f"auto_pad={kind} with a stride")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return [*less, *more] if kind == "SAME_UPPER" else [*more, *less]


def _symmetric(x: Tensor, pads: list[int]) -> tuple[Tensor, list[int]]:
    """The padding of each dimension; where its ends differ, x is padded first."""
    half = len(pads) // 2
    begin, end = pads[:half], pads[half:]
    if begin == end:
        return x, begin
    last_first = reversed(list(zip(begin, end, strict=True)))
    return F.pad(x, [pad for both in last_first for pad in both]), [0] * half


def _conv(context: Context, x: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    kernel = list(weight.shape[2:])
    dilation = context("dilations", [1] * len(kernel))
    x, padding = _symmetric(x, _padding(context, kernel, dilation))
    strides = context("strides", [1] * len(kernel))
    convolve = _CONVOLUTION[len(kernel)]
    return convolve(x, weight, bias, strides, padding, dilation, context("group", 1))


def _conv_transpose(context: Context, x: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    n = weight.dim() - 2
    pads = context("pads", [0] * 2 * n)
    if context("output_shape") or context("auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError("output_shape or auto_pad")
    if pads[:n] != pads[n:]:
        raise NotImplementedError("padding that differs between the two ends")
    return _TRANSPOSED[n](
        x,
        weight,
        bias,
        context("strides", [1] * n),
        pads[:n],
        context("output_padding", [0] * n),
        context("group", 1),
        context("dilations", [1] * n),
    )


def _gemm(context: Context, a: Any, b: Any, c: Any = None) -> Any:
    if context("transA", 0):
        raise NotImplementedError("transA=1")
    weight = b if context("transB", 0) else b.t()
    alpha, beta = context("alpha", 1.0), context("beta", 1.0)
    weight = weight if alpha == 1 else alpha * weight
    if c is None or (isinstance(c, Tensor) and c.dim() == 1 and beta == 1):
        return F.linear(a, weight, c)
    return F.linear(a, weight) + beta * c


def _batch_norm(
    context: Context, x: Any, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Any:
    training = bool(context("training_mode", 0))
    return F.batch_norm(x, mean, var, weight, bias, training, 0.0, context("epsilon", 1e-5))


def _pool(context: Context, x: Any) -> tuple[Any, list[int], list[int], list[int]]:
    """The input, the kernel, its strides and the padding of a pooling operator."""
    kernel = context("kernel_shape")
    is_dilated = any(d != 1 for d in context("dilations", [1]))
    if is_dilated or context("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NotImplementedError("dilations or auto_pad")
    pads = context("pads", [0] * 2 * len(kernel))
    if pads[: len(kernel)] != pads[len(kernel) :]:
        raise NotImplementedError("padding that differs between the two ends")
    return x, kernel, context("strides", [1] * len(kernel)), pads[: len(kernel)]


def _average_pool(context: Context, x: Any) -> Any:
    x, kernel, strides, pads = _pool(context, x)
    ceil, padded = bool(context("ceil_mode", 0)), bool(context("count_include_pad", 0))
    return _AVERAGE[len(kernel)](x, kernel, strides, pads, ceil, padded)


def _max_pool(context: Context, x: Any) -> Any:
    x, kernel, strides, pads = _pool(context, x)
    return _LARGEST[len(kernel)](x, kernel, strides, pads, ceil_mode=bool(context("ceil_mode", 0)))


def _spatial_mean(context: Context, x: Any) -> Any:
    return x.mean(tuple(range(2, context.rank)), keepdim=True)


def _reduce(method: str) -> Callable[..., Any]:
    def compute(context: Context, x: Any, axes: Any = None) -> Any:
        axes = context("axes") if axes is None else numbers_of(axes)
        if axes is None:
            raise NotImplementedError("without axes it mixes the examples of a batch")
        return getattr(x, method)(tuple(axes), keepdim=bool(context("keepdims", 1)))

    return compute


def _pad(context: Context, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    pads = context("pads") if pads is None else numbers_of(pads)
    value = context("value", 0.0) if value is None else float(value)
    mode = {"edge": "replicate", "wrap": "circular"}.get(
        context("mode", "constant"), context("mode", "constant")
    )
    rank, half = context.rank, len(pads) // 2
    axes = list(range(rank)) if axes is None else [a % rank for a in numbers_of(axes)]
    ends = dict.fromkeys(range(rank), (0, 0))
    ends |= {axis: (pads[i], pads[half + i]) for i, axis in enumerate(axes)}
    first = min((axis for axis, both in ends.items() if any(both)), default=None)
    if first is None:
        return x
    first = min(first, rank - 1) if mode == "constant" else min(first, 2)
    flat = [pad for axis in reversed(range(first, rank)) for pad in ends[axis]]
    return F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat, mode)


_RESIZE_MODES = {
    ("nearest", "asymmetric", "floor"): ("nearest", None),
    ("linear", "half_pixel"): ("linear", False),
    ("linear", "pytorch_half_pixel"): ("linear", False),
    ("linear", "align_corners"): ("linear", True),
    ("cubic", "half_pixel"): ("bicubic", False),
    ("cubic", "pytorch_half_pixel"): ("bicubic", False),
    ("cubic", "align_corners"): ("bicubic", True),
}
_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _resize(
    context: Context, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None
) -> Any:
    mode = context("mode", "nearest")
    key = (mode, context("coordinate_transformation_mode", "half_pixel"))
    if mode == "nearest":
        key += (context("nearest_mode", "round_prefer_floor"),)
    odd = context("antialias", 0) or context("axes") or context("exclude_outside", 0)
    if odd or key not in _RESIZE_MODES or context("cubic_coeff_a", -0.75) != -0.75:
        raise NotImplementedError(f"the mode {', '.join(key)}, or another of its options")
    name, corners = _RESIZE_MODES[key]
    name = _LINEAR[context.rank] if name == "linear" else name
    if sizes is not None:
        return F.interpolate(x, numbers_of(sizes)[2:], mode=name, align_corners=corners)
    factors = tuple(scales.tolist()[2:])
    return F.interpolate(
        x, None, factors, name, align_corners=corners, recompute_scale_factor=False
    )


def _clip(context: Context, x: Any, low: Any = None, high: Any = None) -> Any:
    low = context("min") if low is None else float(low)
    high = context("max") if high is None else float(high)
    if high is None and low == 0:
        return F.relu(x)
    if low is None or high is None:
        return torch.clamp(x, low, high)
    return F.hardtanh(x, low, high)


def _depth_to_space(context: Context, x: Any) -> Any:
    if context("mode", "DCR") != "CRD":
        raise NotImplementedError("mode DCR")
    return F.pixel_shuffle(x, context("blocksize"))


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def compute(context: Context, a: Any, b: Any) -> Any:
        sizes = [isinstance(value, (list, int)) for value in (a, b)]
        values = [
            not is_size and _is_value(value, shape)
            for value, shape, is_size in zip((a, b), context.shapes, sizes, strict=True)
        ]
        if any(sizes) and any(values):  # a size that values are scaled by
            a, b = (torch.tensor(v) if isinstance(v, list) else v for v in (a, b))
        elif any(sizes):
            return on_sizes(operator.floordiv if function is operator.truediv else function, a, b)
        return function(a, b)

    return compute


def _is_value(value: Any, shape: tuple[int | None, ...] | None) -> bool:
    """Whether it is no size, nor a constant that sizes are computed with."""
    return value.is_floating_point() if isinstance(value, Tensor) else bool(shape)


def _unary(function: Callable[..., Any], **attributes: tuple[str, float]) -> Callable[..., Any]:
    """An activation; ``argument=(ONNX attribute, its default)``."""

    def compute(context: Context, x: Any) -> Any:
        given = {key: context(name, default) for key, (name, default) in attributes.items()}
        return function(x, **given)

    return compute


def _sum(context: Context, first: Any, *others: Any) -> Any:
    for other in others:
        first = first + other
    return first


def _softmax(function: Callable[..., Any]) -> Callable[..., Any]:
    """Softmax or its logarithm; before opset 13 over all dimensions from the axis on."""

    def compute(context: Context, x: Any) -> Any:
        axis = context("axis", -1 if context.opset >= 13 else 1)
        if context.opset < 13 and axis % context.rank != context.rank - 1:
            raise NotImplementedError("over several dimensions, as before opset 13")
        return function(x, dim=axis)

    return compute


def _layer_norm(context: Context, x: Any, scale: Tensor, bias: Tensor | None = None) -> Any:
    if context("axis", -1) % context.rank != context.rank - scale.dim():
        raise NotImplementedError("an axis other than the first that its scale has")
    return F.layer_norm(x, tuple(scale.shape), scale, bias, context("epsilon", 1e-5))


def _rms_norm(context: Context, x: Any, scale: Tensor) -> Any:
    if context("axis", -1) % context.rank != context.rank - scale.dim():
        raise NotImplementedError("an axis other than the first that its scale has")
    return F.rms_norm(x, tuple(scale.shape), scale, context("epsilon", 1e-5))


def _instance_norm(context: Context, x: Any, scale: Tensor, bias: Tensor) -> Any:
    eps = context("epsilon", 1e-5)
    return F.instance_norm(x, None, None, scale, bias, use_input_stats=True, eps=eps)


def _group_norm(context: Context, x: Any, scale: Tensor, bias: Tensor) -> Any:
    groups = context("num_groups")
    if len(scale) == groups and len(scale) != context.shapes[0][1]:
        raise NotImplementedError("a scale per group")
    return F.group_norm(x, groups, scale, bias, context("epsilon", 1e-5))


def _pow(context: Context, x: Any, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and not isinstance(x, Tensor):
        return torch.pow(x, exponent.item())
    return torch.pow(x, exponent)


def _product(context: Context, x: Any, axes: Any = None) -> Any:
    """Of constants, such as sizes; several values that depend on the input are not covered."""
    axes = context("axes") if axes is None else numbers_of(axes)
    if isinstance(x, list):
        return functools.reduce(operator.mul, x)
    keep = bool(context("keepdims", 1))
    for axis in sorted(axes or range(context.rank), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _hard_sigmoid(context: Context, x: Any) -> Any:
    return torch.clamp(x * context("alpha", 0.2) + context("beta", 0.5), 0.0, 1.0)


def _several(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The largest or smallest of any number of values."""

    def compute(context: Context, first: Any, *others: Any) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return compute


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a value, its axes and whether they are kept."""

    def compute(context: Context, x: Any, axes: Any = None) -> Any:
        axes = context("axes") if axes is None else numbers_of(axes)
        if axes is None:
            raise NotImplementedError("without axes it mixes the examples of a batch")
        return function(x, tuple(axes), bool(context("keepdims", 1)))

    return compute


OPERATORS: dict[str, Callable[..., Any]] = {
    **SHAPE_OPERATORS,
    **RECURRENT_OPERATORS,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _binary(torch.matmul),
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(operator.truediv),
    "Pow": _pow,
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Sqrt": _unary(torch.sqrt),
    "Reciprocal": _unary(torch.reciprocal),
    "Erf": _unary(torch.erf),
    "Tan": _unary(torch.tan),
    "Sinh": _unary(torch.sinh),
    "Cosh": _unary(torch.cosh),
    "Swish": lambda context, x: x * torch.sigmoid(context("alpha", 1.0) * x),
    "Softplus with threshold": lambda context, x: F.softplus(x, threshold=context("threshold")),
    "Max": _several(torch.maximum),
    "Min": _several(torch.minimum),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMin": _reduced(torch.amin),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ReduceLogSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceProd": _product,
    "ReduceL1": _reduced(lambda x, axes, keep: torch.abs(x).sum(axes, keepdim=keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.norm(x, 2, axes, keep)),
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "Sum": _sum,
    "Einsum": lambda context, *x: torch.einsum(context("equation"), *x),
    "Neg": _unary(torch.neg),
    "BatchNormalization": _batch_norm,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _spatial_mean,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Pad": _pad,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "Relu": _unary(F.relu),
    "LeakyRelu": _unary(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "PRelu": lambda context, x, slope: F.prelu(x, slope.flatten()),
    "Elu": _unary(F.elu, alpha=("alpha", 1.0)),
    "Celu": _unary(F.celu, alpha=("alpha", 1.0)),
    "Selu": _unary(F.selu),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "HardSwish": _unary(F.hardswish),
    "Mish": _unary(F.mish),
    "Gelu": _unary(F.gelu, approximate=("approximate", "none")),
    "Sigmoid": _unary(torch.sigmoid),
    "Tanh": _unary(torch.tanh),
    "Atan": _unary(torch.atan),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Abs": _unary(torch.abs),
    "Clip": _clip,
    "Softmax": _softmax(F.softmax),
    "LogSoftmax": _softmax(F.log_softmax),
}
