"""LipBaB: its regions and its constants against enumeration."""

import numpy as np
import pytest
import torch
from cases import CASES, REFERENCES, mlp
from enumeration import exact_constants
from oracles import jacobian, jacobians, points_in_box
from torch import nn

from lipschitz import MethodOptions, Prepared, build_graph, make_problem
from lipschitz.baselines import lipbab
from lipschitz.baselines.lipbab import lipbab_bounds, without_empty
from lipschitz.baselines.regions import RegionBounds

TINY = [
    mlp(2, 4, 3),
    mlp(3, 4, 4, 2),
    mlp(2, 3, 3, 3, 1),
    mlp(3, 5, 4, 2, activation=lambda: nn.LeakyReLU(0.2)),
]


def solve(model, point, eps, timeout=20.0):
    prepared = Prepared(
        model, tuple(point.shape), method="lipbab", options=MethodOptions(timeout=timeout)
    )
    return prepared.bound(make_problem(prepared.graph, point, eps))


@pytest.mark.parametrize("number", range(len(TINY)))
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_enumeration(number, seed):
    torch.manual_seed(seed)
    model = TINY[number].double().eval()
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    point = torch.randn(model[1].in_features, dtype=torch.float64)
    result = solve(model, point, 1.5)
    lower, upper = (point - 1.5).numpy(), (point + 1.5).numpy()
    exact = exact_constants(model, lower, upper).max()
    assert result.status == "exact"
    assert result.upper_bound == pytest.approx(exact, rel=1e-8)
    assert result.lower_bound == pytest.approx(exact, rel=1e-8)


FAST = [r for r in REFERENCES if r.exact and r.eps < 0.1 and (r.eps, r.file[-2:]) != (0.05, "32")]


@pytest.mark.parametrize("reference", FAST, ids=lambda r: f"{r.file}-{r.eps}")
def test_it_finds_the_reference_constants(reference):
    result = solve(reference.model(), reference.point(), reference.eps, timeout=60)
    assert result.status == "exact"
    assert result.upper_bound == pytest.approx(reference.exact, rel=1e-8)


@pytest.mark.slow
def test_it_finds_the_constant_of_the_wider_network():
    reference = REFERENCES[4]
    result = solve(reference.model(), reference.point(), reference.eps, timeout=300)
    assert result.status == "exact"
    assert result.upper_bound == pytest.approx(reference.exact, rel=1e-8)


def test_both_exact_methods_agree_on_a_convolution():
    reference = REFERENCES[-1]
    model, point = reference.model(), reference.point()
    problem = make_problem(build_graph(model, tuple(point.shape)), point, reference.eps)
    by_regions = lipbab_bounds(problem, timeout=20).class_upper_bounds.max()
    options = MethodOptions(timeout=20)
    prepared = Prepared(model, tuple(point.shape), method="lipmip", options=options)
    by_program = prepared.bound(make_problem(prepared.graph, point, reference.eps))
    assert by_program.upper_bound == pytest.approx(float(by_regions), rel=1e-5)
    assert float(by_regions) < reference.crown_root


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_no_sampled_gradient_beats_an_upper_bound(case, dtype):
    model = case.model(dtype)
    graph = build_graph(model, case.input_shape)
    for eps in (0.0, 0.05, 3.0):
        problem = make_problem(graph, case.point(dtype), eps)
        outcome = lipbab_bounds(problem, timeout=0.5)
        norms = jacobians(model, points_in_box(problem.lower, problem.upper, 50))
        assert bool((norms.abs().flatten(2).sum(2).amax(0) <= outcome.class_upper_bounds).all())


def test_the_witness_is_a_true_gradient_in_the_box():
    reference = REFERENCES[1]
    model, point = reference.model(), reference.point()
    result = solve(model, point, reference.eps)
    assert float((result.witness - point).abs().max()) <= reference.eps * (1 + 1e-12)
    norms = jacobian(model, result.witness).abs().sum(1)
    assert result.lower_bound == pytest.approx(float(norms.max()), rel=1e-12)


def test_the_time_limit_leaves_certified_bounds_that_fell():
    reference = REFERENCES[2]
    model, point = reference.model(), reference.point()
    short, longer = (solve(model, point, reference.eps, timeout=t) for t in (1e-3, 3.0))
    assert short.status == longer.status == "timeout"
    assert reference.exact < longer.upper_bound < short.upper_bound
    assert longer.lower_bound <= reference.exact * (1 + 1e-9)


def test_the_region_limit_is_a_status(monkeypatch):
    monkeypatch.setattr(lipbab, "_MAX_REGIONS", 50)
    reference = REFERENCES[2]
    result = solve(reference.model(), reference.point(), reference.eps)
    assert result.status == "domain_limit"
    assert result.upper_bound > reference.exact


def test_children_cover_their_parent():
    """Every sampled input lies in some region of every generation."""
    case = CASES[1]
    graph = build_graph(case.model(), case.input_shape)
    problem = make_problem(graph, case.point(), 1.0)
    search = RegionBounds(problem)
    points = points_in_box(problem.lower, problem.upper, 200)
    units = (points - case.point()) / 1.0
    regions = [search.root]
    for _ in range(5):
        going = [r for r in regions if bool(r.open_neurons.any())]
        done = [r for r in regions if not bool(r.open_neurons.any())]
        regions = done + without_empty(search.bounded(search.children(going)))[0]
        inside = [(units @ r.matrix.T + r.constant >= -1e-12).all(1) for r in regions]
        assert bool(torch.stack(inside).any(0).all())
    norms = jacobians(case.model(), points).abs().sum(2)
    for region, mask in zip(regions, inside, strict=True):
        if bool(mask.any()):
            assert bool((norms[mask].amax(0) <= region.row_bounds).all())


def test_a_lost_half_is_caught(monkeypatch):
    """Negative control: without the lower halves the constant is lost."""

    class Half(RegionBounds):
        def children(self, parents):
            return super().children(parents)[1::2]

    monkeypatch.setattr(lipbab, "RegionBounds", Half)
    torch.manual_seed(0)
    lost = 0
    for _ in range(5):
        model = mlp(2, 4, 3).double().eval()
        exact = exact_constants(model, np.full(2, -2.0), np.full(2, 2.0))
        problem = make_problem(build_graph(model, (2,)), torch.zeros(2).double(), 2.0)
        outcome = lipbab_bounds(problem, timeout=5)
        lost += int(float(outcome.class_upper_bounds.max()) < exact.max() * (1 - 1e-6))
    assert lost > 0
