"""RecurJac: its relaxation, its place between interval arithmetic and CROWN."""

from dataclasses import replace

import pytest
import torch
from cases import CASES, REFERENCES
from oracles import jacobians, points_in_box
from torch import nn

from lipschitz import build_graph, local_lipschitz, make_problem
from lipschitz.bounds.baselines import recurjac
from lipschitz.bounds.baselines.recurjac import fixed_sign_lines, recurjac_bound
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.terms.jacobian import interval_bound


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3, 3.0])
def test_every_row_lies_between_crown_and_interval_arithmetic(case, eps):
    """A theorem: CROWN's chords lie within the constants, and these within the interval."""
    problem = make_problem(build_graph(case.model(), case.input_shape), case.point(), eps)
    bound = recurjac_bound(problem)
    crown = native_crown(problem).class_upper_bounds
    interval = interval_bound(problem.graph, problem.lower, problem.upper, problem.rows)
    assert bool((crown <= bound * (1 + 1e-12)).all())
    assert bool((bound <= interval * (1 + 1e-12)).all())


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r.file}-{r.eps}")
def test_it_is_strictly_between_on_the_reference_networks(reference):
    model, point = reference.model(), reference.point()
    problem = make_problem(build_graph(model, tuple(point.shape)), point, reference.eps)
    interval = interval_bound(problem.graph, problem.lower, problem.upper, problem.rows)
    bound = float(recurjac_bound(problem).max())
    assert reference.crown_root * 1.001 < bound < float(interval.max()) * 0.999


def test_the_recursion_by_hand():
    """f = relu(b) - relu(b - 1) through b = relu(x + y) + relu(x - y) over [-1, 1]^2.

    The last cotangents are 1 and -1, of fixed sign: with both second-layer neurons unstable, g of
    a first-layer neuron lies in [-1, 1], its product with a slope in [-1, 1], and each entry, a
    sum or difference of two such, in [-2, 2]: 4 in all.
    """
    model = nn.Sequential(
        nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
        model[2].bias.copy_(torch.tensor([-0.5, -1.0]))
        model[4].weight.copy_(torch.tensor([[1.0, -1.0]]))
    result = local_lipschitz(model.eval(), torch.zeros(2).double(), 1.0, method="recurjac")
    assert result.upper_bound == pytest.approx(4.0)


def test_lines_are_those_of_the_paper():
    cotangent = Interval(torch.tensor([[1.0, -3.0, -2.0]]), torch.tensor([[2.0, -1.0, 4.0]]))
    slope = Interval(torch.zeros(1, 3), torch.ones(1, 3))
    lines = fixed_sign_lines(cotangent, slope)
    assert lines.lower_slope[0, 0].tolist() == [0.0, 1.0, 0.0]
    assert (lines.lower_slope + lines.slope_gap)[0, 0].tolist() == [1.0, 0.0, 0.0]
    assert lines.lower_intercept[0].tolist() == [0.0, 0.0, -2.0]
    assert (lines.lower_intercept + lines.intercept_gap)[0].tolist() == [0.0, 0.0, 4.0]


def test_a_relaxation_that_forgets_open_signs_is_caught(monkeypatch):
    """Negative control: treated as fixed, an open sign breaks the bound."""

    def wrong(cotangent, slope):
        sign_forgotten = Interval(cotangent.upper, cotangent.upper)
        return fixed_sign_lines(sign_forgotten, slope)

    monkeypatch.setattr(recurjac, "fixed_sign_lines", wrong)
    reference = replace(REFERENCES[2])
    model = reference.model()
    problem = make_problem(build_graph(model, (16,)), reference.point(), reference.eps)
    norms = jacobians(model, points_in_box(problem.lower, problem.upper, 100))
    assert bool((norms.abs().sum(2).amax(0) > recurjac_bound(problem)).any())
