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

from lipschitz.network.activations import Power
from lipschitz.network.activations.derivative import cosine
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import Hardtanh
from lipschitz.network.affine import Branch, Call
from lipschitz.network.composed.attention import masked_attention
from lipschitz.network.composed.contractions import einsum
from lipschitz.network.composed.dimensions import inner, inner_dims
from lipschitz.network.composed.identities import IDENTITIES, over, several_dims
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
    return over(write, call, input, other)


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
        first = isinstance(input1, Branch)
        x, constant = (input1, input2) if first else (input2, input1)
        constant = constant.detach().reshape(-1, constant.shape[-1])
        if not bool((constant == constant[:1]).all()):
            raise NotImplementedError("its constant has a batch dimension")
        combined = torch.einsum("kij,j->ki" if first else "kij,i->kj", weight, constant[0])
        return write.linear(x, combined, bias)
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
    flat = several_dims(write, input, inner_dims(input, dim))
    return write.reshape(logsumexp(write, flat, len(flat.shape) - 1), call.shape)


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


def _with_mean(spread: WrittenRule) -> WrittenRule:
    """``torch.var_mean`` and ``torch.std_mean``."""

    def rule(
        write: Writer, call: Call, input: Branch, dim: Any = None, *args: Any, **kwargs: Any
    ) -> Written:
        keep = kwargs.get("keepdim", len(args) > 1 and args[1])
        mean = write.sum(input, inner_dims(input, dim), keep=bool(keep), mean=True)
        return spread(write, call, input, dim, *args, **kwargs), mean

    return rule


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


def _linalg_norm(
    write: Writer,
    call: Call,
    A: Branch,  # torch's name
    ord: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    **options: Any,
) -> Written:
    """``torch.linalg.norm`` of vectors, and of matrices the one of all entries."""
    dims = inner_dims(A, dim)
    if len(dims) > 1 and ord not in (None, "fro"):
        raise NotImplementedError(f"the matrix norm {ord}: only that of Frobenius")
    return vector_norm(write, A, dims, 2.0 if ord in (None, "fro") else float(ord), keepdim)


def _matrix_norm(
    write: Writer,
    call: Call,
    A: Branch,  # torch's name
    ord: Any = "fro",
    dim: Any = (-2, -1),
    keepdim: bool = False,
    **options: Any,
) -> Written:
    return _linalg_norm(write, call, A, ord, dim, keepdim)


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
        return Extreme(write.extreme(input, [inner(input, dim)], keep=keepdim, sign=sign), None)

    return rule


def _amax(sign: int) -> WrittenRule:
    def rule(
        write: Writer, call: Call, input: Branch, dim: Any = None, keepdim: bool = False
    ) -> Written:
        return write.extreme(input, inner_dims(input, dim), keep=keepdim, sign=sign)

    return rule


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
    "var_mean": _with_mean(_var),
    "std_mean": _with_mean(_std),
    "norm": _norm,
    "linalg_norm": _linalg_norm,
    **dict.fromkeys(("matrix_norm", "linalg_matrix_norm"), _matrix_norm),
    **dict.fromkeys(("vector_norm", "linalg_vector_norm"), _vector_norm),
    "normalize": _normalize,
    "glu": _glu,
    "hardsigmoid": _hardsigmoid,
    "tan": _tan,
    "max": _extreme(1),
    "min": _extreme(-1),
    "amax": _amax(1),
    "amin": _amax(-1),
    **dict.fromkeys(("maximum", "fmax"), _of_two(1)),
    **dict.fromkeys(("minimum", "fmin"), _of_two(-1)),
    "scaled_dot_product_attention": _attention,
    **IDENTITIES,
    **RECURRENT_FUNCTIONS,
}
