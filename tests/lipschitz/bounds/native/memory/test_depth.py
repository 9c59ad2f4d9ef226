import pytest
import torch
from torch import nn

from lipschitz import Prepared, make_problem
from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import interval_bounds, native_crown
from lipschitz.bounds.native.memory import depth
from lipschitz.bounds.native.memory.depth import cotangent_depth, value_depth
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.options import MethodOptions
from lipschitz.network.tracing import build_graph


class Residual(nn.Module):
    """Five convolutions with shortcuts, a pool and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)])
            for _ in range(2)
        )
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(6 * 9, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        for one, two in self.blocks:
            x = torch.relu(two(torch.relu(one(x))) + x)
        return self.last(self.pool(x).flatten(1))


@pytest.fixture(scope="module")
def graph():
    return build_graph(Residual().double().eval(), (2, 12, 12))


@pytest.fixture(scope="module")
def problem(graph):
    torch.manual_seed(1)
    return make_problem(graph, torch.rand(2, 12, 12).double(), 0.03)


def counts(plan):
    return {a: 100 for a in plan.activations if a not in plan.tree}


def test_rows_go_all_the_way_where_they_may(graph):
    plan = Plan(graph)
    for depth_of in (value_depth, cotangent_depth):
        found = depth_of(plan, counts(plan), 1, UNLIMITED)
        assert found.horizons == {}
        assert not found.for_time
        assert min(found.work.values()) > 0


def test_the_dearest_rows_end_first_and_all_come_to_what_is_allowed(graph, monkeypatch):
    plan = Plan(graph)
    for depth_of, share in ((value_depth, 1), (cotangent_depth, depth._COTANGENTS)):
        full = depth_of(plan, counts(plan), 1, UNLIMITED).work
        monkeypatch.setitem(depth._ALLOWANCE, "cpu", 0.8 * sum(full.values()) / share)
        found = depth_of(plan, counts(plan), 1, UNLIMITED)
        assert sum(found.work.values()) <= 0.8 * sum(full.values())
        assert max(full, key=full.get) in found.horizons
        assert min(full, key=full.get) not in found.horizons
        monkeypatch.undo()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.7])
@pytest.mark.parametrize("bound", [native_crown, native_alpha])
def test_rows_that_end_early_are_sound_and_not_above_intervals(
    graph, problem, monkeypatch, share, bound
):
    plan = Plan(graph)
    usual = bound(problem).class_upper_bounds
    for kind in (value_depth, cotangent_depth):
        assert not kind(plan, counts(plan), 3, UNLIMITED).horizons
    whole = sum(value_depth(plan, counts(plan), 1, UNLIMITED).work.values())
    monkeypatch.setitem(depth._ALLOWANCE, "cpu", share * whole)
    found = bound(problem).class_upper_bounds
    assert bool((found <= interval_bounds(problem) * (1 + 1e-12)).all())
    assert bool((found >= usual * (1 - 1e-9)).all())  # here rows lose by ending early
    if share == 0.0:
        assert bool((found > usual * 1.01).all())
    generator = torch.Generator().manual_seed(2)
    points = problem.lower + (problem.upper - problem.lower) * torch.rand(
        (200, *problem.lower.shape), generator=generator, dtype=torch.float64
    )
    for row, limit in zip(problem.rows, found, strict=True):
        gradients = graph.gradients(points, row.expand(len(points), -1))
        assert float(gradients.flatten(1).abs().sum(1).max()) <= float(limit)


def test_rows_that_end_early_beat_intervals(problem, monkeypatch):
    monkeypatch.setitem(depth._ALLOWANCE, "cpu", 0.0)  # every layer ends at the nearest node
    found = native_crown(problem).class_upper_bounds
    assert bool((found < 0.9 * interval_bounds(problem)).all())


def test_a_horizon_off_by_a_node_is_caught(problem, monkeypatch):
    """Negative control: intervals of other nodes than those at which rows end are no bound."""
    from lipschitz.bounds.native.forward import value_rows

    monkeypatch.setitem(depth._ALLOWANCE, "cpu", 0.0)
    right = native_crown(problem).class_upper_bounds
    original = value_rows.value_upper_bound

    def narrowed(*args, within=(), **others):
        middle = [type(i)((i.lower + i.upper) / 2, (i.lower + i.upper) / 2) for i in within]
        return original(*args, within=middle, **others)

    monkeypatch.setattr(value_rows, "value_upper_bound", narrowed)
    assert bool((native_crown(problem).class_upper_bounds < 0.99 * right).any())


def test_a_short_time_ends_rows_early_and_says_so(graph, problem, monkeypatch):
    monkeypatch.setitem(depth._RATE, "cpu", 1e3)
    prepared = Prepared(graph, method="crown", options=MethodOptions(timeout=60.0), engine="native")
    result = prepared.bound(problem)
    assert result.status == "timeout"
    assert any(stage.startswith("linear bounds of layer") for stage in result.not_reached)
    assert any(stage.startswith("linear bounds of cotangents") for stage in result.not_reached)
    assert value_depth(Plan(graph), {}, 1, Clock.of(60.0)).for_time is False
