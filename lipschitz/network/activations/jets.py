"""Higher derivatives of curved activations, in closed form, for each of their pieces.

``derivative(activation, piece, order, z)`` is the derivative of the given order, as the formula of
that piece has it, at any z. The logistic function's and tanh's derivatives are polynomials in the
function itself; a product with z follows Leibniz, a composition Faa di Bruno.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipschitz.network.activations.base import Activation
from lipschitz.network.activations.gated import GELU, Mish, SiLU, TanhGELU
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import ELU, Hardswish
from lipschitz.network.activations.smooth import (
    FAR,
    Arctan,
    Sigmoid,
    Softplus,
    Softsign,
    Square,
    Tanh,
    Tanhshrink,
)

# Orders for which there are formulas.
HIGHEST = 4
_SIGMOID, _TANH = Sigmoid(), Tanh()


def _logistic(order: int, z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    if order == 0:
        return s
    first = _SIGMOID.true_slope(z)
    return (
        first
        * (
            lambda: 1.0,
            lambda: 1 - 2 * s,
            lambda: 1 - 6 * first,
            lambda: (1 - 2 * s) * (1 - 12 * first),
        )[order - 1]()
    )


def _tanh(order: int, z: Tensor) -> Tensor:
    t = torch.tanh(z)
    if order == 0:
        return t
    first = _TANH.true_slope(z)
    return (
        first
        * (
            lambda: 1.0,
            lambda: -2 * t,
            lambda: 6 * t.square() - 2,
            lambda: t * (16 - 24 * t.square()),
        )[order - 1]()
    )


def _times_z(factor: Callable[[int], Tensor], order: int, z: Tensor) -> Tensor:
    """Of ``z * G(z)``: ``order G^(order-1) + z G^(order)``."""
    return order * factor(order - 1) + z * factor(order)


def _composed(outer: Callable[[int], Tensor], inner: Callable[[int], Tensor], order: int) -> Tensor:
    """Of ``F(u(z))``, F's derivatives at u and u's at z (Faa di Bruno)."""
    if order == 0:
        return outer(0)
    u = [inner(n) for n in range(1, order + 1)]
    if order == 1:
        return outer(1) * u[0]
    if order == 2:
        return outer(2) * u[0] ** 2 + outer(1) * u[1]
    if order == 3:
        return outer(3) * u[0] ** 3 + 3 * outer(2) * u[0] * u[1] + outer(1) * u[2]
    return (
        outer(4) * u[0] ** 4
        + 6 * outer(3) * u[0] ** 2 * u[1]
        + outer(2) * (3 * u[1] ** 2 + 4 * u[0] * u[2])
        + outer(1) * u[3]
    )


def _arctan(order: int, z: Tensor) -> Tensor:
    q = 1 / (1 + z.square())
    numerator = (
        lambda: torch.ones_like(z),
        lambda: -2 * z,
        lambda: 6 * z.square() - 2,
        lambda: 24 * z * (1 - z.square()),
    )[order - 1]()
    return numerator * q**order


def _softsign(piece: int, order: int, z: Tensor) -> Tensor:
    sign = 1.0 if piece else -1.0
    factor = (1.0, -2.0 * sign, 6.0, -24.0 * sign)[order - 1]
    return factor / (1 + sign * z).clamp(min=1) ** (order + 1)


def _softplus(activation: Softplus, order: int, z: Tensor) -> Tensor:
    if activation.mirrored:  # -softplus(-z)
        return (-1) ** (order - 1) * _logistic(order - 1, -z)
    beta = activation.beta
    value = beta ** (order - 1) * _logistic(order - 1, beta * z)
    # From torch's threshold on it is z.
    return torch.where(beta * z > activation.threshold, float(order == 1), value)


def _gelu(order: int, z: Tensor) -> Tensor:
    if order == 1:
        return GELU().true_slope(z)
    z = z.clamp(-60, 60)
    density = torch.exp(-z.square() / 2) * (1 / math.sqrt(2 * math.pi))
    square = z.square()
    return (
        density
        * (
            lambda: 2 - square,
            lambda: z * (square - 4),
            lambda: -square.square() + 7 * square - 4,
        )[order - 2]()
    )


def _tanh_gelu(order: int, z: Tensor) -> Tensor:
    z, factor, cubic = z.clamp(-50, 50), 2 * math.sqrt(2 / math.pi), 0.044715
    w = factor * z * (1 + cubic * z.square())
    inner = (
        lambda: factor * (1 + 3 * cubic * z.square()),
        lambda: 6 * factor * cubic * z,
        lambda: torch.full_like(z, 6 * factor * cubic),
        lambda: torch.zeros_like(z),
    )
    gate = lambda n: _composed(lambda k: _logistic(k, w), lambda k: inner[k - 1](), n)  # noqa: E731
    return _times_z(gate, order, z)


def _mish(order: int, z: Tensor) -> Tensor:
    if order == 1:
        return Mish().true_slope(z)
    z = z.clamp(-FAR, FAR)
    u = torch.logaddexp(z, torch.zeros_like(z))
    gate = lambda n: _composed(  # noqa: E731
        lambda k: _tanh(k, u), lambda k: _logistic(k - 1, z), n
    )
    return _times_z(gate, order, z)


def _elu(activation: ELU, piece: int, order: int, z: Tensor) -> Tensor:
    if piece == 1:
        return torch.full_like(z, activation.scale if order == 1 else 0.0)
    return activation.piece_slope(0, z) * activation.rate ** (order - 1)


def _hardswish(piece: int, order: int, z: Tensor) -> Tensor:
    if piece != 1:
        return torch.full_like(z, float(piece == 2 and order == 1))
    if order == 1:
        return z.clamp(-3, 3) / 3 + 0.5
    return torch.full_like(z, 1 / 3 if order == 2 else 0.0)


def _square(order: int, z: Tensor) -> Tensor:
    return 2 * z if order == 1 else torch.full_like(z, 2.0 if order == 2 else 0.0)


def _sine(order: int, z: Tensor) -> Tensor:
    value = torch.cos(z) if order % 2 else torch.sin(z)
    return -value if order in (2, 3) else value


_Formula = Callable[[Activation, int, int, Tensor], Tensor]
_FORMULAS: dict[type[Activation], _Formula] = {
    Sigmoid: lambda a, piece, n, z: _logistic(n, z),
    Tanh: lambda a, piece, n, z: _tanh(n, z),
    Tanhshrink: lambda a, piece, n, z: torch.tanh(z).square() if n == 1 else -_tanh(n, z),
    Arctan: lambda a, piece, n, z: _arctan(n, z),
    Softsign: lambda a, piece, n, z: _softsign(piece, n, z),
    Softplus: lambda a, piece, n, z: _softplus(a, n, z),
    SiLU: lambda a, piece, n, z: _times_z(
        lambda k: _logistic(k, z.clamp(-FAR, FAR)), n, z.clamp(-FAR, FAR)
    ),
    GELU: lambda a, piece, n, z: _gelu(n, z),
    TanhGELU: lambda a, piece, n, z: _tanh_gelu(n, z),
    Mish: lambda a, piece, n, z: _mish(n, z),
    ELU: _elu,
    Hardswish: lambda a, piece, n, z: _hardswish(piece, n, z),
    Square: lambda a, piece, n, z: _square(n, z),
    Sine: lambda a, piece, n, z: _sine(n, z),
}


def is_differentiable(activation: Activation) -> bool:
    """Whether there are formulas of its derivatives: it is curved."""
    return type(activation) in _FORMULAS


def derivative(activation: Activation, piece: int, order: int, z: Tensor) -> Tensor:
    """The derivative of an activation by the formula of one of its pieces.

    Args:
        activation: One that :func:`is_differentiable`.
        piece: Its piece, numbered from the left.
        order: 1 to :data:`HIGHEST`.
        z: Any shape; the formula is meant for the piece, its ends included.
    """
    return _FORMULAS[type(activation)](activation, piece, order, z)


# Where the activation that torch computes has another formula from there on, if not at one of its
# breakpoints: softplus, which is z above its threshold.
def jumps(activation: Activation, order: int) -> tuple[float, ...]:
    """Where the derivative of an order jumps: there it has an interval but no lines."""
    found = []
    if isinstance(activation, Softplus) and not activation.mirrored:
        found.append(activation.threshold / activation.beta)
    for piece, end in enumerate(activation.breakpoints):
        at = torch.tensor(end, dtype=torch.float64)
        before, after = (float(derivative(activation, p, order, at)) for p in (piece, piece + 1))
        is_kink = end in activation.kinks and order == 1
        if is_kink or abs(before - after) > 1e-12 * max(1.0, abs(before), abs(after)):
            found.append(end)
    return tuple(sorted(found))
