from fractions import Fraction

import pytest
import torch
from cases import CASES
from oracles import exact_preactivations, jacobians, network_at_its_kinks, points_in_box

from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import Interval
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search.subdomain_bounds.full import DomainBounder


def problem_of(case, eps):
    model = case.model()
    return model, make_problem(build_graph(model, case.input_shape), case.point(), eps)


def subdomains_of_points(problem, root, points, share):
    """One subdomain around each point: a share of the open neurons cut on the point's side."""
    generator = torch.Generator().manual_seed(0)
    values = problem.graph.values(points)
    preacts = {}
    for activation, bounds in root.preacts.items():
        value = values[problem.graph.nodes[activation].parents[0]]
        lower, upper = (end.expand_as(value).clone() for end in bounds)
        chosen = torch.rand(value.shape, generator=generator) < share
        chosen &= (lower < 0) & (upper > 0)
        lower[chosen & (value >= 0)] = 0
        upper[chosen & (value < 0)] = 0
        preacts[activation] = Interval(lower, upper)
    return values, preacts


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize(("eps", "share"), [(0.1, 0.5), (1.0, 0.3), (1.0, 0.9)])
@pytest.mark.parametrize("steps", [0, 5])
def test_a_subdomain_s_bound_holds_at_its_point(case, eps, share, steps):
    model, problem = problem_of(case, eps)
    root = native_crown(problem)
    points = points_in_box(problem.lower, problem.upper, 20)
    values, preacts = subdomains_of_points(problem, root, points, share)
    rows = torch.arange(len(points)) % len(problem.rows)
    bounder = DomainBounder(problem, root, multiplier_steps=steps)
    norms = jacobians(model, points)[torch.arange(len(points)), rows].abs().flatten(1).sum(1)
    for refresh in (True, False):
        found = bounder(rows, preacts, refresh=refresh)
        assert not found.empty.any()
        # Both sides are sums with cancellation, so they carry more than the final guard.
        assert (norms <= found.upper_bound * (1 + 1e-12)).all()
        for activation, bounds in found.preacts.items():
            value = values[problem.graph.nodes[activation].parents[0]]
            assert (value >= bounds.lower).all()
            assert (value <= bounds.upper).all()
            assert (bounds.lower >= preacts[activation].lower).all()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_whole_box_is_never_looser_than_crown(case):
    _, problem = problem_of(case, 0.3)
    root = native_crown(problem)
    rows = torch.arange(len(problem.rows))
    preacts = {
        i: Interval(*(end.expand(len(rows), *end.shape[1:]) for end in bounds))
        for i, bounds in root.preacts.items()
    }
    found = DomainBounder(problem, root)(rows, preacts)
    assert (found.upper_bound <= root.class_upper_bounds * (1 + 1e-12)).all()


def test_a_subdomain_alone_and_in_a_batch_are_the_same():
    _, problem = problem_of(next(c for c in CASES if c.name == "mlp5"), 1.0)
    root = native_crown(problem)
    points = points_in_box(problem.lower, problem.upper, 5)
    _, preacts = subdomains_of_points(problem, root, points, 0.5)
    rows = torch.arange(len(points)) % len(problem.rows)
    together = DomainBounder(problem, root, multiplier_steps=4)(rows, preacts)
    small = DomainBounder(problem, root, multiplier_steps=4, memory_budget=1)(rows, preacts)
    torch.testing.assert_close(small.upper_bound, together.upper_bound)
    for i in range(len(points)):
        one = {a: Interval(*(end[i : i + 1] for end in b)) for a, b in preacts.items()}
        alone = DomainBounder(problem, root, multiplier_steps=4)(rows[i : i + 1], one)
        torch.testing.assert_close(alone.upper_bound, together.upper_bound[i : i + 1])


def test_splitting_everything_gives_the_gradient_norm_and_crossing_is_empty():
    model, problem = problem_of(next(c for c in CASES if c.name == "mlp3"), 1.0)
    root = native_crown(problem)
    points = points_in_box(problem.lower, problem.upper, 10)
    _, preacts = subdomains_of_points(problem, root, points, 1.1)
    rows = torch.zeros(len(points), dtype=torch.long)
    norms = jacobians(model, points)[:, 0].abs().flatten(1).sum(1)
    bounder = DomainBounder(problem, root)
    torch.testing.assert_close(bounder(rows, preacts).upper_bound, norms)
    first = min(preacts)
    preacts[first].upper[3, 0] = preacts[first].lower[3, 0] - 0.1
    found = bounder(rows, preacts)
    assert found.empty.tolist() == [i == 3 for i in range(len(points))]
    assert found.upper_bound[3] == -torch.inf


@pytest.mark.parametrize("steps", [0, 5])
def test_rounding_of_earlier_layers_excludes_no_point(steps):
    """Large terms cancel in one layer; the next, whose own terms are tiny, must allow for it."""
    for seed in range(60):
        model, x = network_at_its_kinks(seed)
        problem = make_problem(build_graph(model, (2,)), x, 0.0)
        root, exact = native_crown(problem), exact_preactivations(model, x)
        cut = {}
        for (activation, bounds), values in zip(root.preacts.items(), exact, strict=True):
            sign = torch.tensor([[(v > 0) - (v < 0) for v in values]])
            cut[activation] = Interval(
                torch.where(sign >= 0, bounds.lower.clamp(min=0), bounds.lower),
                torch.where(sign <= 0, bounds.upper.clamp(max=0), bounds.upper),
            )
        refreshed = DomainBounder(problem, root, multiplier_steps=steps).refreshed(cut)
        for (lower, upper), values in zip(refreshed.values(), exact, strict=True):
            for low, high, value in zip(lower[0].tolist(), upper[0].tolist(), values, strict=True):
                assert Fraction(low) <= value <= Fraction(high)
