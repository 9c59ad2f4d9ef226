"""Functions and methods of tensors that are written out, by name.

A rule is called with a writer, the call, and the operator's own arguments, a :class:`Branch` in the
place of each that depends on the input. It answers with a branch, several, or None if the call is
affine and not its business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lipschitz.network.activations import Exponential, Power
from lipschitz.network.activations.derivative import cosine
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import Hardtanh
from lipschitz.network.affine import Branch, Call
from lipschitz.network.composed.attention import masked_attention
from lipschitz.network.composed.contractions import einsum
from lipschitz.network.composed.norms import (
    group_norm,
    instance_norm,
    layer_norm,
    scaled_to_norm,
    variance,
    vector_norm,
)
from lipschitz.network.composed.recurrent import RECURRENT_FUNCTIONS
from lipschitz.network.composed.softmax import log_softmax, logsumexp, softmax
from lipschitz.network.composed.writer import Writer

Written = Branch | tuple | None
WrittenRule = Callable[..., Written]


class Extreme(NamedTuple):
    """What ``torch.max`` over a dimension returns; the places are not followed."""

    values: Branch
    indices: None


def inner(x: Branch, dim: int) -> int:
    """A dimension without the batch.

    Raises:
        NotImplementedError: It is the batch.
    """
    count = x.rank
    if not -count <= dim < count or (dim % count == 0 and not x.whole):
        raise NotImplementedError("it mixes the examples of a batch")
    return dim % count - (not x.whole)


def inner_dims(x: Branch, dims: int | Sequence[int] | None) -> list[int]:
    """Dimensions without the batch.

    Raises:
        NotImplementedError: The batch is one of them.
    """
    if dims is None or (not isinstance(dims, int) and not len(dims)):
        if x.whole:
            return list(range(len(x.shape)))
        raise NotImplementedError("without dimensions it mixes the examples of a batch")
    return [inner(x, dim) for dim in ([dims] if isinstance(dims, int) else dims)]


def _both(*values: Any) -> bool:
    return all(isinstance(value, Branch) for value in values)


# -- arithmetic ------------------------------------------------------------------------------------


def _mul(write: Writer, call: Call, input: Any, other: Any) -> Written:
    return write.product(input, other) if _both(input, other) else None


def _div(
    write: Writer, call: Call, input: Any, other: Any, *, rounding_mode: str | None = None
) -> Written:
    if not isinstance(other, Branch):
        return None
    if rounding_mode is not None:
        raise NotImplementedError("it rounds")
    if isinstance(input, Branch):
        return write.quotient(input, other)
    return _times(write, call, write.function(other, Power(-1.0)), input)


def _times(write: Writer, call: Call, x: Branch, constant: Any) -> Branch:
    return write.scale(write.expand(x, call.shape), call.constant(constant))


def _pow(write: Writer, call: Call, input: Any, exponent: Any) -> Written:
    """A number to the power of a branch."""
    if not isinstance(exponent, Branch) or isinstance(input, Branch):
        return None
    base = call.constant(input)
    if not bool((base > 0).all()):
        raise NotImplementedError("its base is not above 0")
    return write.function(_times(write, call, exponent, base.log()), Exponential())


def _matmul(write: Writer, call: Call, input: Any, other: Any) -> Written:
    if not _both(input, other):
        return None
    whole = input.whole and other.whole
    if not whole and min(len(input.shape), len(other.shape)) < 2:
        raise NotImplementedError("its operands must be matrices for each example")
    if not whole and len(input.shape) != len(other.shape):
        raise NotImplementedError("its operands differ in their number of dimensions")
    first = write.unsqueeze(input, 0) if len(input.shape) == 1 else input
    second = write.unsqueeze(other, -1) if len(other.shape) == 1 else other
    rank = max(len(first.shape), len(second.shape))
    first, second = (
        write.reshape(x, [1] * (rank - len(x.shape)) + [*x.shape]) for x in (first, second)
    )
    return write.reshape(write.matmul(first, second), call.shape)


def _baddbmm(
    write: Writer,
    call: Call,
    input: Any,
    batch1: Any,
    batch2: Any,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Written:
    """``beta * input + alpha * batch1 @ batch2`` of two branches."""
    if not _both(batch1, batch2):
        raise NotImplementedError("only of two values that depend on the input")
    product = write.scale(_matmul(write, call, batch1, batch2), float(alpha))
    if isinstance(input, Branch):
        return write.plus(product, write.scale(write.expand(input, call.shape), float(beta)))
    return write.scale(product, 1.0, call.constant(input) * float(beta)) if beta else product


def _einsum(write: Writer, call: Call, equation: Any, *operands: Any) -> Written:
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if sum(isinstance(operand, Branch) for operand in operands) < 2:
        return None
    return einsum(write, call, equation, operands)


def _bilinear(
    write: Writer, call: Call, input1: Any, input2: Any, weight: Tensor, bias: Tensor | None = None
) -> Written:
    """``x1^T W_k x2 + b_k``."""
    if not _both(input1, input2):
        raise NotImplementedError("one of its inputs is a constant")
    outputs, rows, columns = weight.shape
    second = write.linear(input2, weight.reshape(outputs * rows, columns))
    second = write.reshape(second, [*input2.shape[:-1], outputs, rows])
    total = write.sum(write.product(write.unsqueeze(input1, -2), second), [-1], keep=False)
    return total if bias is None else write.scale(total, 1.0, bias)


# -- functions -------------------------------------------------------------------------------------


def _chosen(x: Branch, dim: int | None) -> int:
    """The dimension of a softmax; without one as torch chooses it, of 0 for three, else 1."""
    return (0 if x.rank in (0, 1, 3) else 1) if dim is None else dim


def _softmax(
    write: Writer, call: Call, input: Branch, dim: int | None = None, *args: Any, **kwargs: Any
) -> Written:
    return softmax(write, input, inner(input, _chosen(input, dim)))


def _softmin(write: Writer, call: Call, input: Branch, dim: int, **kwargs: Any) -> Written:
    return softmax(write, write.scale(input, -1.0), inner(input, dim))


def _log_softmax(
    write: Writer, call: Call, input: Branch, dim: int | None = None, *args: Any, **kwargs: Any
) -> Written:
    return log_softmax(write, input, inner(input, _chosen(input, dim)))


def _logsumexp(
    write: Writer, call: Call, input: Branch, dim: Any, keepdim: bool = False
) -> Written:
    dims = inner_dims(input, dim)
    if len(dims) != 1:
        raise NotImplementedError("only over one dimension")
    return write.reshape(logsumexp(write, input, dims[0]), call.shape)


def _layer_norm(
    write: Writer,
    call: Call,
    input: Branch,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *unused: Any,
    **options: Any,
) -> Written:
    return layer_norm(write, input, normalized_shape, weight, bias, eps)


def _rms_norm(
    write: Writer,
    call: Call,
    input: Branch,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Written:
    eps = torch.finfo(call.result.dtype).eps if eps is None else eps
    return layer_norm(write, input, normalized_shape, weight, None, eps, centred=False)


def _group_norm(
    write: Writer,
    call: Call,
    input: Branch,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *unused: Any,
) -> Written:
    return group_norm(write, input, num_groups, weight, bias, eps)


def _instance_norm(
    write: Writer,
    call: Call,
    input: Branch,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Written:
    return instance_norm(write, input, weight, bias, eps) if use_input_stats else None


def _aten_instance_norm(
    write: Writer,
    call: Call,
    input: Branch,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Written:
    return instance_norm(write, input, weight, bias, eps) if use_input_stats else None


def _var(
    write: Writer,
    call: Call,
    input: Branch,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Written:
    if correction is None:
        correction = 1 if unbiased else 0
    return variance(write, input, inner_dims(input, dim), float(correction), keepdim)


def _std(write: Writer, call: Call, *args: Any, **kwargs: Any) -> Written:
    return write.function(_var(write, call, *args, **kwargs), Power(0.5, positive=True))


def _norm(
    write: Writer,
    call: Call,
    input: Branch,
    p: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    out: None = None,
    dtype: Any = None,
) -> Written:
    order = 2.0 if p in (None, "fro") else float(p)
    return vector_norm(write, input, inner_dims(input, dim), order, keepdim)


def _vector_norm(
    write: Writer,
    call: Call,
    x: Branch,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    **options: Any,
) -> Written:
    return _norm(write, call, x, ord, dim, keepdim)


def _normalize(
    write: Writer,
    call: Call,
    input: Branch,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: None = None,
) -> Written:
    return scaled_to_norm(write, input, inner(input, dim), float(p), eps)


def _glu(write: Writer, call: Call, input: Branch, dim: int = -1) -> Written:
    first, second = write.parts(input, inner(input, dim), 2)
    return write.product(first, write.sigmoid(second))


def _hardsigmoid(write: Writer, call: Call, input: Branch, inplace: bool = False) -> Written:
    cut = write.function(write.scale(input, 1.0, 3.0), Hardtanh(0.0, 6.0))
    return write.scale(cut, 1 / 6)


def _tan(write: Writer, call: Call, input: Branch) -> Written:
    return write.quotient(write.function(input, Sine()), write.function(input, cosine()))


def _extreme(sign: int) -> WrittenRule:
    """Rule of max (1) or min (-1): over a dimension, or of two values."""

    def rule(
        write: Writer,
        call: Call,
        input: Any,
        dim: Any = None,
        keepdim: bool = False,
        *,
        other: Any = None,
    ) -> Written:
        other = dim if isinstance(dim, (Branch, Tensor)) else other
        if other is not None:
            return _of_two(sign)(write, call, input, other)
        if not isinstance(dim, int):
            raise NotImplementedError("without a dimension it mixes the examples of a batch")
        return Extreme(_over(write, input, [inner(input, dim)], keepdim, sign), None)

    return rule


def _amax(sign: int) -> WrittenRule:
    def rule(
        write: Writer, call: Call, input: Branch, dim: Any = None, keepdim: bool = False
    ) -> Written:
        return _over(write, input, inner_dims(input, dim), keepdim, sign)

    return rule


def _over(write: Writer, x: Branch, dims: list[int], keep: bool, sign: int) -> Branch:
    """The largest (1) or smallest (-1) entry over dimensions."""
    places = torch.arange(x.shape.numel()).reshape(x.shape)
    rest = [i for i in range(len(x.shape)) if i not in dims]
    shape = [x.shape[i] for i in rest]
    windows = places.permute(*rest, *dims).reshape(math.prod(shape), -1)
    if keep:
        shape = [1 if i in dims else size for i, size in enumerate(x.shape)]
    x = x if sign > 0 else write.scale(x, -1.0)
    if windows.shape[1] == 1:
        found = write.reshape(x, shape)
    else:
        flat = write.nodes.maximum(write.name, x, windows, torch.Size([len(windows)]))
        found = write.reshape(flat, shape)
    return found if sign > 0 else write.scale(found, -1.0)


def _of_two(sign: int) -> WrittenRule:
    def rule(write: Writer, call: Call, input: Any, other: Any) -> Written:
        if _both(input, other):
            combine = write.largest if sign > 0 else write.smallest
            return combine(input, other)
        branch, constant = (input, other) if isinstance(input, Branch) else (other, input)
        # max(x, c) = relu(x - c) + c, min(x, c) = c - relu(c - x)
        constant = call.constant(constant)
        branch = write.expand(branch, call.shape)
        shifted = write.scale(branch, float(sign), -sign * constant)
        return write.scale(write.function(shifted, Hardtanh(0.0, math.inf)), float(sign), constant)

    return rule


def _attention(
    write: Writer,
    call: Call,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Written:
    if not _both(query, key, value):
        raise NotImplementedError("its query, key or value is a constant")
    if dropout_p:
        raise NotImplementedError("with dropout")
    if enable_gqa:
        key, value = (_for_each_query(write, x, query.shape[-3]) for x in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    return masked_attention(write, query, key, value, attn_mask, scale)[0]


def _for_each_query(write: Writer, x: Branch, heads: int) -> Branch:
    """Keys or values [..., groups, S, E] repeated for every head of the queries."""
    *front, groups, steps, size = x.shape
    apart = write.reshape(x, [*front, groups, 1, steps, size])
    each = write.expand(apart, [*front, groups, heads // groups, steps, size])
    return write.reshape(each, [*front, heads, steps, size])


WRITTEN_FUNCTIONS: dict[str, WrittenRule] = {
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv"), _div),
    "pow": _pow,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "baddbmm": _baddbmm,
    "einsum": _einsum,
    "bilinear": _bilinear,
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    "softmin": _softmin,
    **dict.fromkeys(("log_softmax", "_log_softmax"), _log_softmax),
    "logsumexp": _logsumexp,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "aten::instance_norm": _aten_instance_norm,
    "var": _var,
    "std": _std,
    "norm": _norm,
    **dict.fromkeys(("vector_norm", "linalg_vector_norm"), _vector_norm),
    "normalize": _normalize,
    "glu": _glu,
    "hardsigmoid": _hardsigmoid,
    "tan": _tan,
    "max": _extreme(1),
    "min": _extreme(-1),
    "amax": _amax(1),
    "amin": _amax(-1),
    "maximum": _of_two(1),
    "minimum": _of_two(-1),
    "scaled_dot_product_attention": _attention,
    **RECURRENT_FUNCTIONS,
}
