"""Which functions and methods of tensors are affine maps, by name.

A rule is called with the call and then with the operator's own arguments, a :class:`Branch` in the
place of each that depends on the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipschitz.network.affine.arithmetic import ARITHMETIC_RULES
from lipschitz.network.affine.base import Applied, Branch, Value
from lipschitz.network.affine.calls import Call, broadcast, positive, reshaped, weighted
from lipschitz.network.affine.convolution import Convolution, TransposedConvolution
from lipschitz.network.affine.maps import Linear, Positive, Scale

FunctionRule = Callable[..., Value]


def _constants(*values: Any) -> None:
    if any(isinstance(value, Branch) for value in values):
        raise NotImplementedError("its weights depend on the input")


def _per_dimension(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def convolution(
    call: Call,
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Value:
    """``F.conv1d``, ``F.conv2d`` and ``F.conv3d``."""
    _constants(weight, bias)
    dimensions = weight.dim() - 2
    stride, dilation = _per_dimension(stride, dimensions), _per_dimension(dilation, dimensions)
    if isinstance(padding, str):
        input, padding = _named_padding(input, padding, weight.shape[2:], dilation)
    padding = _per_dimension(padding, dimensions)
    operation = Convolution(
        weight, bias, stride, padding, dilation, groups, input.shape, call.shape
    )
    return Applied(operation, (input,))


def _named_padding(
    input: Value, name: str, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[Value, tuple[int, ...]]:
    """A padding of 'same' or 'valid' as numbers; where it is uneven, the input is padded first."""
    if name == "valid":
        return input, (0,) * len(kernel)
    extents = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(extent % 2 for extent in extents):
        # As torch does it: where the padding is odd, the extra entry comes at the end.
        pads = [pad for e in reversed(extents) for pad in (0, e % 2)]
        sizes = [size + e % 2 for size, e in zip(input.shape[1:], extents, strict=True)]
        shape = torch.Size((input.shape[0], *sizes))
        pad = Positive(lambda x: torch.nn.functional.pad(x, pads), [input.shape], shape)
        input = Applied(pad, (input,))
    return input, tuple(extent // 2 for extent in extents)


def transposed(
    call: Call,
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Value:
    """``F.conv_transpose1d``, ``F.conv_transpose2d`` and ``F.conv_transpose3d``."""
    _constants(weight, bias)
    # What output padding adds shows in the shape of the call's output.
    geometry = (_per_dimension(value, weight.dim() - 2) for value in (stride, padding, dilation))
    operation = TransposedConvolution(weight, bias, *geometry, groups, input.shape, call.shape)
    return Applied(operation, (input,))


def _either_convolution(
    call: Call,
    input: Value,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    is_transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """``aten.convolution``."""
    if is_transposed:
        return transposed(
            call, input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return convolution(call, input, weight, bias, stride, padding, dilation, groups)


def _linear(call: Call, input: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    _constants(weight, bias)
    return Applied(Linear(weight, bias, input.shape), (input,))


def scale_per_channel(
    input: Value,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Value:
    """Normalisation by constant statistics."""
    factor = torch.rsqrt(running_var + eps)
    if weight is not None:
        factor = factor * weight
    shift = -running_mean * factor
    if bias is not None:
        shift = shift + bias
    per_channel = (-1, *[1] * (len(input.shape) - 1))
    operation = Scale(factor.reshape(per_channel), shift.reshape(per_channel), input.shape)
    return Applied(operation, (input,))


def _batch_norm(
    call: Call,
    input: Value,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    """``F.batch_norm``."""
    if training or running_mean is None or running_var is None:
        raise NotImplementedError("it uses the statistics of its input, so it is not affine")
    return scale_per_channel(input, running_mean, running_var, weight, bias, eps)


def _aten_batch_norm(
    call: Call,
    input: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Value:
    return _batch_norm(
        call, input, running_mean, running_var, weight, bias, training, momentum, eps
    )


def _instance_norm(
    call: Call,
    input: Value,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    return _batch_norm(
        call, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def bicubic(call: Call) -> Value:
    """Bicubic resizing, which has negative coefficients: one matrix for rows, one for columns."""
    (branch,) = call.branches
    height, width = branch.shape[1:]
    like = call.result.new_empty((), dtype=torch.float64)
    # A picture that is constant along one axis stays so: its weights there sum to 1.
    by_row = torch.eye(height).to(like)[:, None, :, None].expand(-1, 1, -1, width)
    by_column = torch.eye(width).to(like)[:, None, None, :].expand(-1, 1, height, -1)
    rows = call.operation(by_row)[:, 0, :, 0].T.to(call.result)
    columns = call.operation(by_column)[:, 0, 0, :].T.to(call.result)
    wide = Applied(Linear(columns, None, branch.shape), (branch,))
    operation = weighted(call, Branch(branch.index, wide.shape), rows, _from_left).map
    return Applied(operation, (wide,))


def _from_left(x: Tensor, weight: Tensor) -> Tensor:
    return weight @ x


def resized(call: Call, mode: str) -> Value:
    """Resizing by the mode of that name."""
    if mode == "bicubic":
        return bicubic(call)
    if mode not in ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area"):
        raise NotImplementedError(f"the mode {mode!r}")
    return positive(call)


def _interpolate(call: Call, *args: Any, mode: str = "nearest", **kwargs: Any) -> Value:
    return resized(call, args[3] if len(args) > 3 else mode)


def _identity(call: Call, input: Value, *args: Any, **kwargs: Any) -> Value:
    if not isinstance(input, Branch):
        raise NotImplementedError
    return input


def _dropout(
    call: Call, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    if training:
        raise NotImplementedError("it is active; pass training=self.training")
    return input


def _reshape(call: Call, input: Value, *args: Any, **kwargs: Any) -> Value:
    if not isinstance(input, Branch) or input.shape.numel() != math.prod(call.shape):
        raise NotImplementedError("it does not keep the batch dimension first")
    return reshaped(input, call.shape)


def _expand(call: Call, input: Value, *args: Any, **kwargs: Any) -> Value:
    return broadcast(input, call.shape)


def _positive(call: Call, *args: Any, **kwargs: Any) -> Value:
    return positive(call)


def _over_dims(note: str) -> FunctionRule:
    """``torch.mean`` or ``torch.sum``, whose map notes the dimensions where these stay."""

    def rule(call: Call, input: Value, dim: Any = None, *args: Any, **kwargs: Any) -> Value:
        found = positive(call)
        if isinstance(input, Branch) and len(found.shape) == len(input.shape):
            dims = [dim] if isinstance(dim, int) else list(dim or [])
            inner = [d % input.rank - (not input.whole) for d in dims]
            if inner and min(inner) >= 0:
                setattr(found.map, note, tuple(inner))
        return found

    return rule


_RESHAPES = "view reshape flatten unflatten squeeze unsqueeze view_as reshape_as _unsafe_view"
_IDENTITIES = "contiguous clone alias lift_fresh_copy to type float double cpu cuda _to_copy"
_DROPOUTS = (
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout"
)
# Functions that move, repeat, leave out, average or sum entries, or fill in constants.
_POSITIVE = """
    cat concat concatenate stack hstack dstack column_stack
    permute transpose swapaxes swapdims movedim moveaxis mT adjoint flip fliplr roll rot90
    repeat repeat_interleave tile
    getitem narrow select index_select slice index gather take_along_dim diagonal triu tril
    unfold im2col fold col2im where masked_fill
    pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d
    cumsum avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d
    upsample_nearest upsample_bilinear upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d _upsample_bilinear2d_aa
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
"""

FUNCTION_RULES: dict[str, FunctionRule] = {
    **ARITHMETIC_RULES,
    **dict.fromkeys(_POSITIVE.split(), _positive),
    "mean": _over_dims("averaged"),
    "sum": _over_dims("summed"),
    **dict.fromkeys(_RESHAPES.split(), _reshape),
    **dict.fromkeys(_IDENTITIES.split(), _identity),
    **dict.fromkeys(_DROPOUTS.split(), _dropout),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed),
    "convolution": _either_convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "aten::batch_norm": _aten_batch_norm,
    "instance_norm": _instance_norm,
    "aten::instance_norm": _aten_batch_norm,
    **dict.fromkeys(("interpolate", "upsample"), _interpolate),
    **dict.fromkeys(
        ("upsample_bicubic2d", "_upsample_bicubic2d_aa"), lambda c, *a, **k: bicubic(c)
    ),
}

# Functions whose result is a tuple of parts of their input.
_SPLITS = """
    chunk split unbind tensor_split split_with_sizes hsplit dsplit
    unsafe_chunk unsafe_split unsafe_split_with_sizes
"""
SPLITS = frozenset(_SPLITS.split())

# Functions and attributes whose result does not depend on the values of their input.
_METADATA = """
    size dim ndimension numel nelement stride element_size is_floating_point is_contiguous
    get_device sym_size sym_numel shape ndim dtype device layout is_cuda _assert_tensor_metadata
    zeros_like ones_like full_like new_zeros new_ones new_full new_tensor
"""
METADATA = frozenset(_METADATA.split())

# Functions that read only the shape, dtype or device of their second argument.
LIKE_ANOTHER = frozenset(["to", "type_as", "expand_as", "view_as", "reshape_as"])

REFUSED_FUNCTIONS: dict[str, str] = {
    "detach": "its gradient is not that of its value",
}
