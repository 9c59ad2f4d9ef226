"""Both forms of softmax: values, gradients, intervals, masks, linear bounds."""

import pytest
import torch
import torch.nn.functional as F
from products import F_MASK, Calls, causal
from torch.func import jacrev, vmap

from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import forward_intervals
from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.network.composed import softmax
from lipschitz.network.ranges import LogShares
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem

FUNCTIONS = {
    "softmax": (lambda y: F.softmax(3 * y, -1), (4,)),
    "softmax_inner": (lambda y: F.softmax(y, 1) * y, (3, 4)),
    "log_softmax": (lambda y: F.log_softmax(2 * y, 1), (3, 4)),
    "masked": (lambda y: F.softmax(y @ y.mT + F_MASK.to(y), -1) @ y, (3, 4)),
    "filled": (lambda y: F.softmax((y @ y.mT).masked_fill(causal(3), -1e30), -1) @ y, (3, 4)),
    "large": (lambda y: F.softmax(1e4 * y, -1), (4,)),
}
FORMS = {"differences": 10**9, "sum": 0}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    monkeypatch.setattr(softmax, "_MOST_DIFFERENCES", FORMS[request.param])
    return request.param


def network(name, dtype=torch.float64):
    function, shape = FUNCTIONS[name]
    torch.manual_seed(len(name))
    return Calls(function).to(dtype).eval(), torch.rand(3, *shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_gradients_and_intervals(name, dtype, form):
    module, x = network(name, dtype)
    graph = build_graph(module, x.shape[1:])
    close = {"rtol": 1e-7, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-3}
    with torch.no_grad():
        torch.testing.assert_close(graph.values(x)[-1], module(x).flatten(1), **close)
    jacobians = vmap(jacrev(lambda p: module(p[None]).flatten()))(x)
    identity = torch.eye(graph.num_outputs, dtype=dtype)
    exact = graph.double
    for eps in (0.0, 0.01, 0.3, 3.0):
        lower, upper = x[:1] - eps, x[:1] + eps
        values = forward_intervals(graph, lower, upper).bounds[-1]
        entries = gradient_intervals(graph, lower, upper, identity[:2])
        share = torch.rand(80, *x.shape[1:], dtype=torch.float64)
        share[40:] = share[40:].round()
        points = lower.double() + (upper.double() - lower.double()) * share
        found = exact.values(points)[-1]
        assert (values.lower.double() <= found).all()
        assert (found <= values.upper.double()).all()
        for c in range(2):
            rows = identity[c].double().expand(len(points), -1)
            gradients = exact.gradients(points, rows)
            assert (entries.lower[c].double() <= gradients).all()
            assert (gradients <= entries.upper[c].double()).all()
    for c in range(graph.num_outputs):
        rows = identity[c].expand(len(x), -1)
        torch.testing.assert_close(graph.gradients(x, rows), jacobians[:, c], **close)


@pytest.mark.parametrize("name", ["softmax", "softmax_inner", "masked", "filled"])
def test_linear_bounds_of_both_forms(name, form):
    module, x = network(name)
    graph = build_graph(module, x.shape[1:])
    for eps in (1e-3, 0.1, 1.0):
        problem = make_problem(graph, x[0], eps, classes=[0])
        bound = float(native_crown(problem).class_upper_bounds)
        share = torch.rand(300, *x.shape[1:], dtype=torch.float64).round()
        points = problem.lower + share * (problem.upper - problem.lower)
        gradients = graph.gradients(points, problem.rows.expand(len(points), -1))
        true = float(gradients.abs().flatten(1).sum(1).max())
        assert bound >= true
        assert eps > 1e-3 or bound < 1.05 * true


def test_the_form_goes_by_the_number_of_logits():
    for size, by_sum in ((20, False), (80, True)):
        graph = build_graph(torch.nn.Softmax(1).eval(), (size,))
        assert any(isinstance(node.range, LogShares) for node in graph.nodes) == by_sum


def test_intervals_of_shares_are_their_exact_ranges():
    """A share is least with its own logit low and all others high."""
    logits = torch.tensor([[0.3, -0.2, 1.0, 0.5]], dtype=torch.float64)
    lower, upper = logits - 0.4, logits + 0.7
    known = LogShares((0,), torch.ones(4, dtype=torch.bool))
    wide = torch.full_like(logits, torch.inf)
    least, most = known.narrowed(-wide, wide, [(lower, upper)])
    for i in range(4):
        others = torch.arange(4) == i
        low = torch.where(others, lower, upper).log_softmax(1)[0, i]
        high = torch.where(others, upper, lower).log_softmax(1)[0, i]
        torch.testing.assert_close(least[0, i], low, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(most[0, i], high, rtol=1e-12, atol=1e-12)
        assert least[0, i] <= low
        assert high <= most[0, i]


def test_logits_that_do_not_count_keep_their_interval():
    counts = torch.tensor([True, False, True])
    logits = torch.tensor([[0.0, softmax.MASKED, 1.0]], dtype=torch.float64)
    known = LogShares((0,), counts)
    zero = torch.zeros_like(logits)
    least, most = known.narrowed(zero - 9, zero, [(logits, logits)])
    assert (least[0, 1], most[0, 1]) == (-9, 0)
    expected = logits[:, counts].log_softmax(1)
    torch.testing.assert_close(least[:, counts], expected)
    torch.testing.assert_close(most[:, counts], expected)
