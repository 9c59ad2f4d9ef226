"""Certified signs of Jacobian entries."""

from __future__ import annotations

import copy
import doctest
import time
from dataclasses import replace

import pytest
import torch
from cases import CASES, mlp
from oracles import jacobian, jacobians, points_in_box
from shared import graph_of
from sign_checks import contradictions, line_problem
from torch import nn

from lipschitz.applications import signs as entry_signs_module
from lipschitz.applications.jacobian import box_problem
from lipschitz.applications.sign_search import SignLimits
from lipschitz.applications.signs import (
    CONSTANT,
    DECREASING,
    INCREASING,
    NEITHER,
    UNDECIDED,
    entry_signs,
    restricted,
)
from lipschitz.network.tracing import build_graph
from lipschitz.search.engines.functionals import Functionals

QUICK = SignLimits(timeout=3)


def network(weights, bias, out):
    """``sum_j out_j relu(weights_j . x + bias_j)``."""
    model = nn.Sequential(nn.Linear(len(weights[0]), len(weights)), nn.ReLU())
    model.append(nn.Linear(len(weights), 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(weights))
        model[0].bias.copy_(torch.tensor(bias))
        model[2].weight.copy_(torch.tensor([out]))
    return model


def signs_of(model, inputs, eps, limits=QUICK):
    problem = box_problem(
        build_graph(model, (inputs,)), torch.zeros(inputs, dtype=torch.float64), eps
    )
    return problem, entry_signs(problem, range(inputs), limits=limits)


def test_docstring_example():
    found = doctest.testmod(entry_signs_module)
    assert found.attempted > 5
    assert found.failed == 0


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_sampled_gradients_never_contradict(case, eps):
    model, x = case.model(), case.point()
    problem = box_problem(graph_of(case), x, eps)
    features = range(min(x.numel(), 4))
    signs = entry_signs(problem, features, limits=SignLimits(timeout=0.15))
    points = points_in_box(problem.lower, problem.upper, 300)
    assert not contradictions(model, problem, signs, points)
    if eps == 0.0:
        assert not any(sign.verdict == UNDECIDED for sign in signs)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_one_free_feature_is_always_decided(case):
    """Exactness: on a line the truth is seen by dense sampling, and nothing may stay open."""
    model, x, graph = case.model(), case.point(), graph_of(case)
    for feature in range(min(x.numel(), 3)):
        problem = line_problem(graph, x, feature, -1.0, 2.0)
        signs = entry_signs(problem, [feature], limits=QUICK)
        points = problem.lower + torch.linspace(0, 1, 2001, dtype=torch.float64).reshape(
            -1, *[1] * x.dim()
        ) * (problem.upper - problem.lower)
        assert not contradictions(model, problem, signs, points)
        seen = jacobians(model, points).flatten(2)[:, :, feature]
        for sign in signs:
            entry = seen[:, int(sign.row)]
            # A zero that terms cancel to is below what rounding lets one decide.
            cancels = bool(((entry != 0) & (entry.abs() < 1e-12)).any())
            assert sign.verdict != UNDECIDED or cancels
            if entry.min() < -1e-9 and entry.max() > 1e-9:
                assert sign.verdict == NEITHER


@pytest.mark.parametrize("seed", range(4))
def test_two_and_four_inputs_are_decided_on_tiny_networks(seed):
    """Both kinds of search against a dense grid of all activation regions."""
    for inputs in (2, 4):
        torch.manual_seed(seed)
        model = mlp(inputs, 4, 3, 1).double().eval()
        problem, signs = signs_of(model, inputs, 0.7)
        assert UNDECIDED not in {sign.verdict for sign in signs}
        points = points_in_box(problem.lower, problem.upper, 3000)
        assert not contradictions(model, problem, signs, points)


@pytest.mark.parametrize("seed", range(4))
def test_float32_certificates_hold_for_the_network_in_real_arithmetic(seed):
    torch.manual_seed(seed)
    model = mlp(3, 12, 12, 2).eval()
    graph, exact = build_graph(model, (3,)), copy.deepcopy(model).double()
    x = torch.rand(3)
    for problem in (line_problem(graph, x, 0), box_problem(graph, x, 0.3)):
        signs = entry_signs(problem, [0], limits=QUICK)
        double = problem.to(torch.float64)
        points = points_in_box(double.lower, double.upper, 2000)
        signs = [replace(s, positive=as_double(s.positive)) for s in signs]
        signs = [replace(s, negative=as_double(s.negative)) for s in signs]
        assert not contradictions(exact, double, signs, points)
        assert UNDECIDED not in {sign.verdict for sign in signs}


def as_double(point):
    return None if point is None else point.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_monotone_by_construction_is_increasing(dtype):
    torch.manual_seed(0)
    model = mlp(5, 9, 9, 2).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.abs() if parameter.dim() > 1 else parameter)
    graph = build_graph(model, (5,))
    for eps in (0.1, 1.0, 100.0):
        problem = box_problem(graph, torch.full((5,), 0.1, dtype=dtype), eps)
        signs = entry_signs(problem, range(5), limits=SignLimits(timeout=0))
        assert {sign.verdict for sign in signs} == {INCREASING}
        minus = box_problem(graph, problem.centre, eps, rows=-torch.eye(2))
        falling = entry_signs(minus, range(5), limits=SignLimits(timeout=0))
        assert {sign.verdict for sign in falling} == {DECREASING}
    with torch.no_grad():  # negative control: one path of the other sign
        model[1].weight[0, 2] = -3.0
    problem = box_problem(build_graph(model, (5,)), problem.centre, 100.0)
    assert entry_signs(problem, [2], limits=QUICK)[0].verdict != INCREASING


def test_neither_is_witnessed():
    model = network([[1.0], [-1.0]], [0.0, 0.0], [1.0, 1.0])  # |x|
    problem, (sign,) = signs_of(model, 1, 1.0)
    assert sign.verdict == NEITHER
    assert jacobian(model, sign.positive)[0, 0] == 1
    assert jacobian(model, sign.negative)[0, 0] == -1
    assert (sign.lower, sign.upper) == (pytest.approx(-1), pytest.approx(1))
    aside = box_problem(problem.graph, torch.full((1,), 2.0, dtype=torch.float64), 1.0)
    assert entry_signs(aside, [0])[0].verdict == INCREASING


@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_branch_and_bound_decides_what_the_root_cannot(inputs):
    """relu(s) - 0.9 relu(s - 0.1) rises with s = x_1 + ... although a relaxation cannot see it."""
    model = network([[1.0] * inputs] * 2, [0.0, -0.1], [1.0, -0.9])
    _, open_signs = signs_of(model, inputs, 0.5, SignLimits(timeout=0))
    assert {sign.verdict for sign in open_signs} == {UNDECIDED}
    _, signs = signs_of(model, inputs, 0.5)
    assert {sign.verdict for sign in signs} == {INCREASING}
    assert all(sign.domains > 0 and sign.lower == 0 for sign in signs)
    _, stopped = signs_of(model, inputs, 0.5, SignLimits(max_domains=0))
    assert {sign.verdict for sign in stopped} == {UNDECIDED}


@pytest.mark.parametrize("inputs", [1, 4])
def test_branch_and_bound_finds_a_rare_sign(inputs):
    """relu(s) - 2 relu(s - a) + 2 relu(s - b) falls on a strip that sampling misses."""
    low = 0.31234567
    model = network([[1.0] * inputs] * 3, [0.0, -low, -low - 1e-7], [1.0, -2.0, 2.0])
    _, signs = signs_of(model, inputs, 0.5)
    assert {sign.verdict for sign in signs} == {NEITHER}
    assert all(jacobian(model, sign.negative)[0, sign.feature] == -1 for sign in signs)


def test_a_wrong_bound_is_caught(monkeypatch):
    """Negative control: a search that refutes everything contradicts the samples."""
    model = network([[1.0] * 4] * 3, [0.0, -0.1, -0.11], [1.0, -2.0, 2.0])
    monkeypatch.setattr(
        Functionals,
        "upper_bound",
        lambda self, sums, rows, *rest: torch.full_like(self.weights[rows, 0], -1.0),
    )
    monkeypatch.setattr(entry_signs_module, "_sample", lambda *_: None)
    problem, signs = signs_of(model, 4, 0.5)
    points = points_in_box(problem.lower, problem.upper, 3000)
    assert contradictions(model, problem, signs, points)


def test_constant_and_cancelling_entries():
    dead = network([[1.0, 0.0]], [-5.0], [1.0])
    _, signs = signs_of(dead, 2, 1.0)
    assert [(s.verdict, s.lower, s.upper) for s in signs] == [(CONSTANT, 0.0, 0.0)] * 2
    # Two equal neurons that cancel: 0 up to rounding, which is not claimed to be a sign.
    cancelling = network([[1.0], [1.0]], [0.0, 0.0], [0.3, -0.3])
    problem = box_problem(build_graph(cancelling, (1,)), torch.ones(1, dtype=torch.float64), 0.5)
    (sign,) = entry_signs(problem, [0])
    assert sign.verdict == UNDECIDED
    assert max(abs(sign.lower), abs(sign.upper)) < 1e-12


def test_restricted_problem_has_the_kept_columns():
    for name in ("mlp3", "residual_convolution", "relu_first", "residual_from_input"):
        case = next(c for c in CASES if c.name == name)
        model, x = case.model(), case.point()
        graph = build_graph(model, case.input_shape)
        part = restricted(box_problem(graph, x, 0.1), [2, 0])
        rows = torch.eye(graph.num_outputs, dtype=torch.float64)
        points = part.centre.expand(len(rows), -1)
        truth = jacobian(model, x).flatten(1)[:, [2, 0]]
        torch.testing.assert_close(part.graph.gradients(points, rows), truth)


def test_the_timeout_is_kept():
    torch.manual_seed(0)
    model = mlp(12, 40, 40, 1).eval()
    problem = box_problem(build_graph(model, (12,)), torch.zeros(12), 3.0)
    begin = time.perf_counter()
    entry_signs(problem, [0, 1], limits=SignLimits(timeout=0.2))
    assert time.perf_counter() - begin < 60  # to the end it would take hours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_decide_signs_on_curved_networks(dtype, monkeypatch):
    """A search by neurons leaves some of these undecided; true gradients contradict none."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    model = nn.Sequential(*layers).to(dtype).eval()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(2)
    problem = box_problem(build_graph(model, (6,)), torch.full((6,), 0.1, dtype=dtype), 0.3)
    signs = entry_signs(problem, range(6), limits=SignLimits(timeout=5.0))
    assert all(sign.verdict != "undecided" for sign in signs)
    certain, points = (
        copy.deepcopy(model).double(),
        points_in_box(problem.lower, problem.upper, 300),
    )
    exact = [
        replace(sign, positive=as_double(sign.positive), negative=as_double(sign.negative))
        for sign in signs
    ]
    assert not contradictions(certain, problem, exact, points.double())
    monkeypatch.setattr(entry_signs_module, "_are_carried_forward", lambda *arguments: False)
    by_neurons = entry_signs(problem, range(6), limits=SignLimits(timeout=0.2))
    assert any(sign.verdict == "undecided" for sign in by_neurons)
