"""Sums, scalings and products with constants."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lipschitz.network.affine.base import Applied, Branch, Value
from lipschitz.network.affine.calls import Call, broadcast, positive, weighted
from lipschitz.network.affine.maps import Combination, Linear, Scale


def _sum(call: Call, terms: list[tuple[float, Any]]) -> Value:
    """``sum of coefficient * operand``, operands being branches and constants."""
    values: list[Value] = []
    signs: list[int] = []
    shift = None
    for coefficient, operand in terms:
        if not isinstance(operand, Branch):
            constant = call.constant(operand) * coefficient
            shift = constant if shift is None else shift + constant
            continue
        value = broadcast(operand, call.shape)
        if abs(coefficient) != 1:
            value = Applied(Scale(call.constant(coefficient), None, call.shape), (value,))
            coefficient = 1
        values.append(value)
        signs.append(int(coefficient))
    if shift is not None:
        (value,), (sign,) = values, signs
        if sign == 1 and not shift.any():  # sum([...]) begins with 0
            return value
        return Applied(Scale(call.constant(sign), shift, call.shape), (value,))
    return Applied(Combination(tuple(signs), call.shape), tuple(values))


def _coefficient(alpha: Any) -> float:
    if isinstance(alpha, (Branch, Tensor)):
        raise NotImplementedError("its factor alpha is not a number")
    return float(alpha)


def _add(call: Call, input: Any, other: Any, *, alpha: Any = 1) -> Value:
    return _sum(call, [(1, input), (_coefficient(alpha), other)])


def _sub(call: Call, input: Any, other: Any, *, alpha: Any = 1) -> Value:
    return _sum(call, [(1, input), (-_coefficient(alpha), other)])


def _rsub(call: Call, input: Any, other: Any, alpha: Any = 1) -> Value:
    return _sum(call, [(1, other), (-_coefficient(alpha), input)])


def _scaled(call: Call, branch: Branch, factor: Tensor) -> Value:
    value = broadcast(branch, call.shape)
    return Applied(Scale(factor, None, call.shape), (value,))


def _mul(call: Call, input: Any, other: Any) -> Value:
    if isinstance(input, Branch) and isinstance(other, Branch):
        raise NotImplementedError("both factors depend on the input")
    branch, constant = (input, other) if isinstance(input, Branch) else (other, input)
    return _scaled(call, branch, call.constant(constant))


def _div(call: Call, input: Any, other: Any, *, rounding_mode: str | None = None) -> Value:
    if isinstance(other, Branch):
        raise NotImplementedError("it divides by a function of the input")
    if rounding_mode is not None:
        raise NotImplementedError("it rounds")
    factor = 1 / call.constant(other)
    return _scaled(call, input, call.constant(factor))


def _neg(call: Call, input: Branch) -> Value:
    return _scaled(call, input, call.constant(-1.0))


def _product(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Value]:
    """Rule of a matrix product: one factor is a constant."""

    def rule(call: Call, input: Any, other: Any) -> Value:
        if isinstance(input, Branch) and isinstance(other, Branch):
            raise NotImplementedError("both factors depend on the input")
        if not isinstance(input, Branch):
            return weighted(call, other, input, lambda x, weight: operation(weight, x))
        if other.dim() == 2 and input.shape:
            return Applied(Linear(other.T.contiguous(), None, input.shape), (input,))
        return weighted(call, input, other, operation)

    return rule


def _addmm(call: Call, input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Value:
    """``beta * input + alpha * mat1 @ mat2``."""
    if isinstance(input, Branch) or isinstance(mat2, Branch):
        raise NotImplementedError("its matrix or its first term depends on the input")
    bias = call.constant(input) * _coefficient(beta)
    weight = mat2.T.contiguous() * _coefficient(alpha)
    return Applied(Linear(weight, bias, mat1.shape), (mat1,))


def _einsum(call: Call, equation: Any, *operands: Any) -> Value:
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    branches = [operand for operand in operands if isinstance(operand, Branch)]
    if len(branches) > 1:
        raise NotImplementedError("several factors depend on the input")
    if len(operands) == 1:
        return positive(call)
    if len(operands) > 2 or not isinstance(equation, str):
        raise NotImplementedError("only 'equation', input and one constant are covered")
    weight = operands[0] if operands[1] is branches[0] else operands[1]
    first = operands[0] is branches[0]

    def operation(x: Tensor, constant: Tensor) -> Tensor:
        return torch.einsum(equation, *((x, constant) if first else (constant, x)))

    return weighted(call, branches[0], weight, operation)


ARITHMETIC_RULES: dict[str, Callable[..., Value]] = {
    "add": _add,
    **dict.fromkeys(("sub", "subtract"), _sub),
    "rsub": _rsub,
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv"), _div),
    **dict.fromkeys(("neg", "negative"), _neg),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), _product(operator.matmul)),
    "addmm": _addmm,
    "einsum": _einsum,
}
