"""Every layer: the graph is the network, |M| is exact, and both engines bound its gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import LAYERS
from oracles import dense_matrix, jacobian, jacobians, points_in_box
from shared import graph_of
from torch import nn

from lipschitz import (
    METHODS,
    BranchOptions,
    MethodOptions,
    Prepared,
    jacobian_bounds,
    make_problem,
)
from lipschitz.bounds.lirpa.bounds import LirpaEngine
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import forward_intervals
from lipschitz.bounds.native.terms.jacobian import interval_bound
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.network.tracing import build_graph

PLAIN = MethodOptions(optimize=False)


def by_name(case):
    return case.name


@pytest.mark.parametrize("case", LAYERS, ids=by_name)
def test_layer_is_what_torch_computes(case):
    model, x, graph = case.model(), case.point(), graph_of(case)
    rows = torch.eye(graph.num_outputs, dtype=torch.float64)
    ours = graph.gradients(x.expand(len(rows), *x.shape), rows)
    expected = jacobian(lambda p: model(p).reshape(len(p), -1), x)
    torch.testing.assert_close(ours, expected)
    for node in graph.nodes[1:]:
        if node.affine is not None:
            check_map(node.affine)
    single = build_graph(case.model(torch.float32), case.input_shape)
    assert single.values(x[None].float())[-1].dtype == torch.float32
    torch.testing.assert_close(
        single.double.values(x[None])[-1], graph.values(x[None])[-1], rtol=1e-4, atol=1e-5
    )


def check_map(affine_map):
    """The adjoint is the transpose, the magnitude the absolute value, of the map's matrices."""
    magnitude = affine_map.magnitude()
    for i, shape in enumerate(affine_map.input_shapes):
        matrix = dense_matrix(lambda x, i=i: affine_map.linear_from(i, x), shape)
        transposed = dense_matrix(lambda g, i=i: affine_map.adjoint(g)[i], affine_map.output_shape)
        absolute = dense_matrix(lambda x, i=i: magnitude.linear_from(i, x), shape)
        torch.testing.assert_close(transposed, matrix.T)
        torch.testing.assert_close(absolute, matrix.abs())


def test_a_sign_that_is_missed_is_caught():
    """Negative control: a map with a negative coefficient that calls itself positive."""
    case = next(case for case in LAYERS if case.name == "avg_pool_1d")
    graph = build_graph(case.model(), case.input_shape)
    (pool,) = [n.affine for n in graph.nodes if type(n.affine).__name__ == "Positive"]
    operation = pool.operation
    pool.operation = lambda x: operation(x) - 0.01 * operation(x.flip(2))
    with pytest.raises(AssertionError):
        check_map(pool)


@pytest.mark.parametrize("case", LAYERS, ids=by_name)
def test_both_engines_bound_every_gradient(case):
    model, x = case.model(), case.point()
    flat = torch.nn.Sequential(model, torch.nn.Flatten(0 if case.name == "one_output" else 1))
    graph = graph_of(case)
    problem = make_problem(graph, x, 0.2)
    points = points_in_box(problem.lower, problem.upper, 40)
    norms = jacobians(lambda p: flat(p).reshape(len(p), -1), points).abs().flatten(2).sum(2)
    bound, theirs, interval = (
        Prepared(graph, method=method, engine=engine, options=PLAIN).upper_bounds(problem)
        for method, engine in (("crown", "native"), ("crown", "auto_lirpa"), ("ibp", "native"))
    )
    for upper_bounds in (bound, theirs, interval):
        assert (upper_bounds >= norms.amax(0) * (1 - 1e-9)).all()
    assert float(theirs.max()) == pytest.approx(float(bound.max()), rel=1e-5)
    assert bound.max() <= interval.max() * (1 + 1e-9)
    values = graph.values(points)
    for box, value in zip(
        forward_intervals(graph, problem.lower[None], problem.upper[None]).bounds,
        values,
        strict=True,
    ):
        assert (value >= box.lower).all()
        assert (value <= box.upper).all()


METHODS_OF_ANY_GRAPH = ("crown", "alpha", "sdp", "ibp", "global", "recurjac", "fastlip", "lipbab")


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
@pytest.mark.parametrize("name", ["branches", "numbers", "selections", "one_output"])
def test_every_method_and_norm_where_branches_meet(name, norm):
    case = next(case for case in LAYERS if case.name == name)
    model, x = case.model(), case.point()
    graph = graph_of(case)
    eps = torch.full_like(x, 0.4)
    eps.view(-1)[0] = 0
    problem = make_problem(graph, x, eps, norm=norm, outputs="each", inputs="free")
    points = points_in_box(problem.lower, problem.upper, 100)
    values = jacobians(lambda p: model(p).reshape(len(p), -1), points)
    truth = problem.measure(values.flatten(2)).amax(0)
    options = MethodOptions(timeout=0.1)
    searches = [BranchOptions(timeout=0.2, branch=b) for b in ("relu", "input")]
    sampling = Sampling(num_random=4, ascent_steps=2)
    bounders = [
        *(
            Prepared(graph, method=m, engine="native", options=options)
            for m in METHODS_OF_ANY_GRAPH
            if norm in METHODS[m].norms
        ),
        *(Prepared(graph, branching=search) for search in searches),
    ]
    for prepared in bounders:
        result = prepared.bound(problem, sampling=sampling)
        bounds = torch.tensor(result.class_upper_bounds, dtype=torch.float64)
        assert (bounds >= truth * (1 - 1e-9)).all(), prepared.method
        assert result.lower_bound <= result.upper_bound
        assert (0.7 * bounds < truth).any() or prepared.method != "bab"  # not vacuous
    entries = jacobian_bounds(graph, x, eps)
    assert (values >= entries.lower - 1e-9).all()
    assert (values <= entries.upper + 1e-9).all()


def test_constants_that_a_layer_mixes_in_have_the_precision_of_the_graph():
    """0.4 in float32 is above 0.4: what is left of it would be a part of the linear map."""
    model = nn.Sequential(nn.ConstantPad1d(1, 0.4), nn.Flatten(), nn.Linear(5, 2)).eval()
    pad = build_graph(model, (1, 3)).double.nodes[1].affine
    zeros = torch.zeros(1, 1, 3, dtype=torch.float64)
    assert not pad.linear(zeros).any()
    assert not pad.magnitude().linear(zeros).any()
    lower, upper = pad.interval((zeros - 1, zeros + 1))
    assert (lower <= upper).all()


class Composition(nn.Module):
    """Random steps on [B, 2, 4, 4], each of which may read any earlier value, the input too."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.convolutions = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in steps)
        self.strided = nn.ModuleList(nn.ConvTranspose2d(2, 2, 4, 2, 1) for _ in steps)
        self.norm = nn.BatchNorm2d(2)
        self.last = nn.Linear(32, 2)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.weight.uniform_(-2, 2)

    def forward(self, x):
        values = [x]
        for i, (kind, first, second) in enumerate(self.steps):
            a, b = values[first % len(values)], values[second % len(values)]
            values.append(
                {
                    "conv": lambda a, b, i=i: F.relu(self.convolutions[i](a)),
                    "add": lambda a, b: a + 0.5 * b,
                    "sub": lambda a, b: F.relu(a - b),
                    "cat": lambda a, b: torch.cat([a[:, :1], b.flip(3)[:, 1:]], 1),
                    "norm": lambda a, b: F.leaky_relu(self.norm(a), 0.2),
                    "pool": lambda a, b: F.interpolate(F.avg_pool2d(a, 2), scale_factor=2) + b,
                    "down_up": lambda a, b, i=i: F.relu(self.strided[i](a[..., ::2, 1::2])),
                    "bicubic": lambda a, b: (
                        F.interpolate(a, (4, 4), mode="bicubic") - b.mean((2, 3), keepdim=True)
                    ),
                    "pad": lambda a, b: F.pad(a, (1, 0, 0, 1), mode="reflect")[:, :, 1:, :4],
                }[kind](a, b)
            )
        return self.last((values[-1] + x).flatten(1))


KINDS = ["conv", "add", "sub", "cat", "norm", "pool", "down_up", "bicubic", "pad"]
STEP = st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.lists(STEP, min_size=1, max_size=5),
    eps=st.sampled_from([1e-3, 0.1, 1.0]),
)
def test_random_compositions(seed, steps, eps):
    torch.manual_seed(seed)
    model = Composition(steps).double().eval()
    problem = make_problem(build_graph(model, (2, 4, 4)), torch.rand(2, 4, 4).double(), eps)
    points = points_in_box(problem.lower, problem.upper, 20)
    largest = jacobians(model, points).abs().flatten(2).sum(2).amax(0)
    native = native_crown(problem).class_upper_bounds
    theirs = LirpaEngine(problem.graph).crown(problem, optimize=False).class_upper_bounds
    interval = interval_bound(problem.graph, problem.lower, problem.upper, problem.rows)
    for bound in (native, theirs, interval):
        assert (bound >= largest * (1 - 1e-9)).all()
    torch.testing.assert_close(native, theirs, rtol=1e-6, atol=1e-9)
