"""LipBaB: its regions and its constants against enumeration."""

import numpy as np
import torch
from cases import CASES, REFERENCES, mlp
from enumeration import exact_constants
from oracles import jacobians, points_in_box

from lipschitz import MethodOptions, Prepared, build_graph, make_problem
from lipschitz.bounds.baselines import lipbab
from lipschitz.bounds.baselines.lipbab import lipbab_bounds, without_empty
from lipschitz.bounds.baselines.regions import RegionBounds


def solve(model, point, eps, timeout=20.0):
    prepared = Prepared(
        model, tuple(point.shape), method="lipbab", options=MethodOptions(timeout=timeout)
    )
    return prepared.bound(make_problem(prepared.graph, point, eps))


def test_the_time_limit_leaves_certified_bounds_that_fell():
    reference = REFERENCES[2]
    model, point = reference.model(), reference.point()
    short, longer = (solve(model, point, reference.eps, timeout=t) for t in (1e-3, 3.0))
    assert short.status == longer.status == "timeout"
    assert reference.exact < longer.upper_bound < short.upper_bound
    assert longer.lower_bound <= reference.exact * (1 + 1e-9)


def test_the_region_limit_is_a_status(monkeypatch):
    monkeypatch.setattr(lipbab, "_MAX_REGIONS", 50)
    reference = REFERENCES[2]
    result = solve(reference.model(), reference.point(), reference.eps)
    assert result.status == "domain_limit"
    assert result.upper_bound > reference.exact


def test_children_cover_their_parent():
    """Every sampled input lies in some region of every generation."""
    case = CASES[1]
    graph = build_graph(case.model(), case.input_shape)
    problem = make_problem(graph, case.point(), 1.0)
    search = RegionBounds(problem)
    points = points_in_box(problem.lower, problem.upper, 200)
    units = (points - case.point()) / 1.0
    regions = [search.root]
    for _ in range(5):
        going = [r for r in regions if bool(r.open_neurons.any())]
        done = [r for r in regions if not bool(r.open_neurons.any())]
        regions = done + without_empty(search.bounded(search.children(going)))[0]
        inside = [(units @ r.matrix.T + r.constant >= -1e-12).all(1) for r in regions]
        assert bool(torch.stack(inside).any(0).all())
    norms = jacobians(case.model(), points).abs().sum(2)
    for region, mask in zip(regions, inside, strict=True):
        if bool(mask.any()):
            assert bool((norms[mask].amax(0) <= region.row_bounds).all())


def test_a_lost_half_is_caught(monkeypatch):
    """Negative control: without the lower halves the constant is lost."""

    class Half(RegionBounds):
        def children(self, parents):
            return super().children(parents)[1::2]

    monkeypatch.setattr(lipbab, "RegionBounds", Half)
    torch.manual_seed(0)
    lost = 0
    for _ in range(5):
        model = mlp(2, 4, 3).double().eval()
        exact = exact_constants(model, np.full(2, -2.0), np.full(2, 2.0))
        problem = make_problem(build_graph(model, (2,)), torch.zeros(2).double(), 2.0)
        outcome = lipbab_bounds(problem, timeout=5)
        lost += int(float(outcome.class_upper_bounds.max()) < exact.max() * (1 - 1e-6))
    assert lost > 0
