import itertools

import pytest
import torch
from cases import CASES, REFERENCES
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_crown import naive_bound
from oracles import dense_matrix, jacobian, jacobians, points_in_box
from torch import nn

from lipschitz.bounds.lirpa.bounds import LirpaEngine
from lipschitz.bounds.native import lines
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.terms.jacobian import interval_bound
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.relaxation import LineBounds, slope_product_lines

EPS = [0.0, 1e-3, 0.1, 1.0, 30.0]


def case_named(name):
    return next(c for c in CASES if c.name == name)


def problem_of(case, eps, dtype=torch.float64):
    model = case.model(dtype)
    return model, make_problem(build_graph(model, case.input_shape), case.point(dtype), eps)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    small=st.sampled_from([0.0, 0.1, 0.7]),
    eps=st.sampled_from([0.01, 0.3, 3.0]),
)
def test_equals_a_naive_twin_on_random_mlps(seed, hidden, small, eps):
    torch.manual_seed(seed)
    sizes = [3, *hidden, 2]
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(small)]
    model = nn.Sequential(*layers[:-1]).double().eval()
    problem = make_problem(build_graph(model, (3,)), torch.rand(3).double(), eps)
    found = native_crown(problem)
    maps = [m for m in model if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in maps], [m.bias.detach() for m in maps]
    for r, row in enumerate(problem.rows):
        expected, boxes = naive_bound(weights, biases, small, problem.lower, problem.upper, row)
        assert float(found.class_upper_bounds[r]) == pytest.approx(expected, rel=1e-8, abs=1e-10)
    for preact, (low, high) in zip(found.preacts.values(), boxes, strict=True):
        torch.testing.assert_close(preact.lower[0], low, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(preact.upper[0], high, rtol=1e-9, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    eps=st.sampled_from([0.01, 0.3]),
)
def test_a_convolution_equals_its_dense_matrix(seed, stride, padding, dilation, groups, eps):
    torch.manual_seed(seed)
    first = nn.Conv2d(
        2, 4, 2, stride=stride, padding=padding, dilation=dilation, groups=groups
    ).double()
    second = nn.Conv2d(4, 2, 2, padding=1).double()
    shape = (2, 4, 4)
    middle = tuple(first(torch.zeros(1, *shape).double()).shape[1:])
    last_shape = tuple(second(torch.zeros(1, *middle).double()).shape[1:])
    head = nn.Linear(torch.Size(last_shape).numel(), 2).double()
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), head).eval()
    problem = make_problem(build_graph(model, shape), torch.rand(shape).double(), eps)
    with torch.no_grad():
        weights = [
            dense_matrix(lambda x: first(x) - first(x * 0), shape),
            dense_matrix(lambda x: second(x) - second(x * 0), middle),
            head.weight.detach(),
        ]
        biases = [
            first(torch.zeros(1, *shape).double()).flatten(),
            second(torch.zeros(1, *middle).double()).flatten(),
            head.bias.detach(),
        ]
    found = native_crown(problem)
    expected, _ = naive_bound(
        weights, biases, 0.0, problem.lower.flatten(), problem.upper.flatten(), problem.rows[0]
    )
    assert float(found.class_upper_bounds[0]) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [1e-3, 0.1, 1.0])
def test_equals_the_auto_lirpa_engine(case, eps):
    _, problem = problem_of(case, eps)
    theirs = LirpaEngine(problem.graph).crown(problem, optimize=False)
    found = native_crown(problem)
    if case.name == "steep_leaky_relu":
        # auto_LiRPA puts the line of slope 1 below a stable negative neuron whose slope is above
        # one half; that is loose, and the line itself is exact there.
        assert (found.class_upper_bounds <= theirs.class_upper_bounds * (1 + 1e-9)).all()
        return
    bounds = found.class_upper_bounds
    torch.testing.assert_close(bounds, theirs.class_upper_bounds, rtol=1e-8, atol=1e-10)
    for ours, other in zip(found.norm.entries, theirs.norm.entries, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r.file}@{r.eps}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference_networks(reference, dtype):
    graph = build_graph(reference.model(dtype), tuple(reference.point().shape))
    problem = make_problem(graph, reference.point(dtype), reference.eps)
    found = native_crown(problem).class_upper_bounds
    assert found.dtype == dtype
    assert float(found.max()) == pytest.approx(reference.crown_root, rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", EPS)
def test_no_sampled_gradient_or_value_beats_a_bound(case, eps):
    model, problem = problem_of(case, eps)
    found = native_crown(problem)
    points = points_in_box(problem.lower, problem.upper, 50)
    sampled = jacobians(model, points)
    assert (sampled >= found.norm.entries.lower - 1e-9).all()
    assert (sampled <= found.norm.entries.upper + 1e-9).all()
    assert (sampled.abs().flatten(2).sum(2) <= found.class_upper_bounds).all()
    values = problem.graph.values(points)
    for activation, preact in found.preacts.items():
        value = values[problem.graph.nodes[activation].parents[0]]
        assert (value >= preact.lower).all()
        assert (value <= preact.upper).all()
    if eps == 0:
        expected = jacobian(model, case.point()).abs().flatten(1).sum(1)
        torch.testing.assert_close(found.class_upper_bounds, expected)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_chunks_change_nothing(case):
    _, problem = problem_of(case, 0.2)
    whole = native_crown(problem, memory_budget=2**34)
    small = native_crown(problem, memory_budget=1)
    torch.testing.assert_close(small.class_upper_bounds, whole.class_upper_bounds)
    torch.testing.assert_close(small.norm.entries, whole.norm.entries)
    for activation, preact in whole.preacts.items():
        torch.testing.assert_close(small.preacts[activation], preact)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_float32_agrees_with_float64(case):
    bounds = []
    for dtype in (torch.float32, torch.float64):
        _, problem = problem_of(case, 0.1, dtype)
        bounds.append(native_crown(problem).class_upper_bounds)
    assert bounds[0].dtype == torch.float32
    torch.testing.assert_close(bounds[0].double(), bounds[1], rtol=1e-4, atol=1e-5)


def test_tighter_than_intervals_where_it_should_be():
    _, problem = problem_of(case_named("mlp5"), 0.2)
    interval = interval_bound(problem.graph, problem.lower, problem.upper, problem.rows)
    assert (native_crown(problem).class_upper_bounds < 0.9 * interval).all()


def test_rows_may_be_margins():
    case = case_named("mlp3")
    model = case.model()
    graph = build_graph(model, case.input_shape)
    problem = make_problem(graph, case.point(), 0.2, margin_of=1)
    found = native_crown(problem).class_upper_bounds
    sampled = jacobians(model, points_in_box(problem.lower, problem.upper, 50))
    margins = sampled[:, 1:2] - sampled[:, [0, 2]]
    assert (margins.abs().sum(2) <= found).all()


def test_a_network_with_no_active_neuron_has_constant_zero():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    found = native_crown(make_problem(build_graph(model, (3,)), torch.zeros(3), 0.1))
    assert found.class_upper_bounds.tolist() == [0.0, 0.0]


def test_a_relaxation_off_by_a_thousandth_is_caught(monkeypatch):
    """Negative control of the reference values: they must not survive a scaled relaxation."""

    def wrong(*arguments):
        lines = slope_product_lines(*arguments)
        return LineBounds(*lines[:3], 0.999 * lines[3])

    reference = REFERENCES[4]
    problem = make_problem(build_graph(reference.model(), (16,)), reference.point(), reference.eps)
    expected = pytest.approx(reference.crown_root, rel=1e-7)
    assert float(native_crown(problem).class_upper_bounds.max()) == expected
    monkeypatch.setattr(lines, "slope_product_lines", wrong)
    assert float(native_crown(problem).class_upper_bounds.max()) != expected


def test_a_sampled_gradient_catches_a_bound_off_by_a_thousandth():
    """Negative control of the sampling check: on an affine network the bound is attained."""
    model, problem = problem_of(case_named("affine"), 0.5)
    norm = jacobian(model, problem.centre).abs().sum(1)
    assert not (norm <= 0.999 * native_crown(problem).class_upper_bounds).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_cuda_agrees_with_the_cpu(case):
    bounds = []
    for device in ("cpu", "cuda"):
        graph = build_graph(case.model().to(device), case.input_shape)
        problem = make_problem(graph, case.point(), 0.2)
        bounds.append(native_crown(problem).class_upper_bounds.cpu())
    torch.testing.assert_close(*bounds, rtol=1e-6, atol=1e-6)
