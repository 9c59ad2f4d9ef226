"""Activations written out are recognised, and nothing else is taken for one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.network.tracing import build_graph

ROOT = math.sqrt(2 / math.pi)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.function = function

    def forward(self, x):
        return self.function(3 * self.first(x) - 1)


# name -> (function, the activations that it is)
WRITTEN = {
    "gelu": (lambda y: y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), ["GELU"]),
    "gelu_last": (lambda y: (y * (torch.erf(y * math.sqrt(0.5)) + 1)) * 0.5, ["GELU"]),
    "gelu_tanh": (
        lambda y: 0.5 * y * (1 + torch.tanh(ROOT * (y + 0.044715 * y**3))),
        ["GELU(tanh)"],
    ),
    "gelu_tanh_nested": (
        lambda y: y * (0.5 + 0.5 * torch.tanh(ROOT * y * (1 + 0.044715 * y * y))),
        ["GELU(tanh)"],
    ),
    "gelu_of_any_width": (lambda y: y * (1 + torch.erf(1.3 * y)), ["GELU"]),
    "quick_gelu": (lambda y: y * torch.sigmoid(1.702 * y), ["SiLU"]),
    "silu": (lambda y: torch.sigmoid(y) * y, ["SiLU"]),
    "silu_quotient": (lambda y: y / (1 + torch.exp(-y)), ["SiLU"]),
    "silu_tanh": (lambda y: y * (1 + torch.tanh(y / 2)) / 2, ["SiLU"]),
    "mish": (lambda y: y * torch.tanh(F.softplus(y)), ["Mish"]),
    "mish_logarithm": (lambda y: y * torch.tanh(torch.log(1 + torch.exp(y))), ["Mish"]),
    "hard_swish": (lambda y: y * F.relu6(y + 3) / 6, ["Hardswish"]),
    "hard_swish_gate": (lambda y: y * F.hardsigmoid(y), ["Hardswish"]),
    "hard_swish_clip": (lambda y: y * torch.clamp(y / 6 + 0.5, 0, 1), ["Hardswish"]),
    "sigmoid": (lambda y: 1 / (1 + torch.exp(-y)), ["sigmoid"]),
    "sigmoid_of_half": (lambda y: 3 / (2 + torch.exp(1 - y)), ["sigmoid"]),
    "softplus": (lambda y: torch.log(2 + 2 * torch.exp(y)), ["Softplus"]),
    "square": (lambda y: y.clone() * y, ["square"]),
    "square_of_multiples": (lambda y: (2 * y) * (y / 4), ["square"]),
    "cube": (lambda y: y * y * y, ["square", "power 3"]),
    "reciprocal_root": (lambda y: 1 / torch.sqrt(y * y + 0.1), ["square", "rsqrt"]),
    "root": (lambda y: torch.sqrt(y.abs() + 0.1), ["abs", "sqrt"]),
}
every_form = pytest.mark.parametrize("name", WRITTEN)


def made(function, dtype):
    module = Calls(function).to(dtype).eval()
    with torch.no_grad():
        module.first.weight.copy_(torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, -1], [-0.7, 0.1, 1]]))
        module.first.bias.fill_(0.25)
    return module, torch.linspace(0, 1, 12, dtype=dtype).reshape(4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@every_form
def test_written_out_activations_are_one(name, dtype):
    function, names = WRITTEN[name]
    module, x = made(function, dtype)
    graph = build_graph(module, (3,))
    used = [str(graph.nodes[i].activation) for i in graph.activation_nodes]
    assert used[-1] == names[-1]
    assert not graph.product_nodes
    exact = torch.float64 == dtype
    close = {"rtol": 1e-9 if exact else 1e-4, "atol": 1e-10 if exact else 1e-5}
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach(), **close)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y * torch.sigmoid(y + 0.5),
        lambda y: y * 0.5 * (1.001 + torch.erf(y / math.sqrt(2))),
        lambda y: 0.5 * y * (1 + torch.tanh(ROOT * (y + 0.045 * y**3))),
        lambda y: y * torch.tanh(y),
        lambda y: y * F.relu6(y + 2) / 6,
        lambda y: y * torch.sigmoid(y.flip(1)),
        lambda y: torch.sigmoid(y) * torch.tanh(y),
    ],
)
def test_what_is_nearly_one_stays_a_product(function):
    module, x = made(function, torch.float64)
    graph = build_graph(module, (3,))
    assert graph.product_nodes
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach())


def test_a_gelu_as_one_function_is_bounded_closer_than_its_product():
    module, x = made(WRITTEN["gelu"][0], torch.float64)
    row = torch.ones(1, 3, dtype=torch.float64)
    folded = gradient_intervals(build_graph(module, (3,)), x[:1] - 0.1, x[:1] + 0.1, row)
    # With another constant it is read as the product.
    module.function = lambda y: y * 0.5 * (1.0001 + torch.erf(y / math.sqrt(2)))
    product = build_graph(module, (3,))
    assert product.product_nodes
    loose = gradient_intervals(product, x[:1] - 0.1, x[:1] + 0.1, row)
    widths = [(bounds.upper - bounds.lower).sum() for bounds in (folded, loose)]
    assert widths[0] < 0.85 * widths[1]


def test_a_value_minus_its_mean_is_one_map():
    """Its own entry counts 1 - 1/n, not 1 and -1/n by themselves."""
    module, x = made(lambda y: y - y.mean(1, keepdim=True), torch.float64)
    graph = build_graph(module, (3,))
    assert type(graph.nodes[-1].affine).__name__ == "Centre"
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach())
