"""Closed halves cover their parent; implications hold."""

import pytest
import torch
from cases import CASES, Case
from oracles import points_in_box
from scipy.optimize import linprog
from shared import problem_of
from torch import nn

import lipschitz.search.engines.neurons as native_search
from lipschitz.bounds.native.crown import native_crown
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.heuristics import chooser
from lipschitz.search.splits import closed_halves, implications


def search_of(case: Case, eps: float, heuristic: str = "sign") -> NeuronSearch:
    problem = problem_of(case, eps)
    return NeuronSearch(problem, native_crown(problem), chooser(heuristic), refresh_every=1)


def preacts(search: NeuronSearch, points):
    values = search.problem.graph.values(points)
    parts = {i: values[search.problem.graph.nodes[i].parents[0]] for i in search.layout.slices}
    return search.layout.join(parts, len(points), points)


def signed_norms(search: NeuronSearch, subdomains, index: int, points):
    """What the subdomain's bound is about: fixed entries with their sign, others by magnitude."""
    directions = search.problem.rows[subdomains.row[index]].expand(len(points), -1)
    entries = search.problem.graph.gradients(points, directions).flatten(1)
    sign = subdomains.entry_sign[index]
    return torch.where(sign == 0, entries.abs(), sign * entries).sum(1)


def inside(subdomains, index: int, truth):
    slack = 1e-12
    above = truth >= subdomains.preact_lower[index] - slack
    return (above & (truth <= subdomains.preact_upper[index] + slack)).all(1)


def lost_points(search: NeuronSearch, depth: int) -> int:
    """Points that fall between the children of a subdomain, or beat its bound."""
    points = points_in_box(search.problem.lower, search.problem.upper, 60)
    truth, lost = preacts(search, points), 0
    level = search.root()
    for _ in range(depth):
        parents = level.take(level.choice >= 0)
        parents = parents.take(torch.arange(min(12, len(parents))))
        if not len(parents):
            break
        level = search.children(parents)
        for index in range(len(parents)):
            halves = (index, index + len(parents))
            covered = torch.stack([inside(level, half, truth) for half in halves]).any(0)
            lost += int((inside(parents, index, truth) & ~covered).sum())
        level = search.refine(level).subdomains
        for index in range(len(level)):
            norms = signed_norms(search, level, index, points)[inside(level, index, truth)]
            lost += int((norms > level.upper_bound[index] * (1 + 1e-9) + 1e-12).sum())
    return lost


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("heuristic", ["sign", "slope"])
def test_no_point_is_lost_at_any_depth(case, heuristic):
    assert lost_points(search_of(case, 0.8, heuristic), depth=7) == 0


def test_a_split_that_forgets_a_strip_loses_points(monkeypatch):
    """Negative control."""

    def with_a_strip(parents, table=None):
        both, count = closed_halves(parents, table), len(parents)
        above = torch.arange(count, 2 * count)[parents.choice < parents.preact_lower.shape[1]]
        at = (above, parents.choice[above - count])
        both.preact_lower[at] = 0.05 * both.preact_upper[at]
        return both

    monkeypatch.setattr(native_search, "closed_halves", with_a_strip)
    assert lost_points(search_of(CASES[1], 0.8, "slope"), depth=5) > 0


def test_both_halves_contain_the_boundary():
    search = search_of(CASES[1], 0.8)
    parents = search.root()
    parents = parents.having(choice=torch.zeros_like(parents.choice))
    neuron = int(((parents.preact_lower[0] < 0) & (parents.preact_upper[0] > 0)).nonzero()[0])
    parents = parents.having(choice=torch.full_like(parents.choice, neuron))
    both, count = closed_halves(parents, search.table), len(parents)
    assert (both.preact_upper[:count, neuron] == 0).all()
    assert (both.preact_lower[count:, neuron] == 0).all()
    close = {"rtol": 1e-12, "atol": 1e-12}
    lower, upper = parents.preact_lower[:, neuron], parents.preact_upper[:, neuron]
    torch.testing.assert_close(both.preact_lower[:count, neuron], lower, **close)
    torch.testing.assert_close(both.preact_upper[count:, neuron], upper, **close)


def test_an_entry_is_counted_with_both_signs():
    search = search_of(CASES[1], 0.8)
    parents = search.root()
    entry = search.layout.total + 2
    both = closed_halves(parents.having(choice=torch.full_like(parents.choice, entry)))
    count = len(parents)
    assert (both.entry_sign[:count, 2] == -1).all()
    assert (both.entry_sign[count:, 2] == 1).all()
    assert both.entry_sign.abs().sum() == 2 * count
    assert not both.stale.any()


def test_implications_are_the_linear_programs():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    weight[3, 1] = 0
    centre = torch.randn(4, generator=generator, dtype=torch.float64)
    table = implications(torch.tensor([1, 2, 4, 5]), weight, centre, torch.zeros(4).double(), 7)
    assert table.position.tolist() == [-1, 0, 1, -1, 2, 3, -1]
    for k in range(4):
        for side, sign in ((0, -1), (1, 1)):
            for j in range(4):
                found = linprog(
                    -weight[j].numpy(),
                    A_ub=-sign * weight[k : k + 1].numpy(),
                    b_ub=sign * centre[k : k + 1].numpy(),
                    bounds=[(-1, 1)] * 3,
                )
                if found.status == 0:
                    exact = float(centre[j]) - found.fun
                    assert float(table.upper[k, side, j]) == pytest.approx(exact, abs=1e-7)
                    assert float(table.upper[k, side, j]) >= exact - 1e-9


def test_implications_allow_for_cancellation():
    """Far from the origin, in float32, z is the small difference of large terms."""
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)).eval()
        x = 1000 + torch.rand(3)
        with torch.no_grad():
            model[0].bias.copy_(-(model[0].weight @ x))
        problem = make_problem(build_graph(model, (3,)), x, 1e-3)
        search = NeuronSearch(problem, native_crown(problem), chooser())
        table, points = search.table, points_in_box(problem.lower, problem.upper, 500).double()
        values = points @ model[0].weight.double().T + model[0].bias.double()
        values = values[:, table.neurons]
        for k in range(values.shape[1]):
            for side, inside in ((0, values[:, k] <= 0), (1, values[:, k] >= 0)):
                assert (values[inside] >= table.lower[k, side]).all()
                assert (values[inside] <= table.upper[k, side]).all()


def test_no_table_for_large_layers():
    weight = torch.zeros(500, 1000)
    assert implications(torch.arange(500), weight, torch.zeros(500), torch.zeros(500), 500) is None
