"""LipSDP: global bounds with their own certificate; what needs cvxpy is skipped without it."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from cases import CASES, REFERENCES, mlp
from oracles import jacobians, points_in_box
from torch import nn

from lipschitz import MethodOptions, Prepared, build_graph, local_lipschitz, make_problem
from lipschitz.bounds.baselines.lipsdp import Inequality, chain_of, lipsdp_bounds
from lipschitz.errors import InputError

needs_cvxpy = pytest.mark.skipif(
    importlib.util.find_spec("cvxpy") is None, reason="cvxpy is not installed"
)
BRANCHED = {"residual_from_input", "residual_convolution"}
CHAINS = [case for case in CASES if case.name not in BRANCHED]


@needs_cvxpy
@pytest.mark.parametrize("case", CHAINS, ids=lambda c: c.name)
def test_no_gradient_anywhere_beats_the_bound_and_norms_do_not_either(case):
    model = case.model()
    problem = make_problem(build_graph(model, case.input_shape), case.point(), 0.1)
    bounds = lipsdp_bounds(problem, timeout=1).class_upper_bounds
    everywhere = torch.full_like(case.point(), 5.0)
    norms = jacobians(model, points_in_box(-everywhere, everywhere, 200)).flatten(2)
    assert bool((norms.abs().sum(2).amax(0) <= bounds).all())
    # The L2 constant that was converted holds as well, which is the stronger statement.
    l2 = bounds / math.sqrt(problem.lower.numel())
    assert bool((norms.norm(dim=2).amax(0) <= l2).all())
    chain = chain_of(problem.graph)
    product = np.linalg.norm(chain.last, axis=1) * chain.scale
    assert bool((l2 <= torch.from_numpy(product) * (1 + 1e-9)).all())


@needs_cvxpy
def test_two_opposed_neurons_by_hand():
    """f = relu(x) + relu(-x) = |x|: constant 1, where the product of norms says 2."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    result = local_lipschitz(model, torch.zeros(1).double(), 0.1, method="lipsdp")
    assert result.upper_bound == pytest.approx(1.0, rel=1e-4)
    assert result.upper_bound >= 1


@needs_cvxpy
def test_the_reference_network():
    reference = REFERENCES[1]
    result = local_lipschitz(reference.model(), reference.point(), 0.05, method="lipsdp")
    assert reference.exact < result.upper_bound < 28  # the product of Linf norms is 170
    assert result.status == "bound"


@needs_cvxpy
def test_the_time_limit_leaves_the_product_of_norms():
    reference = REFERENCES[4]
    prepared = Prepared(
        reference.model(), (16,), method="lipsdp", options=MethodOptions(timeout=1e-3)
    )
    result = prepared.bound(make_problem(prepared.graph, reference.point(), 0.05))
    assert result.status == "timeout"
    assert reference.exact < result.upper_bound < math.inf


@pytest.mark.parametrize("name", sorted(BRANCHED))
def test_branches_are_refused_by_name(name):
    case = next(c for c in CASES if c.name == name)
    with pytest.raises(InputError, match="joins branches"):
        local_lipschitz(case.model(), case.point(), 0.1, method="lipsdp")


def test_large_networks_are_refused():
    graph = build_graph(mlp(16, 200, 200, 2).eval(), (16,))
    with pytest.raises(InputError, match=r"416 inputs and neurons.* at most 300"):
        chain_of(graph)


def test_without_cvxpy_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"cvxpy.*pip install cvxpy"):
        local_lipschitz(CASES[0].model(), CASES[0].point(), 0.1, method="lipsdp")


def _inequality():
    """f = |x| as above, its layers scaled to norm 1."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    inequality = Inequality(chain_of(build_graph(model, (1,))))
    return inequality, inequality.output(np.array([1.0, 1.0]) / math.sqrt(2))


def test_the_certificate_does_not_believe_the_solver():
    """Whatever is proposed: scaled to norms of 1, f = |x| / 2 and its squared constant is 1/4."""
    inequality, output = _inequality()
    generator = np.random.default_rng(0)
    for _ in range(200):
        proposed = float(generator.uniform(0, 1))
        multipliers = generator.uniform(-0.5, 4.0, size=2)
        assert inequality.certified(proposed, multipliers, output) >= 0.25
    assert inequality.certified(math.nan, np.ones(2), output) == 1.0


def test_a_proposal_taken_on_trust_would_be_caught():
    """Negative control: without the eigenvalue's correction a wrong rho stays wrong."""
    inequality, output = _inequality()
    wrong, multipliers = 0.1, np.ones(2)
    assert inequality.certified(wrong, multipliers, output) > 0.25 > wrong
