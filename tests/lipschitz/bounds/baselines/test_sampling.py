"""Sampling: lower bounds with witnesses, and never an upper bound."""

import math

import pytest
import torch
from cases import CASES, REFERENCES
from oracles import jacobian
from shared import graph_of, problem_of

from lipschitz import Prepared, local_lipschitz, make_problem
from lipschitz.bounds.baselines import sampling
from lipschitz.bounds.baselines.sampling import sampled_lower_bounds
from lipschitz.bounds.outcome import better
from lipschitz.bounds.true_gradients import GradientNorms, sample_gradients


@pytest.fixture
def few_climbs(monkeypatch):
    """What holds of one climb holds of eight."""
    monkeypatch.setattr(sampling, "_CLIMBS", 2)
    monkeypatch.setattr(sampling, "_LONGER", {"num_random": 64, "ascent_steps": 20})


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_lower_bound_is_the_gradient_at_its_witness(case, few_climbs):
    problem = problem_of(case, 0.3)
    found = sampled_lower_bounds(problem).found
    for row, (norm, point) in enumerate(zip(found.norms, found.witnesses, strict=True)):
        assert bool((point >= problem.lower).all() and (point <= problem.upper).all())
        true = jacobian(case.model(), point)[row].abs().sum()
        assert float(norm) == pytest.approx(float(true), rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_lower_bound_is_above_an_upper_bound(case, dtype, few_climbs):
    prepared = Prepared(graph_of(case, dtype), method="sampling")
    upper = Prepared(prepared.graph, method="crown", engine="native")
    for eps in (1e-3, 0.1, 3.0):
        result = prepared.bound(problem_of(case, eps, dtype))
        bound = float(upper.upper_bounds(problem_of(case, eps, dtype)).max())
        assert result.lower_bound <= bound < result.upper_bound == math.inf
        # Negative control: in a small box a hundredth more would be too much.
        assert eps > 1e-3 or result.lower_bound * 1.01 > bound or bound == 0


@pytest.mark.parametrize("reference", [r for r in REFERENCES if r.exact], ids=lambda r: r.file)
def test_it_stays_below_the_exact_constant_and_gets_near(reference):
    result = local_lipschitz(reference.model(), reference.point(), reference.eps, method="sampling")
    assert 0.9 * reference.exact < result.lower_bound <= reference.exact * (1 + 1e-9)


def test_nothing_is_certified_above():
    case = CASES[0]
    result = local_lipschitz(case.model(), case.point(), 0.0, method="sampling")
    assert result.status == "lower_bound_only"
    assert result.upper_bound == math.inf == max(result.class_upper_bounds)


def test_it_finds_at_least_what_accompanies_other_methods():
    reference = REFERENCES[1]
    prepared = Prepared(reference.model(), (16,), method="sampling")
    problem = make_problem(prepared.graph, reference.point(), reference.eps)
    assert bool(
        (sampled_lower_bounds(problem).found.norms >= sample_gradients(problem).norms).all()
    )


def test_the_better_of_two_keeps_norm_and_witness_together():
    first = GradientNorms(torch.tensor([1.0, 5.0]), torch.tensor([[1.0], [5.0]]))
    second = GradientNorms(torch.tensor([2.0, 4.0]), torch.tensor([[2.0], [4.0]]))
    both = better(first, second)
    assert both.norms.tolist() == [2.0, 5.0]
    assert both.witnesses[:, 0].tolist() == [2.0, 5.0]
