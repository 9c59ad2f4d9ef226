"""Linear bounds of networks with products: sound, never above intervals, exact in the limit."""

import math

import pytest
import torch
from products import NETWORKS, Calls, encoder, network
from torch import nn

from lipschitz import (
    BranchOptions,
    MethodOptions,
    Prepared,
    jacobian_bounds,
    jvp_bounds,
    local_lipschitz,
)
from lipschitz.bounds.native.crown import interval_bounds, native_crown
from lipschitz.bounds.native.products import product_bounds
from lipschitz.bounds.native.terms import relaxations
from lipschitz.bounds.native.terms.linear import PlaneSearch
from lipschitz.bounds.true_gradients import sample_gradients
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem

SLOW = ("lstm_deep", "encoder")  # seconds each
WITH_PRODUCTS = [
    name
    for name, (module, shape) in NETWORKS.items()
    if name not in SLOW and build_graph(module.eval(), shape).product_nodes
]
every_network = pytest.mark.parametrize("name", WITH_PRODUCTS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])


def problem_of(name, eps=0.02, dtype=torch.float64, **asked):
    module, x = network(name, dtype)
    graph = build_graph(module, x.shape[1:])
    asked = {"classes": list(range(min(2, graph.num_outputs))), **asked}
    return make_problem(graph, x[0], eps, **asked)


def samples(problem, count=200):
    """Points of the box, corners among them, in float64."""
    generator = torch.Generator().manual_seed(0)
    shape = problem.centre.shape
    share = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    share[count // 2 :] = share[count // 2 :].round()
    lower, upper = problem.lower.double(), problem.upper.double()
    return torch.minimum(lower + share * (upper - lower), upper)


def sampled_norms(problem):
    """Largest norm at points of the box, of every row or of all together."""
    points, exact, rows = samples(problem), problem.graph.double, problem.rows.double()
    count = len(rows)
    gradients = exact.gradients(points.repeat_interleave(count, 0), rows.repeat(len(points), 1))
    return problem.measure(gradients.flatten(1).unflatten(0, (len(points), count))).amax(0)


@DTYPES
@every_network
def test_bounds_lie_between_gradients_and_intervals(name, dtype):
    problem = problem_of(name, dtype=dtype)
    found = native_crown(problem)
    climbed = sample_gradients(problem).norms.double()
    assert (found.class_upper_bounds.double() >= sampled_norms(problem)).all()
    assert (found.class_upper_bounds.double() >= climbed).all()
    # In float32 what is known of intervals has margins of its own.
    slack = 1e-12 if dtype == torch.float64 else 1e-4
    assert (found.class_upper_bounds <= interval_bounds(problem) * (1 + slack) + slack).all()
    assert found.class_upper_bounds.dtype == dtype


@pytest.mark.parametrize("norm", ["1", "2"])
@pytest.mark.parametrize("outputs", ["each", "all"])
@pytest.mark.parametrize("name", ["attention", "layer_norm", "swiglu", "plant", "matmul"])
def test_every_norm(name, outputs, norm):
    problem = problem_of(name, norm=norm, outputs=outputs)
    bound = native_crown(problem).class_upper_bounds
    assert bound.shape == ((1,) if problem.measure.joint else (len(problem.rows),))
    true = sampled_norms(problem)
    assert (bound >= true).all()
    assert (bound <= interval_bounds(problem) * (1 + 1e-12)).all()
    assert bound.max() <= 1.1 * true.max() + 0.05


@pytest.mark.parametrize("name", ["attention", "layer_norm", "gru_cell", "div", "squeeze"])
def test_optimised_weights_are_never_looser(name):
    problem = problem_of(name, 0.1)
    plain = native_crown(problem).class_upper_bounds
    optimised = product_bounds(problem, search=PlaneSearch()).class_upper_bounds
    assert (optimised <= plain * (1 + 1e-9)).all()
    assert (optimised >= sampled_norms(problem)).all()


def test_excess_falls_with_the_square_of_the_radius():
    excess = []
    for eps in (1e-2, 1e-3, 1e-4):
        problem = problem_of("encoder_layer", eps, classes=[0])
        true = float(sample_gradients(problem).norms)
        excess.append(float(native_crown(problem).class_upper_bounds) / true - 1)
    assert math.log10(excess[0] / excess[-1]) / 2 > 1.8, excess


def test_a_wrong_corner_is_noticed(monkeypatch):
    """Negative control: planes through the wrong corner end below true gradients."""
    original = relaxations.Relaxations.product

    def wrong(self, index, coefficients, shares):
        of_v, of_g, constant, size = original(self, index, coefficients, shares)
        return of_v, of_g, -constant.abs() - 0.2 * size, size

    monkeypatch.setattr(relaxations.Relaxations, "product", wrong)
    caught = 0
    for name in ("attention", "swiglu", "matmul"):
        problem = problem_of(name, 0.1)
        caught += bool((native_crown(problem).class_upper_bounds < sampled_norms(problem)).any())
    assert caught


@DTYPES
@pytest.mark.parametrize("name", ["attention", "layer_norm", "mul", "plant", "glu"])
def test_entries_and_directions(name, dtype):
    problem = problem_of(name, dtype=dtype)
    graph, x = problem.graph, problem.centre
    direction = torch.linspace(-1, 2, x.numel(), dtype=dtype).reshape(x.shape)
    entries = jacobian_bounds(graph, x, 0.02, classes=[0])
    along = jvp_bounds(graph, x, 0.02, direction, classes=[0])
    points = samples(problem)
    gradients = graph.double.gradients(points, problem.rows[:1].double().expand(len(points), -1))
    assert (entries.lower[0].double() <= gradients).all()
    assert (gradients <= entries.upper[0].double()).all()
    values = (gradients * direction.double()).flatten(1).sum(1)
    assert (along.lower.double() <= values).all()
    assert (values <= along.upper.double()).all()
    summed = (direction.abs() * (entries.upper - entries.lower)[0]).sum()
    assert float(along.upper - along.lower) <= float(summed) * (1 + 1e-4)


class OfTwo(nn.Module):
    def forward(self, x):
        return x[:, :1] * x[:, 1:] * x[:, 1:] + (x.sin() + x.cos()).sum(1, keepdim=True)


@DTYPES
@pytest.mark.parametrize("radius", [1e-9, 1.0, 8.0, 1e9])
def test_a_factor_that_the_box_fixes(radius, dtype):
    """The affine form of a number has no slope, and that of the other factor any."""
    graph = build_graph(OfTwo(), (2,)).to("cpu", dtype)
    x, eps = torch.tensor([4.0, 2 * radius], dtype=dtype), torch.tensor([0.0, radius], dtype=dtype)
    problem = make_problem(graph, x, eps)
    bound = native_crown(problem).class_upper_bounds
    assert (bound >= sampled_norms(problem)).all()
    assert (bound <= interval_bounds(problem) * (1 + 1e-4)).all()


def test_slopes_too_small_for_float32_are_not_zero():
    graph = build_graph(Calls(lambda y: 1e-25 * y * (1e-25 * y.flip(1))), (4,)).single
    problem = make_problem(graph, torch.ones(4), 0.01)
    root = native_crown(problem)
    assert (root.class_upper_bounds.double() >= sampled_norms(problem)).all()
    assert (root.norm.entries.upper > root.norm.entries.lower).any()


NUMBERS = {
    "sum": lambda y: torch.stack([y[:, 0] + 1.5, (y[:, 0] - 0.5) * y[:, 1] - 1], 1),
    "scaled": lambda y: (3 * y[:, 0] + 1)[:, None] * y,
    "function": lambda y: ((y[:, 0] * y[:, 1] + 1).tanh() + 0.5).exp()[:, None],
    "unary": lambda y: ((y * y).sum(1) + 1).sqrt()[:, None],
}


@pytest.mark.parametrize("method", ["crown", "alpha", "bab"])
@pytest.mark.parametrize("name", NUMBERS)
def test_single_numbers_with_a_bias(name, method):
    """Values of one number per example, without a dimension of their own."""
    torch.manual_seed(0)
    model = Calls(NUMBERS[name]).double().eval()
    search = {"branching": BranchOptions(timeout=1, branch="input")}
    asked = search if method == "bab" else {"method": method}
    x = torch.linspace(-0.5, 1, 4).double()
    result = local_lipschitz(model, x, 0.05, **asked)
    problem = make_problem(build_graph(model, (4,)), x, 0.05)
    true = float(sampled_norms(problem).max())
    assert true <= result.upper_bound <= 1.1 * true


@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1.0, 1e2, 1e5])
@pytest.mark.parametrize("name", ["mul", "matmul", "div", "layer_norm", "attention"])
def test_values_of_every_size(name, scale):
    """The input and its box are scaled, so products and their derivatives span ten decades."""
    module, shape = NETWORKS[name]
    _, x = network(name)
    inner = nn.Sequential(_Scaled(scale), module).double().eval()
    graph = build_graph(inner, shape)
    problem = make_problem(graph, x[0] / scale, 0.02 / scale, classes=[0])
    bound, true = native_crown(problem).class_upper_bounds, sampled_norms(problem)
    assert (bound >= true).all()
    plain = problem_of(name, classes=[0])
    assert float(bound) == pytest.approx(
        scale * float(native_crown(plain).class_upper_bounds), rel=1e-6
    )


class _Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize("centre", [0.0, 0.05, -0.1])
def test_factors_that_touch_zero(centre):
    graph = build_graph(Calls(lambda y: y * y.flip(1)).double().eval(), (4,))
    problem = make_problem(graph, torch.full((4,), centre, dtype=torch.float64), 0.1)
    bound = native_crown(problem).class_upper_bounds
    assert (bound >= sampled_norms(problem)).all()


def test_a_value_times_itself_is_as_good_as_its_square():
    """Turned over twice, a factor does not show that it is the other."""
    shape, x = (3,), torch.tensor([0.3, -0.2, 0.05], dtype=torch.float64)
    square = build_graph(_Square(hidden=False), shape).double
    product = build_graph(_Square(hidden=True), shape).double
    assert product.product_nodes
    assert not square.product_nodes
    found = [native_crown(make_problem(g, x, 0.1)).class_upper_bounds for g in (square, product)]
    # The derivative of a product is a sum of its factors: linear, so that nothing is lost.
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


class _Square(nn.Module):
    def __init__(self, *, hidden):
        super().__init__()
        self.hidden = hidden

    def forward(self, x):
        return x * x.flip(1).flip(1) if self.hidden else x**2


def test_a_box_of_no_width_is_exact():
    problem = problem_of("attention", 0.0)
    true = sampled_norms(problem)
    torch.testing.assert_close(native_crown(problem).class_upper_bounds, true, rtol=1e-9, atol=0)


def test_single_precision_is_as_tight_as_double():
    bounds = [
        native_crown(problem_of("encoder_layer", 1e-4, dtype, classes=[0])).class_upper_bounds
        for dtype in (torch.float32, torch.float64)
    ]
    assert float(bounds[0]) == pytest.approx(float(bounds[1]), rel=1e-4)


def test_small_chunks_change_nothing():
    problem = problem_of("attention")
    whole, parts = (product_bounds(problem, memory_budget=b).class_upper_bounds for b in (None, 1))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["plant", "div", "swiglu"])
def test_cutting_the_box_ends_exactly(name):
    module, x = network(name)
    prepared = Prepared(module, x.shape[1:], branching=BranchOptions(timeout=20))
    problem = make_problem(prepared.graph, x[0], 0.1, classes=[0])
    result = prepared.bound(problem)
    assert result.branch == "input"
    assert result.lower_bound <= result.upper_bound <= result.root_upper_bound
    assert result.upper_bound >= float(sampled_norms(problem).max())
    assert result.status == "exact"


def test_neurons_and_programs_are_refused_by_name():
    module, x = network("attention")
    for options, words in (
        (BranchOptions(branch="relu"), "branch relu"),
        (BranchOptions(sdp="always"), "sdp always"),
    ):
        prepared = Prepared(module, x.shape[1:], branching=options)
        with pytest.raises(InputError, match=rf"{words} does not bound products"):
            prepared.bound(make_problem(prepared.graph, x[0], 0.1))


def test_the_default_engine_bounds_products():
    module, x = network("attention")
    assert Prepared(module, x.shape[1:], method="crown").engine == "native"


def test_the_time_limit_is_kept_and_noted():
    module, shape = encoder(2, norm_first=True, activation="gelu"), (12, 8)
    torch.manual_seed(0)
    prepared = Prepared(
        module.double().eval(), shape, method="crown", options=MethodOptions(timeout=0.3)
    )
    problem = make_problem(
        prepared.graph, torch.rand(shape, dtype=torch.float64), 1e-3, classes=[0]
    )
    result = prepared.bound(problem)
    assert result.status == "timeout"
    assert "linear bounds of values and cotangents" in " ".join(result.not_reached)
    assert result.upper_bound >= result.lower_bound
    assert result.seconds < 3


def test_wide_interval_arguments_are_narrowed_before_they_are_refused():
    """Intervals of ``2 + 3 (y - 0.99 y)`` reach 0; linear bounds see that it cannot."""

    class Inverse(nn.Module):
        def forward(self, x):
            y = torch.tanh(x)
            return x * (2 + 3 * (y - 0.99 * y)).reciprocal()

    graph = build_graph(Inverse().double().eval(), (33,))  # too many inputs for affine forms
    problem = make_problem(graph, torch.zeros(33, dtype=torch.float64), 1.0, classes=[0])
    with pytest.raises(InputError, match="reciprocal, may be anything from"):
        interval_bounds(problem)
    bound = native_crown(problem).class_upper_bounds
    assert (bound >= sampled_norms(problem)).all()
