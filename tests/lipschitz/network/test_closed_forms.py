"""Softmax and normalisation: derivatives in closed form, and intervals from both ends."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import hessian, vmap

from lipschitz.applications.signs import restricted
from lipschitz.bounds.native.interval import forward_intervals
from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.network.derivative import Terms
from lipschitz.network.graph import Graph
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem


class Calls(nn.Module):
    def __init__(self, function, shape):
        super().__init__()
        self.first, self.function = nn.Linear(shape[-1], shape[-1]), function

    def forward(self, x):
        return self.function(self.first(x))


def masked(y):
    mask = torch.triu(torch.full((3, 3), -math.inf), 1).to(y)
    return F.softmax(y @ y.mT + mask, -1) @ y


def by_hand(y):
    powers = torch.exp(y - y.amax(1, keepdim=True))
    return powers / powers.sum(1, keepdim=True)


def layer_norm_by_hand(y):
    variance = y.var(1, unbiased=False, keepdim=True)
    return (y - y.mean(1, keepdim=True)) / torch.sqrt(variance + 0.01)


# name -> (function, input shape, the closed forms in it)
FUNCTIONS = {
    "softmax": (lambda y: F.softmax(3 * y, -1), (5,), {"softmax"}),
    "softmax_inner": (lambda y: F.softmax(y, 1) * y, (3, 4), {"softmax"}),
    "masked": (masked, (3, 4), {"softmax"}),
    "layer_norm": (lambda y: F.layer_norm(y, (5,), eps=1e-3), (5,), {"norm"}),
    "rms_norm": (lambda y: F.rms_norm(y, (4,), eps=1e-2), (3, 4), {"norm"}),
    "group_norm": (lambda y: F.group_norm(y, 2, eps=1e-2), (4, 3), {"norm"}),
    "softmax_by_hand": (lambda y: y.exp() / y.exp().sum(-1, keepdim=True), (4,), {"softmax"}),
    "softmax_less_its_largest": (by_hand, (3, 4), {"softmax"}),
    "layer_norm_by_hand": (layer_norm_by_hand, (5,), {"norm"}),
    "rms_norm_by_hand": (
        lambda y: y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 0.01),
        (3, 4),
        {"norm"},
    ),
    "both": (lambda y: F.layer_norm(masked(y), (4,), eps=1e-2), (3, 4), {"softmax", "norm"}),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def made(name, dtype=torch.float64, scale=1.0):
    function, shape, kinds = FUNCTIONS[name]
    torch.manual_seed(len(name))
    module = Calls(lambda y: function(scale * y), shape).to(dtype).eval()
    graph = build_graph(module, shape)
    closed = {node.closed.kind for node in graph.nodes if node.closed is not None}
    assert closed == kinds
    return module, graph, torch.rand(4, *shape, dtype=dtype)


def plain(graph):
    """The same graph without what is known besides."""
    nodes = [replace(node, range=None, closed=None) for node in graph.nodes]
    return Graph(nodes, graph.device, graph.dtype)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@every_function
def test_the_closed_form_is_the_derivative(name, scale):
    _, graph, x = made(name, scale=scale)
    terms = Terms(graph)
    row = terms.constant((graph.num_outputs,))
    gradient, _ = terms.gradient(terms.output, row)
    rows = torch.randn(len(x), graph.num_outputs, dtype=x.dtype)
    found = terms.values(x, {row: rows})[gradient]
    expected = graph.gradients(x, rows)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * scale)


@every_function
def test_it_has_a_derivative_in_turn(name):
    module, graph, x = made(name)
    terms = Terms(graph)
    row = terms.constant((graph.num_outputs,))
    gradient, _ = terms.gradient(terms.output, row)
    direction = terms.constant(graph.input_shape)
    product, _ = terms.gradient(gradient, direction)
    rows = torch.randn(len(x), graph.num_outputs, dtype=x.dtype)
    directions = torch.randn_like(x)
    found = terms.values(x, {row: rows, direction: directions})[product]
    size = graph.input_shape.numel()

    def curved(point, r):
        return hessian(lambda p: module(p[None]).flatten() @ r)(point).reshape(size, size)

    matrices = vmap(curved)(x, rows)
    expected = (matrices @ directions.reshape(len(x), size, 1)).reshape_as(x)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1.0, 1e2, 1e4])
@every_function
def test_intervals_hold_values_and_gradients(name, scale, dtype):
    if name == "softmax_by_hand" and scale > 10:
        pytest.skip("the network itself overflows")
    _, graph, x = made(name, dtype, scale)
    exact, generator = graph.double, torch.Generator().manual_seed(0)
    rows = torch.eye(graph.num_outputs, dtype=dtype)[:3]
    for eps in (0.0, 1e-3, 0.3):
        lower, upper = x[:1] - eps, x[:1] + eps
        values = forward_intervals(graph, lower, upper).bounds
        bounds = gradient_intervals(graph, lower, upper, rows)
        share = torch.rand(60, *x.shape[1:], generator=generator, dtype=torch.float64)
        share[30:] = share[30:].round()
        points = lower.double() + (upper - lower).double() * share
        points = torch.minimum(torch.maximum(points, lower.double()), upper.double())
        for interval, found in zip(values, exact.values(points), strict=True):
            assert (interval.lower.double() <= found).all()
            assert (found <= interval.upper.double()).all()
        for c, row in enumerate(rows.double()):
            gradients = exact.gradients(points, row.expand(len(points), -1))
            assert (bounds.lower[c].double() <= gradients).all()
            assert (gradients <= bounds.upper[c].double()).all()


def test_the_interval_of_softmax_is_exact():
    """Least where its own logit is least and all others are largest."""
    module = Calls(lambda y: F.softmax(y, -1), (4,)).double().eval()
    with torch.no_grad():
        module.first.weight.copy_(torch.eye(4))
        module.first.bias.fill_(0)
    graph = build_graph(module, (4,))
    x = torch.tensor([[0.1, -0.3, 0.6, 0.2]], dtype=torch.float64)
    bounds = forward_intervals(graph, x - 0.2, x + 0.2).bounds[-1]
    signs = 2 * torch.eye(4, dtype=torch.float64) - 1
    largest = torch.diagonal(F.softmax(x + 0.2 * signs, -1))
    least = torch.diagonal(F.softmax(x - 0.2 * signs, -1))
    torch.testing.assert_close(bounds.upper[0], largest)
    torch.testing.assert_close(bounds.lower[0], least)


@pytest.mark.parametrize(
    ("name", "gain"), [("softmax", 3.0), ("softmax_inner", 1.4), ("layer_norm", 1.1)]
)
def test_what_is_known_besides_makes_intervals_narrower(name, gain):
    _, graph, x = made(name)
    rows = torch.eye(graph.num_outputs, dtype=x.dtype)[:2]
    box = x[:1] - 0.05, x[:1] + 0.05
    widths = []
    for each in (graph, plain(graph)):
        bounds = gradient_intervals(each, *box, rows)
        widths.append(float((bounds.upper - bounds.lower).sum()))
    assert gain * widths[0] < widths[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_softmax_of_logits_of_ten_thousand_is_read(dtype):
    """autograd's own derivative of it is rounding alone, which is not the graph's fault."""
    module = nn.Sequential(nn.Linear(2, 4), nn.Softmax(1), nn.Linear(4, 1)).to(dtype).eval()
    with torch.no_grad():
        weight = torch.tensor([[1e4, 0.0], [0.0, 1e4], [1e4, 1.0], [-1e4, -1e4]])
        module[0].weight.copy_(weight)
    graph = build_graph(module, (2,))
    x = torch.tensor([[0.7, 0.4]], dtype=dtype)
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach())
    rows = torch.ones(1, 1, dtype=dtype)
    for eps in (0.0, 1e-5, 0.1):
        bounds = gradient_intervals(graph, x - eps, x + eps, rows)
        assert bounds.upper.isfinite().all()
        assert bounds.lower.isfinite().all()


@every_function
def test_nodes_with_other_indices_keep_what_is_known(name):
    """As where a network is put after another map, which signs of derivatives do."""
    _, graph, x = made(name)
    inputs = list(range(graph.input_shape.numel()))
    problem = make_problem(graph, x[0], 0.05)
    few = restricted(problem, inputs)
    rows = torch.eye(graph.num_outputs, dtype=x.dtype)[:2]
    ours = gradient_intervals(few.graph, few.lower[None], few.upper[None], rows)
    expected = gradient_intervals(graph, problem.lower[None], problem.upper[None], rows)
    torch.testing.assert_close(ours.upper, expected.upper.flatten(1))
    torch.testing.assert_close(ours.lower, expected.lower.flatten(1))


def test_a_wrong_closed_form_is_found_out(monkeypatch):
    """The comparison above is able to fail."""
    right = Terms._softmax

    def wrong(self, index, cotangent, logits):
        ((parent, _),) = right(self, index, cotangent, logits)
        return [(parent, self._product(index, cotangent))]

    monkeypatch.setattr(Terms, "_softmax", wrong)
    with pytest.raises(AssertionError):
        test_the_closed_form_is_the_derivative("softmax", 1.0)
