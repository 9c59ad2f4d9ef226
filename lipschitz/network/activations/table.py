"""The tables of activations: which module or function is which entry.

A new activation is a class, and a line in each of these; nothing else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipschitz.network.activations.base import Activation
from lipschitz.network.activations.derivative import cosine
from lipschitz.network.activations.elementary import Exponential, Logarithm, Power
from lipschitz.network.activations.gated import GELU, Mish, SiLU, TanhGELU
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import (
    ELU,
    Absolute,
    Hardswish,
    Hardtanh,
    PReLU,
    Softshrink,
)
from lipschitz.network.activations.relu import PiecewiseLinear
from lipschitz.network.activations.smooth import (
    Arctan,
    Erf,
    Sigmoid,
    Softplus,
    Softsign,
    Square,
    Tanh,
    Tanhshrink,
)


def _leaky(negative_slope: float = 0.01, inplace: bool = False) -> Activation:
    if 0 <= negative_slope < 1:
        return PiecewiseLinear(negative_slope)
    return PReLU(torch.tensor([negative_slope], dtype=torch.float64))


def _gelu(approximate: str = "none") -> Activation:
    return TanhGELU() if approximate == "tanh" else GELU()


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    return Softplus(float(beta), float(threshold))


def _log_sigmoid() -> Activation:
    return Softplus(mirrored=True)


def _power(exponent: float | Tensor) -> Activation:
    if isinstance(exponent, Tensor) and exponent.numel() == 1:
        exponent = exponent.item()
    if not isinstance(exponent, (int, float)):
        raise NotImplementedError("of the powers only those with one number as the exponent")
    if exponent == 2:
        return Square()
    if not math.isfinite(exponent) or exponent == 0:
        raise NotImplementedError(f"a power of {exponent}")
    return Power(float(exponent))


def _clamp(
    min: float | Tensor | None = None,  # torch's names
    max: float | Tensor | None = None,
) -> Activation:
    if any(isinstance(end, Tensor) and end.numel() != 1 for end in (min, max)):
        raise NotImplementedError("only a cut to two numbers")
    min, max = (end.item() if isinstance(end, Tensor) else end for end in (min, max))
    least = -torch.inf if min is None else float(min)
    return Hardtanh(least, torch.inf if max is None else float(max))


# Called with the module and the value [B, ...] it is applied to.
ACTIVATION_MODULES: dict[type[nn.Module], Callable[[nn.Module, Tensor], Activation]] = {
    nn.ReLU: lambda module, value: PiecewiseLinear(),
    nn.LeakyReLU: lambda module, value: _leaky(module.negative_slope),
    nn.PReLU: lambda module, value: PReLU.of(module.weight, value),
    nn.ReLU6: lambda module, value: Hardtanh(0.0, 6.0),
    nn.Hardtanh: lambda module, value: Hardtanh(float(module.min_val), float(module.max_val)),
    nn.Hardswish: lambda module, value: Hardswish(),
    nn.Softshrink: lambda module, value: Softshrink(module.lambd),
    nn.ELU: lambda module, value: ELU(module.alpha),
    nn.CELU: lambda module, value: ELU.celu(module.alpha),
    nn.SELU: lambda module, value: ELU.selu(),
    nn.Tanh: lambda module, value: Tanh(),
    nn.Tanhshrink: lambda module, value: Tanhshrink(),
    nn.Sigmoid: lambda module, value: Sigmoid(),
    nn.LogSigmoid: lambda module, value: _log_sigmoid(),
    nn.Softplus: lambda module, value: _softplus(module.beta, module.threshold),
    nn.Softsign: lambda module, value: Softsign(),
    nn.SiLU: lambda module, value: SiLU(),
    nn.Mish: lambda module, value: Mish(),
    nn.GELU: lambda module, value: _gelu(module.approximate),
}

# Called as function(x, ...): the table's entry gets the remaining arguments.
ACTIVATION_FUNCTIONS: dict[object, Callable[..., Activation]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), lambda inplace=False: _leaky(0.0)),
    **dict.fromkeys(("relu", "relu_"), lambda: _leaky(0.0)),
    F.leaky_relu: _leaky,
    F.relu6: lambda inplace=False: Hardtanh(0.0, 6.0),
    F.hardtanh: lambda min_val=-1.0, max_val=1.0, inplace=False: Hardtanh(min_val, max_val),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip"), _clamp),
    **dict.fromkeys((torch.clamp_min, "clamp_min"), lambda min: _clamp(min)),
    **dict.fromkeys((torch.clamp_max, "clamp_max"), lambda max: _clamp(None, max)),
    F.hardswish: lambda inplace=False: Hardswish(),
    F.softshrink: lambda lambd=0.5: Softshrink(lambd),
    F.elu: lambda alpha=1.0, inplace=False: ELU(alpha),
    F.celu: lambda alpha=1.0, inplace=False: ELU.celu(alpha),
    **dict.fromkeys((F.selu, torch.selu), lambda inplace=False: ELU.selu()),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), Tanh),
    F.tanhshrink: Tanhshrink,
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.special.expit, "sigmoid"), Sigmoid),
    **dict.fromkeys((F.logsigmoid, torch.ops.aten.log_sigmoid.default), _log_sigmoid),
    F.softplus: _softplus,
    F.softsign: Softsign,
    F.silu: lambda inplace=False: SiLU(),
    F.mish: lambda inplace=False: Mish(),
    F.gelu: _gelu,
    **dict.fromkeys((torch.atan, torch.arctan, "atan", "arctan"), Arctan),
    **dict.fromkeys((torch.sin, "sin"), Sine),
    **dict.fromkeys((torch.cos, "cos"), cosine),
    **dict.fromkeys((torch.exp, "exp"), Exponential),
    **dict.fromkeys((torch.log, "log"), Logarithm),
    **dict.fromkeys((torch.sqrt, "sqrt"), lambda: Power(0.5)),
    **dict.fromkeys((torch.rsqrt, "rsqrt"), lambda: Power(-0.5)),
    **dict.fromkeys((torch.reciprocal, "reciprocal"), lambda: Power(-1.0)),
    **dict.fromkeys((torch.erf, torch.special.erf, "erf"), Erf),
    **dict.fromkeys((torch.abs, torch.absolute, operator.abs, "abs", "absolute"), Absolute),
    **dict.fromkeys((torch.square, "square"), Square),
    **dict.fromkeys((torch.pow, operator.pow, "pow", "__pow__"), _power),
}

# For messages, in the order in which people look for them.
SUPPORTED_ACTIVATIONS = (
    "ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh/clamp, Hardswish, Softshrink, ELU, SELU, "
    "CELU, Softplus, LogSigmoid, SiLU, Mish, GELU, tanh, Tanhshrink, sigmoid, arctan, softsign, "
    "sin, cos, exp, log, erf, sqrt, rsqrt, reciprocal, powers, abs, MaxPool"
)
