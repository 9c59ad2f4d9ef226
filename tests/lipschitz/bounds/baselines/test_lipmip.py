"""LipMIP: the solver's constants against enumeration, its refusals and its witnesses."""

import numpy as np
import pytest
import torch
from cases import REFERENCES, mlp
from enumeration import exact_constants

from lipschitz import MethodOptions, Prepared, make_problem
from lipschitz.bounds.baselines import lipmip
from lipschitz.bounds.baselines.expressions import Expression
from lipschitz.bounds.baselines.mixed_integer import Program, gated_product, sum_of_magnitudes
from lipschitz.errors import InputError


def solve(model, point, eps, timeout=20.0):
    prepared = Prepared(
        model, tuple(point.shape), method="lipmip", options=MethodOptions(timeout=timeout)
    )
    return prepared.bound(make_problem(prepared.graph, point, eps))


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

    monkeypatch.setattr(
        "lipschitz.bounds.baselines.mixed_integer.milp", lambda *args, **kwargs: Failed()
    )
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
