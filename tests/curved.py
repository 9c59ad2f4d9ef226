"""Small networks with curved activations, one for every family, and boxes around a point."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from lipschitz.network.graph import Graph
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


ACTIVATIONS = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(),
    "softplus_with_a_threshold": nn.Softplus(beta=30.0),
    "logsigmoid": nn.LogSigmoid(),
    "elu": nn.ELU(),
    "elu_with_a_kink": nn.ELU(2.0),
    "selu": nn.SELU(),
    "celu": nn.CELU(0.5),
    "hardswish": nn.Hardswish(),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "sine": Function(torch.sin),
    "erf": Function(torch.erf),
    "arctan": Function(torch.atan),
}
# Without kinks of the slope, so that planes are off by the square of the radius.
SMOOTH = ("sigmoid", "tanh", "gelu", "silu", "mish", "softplus", "sine", "erf", "arctan")


class _Residual(nn.Module):
    """From the raw input, with kinks beside curves."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.second(x + torch.tanh(self.first(x))) - torch.relu(x[:, :2])


def _mlp(activation: nn.Module, inputs: int = 3) -> nn.Module:
    layers = nn.Linear(inputs, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 2)
    return nn.Sequential(*layers)


def _convolution(activation: nn.Module) -> nn.Module:
    first, second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 2)
    return nn.Sequential(
        first, activation, nn.AvgPool2d(2), second, activation, nn.Flatten(), nn.Linear(2, 2)
    )


_NETWORKS = {
    **{name: (lambda a=a: _mlp(a), (3,)) for name, a in ACTIVATIONS.items()},
    "residual": (_Residual, (3,)),
    "convolution": (lambda: _convolution(nn.Sigmoid()), (1, 4, 4)),
    "convolution_gelu": (lambda: _convolution(nn.GELU()), (1, 4, 4)),
    "many_inputs": (lambda: _mlp(nn.Tanh(), 40), (40,)),
}
NAMES = tuple(_NETWORKS)


@cache
def curved_model(name: str) -> nn.Module:
    """The network in float64; weights from a seed."""
    torch.manual_seed(0)
    return _NETWORKS[name][0]().double().eval()


@cache
def curved_graph(name: str, dtype: torch.dtype = torch.float64) -> Graph:
    """Its graph."""
    return build_graph(curved_model(name), _NETWORKS[name][1]).to("cpu", dtype)


def curved_problem(
    name: str,
    eps: float,
    dtype: torch.dtype = torch.float64,
    norm: str = "inf",
    outputs: str | None = None,
) -> LocalProblem:
    """Its outputs on a box around a point."""
    shape = _NETWORKS[name][1]
    centre = torch.linspace(-0.8, 0.9, math.prod(shape)).reshape(shape)
    return make_problem(
        curved_graph(name, dtype), centre.to(dtype), eps, norm=norm, outputs=outputs
    )


def true_jacobians(name: str, problem: LocalProblem, count: int = 200) -> Tensor:
    """By ``torch.func`` in float64 at random points and corners of the box, [P, C, *shape]."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(count, *problem.centre.shape, generator=generator, dtype=torch.float64)
    share[: count // 2] = share[: count // 2].round()
    lower, upper = problem.lower.double(), problem.upper.double()
    points = torch.minimum(torch.maximum(lower + share * (upper - lower), lower), upper)
    model = curved_model(name)
    one = torch.func.jacrev(lambda x: model(x[None])[0])
    return torch.func.vmap(one)(points).detach()
