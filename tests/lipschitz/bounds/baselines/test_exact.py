"""The exact methods, LipMIP, LipBaB and branch and bound, against enumeration and each other."""

import copy
from functools import cache

import pytest
import torch
from cases import REFERENCES, mlp
from enumeration import exact_constants
from oracles import jacobian
from torch import nn

from lipschitz import BranchOptions, MethodOptions, Prepared, make_problem

METHODS = ["lipmip", "lipbab", "bab"]
TINY = [
    mlp(2, 4, 3),
    mlp(3, 4, 4, 2),
    mlp(2, 3, 3, 3, 1),
    mlp(3, 5, 4, 2, activation=lambda: nn.LeakyReLU(0.2)),
]
# To LipMIP's 1e-6 on either side of its solver; the two searches close their gap to rounding.
PRECISION = {"lipmip": 1e-5, "lipbab": 1e-8, "bab": 2e-8}


def solve(method, model, point, eps, timeout=20.0):
    prepared = Prepared(
        model,
        tuple(point.shape),
        method="crown" if method == "bab" else method,
        options=MethodOptions(timeout=timeout),
        branching=BranchOptions(timeout=timeout, tolerance=1e-8) if method == "bab" else None,
    )
    return prepared.bound(make_problem(prepared.graph, point, eps), tolerance=1e-5)


@cache
def tiny(number, seed):
    """A network, the centre of a box of radius 1.5 and the constant there."""
    torch.manual_seed(seed)
    model = copy.deepcopy(TINY[number]).double().eval()
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    point = torch.randn(model[1].in_features, dtype=torch.float64)
    return model, point, exact_constants(model, (point - 1.5).numpy(), (point + 1.5).numpy()).max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", range(len(TINY)))
@pytest.mark.parametrize("seed", range(2))
def test_they_equal_enumeration(method, number, seed):
    model, point, exact = tiny(number, seed)
    result = solve(method, model, point, 1.5)
    assert result.status == "exact"
    assert exact * (1 - 1e-8) <= result.upper_bound
    assert result.upper_bound == pytest.approx(exact, rel=PRECISION[method])
    assert result.lower_bound == pytest.approx(exact, rel=PRECISION[method])


def references():
    """What each method closes in a second or two; LipMIP minds the box less than the others."""
    for method in METHODS:
        for reference in REFERENCES:
            small = reference.eps < 0.1
            if method != "lipmip" and reference.file.endswith("32"):
                small = reference.eps < 0.05
            if reference.exact and small:
                yield pytest.param(
                    method, reference, id=f"{method}-{reference.file}-{reference.eps}"
                )


@pytest.mark.parametrize(("method", "reference"), references())
def test_they_find_the_reference_constants(method, reference):
    result = solve(method, reference.model(), reference.point(), reference.eps)
    assert result.status == "exact"
    assert result.upper_bound == pytest.approx(reference.exact, rel=PRECISION[method])
    assert result.lower_bound <= reference.exact * (1 + 1e-9)
    assert reference.exact * (1 - 1e-9) <= result.upper_bound  # stored to 11 digits


@pytest.mark.slow
@pytest.mark.parametrize(("method", "number"), [("lipmip", 2), ("lipbab", 4)])
def test_they_find_the_harder_reference_constants(method, number):
    reference = REFERENCES[number]
    result = solve(method, reference.model(), reference.point(), reference.eps, timeout=300)
    assert result.status == "exact"
    assert result.upper_bound == pytest.approx(reference.exact, rel=PRECISION[method])


def test_they_agree_on_a_convolution():
    reference = REFERENCES[-1]
    results = [solve(m, reference.model(), reference.point(), reference.eps) for m in METHODS]
    assert [r.status for r in results] == ["exact"] * 3
    first = results[0].upper_bound
    assert [r.upper_bound for r in results] == pytest.approx([first] * 3, rel=1e-5)
    assert first < reference.crown_root


@pytest.mark.parametrize("method", METHODS)
def test_the_witness_is_a_true_gradient_in_the_box(method):
    reference = REFERENCES[1]
    model, point = reference.model(), reference.point()
    result = solve(method, model, point, reference.eps)
    assert float((result.witness - point).abs().max()) <= reference.eps * (1 + 1e-12)
    norms = jacobian(model, result.witness).abs().sum(1)
    assert result.lower_bound == pytest.approx(float(norms.max()), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_time_limit_leaves_certified_bounds(method):
    reference = REFERENCES[5]
    seconds = 0.05 if method == "bab" else 1.0  # it is exact within a second
    result = solve(method, reference.model(), reference.point(), reference.eps, seconds)
    assert result.status == "timeout"
    assert result.lower_bound < 32.985  # the constant is near 32.9842
    assert result.upper_bound > 32.984
    assert result.upper_bound <= result.root_upper_bound * (1 + 1e-12)
    assert result.seconds < 30  # without a limit it takes minutes
