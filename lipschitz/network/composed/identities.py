"""Functions that are a few others: hyperbolic, logarithms of other bases, distances, interpolation.

The rules are called as those of :mod:`lipschitz.network.composed.functions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipschitz.network.activations import Exponential, Logarithm, Power
from lipschitz.network.activations.piecewise import Hardtanh
from lipschitz.network.activations.smooth import Softplus
from lipschitz.network.affine import Branch, Call
from lipschitz.network.composed.dimensions import inner
from lipschitz.network.composed.norms import scaled_to_norm, vector_norm
from lipschitz.network.composed.writer import Writer


def times(write: Writer, call: Call, first: Any, second: Any) -> Branch:
    """The product of two operands, at least one of which depends on the input."""
    if isinstance(first, Branch) and isinstance(second, Branch):
        return write.product(first, second)
    branch, constant = (first, second) if isinstance(first, Branch) else (second, first)
    return write.scale(write.expand(branch, call.shape), call.constant(constant))


def plus(write: Writer, call: Call, first: Any, second: Any, sign: int = 1) -> Branch:
    """``first + sign * second``, at least one of which depends on the input."""
    if isinstance(first, Branch) and isinstance(second, Branch):
        return write.plus(first, second, sign)
    if isinstance(first, Branch):
        return write.scale(write.expand(first, call.shape), 1.0, sign * call.constant(second))
    return write.scale(write.expand(second, call.shape), float(sign), call.constant(first))


def over(write: Writer, call: Call, first: Any, second: Any) -> Branch:
    """``first / second``, at least one of which depends on the input."""
    if not isinstance(second, Branch):
        return times(write, call, first, 1 / call.constant(second))
    return times(write, call, first, write.function(second, Power(-1.0)))


# -- of one value ----------------------------------------------------------------------------------


def _exponential(factor: float, shift: float = 0.0) -> Callable[..., Branch]:
    def rule(write: Writer, call: Call, input: Branch) -> Branch:
        found = write.function(write.scale(input, factor), Exponential())
        return write.scale(found, 1.0, shift) if shift else found

    return rule


def _logarithm(base: float, shift: float = 0.0) -> Callable[..., Branch]:
    def rule(write: Writer, call: Call, input: Branch) -> Branch:
        moved = write.scale(input, 1.0, shift) if shift else input
        return write.scale(write.function(moved, Logarithm()), 1 / math.log(base))

    return rule


def _hyperbolic(sign: int) -> Callable[..., Branch]:
    """``(exp(z) + sign * exp(-z)) / 2``."""

    def rule(write: Writer, call: Call, input: Branch) -> Branch:
        rising, falling = (
            write.function(part, Exponential()) for part in (input, write.scale(input, -1.0))
        )
        return write.scale(write.plus(rising, falling, sign), 0.5)

    return rule


def _prod(
    write: Writer,
    call: Call,
    input: Branch,
    dim: int | None = None,
    keepdim: bool = False,
    **_: Any,
) -> Branch:
    """The product over a dimension, two halves at a time."""
    if dim is None:
        raise NotImplementedError("without a dimension it mixes the examples of a batch")
    dim = inner(input, dim)
    x = write.move(input, dim, len(input.shape) - 1)
    while x.shape[-1] > 1:
        half, rest = divmod(x.shape[-1], 2)
        pair = [write.narrow(x, -1, part * half, half) for part in (0, 1)]
        both = write.product(*pair)
        x = write.join([both, write.narrow(x, -1, 2 * half, rest)], -1) if rest else both
    return write.reshape(x, call.shape)


def _local_response_norm(
    write: Writer,
    call: Call | None,
    input: Branch,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Branch:
    """``x / (k + alpha * mean of squares of near channels) ^ beta``."""
    if input.whole or not k > 0:
        raise NotImplementedError("its batch is not first, or its k is not above 0")

    def near(squares: Tensor) -> Tensor:
        front = [0, 0] * (squares.dim() - 2)
        padded = torch.nn.functional.pad(squares, [*front, size // 2, (size - 1) // 2])
        return padded.unfold(1, size, 1).mean(-1)

    mean = write.moved(near, input.shape, write.square(input))
    factor = write.function(
        write.scale(mean, float(alpha)), Power(-float(beta), shift=float(k), positive=True)
    )
    return write.product(input, factor)


def local_response_norm(write: Writer, module: torch.nn.LocalResponseNorm, x: Branch) -> Branch:
    """``nn.LocalResponseNorm``."""
    return _local_response_norm(write, None, x, module.size, module.alpha, module.beta, module.k)


# -- of several ------------------------------------------------------------------------------------


def _logaddexp(write: Writer, call: Call, input: Any, other: Any) -> Branch:
    """``a + softplus(b - a)``."""
    return plus(
        write,
        call,
        input,
        write.function(plus(write, call, other, input, -1), Softplus(threshold=80.0)),
    )


def _hypot(write: Writer, call: Call, input: Any, other: Any) -> Branch:
    squares = [
        write.square(part) if isinstance(part, Branch) else call.constant(part).square()
        for part in (input, other)
    ]
    return write.function(plus(write, call, *squares), Power(0.5, positive=True))


def _lerp(write: Writer, call: Call, input: Any, end: Any, weight: Any) -> Branch:
    """``a + weight (b - a)``."""
    if not isinstance(input, Branch) and not isinstance(end, Branch):
        step: Any = call.constant(end) - call.constant(input)
    else:
        step = plus(write, call, end, input, -1)
    return plus(write, call, times(write, call, weight, step), input)


def _add_combined(combine: Callable[..., Branch]) -> Callable[..., Branch]:
    """``torch.addcmul`` and ``torch.addcdiv``."""

    def rule(
        write: Writer, call: Call, input: Any, first: Any, second: Any, *, value: float = 1
    ) -> Branch:
        if not isinstance(first, Branch) and not isinstance(second, Branch):
            raise NotImplementedError("only of values that depend on the input")
        found = write.scale(combine(write, call, first, second), float(value))
        return plus(write, call, found, input)

    return rule


def _power_of_two(write: Writer, call: Call, input: Branch, exponent: Branch) -> Branch:
    """``exp(b log a)``, a above 0."""
    logarithm = write.function(input, Logarithm())
    return write.function(write.product(exponent, logarithm), Exponential())


def power(write: Writer, call: Call, input: Any, exponent: Any) -> Branch | None:
    """A number or a value to the power of a value that depends on the input."""
    if not isinstance(exponent, Branch):
        raise NotImplementedError("of the powers only those with one number as the exponent")
    if isinstance(input, Branch):
        return _power_of_two(write, call, input, exponent)
    base = call.constant(input)
    if not bool((base > 0).all()):
        raise NotImplementedError("its base is not above 0")
    return write.function(times(write, call, exponent, base.log()), Exponential())


def _both_ends(write: Writer, call: Call, input: Branch, min: Any = None, max: Any = None) -> Any:
    """``torch.clamp`` to constants that differ between entries."""
    if not any(isinstance(end, (Tensor, Branch)) for end in (min, max)):
        return None
    if isinstance(min, Branch) or isinstance(max, Branch):
        raise NotImplementedError("its ends depend on the input: write torch.maximum or minimum")
    x = write.expand(input, call.shape)
    for end, sign in ((min, 1), (max, -1)):
        if end is not None:
            constant = call.constant(end)
            shifted = write.scale(x, float(sign), -sign * constant)
            cut = write.function(shifted, Hardtanh(0.0, math.inf))
            x = write.scale(cut, float(sign), constant)
    return x


def _vecdot(write: Writer, call: Call, x: Any, y: Any, *, dim: int = -1) -> Branch:
    total = times(write, _Full(call, dim), x, y)
    return write.sum(total, [dim], keep=False)


class _Full:
    """A call that sums over a dimension, with the shape before that."""

    def __init__(self, call: Call, dim: int) -> None:
        if dim != -1:
            raise NotImplementedError("only over the last dimension")
        self.call, self.shape = call, max((b.shape for b in call.branches), key=len)

    def constant(self, value: Any) -> Tensor:
        """As :meth:`Call.constant`."""
        tensor = torch.as_tensor(value).detach().to(self.call.result)
        if tensor.dim() > len(self.shape):
            raise NotImplementedError("its constant has a batch dimension")
        return tensor


def _cosine(write: Writer, call: Call, x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Branch:
    """The product of both, scaled to length 1."""
    if not (isinstance(x1, Branch) and isinstance(x2, Branch)):
        raise NotImplementedError("only of two values that depend on the input")
    first, second = (scaled_to_norm(write, x, inner(x, dim), 2.0, eps) for x in (x1, x2))
    return write.sum(write.product(first, second), [inner(x1, dim)], keep=False)


def _distance(
    write: Writer,
    call: Call,
    x1: Any,
    x2: Any,
    p: float = 2.0,
    eps: float = 1e-6,
    keepdim: bool = False,
) -> Branch:
    """The norm of ``x1 - x2 + eps`` over the last dimension."""
    if not (isinstance(x1, Branch) and isinstance(x2, Branch)):
        raise NotImplementedError("only of two values that depend on the input")
    difference = write.scale(write.plus(x1, x2, -1), 1.0, float(eps))
    return vector_norm(write, difference, [-1], float(p), keepdim)


IDENTITIES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("exp2",), _exponential(math.log(2))),
    "expm1": _exponential(1.0, -1.0),
    "log1p": _logarithm(math.e, 1.0),
    "log2": _logarithm(2.0),
    "log10": _logarithm(10.0),
    "sinh": _hyperbolic(-1),
    "cosh": _hyperbolic(1),
    "prod": _prod,
    "local_response_norm": _local_response_norm,
    "logaddexp": _logaddexp,
    "hypot": _hypot,
    "lerp": _lerp,
    "addcmul": _add_combined(times),
    "addcdiv": _add_combined(over),
    "pow": power,
    **dict.fromkeys(("clamp", "clip"), _both_ends),
    **dict.fromkeys(("linalg_vecdot", "vecdot"), _vecdot),
    "cosine_similarity": _cosine,
    "pairwise_distance": _distance,
}


def several_dims(write: Writer, x: Branch, dims: Sequence[int]) -> Branch:
    """The dimensions flattened into one at the end."""
    rest = [i for i in range(len(x.shape)) if i not in dims]
    moved = write.permute(x, [*rest, *dims])
    count = math.prod(x.shape[i] for i in dims)
    return write.reshape(moved, [*(x.shape[i] for i in rest), count])
