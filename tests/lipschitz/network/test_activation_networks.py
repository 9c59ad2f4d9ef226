"""Whole networks of every activation: all methods against sampled and climbed gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipschitz import BranchOptions, local_lipschitz, make_problem
from lipschitz.applications.jacobian import jacobian_bounds
from lipschitz.bounds.methods import METHODS
from lipschitz.bounds.options import MethodOptions
from lipschitz.bounds.outcome import class_upper_bounds
from lipschitz.bounds.true_gradients import Sampling, sample_gradients
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph
from tests.cases import mlp
from tests.oracles import jacobians, points_in_box

MODULES = {
    "prelu": lambda: nn.PReLU(8, init=-0.5),
    "steep_prelu": lambda: nn.PReLU(init=1.5),
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "softshrink": lambda: nn.Softshrink(0.1),
    "elu": lambda: nn.ELU(1.5),
    "selu": nn.SELU,
    "celu": nn.CELU,
    "softplus": nn.Softplus,
    "log_sigmoid": nn.LogSigmoid,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
}
FUNCTIONS = {
    "arctan": torch.arctan,
    "sin": torch.sin,
    "abs": abs,
    "square": lambda x: x**2,
    "product_with_itself": lambda x: x * x,
    "clamp": lambda x: x.clamp(-0.5, 0.75),
}


class Apply(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


NETWORKS = MODULES | {n: (lambda f=f: Apply(f)) for n, f in FUNCTIONS.items()}


def network(name: str, *, inputs: int = 3, scale: float = 2.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = mlp(inputs, 8, 8, 2, activation=NETWORKS[name]).eval().double()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(scale)
    return model


def climbed(problem, model) -> Tensor:
    """Largest gradient norms found, per row."""
    points = points_in_box(problem.lower, problem.upper, 2000)
    sampled = jacobians(model, points).abs().flatten(2).sum(2).amax(0)
    return torch.maximum(sampled, sample_gradients(problem, Sampling(num_random=300)).norms)


def bounds(graph, problem, method: str, engine: str) -> Tensor:
    bounder = METHODS[method].prepare[engine](graph, MethodOptions())
    return class_upper_bounds(bounder, problem)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_holds_every_gradient(name):
    model = network(name)
    graph = build_graph(model, (3,))
    for eps in (0.02, 0.3):
        problem = make_problem(graph, torch.tensor([0.3, -0.2, 0.5]).double(), eps)
        found = climbed(problem, model)
        upper = {
            method: bounds(graph, problem, method, "native")
            for method in ("crown", "alpha", "ibp", "recurjac", "fastlip")
        }
        for method, bound in upper.items():
            assert (found <= bound).all(), method
        assert (upper["alpha"] <= upper["crown"] * (1 + 1e-9)).all()
        assert (upper["crown"] <= upper["ibp"] * (1 + 1e-9)).all()
        if eps == 0.02:  # tight, so that a vacuous bound would not pass
            assert (upper["crown"] <= 1.35 * found).all()
            # Negative control: the interval of the true Jacobian, narrower by a fifth, is caught.
            assert not (found <= 0.8 * upper["crown"]).all() or name == "softshrink"
    if name in ("square", "product_with_itself"):
        with pytest.raises(InputError, match=r"slope of square .* has no bound"):
            bounds(graph, problem, "global", "native")
    else:
        assert (found <= bounds(graph, problem, "global", "native")).all()


@pytest.mark.parametrize("name", ["tanh", "gelu", "prelu", "hardtanh", "sin", "square"])
def test_both_engines_agree(name):
    model = network(name)
    graph = build_graph(model, (3,))
    problem = make_problem(graph, torch.tensor([0.3, -0.2, 0.5]).double(), 0.1)
    for method in ("crown", "ibp"):
        ours = bounds(graph, problem, method, "native")
        options = MethodOptions(optimize=False)
        engine = METHODS[method].prepare["auto_lirpa"](graph, options)
        torch.testing.assert_close(class_upper_bounds(engine, problem), ours, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["tanh", "gelu", "softplus", "hardswish", "relu6", "abs", "sin"])
@pytest.mark.parametrize("branch", ["relu", "input"])
def test_branch_and_bound_closes_in(name, branch):
    """The bound falls towards the largest gradient and never below it."""
    model = network(name, inputs=2, scale=1.5)
    graph = build_graph(model, (2,))
    problem = make_problem(graph, torch.tensor([0.3, -0.2]).double(), 0.1)
    found = float(climbed(problem, model).max())
    options = BranchOptions(timeout=3 if branch == "input" else 0.5, branch=branch)
    # From planes on, a search by chords has nothing to gain in so short a time.
    result = local_lipschitz(
        model,
        problem.centre,
        0.1,
        tolerance=1e-3,
        branching=options,
        optimize=branch == "input",
    )
    assert result.upper_bound >= found * (1 - 1e-9)
    assert result.lower_bound <= found * (1 + 1e-3)
    gap, first = result.upper_bound - found, result.root_upper_bound - found
    assert result.status == "exact" or gap <= 0.9 * first
    if name in ("relu6", "abs"):
        assert result.status == "exact"


@pytest.mark.parametrize("name", ["gelu", "hardtanh"])
def test_splits_of_neurons_alone_prove_the_constant(name):
    """One input: the pre-activations of the first layer decide everything."""
    torch.manual_seed(2)
    model = mlp(1, 4, 1, activation=NETWORKS[name]).eval().double()
    x = torch.tensor([0.2]).double()
    points = torch.linspace(-0.8, 1.2, 200_001, dtype=torch.float64)[:, None]
    exact = float(jacobians(model, points).abs().max())
    options = BranchOptions(timeout=2, branch="relu")
    result = local_lipschitz(model, x, 1.0, tolerance=1e-2, branching=options)
    assert exact * (1 - 1e-9) <= result.upper_bound <= 1.3 * exact
    if name == "hardtanh":
        assert result.status == "exact"


@pytest.mark.parametrize("method", ["lipmip", "lipbab", "eclipse"])
def test_methods_for_relu_refuse_others_by_name(method):
    with pytest.raises(InputError, match=rf"{method} is for ReLU .* is tanh: use crown"):
        local_lipschitz(network("tanh"), torch.zeros(3).double(), 0.1, method=method)


def test_entries_of_the_jacobian_with_negative_slopes():
    """Bounds of single entries, which use sums over paths of one sign."""
    model = network("gelu")
    x = torch.tensor([0.3, -0.2, 0.5]).double()
    found = jacobian_bounds(model, x, 0.2)
    sampled = jacobians(model, points_in_box(x - 0.2, x + 0.2, 2000))
    lower, upper = found.lower.reshape(2, 3), found.upper.reshape(2, 3)
    assert (lower <= sampled.amin(0)).all()
    assert (sampled.amax(0) <= upper).all()
    width = upper - lower
    assert not (lower + 0.3 * width <= sampled.amin(0)).all()


class Composition(nn.Module):
    """Random layers of random activations, with residual connections and a concatenation."""

    def __init__(self, names: list[str], residual: list[bool], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in names)
        make = {n: m for n, m in NETWORKS.items() if n != "prelu"}
        self.activations = nn.ModuleList(make[n]() for n in names)
        self.residual = residual
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer, activation, residual in zip(
            self.layers, self.activations, self.residual, strict=True
        ):
            value = activation(layer(x))
            x = x - 0.5 * value if residual else value
        return self.last(x)


@settings(max_examples=12, deadline=None)
@given(
    layers=st.lists(
        st.tuples(st.sampled_from([n for n in NETWORKS if n != "prelu"]), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 100),
    eps=st.sampled_from([1e-3, 0.05, 0.5]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_random_compositions(layers, seed, eps, scale, dtype):
    names, residual = map(list, zip(*layers, strict=True))
    model = Composition(names, residual, seed).eval().to(dtype)
    with torch.no_grad():
        model.layers[0].weight.mul_(scale)
    graph = build_graph(model, (5,))
    problem = make_problem(graph, torch.linspace(-0.5, 0.5, 5).to(dtype), eps)
    points = points_in_box(problem.lower, problem.upper, 300)
    sampled = jacobians(model, points).abs().flatten(2).sum(2)
    sampled = sampled.nan_to_num(0, 0).amax(0)
    for method in ("crown", "alpha", "ibp"):
        try:
            upper = bounds(graph, problem, method, "native")
        except InputError:  # squares of squares overflow
            assert {"square", "product_with_itself"} & set(names)
            continue
        rounding = 1e4 * torch.finfo(dtype).eps  # of autograd's own sums
        assert (sampled <= upper * (1 + rounding) + 1e-30).all()


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool2d(2), (1, 6, 6)),
        (nn.MaxPool2d(3, stride=1, padding=1), (1, 5, 5)),
        (nn.AdaptiveMaxPool2d(2), (1, 6, 5)),
    ],
    ids=str,
)
def test_networks_with_max_pooling(pool, shape):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), pool, nn.Flatten()).double()
    size = head(torch.zeros(1, *shape).double()).shape[1]
    model = nn.Sequential(head, nn.Linear(size, 2).double()).eval()
    graph = build_graph(model, shape)
    problem = make_problem(graph, torch.rand(shape, dtype=torch.float64), 0.2)
    found = climbed(problem, model)
    for method in ("crown", "alpha", "ibp", "recurjac"):
        assert (found <= bounds(graph, problem, method, "native")).all()
    upper = bounds(graph, problem, "crown", "native")
    assert (upper <= 4 * found).all()
    assert not (found <= 0.25 * upper).all()
    lirpa = METHODS["crown"].prepare["auto_lirpa"](graph, MethodOptions(optimize=False))
    assert (upper <= (1 + 1e-9) * class_upper_bounds(lirpa, problem)).all()  # by the tree


def test_max_pooling_is_exact_by_every_exact_method():
    """ReLU and max pooling: two exact methods and a fine enumeration say the same."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(2, 8), nn.Unflatten(1, (4, 2)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 2)
    )
    model = model.double().eval()
    x = torch.tensor([0.1, 0.0]).double()
    grid = torch.linspace(-0.5, 0.5, 300).double()
    points = x + torch.cartesian_prod(grid, grid)
    exact = float(jacobians(model, points).abs().sum(2).max())
    options = BranchOptions(timeout=20, branch="relu")
    searched = local_lipschitz(model, x, 0.5, branching=options)
    solved = local_lipschitz(model, x, 0.5, method="lipmip")
    assert searched.status == solved.status == "exact"
    assert abs(searched.upper_bound - exact) <= 1e-3 * exact
    assert abs(solved.upper_bound - exact) <= 1e-3 * exact


def test_functional_forms_in_one_network():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
            self.weight = nn.Parameter(torch.tensor([0.3]))

        def forward(self, x: Tensor) -> Tensor:
            y = F.gelu(self.first(x), approximate="tanh")
            y = F.prelu(y.sigmoid() - 0.5, self.weight) + F.softplus(y, beta=2)
            return self.last(
                torch.atan(F.max_pool1d(y.unsqueeze(1), 3, stride=1, padding=1).flatten(1))
            )

    torch.manual_seed(0)
    model = Functional().double().eval()
    graph = build_graph(model, (4,))
    problem = make_problem(graph, torch.zeros(4).double(), 0.3)
    assert (climbed(problem, model) <= bounds(graph, problem, "crown", "native")).all()
