"""LipMIP: the solver's constants against enumeration, its refusals and its witnesses."""

import numpy as np
import pytest
import torch
from cases import CASES, REFERENCES, mlp
from enumeration import exact_constants
from oracles import jacobian, jacobians, points_in_box
from torch import nn

from lipschitz import MethodOptions, Prepared, build_graph, make_problem
from lipschitz.baselines import lipmip
from lipschitz.baselines.expressions import Expression
from lipschitz.baselines.lipmip import lipmip_bounds
from lipschitz.baselines.program import Program, gated_product, sum_of_magnitudes
from lipschitz.native.alpha import native_alpha
from utils import InputError

TINY = [
    mlp(2, 4, 3),
    mlp(3, 4, 4, 2),
    mlp(2, 3, 3, 3, 1),
    mlp(3, 5, 2, activation=lambda: nn.LeakyReLU(0.2)),
]


def solve(model, point, eps, timeout=20.0):
    prepared = Prepared(
        model, tuple(point.shape), method="lipmip", options=MethodOptions(timeout=timeout)
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
    inputs = model[1].in_features
    point = torch.randn(inputs, dtype=torch.float64)
    result = solve(model, point, 1.5)
    lower, upper = (point - 1.5).numpy(), (point + 1.5).numpy()
    exact = exact_constants(model, lower, upper).max()
    assert result.status == "exact"
    assert exact * (1 - 1e-9) <= result.upper_bound <= exact * (1 + 1e-5)
    assert result.lower_bound == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_it_equals_enumeration_at_any_scale(scale):
    torch.manual_seed(5)
    model = mlp(3, 4, 4, 2).double().eval()
    with torch.no_grad():
        for layer in (model[1], model[3], model[5]):
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
    point = torch.zeros(3, dtype=torch.float64)
    exact = exact_constants(model, np.full(3, -2.0), np.full(3, 2.0)).max()
    assert solve(model, point, 2.0).upper_bound == pytest.approx(exact, rel=1e-5)


FAST = [r for r in REFERENCES if r.exact and (r.file.endswith("32") or r.eps < 0.1)]


@pytest.mark.parametrize("reference", FAST, ids=lambda r: f"{r.file}-{r.eps}")
def test_it_finds_the_reference_constants(reference):
    result = solve(reference.model(), reference.point(), reference.eps, timeout=60)
    assert result.status == "exact"
    assert result.upper_bound == pytest.approx(reference.exact, rel=1e-5)
    assert result.lower_bound <= reference.exact * (1 + 1e-9) <= result.upper_bound


@pytest.mark.slow
def test_it_finds_the_constant_of_a_wide_box():
    reference = REFERENCES[2]
    result = solve(reference.model(), reference.point(), reference.eps, timeout=300)
    assert result.status == "exact"
    assert result.upper_bound == pytest.approx(reference.exact, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gradients_below_and_linear_bounds_above(case, dtype):
    model = case.model(dtype)
    graph = build_graph(model, case.input_shape)
    for eps in (0.0, 0.05, 0.3):
        problem = make_problem(graph, case.point(dtype), eps)
        outcome = lipmip_bounds(problem, timeout=2)
        norms = jacobians(model, points_in_box(problem.lower, problem.upper, 50))
        assert bool((norms.abs().flatten(2).sum(2).amax(0) <= outcome.class_upper_bounds).all())
        linear = native_alpha(problem).class_upper_bounds
        slack = 1 + 64 * torch.finfo(dtype).eps
        assert bool((outcome.class_upper_bounds <= linear * slack).all())


def test_the_witness_is_a_true_gradient_in_the_box():
    reference = REFERENCES[4]
    model, point = reference.model(), reference.point()
    result = solve(model, point, reference.eps)
    assert float((result.witness - point).abs().max()) <= reference.eps * (1 + 1e-12)
    norms = jacobian(model, result.witness).abs().sum(1)
    assert result.lower_bound == pytest.approx(float(norms.max()), rel=1e-12)


def test_the_time_limit_leaves_certified_bounds():
    reference = REFERENCES[5]
    result = solve(reference.model(), reference.point(), reference.eps, timeout=1.0)
    assert result.status == "timeout"
    assert result.lower_bound < result.upper_bound <= 73
    assert result.seconds < 5
    assert result.upper_bound > 32.9  # the constant is near 32.98


def test_too_many_unstable_neurons_are_refused():
    torch.manual_seed(0)
    model = mlp(4, 250, 250, 2).eval()
    with pytest.raises(InputError, match=r"lipmip: 500 neurons are unstable .* at most 400"):
        solve(model, torch.zeros(4), 100.0)


@pytest.mark.parametrize("bit", [0.0, 1.0])
@pytest.mark.parametrize("value", [-2.0, -0.5, 3.0])
def test_the_product_with_a_binary_is_exact(bit, value):
    program = Program()
    numbers = torch.tensor([value], dtype=torch.float64)
    fixed = program.variables(numbers, numbers, torch.ones_like(numbers), False)
    binary = program.variables(numbers * 0 + bit, numbers * 0 + bit, torch.ones_like(numbers), True)
    product = gated_product(program, fixed, binary, numbers * 0 - 2, numbers * 0 + 3)
    for sign in (1, -1):
        assert program.maximise(product * sign, 5).upper_bound == pytest.approx(sign * bit * value)


def test_the_sum_of_magnitudes_by_hand():
    """Largest |a| + |b| with a in [-2, 1] and b = -a / 2 is 3."""
    program = Program()
    number = torch.ones(1, dtype=torch.float64)
    a = program.variables(-2 * number, number, number, False)
    entries = Expression(
        torch.cat([a.coefficients, -a.coefficients / 2], 1), number.new_zeros(1, 2)
    )
    total = sum_of_magnitudes(
        program, entries, torch.tensor([-2.0, -0.5]).double(), torch.tensor([1.0, 1.0]).double()
    )
    assert program.maximise(total, 5).upper_bound == pytest.approx(3.0)


def test_a_solver_without_a_verdict_leaves_the_linear_bound(monkeypatch):
    class Failed:
        status, mip_dual_bound, x = 4, -1e-3, None

    monkeypatch.setattr("lipschitz.baselines.program.milp", lambda *args, **kwargs: Failed())
    reference = REFERENCES[1]
    result = solve(reference.model(), reference.point(), reference.eps)
    assert result.upper_bound == pytest.approx(reference.crown_root, rel=1e-6)
    assert result.status == "bound"


def test_a_wrong_product_is_caught(monkeypatch):
    """Negative control: products 5 % short lose the constant."""

    def short(*args):
        return gated_product(*args) * 0.95

    monkeypatch.setattr(lipmip, "gated_product", short)
    reference = REFERENCES[4]
    result = solve(reference.model(), reference.point(), reference.eps)
    assert min(result.class_upper_bounds) > 0
    assert result.upper_bound < reference.exact * (1 - 1e-3)


def test_contradicting_bounds_certify_nothing(monkeypatch):
    """Cotangents cut to half their interval make the program infeasible: no verdict."""

    def halved(program, g, s, lower, upper):
        return gated_product(program, g, s, lower / 2, upper / 2)

    monkeypatch.setattr(lipmip, "gated_product", halved)
    reference = REFERENCES[4]
    result = solve(reference.model(), reference.point(), reference.eps)
    assert result.upper_bound == pytest.approx(reference.crown_root, rel=1e-6)
