"""ECLipsE-Gen-Local: the package's L2 bounds, converted; skipped without the package."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from cases import CASES, REFERENCES, mlp
from oracles import jacobians, points_in_box
from torch import nn

from lipschitz import build_graph, local_lipschitz, make_problem
from lipschitz.bounds.baselines import eclipse
from lipschitz.bounds.baselines.chain import dense_chain
from lipschitz.bounds.baselines.eclipse import eclipse_bounds
from lipschitz.errors import InputError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("eclipse_nn") is None, reason="eclipse-nn is not installed"
)
OTHERS = {"residual_from_input", "residual_convolution"}
OTHERS |= {"leaky_relu", "steep_leaky_relu", "functional", "convolution_1d"}
CHAINS = [case for case in CASES if case.name not in OTHERS]


@needs_package
@pytest.mark.parametrize("case", CHAINS, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_in_the_box_beats_the_bound(case, dtype):
    """Nor its L2 norm the constant that was converted, which is the stronger statement."""
    model = case.model(dtype)
    for eps in (0.0, 0.1, 3.0):
        problem = make_problem(build_graph(model, case.input_shape), case.point(dtype), eps)
        bounds = eclipse_bounds(problem)
        norms = jacobians(model, points_in_box(problem.lower, problem.upper, 100)).flatten(2)
        assert bool((norms.abs().sum(2).amax(0) <= bounds).all())
        assert bool((norms.norm(dim=2).amax(0) <= bounds / math.sqrt(norms.shape[2])).all())
        layers, last = dense_chain(problem.graph, "test", 1000)
        product = np.prod([np.linalg.norm(layer.weight, 2) for layer in layers])
        product = product * np.linalg.norm(last, axis=1) * math.sqrt(norms.shape[2])
        slack = 1 + 1e-8 + 64 * torch.finfo(dtype).eps
        assert bool((bounds.double() <= torch.from_numpy(product) * slack).all())


@needs_package
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_it_scales_with_the_weights(scale):
    reference = REFERENCES[0]
    model, point = reference.model(), reference.point()
    plain = local_lipschitz(model, point, reference.eps, method="eclipse").upper_bound
    with torch.no_grad():
        for layer in (m for m in model if isinstance(m, nn.Linear)):
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
        model[3].bias.mul_(scale)  # biases follow the values that arrive at their layer
        model[5].bias.mul_(scale**2)
    scaled = local_lipschitz(model, point, reference.eps, method="eclipse").upper_bound
    assert scaled == pytest.approx(plain * scale**3, rel=1e-6)


@needs_package
@pytest.mark.parametrize(("point", "squared"), [(0.0, 2.0), (1.0, 1.5)])
def test_two_opposed_neurons_by_hand(point, squared):
    """f = relu(x) + relu(-x), with slopes of both in [0, 1], and of the second 0.

    Across the kink the largest eigenvalue of ``[[1, -1], [-1, 1]]`` is 2, so the multiplier is 1,
    ``M = I - [[1, -1], [-1, 1]] / 4`` and ``w^T M^-1 w = 2`` for w = (1, 1). Where the second is
    off, the multiplier is 2, ``M = diag(1, 2)`` and ``w^T M^-1 w = 1.5``.
    """
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    at = torch.full((1,), point, dtype=torch.float64)
    result = local_lipschitz(model, at, 0.1, method="eclipse")
    assert result.upper_bound == pytest.approx(math.sqrt(squared), rel=1e-7)


@needs_package
@pytest.mark.parametrize("reference", [r for r in REFERENCES if r.exact], ids=lambda r: r.file)
def test_it_is_above_the_exact_constant_and_says_nothing(reference, capsys):
    result = local_lipschitz(reference.model(), reference.point(), reference.eps, method="eclipse")
    assert reference.exact < result.upper_bound < 64  # the product of Linf norms is 170 and more
    assert capsys.readouterr().out == ""


@needs_package
def test_a_constant_a_third_too_small_is_caught(monkeypatch):
    """Negative control."""
    real = eclipse.local_l2_constant
    monkeypatch.setattr(eclipse, "local_l2_constant", lambda *args: 0.65 * real(*args))
    reference = REFERENCES[0]
    result = local_lipschitz(reference.model(), reference.point(), reference.eps, method="eclipse")
    assert result.upper_bound < result.lower_bound <= reference.exact * (1 + 1e-9)


@needs_package
def test_where_the_package_fails_the_product_of_norms_stands(monkeypatch):
    import eclipse_nn

    monkeypatch.setattr(eclipse_nn, "get_lip_estimates", lambda *a, **k: (math.nan, 0.0, -1))
    model = mlp(2, 3, 1).double().eval()
    result = local_lipschitz(model, torch.zeros(2).double(), 0.1, method="eclipse")
    first, last = (float(torch.linalg.matrix_norm(model[i].weight.data, 2)) for i in (1, 3))
    assert result.upper_bound == pytest.approx(math.sqrt(2) * first * last, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "message"), [("leaky_relu", "not LeakyReLU"), ("residual_from_input", "joins")]
)
def test_other_networks_are_refused(name, message):
    case = next(c for c in CASES if c.name == name)
    with pytest.raises(InputError, match=message):
        local_lipschitz(case.model(), case.point(), 0.1, method="eclipse")


def test_large_networks_are_refused():
    graph = build_graph(mlp(16, 600, 600, 2).eval(), (16,))
    with pytest.raises(InputError, match=r"1216 inputs and neurons.* at most 1000"):
        dense_chain(graph, "eclipse", eclipse.LARGEST)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"eclipse-nn.*pip install eclipse-nn"):
        local_lipschitz(CASES[0].model(), CASES[0].point(), 0.1, method="eclipse")
