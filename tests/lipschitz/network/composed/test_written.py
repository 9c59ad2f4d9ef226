"""Operators written out of products and unary functions: values, Jacobians, sound intervals."""

import math

import pytest
import torch
import torch.nn.functional as F
from products import NETWORKS, Calls, causal, network
from torch import nn
from torch.func import jacrev, vmap

from lipschitz import METHODS, BranchOptions, MethodOptions, Prepared, jacobian_bounds
from lipschitz.bounds.methods import is_installed
from lipschitz.bounds.native.interval import forward_intervals
from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.errors import InputError
from lipschitz.network.formats import read_network
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem

every_network = pytest.mark.parametrize("name", NETWORKS)


def jacobians(module, x):
    """[B, C, *input_shape] by torch.func."""
    return vmap(jacrev(lambda p: module(p[None]).flatten()))(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@every_network
def test_values_and_gradients_are_the_modules(name, dtype):
    module, x = network(name, dtype)
    graph = build_graph(module, x.shape[1:])
    close = (
        {"rtol": 2e-8, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-4}
    )
    with torch.no_grad():
        torch.testing.assert_close(graph.values(x)[-1], module(x).flatten(1), **close)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if name not in ("lstm", "lstm_deep", "gru", "rnn", "lstm_cell", "gru_cell"):
            expected = jacobians(module, x)
        else:
            expected = torch.stack(
                [
                    torch.autograd.functional.jacobian(lambda p: module(p[None]).flatten(), p)
                    for p in x
                ]
            )
    for c in range(graph.num_outputs):
        rows = torch.eye(graph.num_outputs, dtype=dtype)[c].expand(len(x), -1)
        torch.testing.assert_close(graph.gradients(x, rows), expected[:, c], **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@every_network
def test_intervals_hold_values_and_gradients(name, dtype):
    module, x = network(name, dtype)
    graph = build_graph(module, x.shape[1:])
    exact = graph.double
    generator = torch.Generator().manual_seed(0)
    identity = torch.eye(graph.num_outputs, dtype=dtype)[:6]
    for eps in (0.0, 1e-3, 0.02):
        lower, upper = x[:1] - eps, x[:1] + eps
        values = forward_intervals(graph, lower, upper).bounds[-1]
        entries = gradient_intervals(graph, lower, upper, identity)
        if name == "encoder" and not bool(entries.upper.isfinite().all()):
            continue  # through two layers intervals overflow, which ends in a refusal
        share = torch.rand(60, *x.shape[1:], generator=generator, dtype=torch.float64)
        share[30:] = share[30:].round()
        points = lower.double() + (upper - lower).double() * share
        points = torch.minimum(torch.maximum(points, lower.double()), upper.double())
        found = exact.values(points)[-1]
        assert (values.lower.double() <= found).all()
        assert (found <= values.upper.double()).all()
        for c, row in enumerate(identity.double()):
            gradients = exact.gradients(points, row.expand(len(points), -1))
            # Without products, the margin for rounding comes with the norm.
            slack = 0.0 if graph.product_nodes else 1e2 * torch.finfo(dtype).eps
            assert (entries.lower[c].double() <= gradients + slack).all()
            assert (gradients - slack <= entries.upper[c].double()).all()
        if eps == 0 and dtype == torch.float64:  # tight: nothing but rounding
            assert (entries.upper - entries.lower).max() < (1e-2 if name == "encoder" else 1e-7)


@every_network
def test_ibp_is_above_sampled_gradients_and_others_refuse(name):
    module, x = network(name)
    options = MethodOptions()
    prepared = Prepared(module, x.shape[1:], method="ibp", engine="native", options=options)
    problem = make_problem(prepared.graph, x[0], 0.01, classes=[0])
    result = prepared.bound(problem)
    assert math.isfinite(result.upper_bound)
    assert 0 < result.lower_bound <= result.upper_bound
    point = make_problem(prepared.graph, x[0], 0.0, classes=[0])
    gradient = jacobian_row(module, x[0])
    assert prepared.bound(point).upper_bound == pytest.approx(
        float(gradient), rel=1e-2 if name == "encoder" else 1e-6
    )


def jacobian_row(module, x):
    found = torch.autograd.functional.jacobian(lambda p: module(p[None]).flatten()[0], x)
    return found.abs().sum()


@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].products])
def test_methods_that_do_not_bound_products_say_so(method):
    module, x = network("attention")
    with pytest.raises(InputError, match=r"does not bound products of two values") as error:
        Prepared(module, x.shape[1:], method=method, engine="native")
    assert "\n" not in str(error.value)
    assert "use method crown or alpha or joint or ibp" in str(error.value)


@pytest.mark.skipif(not is_installed("auto_lirpa"), reason="its package is missing")
def test_the_other_engine_refuses_products():
    module, x = network("attention")
    for call in (
        lambda: jacobian_bounds(module, x[:1], 0.1, engine="auto_lirpa"),
        lambda: Prepared(module, x.shape[1:], method="crown", engine="auto_lirpa"),
        lambda: Prepared(module, x.shape[1:], engine="auto_lirpa", branching=BranchOptions()),
    ):
        with pytest.raises(InputError, match=r"does not bound products of two values"):
            call()


def test_a_product_of_one_value_with_itself_is_its_square():
    graph = build_graph(Calls(lambda y: y * y).double().eval(), (4,))
    assert not graph.product_nodes
    assert [str(graph.nodes[i].activation) for i in graph.activation_nodes] == ["square"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (torch.log, "'log', log, may be anything from .* above 0"),
        (torch.sqrt, "sqrt, may be anything from .* above 0"),
        (lambda y: 1 / y, "reciprocal, may be anything from .* on one side of 0"),
        (lambda y: y.norm(dim=1, keepdim=True), "sqrt, may be anything"),
        (lambda y: y**-0.5, "rsqrt, may be anything"),
    ],
    ids=["log", "sqrt", "reciprocal", "norm", "power"],
)
@pytest.mark.parametrize("method", ["ibp", "crown", "alpha", "joint"])
def test_what_reaches_a_bad_point_is_one_line_that_names_node_and_interval(function, words, method):
    module = Calls(function, size=2).double().eval()
    with torch.no_grad():
        module.first.weight.copy_(torch.eye(2))
        module.first.bias.fill_(0.0)
    x = torch.full((2,), 0.1, dtype=torch.float64)
    prepared = Prepared(module, (2,), method=method, engine="native")
    with pytest.raises(InputError, match=words) as error:
        prepared.bound(make_problem(prepared.graph, x, 0.5))
    assert "\n" not in str(error.value)
    # On a smaller box it is bounded.
    result = prepared.bound(make_problem(prepared.graph, x, 0.01))
    assert 0 < result.lower_bound <= result.upper_bound < math.inf


@pytest.mark.parametrize("dtype", [torch.float64])
def test_softmax_of_logits_of_ten_thousand(dtype):
    """Nothing overflows, in values, gradients or bounds."""
    module = nn.Sequential(nn.Linear(2, 4), nn.Softmax(1), nn.Linear(4, 1)).to(dtype).eval()
    with torch.no_grad():
        weight = torch.tensor([[1e4, 0.0], [0.0, 1e4], [1e4, 1.0], [-1e4, -1e4]])
        module[0].weight.copy_(weight)
    x = torch.tensor([0.7, 0.4], dtype=dtype)
    graph = build_graph(module, (2,))
    torch.testing.assert_close(graph.values(x[None])[-1], module(x[None]).detach())
    for method in ("ibp", "crown", "alpha"):
        prepared = Prepared(module, (2,), method=method, engine="native")
        for eps in (0.0, 1e-5, 0.1):
            result = prepared.bound(make_problem(prepared.graph, x, eps))
            assert math.isfinite(result.upper_bound)
            assert result.lower_bound <= result.upper_bound


@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min, -1e9])
def test_masks_of_any_kind_leave_out_the_same(fill):
    mask = torch.zeros(3, 3).masked_fill(causal(3), fill)

    def attend(y):
        return F.softmax(y @ y.mT + mask.to(y), -1) @ y

    module = Calls(attend).double().eval()
    x = torch.rand(1, 3, 4, dtype=torch.float64)
    graph = build_graph(module, (3, 4))
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach().flatten(1))
    row = torch.zeros(1, 12, dtype=torch.float64)
    row[0, 0] = 1  # of the first token, which sees itself alone
    entries = gradient_intervals(graph, x - 0.01, x + 0.01, row)
    assert (entries.lower[0, 1:] == 0).all()
    assert (entries.upper[0, 1:] == 0).all()


def test_a_mask_that_leaves_nothing_is_refused():
    mask = torch.full((3, 3), -math.inf)
    module = Calls(lambda y: F.softmax(y @ y.mT + mask.to(y), -1) @ y).double().eval()
    with pytest.raises(NotImplementedError, match="mask leaves nothing"):
        build_graph(module, (3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_layer_norm_of_constant_features(dtype):
    """Variance 0: the root of eps bounds everything."""
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=1e-3), nn.Linear(4, 2))
    x = torch.tensor([0.5, 0.25, 0.75], dtype=dtype)
    module = module.to(dtype).eval()
    with torch.no_grad():
        module[0].weight.copy_((torch.arange(12.0).reshape(4, 3) % 5) / 4)
        module[0].bias.copy_(0.3 - module[0].weight @ x)
    prepared = Prepared(module, (3,), method="ibp", engine="native")
    point = prepared.bound(make_problem(prepared.graph, x, 0.0))
    assert 0 < point.lower_bound <= point.upper_bound <= 1.01 * point.lower_bound
    result = prepared.bound(make_problem(prepared.graph, x, 0.05))
    assert math.isfinite(result.upper_bound)


def test_last_states_are_a_value_like_any_other():
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 5, batch_first=True)

        def forward(self, x):
            return self.gru(x)[1].squeeze(0)

    module, x = Squeezed().eval(), torch.rand(2, 3, 4)
    graph = build_graph(module, (3, 4))
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach())


@pytest.mark.parametrize("name", ["attention_written", "attention", "lstm", "layer_norm", "glu"])
def test_exported_programs_are_read_alike(name, tmp_path):
    module, x = network(name)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "net.pt2")
    loaded, shape = read_network(tmp_path / "net.pt2")
    graph = build_graph(loaded, shape)
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach().flatten(1))
