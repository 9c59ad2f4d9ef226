"""Fast-Lip: interval arithmetic on the Jacobian with Fast-Lin's neurons."""

import pytest
import torch
from cases import CASES, REFERENCES
from oracles import jacobians, points_in_box

from lipschitz import build_graph, make_problem
from lipschitz.bounds.baselines import fastlip
from lipschitz.bounds.baselines.fastlip import fastlin_preactivations, fastlip_bound, parallel_lines
from lipschitz.bounds.native.interval import Interval, forward_intervals
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.terms.jacobian import interval_bound
from lipschitz.network.activations import PiecewiseLinear

BUDGET = 2**20


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3, 3.0])
def test_every_row_lies_between_gradients_and_interval_arithmetic(case, eps):
    """A theorem: what interval arithmetic calls stable stays so, and less is uncertain."""
    model = case.model()
    problem = make_problem(build_graph(model, case.input_shape), case.point(), eps)
    bound = fastlip_bound(problem)
    interval = interval_bound(problem.graph, problem.lower, problem.upper, problem.rows)
    norms = jacobians(model, points_in_box(problem.lower, problem.upper, 50))
    assert bool((norms.abs().flatten(2).sum(2).amax(0) <= bound * (1 + 1e-12)).all())
    assert bool((bound <= interval * (1 + 1e-12)).all())


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r.file}-{r.eps}")
def test_it_is_no_vacuous_bound(reference):
    model, point = reference.model(), reference.point()
    problem = make_problem(build_graph(model, tuple(point.shape)), point, reference.eps)
    bound = float(fastlip_bound(problem).max())
    assert reference.crown_root < bound < 2.2 * reference.crown_root


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_preactivations_hold_sampled_values(case):
    graph = build_graph(case.model(), case.input_shape)
    problem = make_problem(graph, case.point(), 0.3)
    lower, upper = problem.lower[None], problem.upper[None]
    plan = Plan(graph)
    intervals = forward_intervals(graph, lower, upper)
    found = fastlin_preactivations(plan, lower, upper, intervals, BUDGET)
    values = graph.values(points_in_box(problem.lower, problem.upper, 50))
    for activation, preact in found.items():
        z = values[plan.preact_node(activation)]
        assert bool((z >= preact.lower).all() and (z <= preact.upper).all())


def test_lines_are_parallel_around_an_unstable_neuron():
    preact = Interval(torch.tensor([[-1.0, 1.0, -2.0]]), torch.tensor([[3.0, 2.0, -1.0]]))
    lines = parallel_lines(PiecewiseLinear(), preact)
    assert lines.lower_slope[0, 0].tolist() == [0.75, 1.0, 0.0]
    assert lines.slope_gap[0, 0].tolist() == [0.0, 0.0, 0.0]
    assert lines.intercept_gap[0].tolist() == [0.75, 0.0, 0.0]


def test_neurons_wrongly_called_stable_are_caught(monkeypatch):
    """Negative control."""

    def shrunk(*args):
        found = fastlin_preactivations(*args)
        return {i: Interval(b.lower.clamp(min=0), b.upper) for i, b in found.items()}

    monkeypatch.setattr(fastlip, "fastlin_preactivations", shrunk)
    reference = REFERENCES[2]
    model = reference.model()
    problem = make_problem(build_graph(model, (16,)), reference.point(), reference.eps)
    norms = jacobians(model, points_in_box(problem.lower, problem.upper, 100))
    assert bool((norms.abs().sum(2).amax(0) > fastlip_bound(problem)).any())
