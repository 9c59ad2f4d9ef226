"""Higher derivatives of curved activations, in closed form, for each of their formulas.

``jet(activation, formula, z)`` gives the derivatives of every order at z, what they share computed
once. The logistic function's derivatives are polynomials in the function itself, and so are
tanh's, which is the logistic function at twice its argument; a product with z follows Leibniz, a
composition Faa di Bruno.

Most activations are one formula. ELU, Hardswish and softsign have another one on each side of their
breakpoints, :func:`formula_ends`. Softplus, which torch cuts to ``z`` above a threshold, is taken
without that cut here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lipschitz.network.activations.base import Activation
from lipschitz.network.activations.gated import GELU, Mish, SiLU, TanhGELU
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import ELU, Hardswish
from lipschitz.network.activations.smooth import (
    FAR,
    Arctan,
    Erf,
    Sigmoid,
    Softplus,
    Softsign,
    Square,
    Tanh,
    Tanhshrink,
)

# Orders for which there are formulas.
HIGHEST = 4
# The derivative of an order, at a z that is given already.
Jet = Callable[[int], Tensor]


def _logistic(z: Tensor) -> Jet:
    """Orders 0 to 4. ``1 - s`` is computed as the function at ``-z``, which does not cancel."""
    value, rest = torch.sigmoid(z), torch.sigmoid(-z)
    first, tilt = value * rest, rest - value

    def order(n: int) -> Tensor:
        match n:
            case 0:
                return value
            case 1:
                return first
            case 2:
                return first * tilt
            case 3:
                return first * (1 - 6 * first)
            case _:
                return first * tilt * (1 - 12 * first)

    return order


def _tanh(z: Tensor) -> Jet:
    """Orders 0 to 4."""
    logistic = _logistic(2 * z)
    return lambda n: torch.tanh(z) if n == 0 else 2 ** (n + 1) * logistic(n)


def _tanhshrink(z: Tensor) -> Jet:
    tanh = _tanh(z)
    return lambda n: torch.tanh(z).square() if n == 1 else -tanh(n)


def _times_z(gate: Jet, z: Tensor) -> Jet:
    """Of ``z * G(z)``: ``n G^(n-1) + z G^(n)``."""
    return lambda n: n * gate(n - 1) + z * gate(n)


def _composed(outer: Jet, inner: Jet) -> Jet:
    """Of ``F(u(z))``, orders 0 to 4, from F's derivatives at u and u's at z (Faa di Bruno)."""
    inner = cache(inner)

    @cache
    def order(n: int) -> Tensor:
        match n:
            case 0:
                return outer(0)
            case 1:
                return outer(1) * inner(1)
            case 2:
                return outer(2) * inner(1) ** 2 + outer(1) * inner(2)
            case 3:
                return (
                    outer(3) * inner(1) ** 3
                    + 3 * outer(2) * inner(1) * inner(2)
                    + outer(1) * inner(3)
                )
            case _:
                return (
                    outer(4) * inner(1) ** 4
                    + 6 * outer(3) * inner(1) ** 2 * inner(2)
                    + outer(2) * (3 * inner(2) ** 2 + 4 * inner(1) * inner(3))
                    + outer(1) * inner(4)
                )

    return order


def _arctan(z: Tensor) -> Jet:
    z = z.clamp(-1e9, 1e9)  # its cube must not overflow
    square = z.square()
    q = 1 / (1 + square)

    def order(n: int) -> Tensor:
        match n:
            case 1:
                return q
            case 2:
                return -2 * z * q.square()
            case 3:
                return (6 * square - 2) * q * q.square()
            case _:
                return 24 * z * q * (1 - square) * q * q.square()

    return order


def _erf(z: Tensor) -> Jet:
    z = z.clamp(-60, 60)
    square = z.square()
    first = 2 / math.sqrt(math.pi) * torch.exp(-square)

    def order(n: int) -> Tensor:
        match n:
            case 1:
                return first
            case 2:
                return -2 * z * first
            case 3:
                return (4 * square - 2) * first
            case _:
                return z * (12 - 8 * square) * first

    return order


def _softsign(formula: int, z: Tensor) -> Jet:
    sign = 1.0 if formula else -1.0
    q = 1 / (1 + sign * z).clamp(min=1)
    factors = (1.0, -2.0 * sign, 6.0, -24.0 * sign)

    def order(n: int) -> Tensor:
        power = q
        for _ in range(n):
            power = power * q
        return factors[n - 1] * power

    return order


def _softplus(activation: Softplus, z: Tensor) -> Jet:
    if activation.mirrored:  # -softplus(-z)
        logistic = _logistic(-z)
        return lambda n: logistic(n - 1) if n % 2 else -logistic(n - 1)
    beta = activation.beta
    logistic = _logistic(beta * z)
    return lambda n: beta ** (n - 1) * logistic(n - 1)


def _silu(z: Tensor) -> Jet:
    z = z.clamp(-FAR, FAR)
    return _times_z(_logistic(z), z)


def _gelu(z: Tensor) -> Jet:
    z = z.clamp(-60, 60)
    square = z.square()
    density = torch.exp(-square / 2) * (1 / math.sqrt(2 * math.pi))

    def order(n: int) -> Tensor:
        match n:
            case 1:
                return torch.erfc(-z * math.sqrt(0.5)) / 2 + z * density
            case 2:
                return density * (2 - square)
            case 3:
                return density * z * (square - 4)
            case _:
                return density * ((7 - square) * square - 4)

    return order


def _tanh_gelu(z: Tensor) -> Jet:
    z, factor, cubic = z.clamp(-50, 50), 2 * math.sqrt(2 / math.pi), 0.044715

    def argument(n: int) -> Tensor:
        match n:
            case 1:
                return factor * (1 + 3 * cubic * z.square())
            case 2:
                return 6 * factor * cubic * z
            case 3:
                return torch.full_like(z, 6 * factor * cubic)
            case _:
                return torch.zeros_like(z)

    logistic = _logistic(factor * z * (1 + cubic * z.square()))
    return _times_z(_composed(logistic, argument), z)


def _mish(z: Tensor) -> Jet:
    z = z.clamp(-FAR, FAR)
    tanh = _tanh(torch.logaddexp(z, torch.zeros_like(z)))
    logistic = _logistic(z)
    return _times_z(_composed(tanh, lambda n: logistic(n - 1)), z)


def _elu(activation: ELU, formula: int, z: Tensor) -> Jet:
    if formula == 1:
        return lambda n: torch.full_like(z, activation.scale if n == 1 else 0.0)
    first = activation.piece_slope(0, z)
    return lambda n: first if n == 1 else activation.rate ** (n - 1) * first


def _hardswish(formula: int, z: Tensor) -> Jet:
    if formula != 1:
        return lambda n: torch.full_like(z, float(formula == 2 and n == 1))
    return lambda n: (
        z.clamp(-3, 3) / 3 + 0.5 if n == 1 else torch.full_like(z, 1 / 3 if n == 2 else 0.0)
    )


def _square(z: Tensor) -> Jet:
    return lambda n: 2 * z if n == 1 else torch.full_like(z, 2.0 if n == 2 else 0.0)


def _sine(z: Tensor) -> Jet:
    def order(n: int) -> Tensor:
        value = torch.cos(z) if n % 2 else torch.sin(z)
        return -value if n % 4 in (2, 3) else value

    return order


_FORMULAS: dict[type[Activation], Callable[[Activation, int, Tensor], Jet]] = {
    Sigmoid: lambda a, formula, z: _logistic(z),
    Tanh: lambda a, formula, z: _tanh(z),
    Tanhshrink: lambda a, formula, z: _tanhshrink(z),
    Arctan: lambda a, formula, z: _arctan(z),
    Erf: lambda a, formula, z: _erf(z),
    Softsign: lambda a, formula, z: _softsign(formula, z),
    Softplus: lambda a, formula, z: _softplus(a, z),
    SiLU: lambda a, formula, z: _silu(z),
    GELU: lambda a, formula, z: _gelu(z),
    TanhGELU: lambda a, formula, z: _tanh_gelu(z),
    Mish: lambda a, formula, z: _mish(z),
    ELU: _elu,
    Hardswish: lambda a, formula, z: _hardswish(formula, z),
    Square: lambda a, formula, z: _square(z),
    Sine: lambda a, formula, z: _sine(z),
}
_OF_SEVERAL_FORMULAS = (ELU, Hardswish, Softsign)


def is_differentiable(activation: Activation) -> bool:
    """Whether there are formulas of its derivatives: it is curved."""
    return type(activation) in _FORMULAS


def formula_ends(activation: Activation) -> tuple[float, ...]:
    """Where one formula of an activation ends and the next begins, ascending."""
    return activation.breakpoints if isinstance(activation, _OF_SEVERAL_FORMULAS) else ()


def jet(activation: Activation, formula: int, z: Tensor) -> Jet:
    """The derivatives of an activation at z, by one of its formulas.

    Args:
        activation: One that :func:`is_differentiable`.
        formula: Numbered from the left; 0 unless there are :func:`formula_ends`.
        z: Any shape; meant for where the formula holds, its ends included.

    Returns:
        A function of the order, 1 to :data:`HIGHEST` (any for the sine).
    """
    return _FORMULAS[type(activation)](activation, formula, z)
