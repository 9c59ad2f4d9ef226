import pytest
import torch
from torch import nn

from lipschitz import make_problem
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.forward.value_pass import value_upper_bound
from lipschitz.bounds.native.interval import Interval, forward_intervals
from lipschitz.bounds.native.lines import activation_lines
from lipschitz.bounds.native.plan import Plan, unit_rows
from lipschitz.bounds.native.slopes.attaining import attaining_values
from lipschitz.bounds.native.slopes.curves import CurveSlopes
from lipschitz.bounds.native.slopes.optimise import SlopeSearch
from lipschitz.network.tracing import build_graph
from tests.cases import mlp
from tests.oracles import jacobians, points_in_box


def problem_of(kind, *, eps: float, seed: int = 0):
    torch.manual_seed(seed)
    model = mlp(6, 16, 16, 16, 3, activation=kind).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    graph = build_graph(model, (6,))
    return model, make_problem(graph, torch.full((6,), 0.3, dtype=torch.float64), eps)


@pytest.mark.parametrize("kind", [nn.Tanh, nn.GELU, nn.Softplus, nn.Hardtanh])
def test_gradients_are_those_of_the_bound(kind):
    """Against finite differences of the bound of every row."""
    _, problem = problem_of(kind, eps=0.3)
    graph = problem.graph
    plan = Plan(graph)
    first, second = plan.activations[:2]
    lower, upper = problem.lower[None], problem.upper[None]
    box = ((lower + upper) / 2, (upper - lower) / 2)
    intervals = forward_intervals(graph, lower, upper)
    preact = intervals.bounds[plan.preact_node(first)]
    activation = graph.nodes[first].activation
    node = plan.preact_node(second)
    rows = unit_rows(torch.arange(5), graph.nodes[node].shape, lower)
    inside = Interval(*(end.unsqueeze(1) for end in preact))
    margin = torch.zeros_like(inside.lower)
    start = activation_lines(activation, preact)
    curve = CurveSlopes(activation, inside, margin, start, 1, rows.shape[1])

    record = {}
    at_start = value_upper_bound(plan, node, rows, {first: curve.lines()}, *box)
    torch.testing.assert_close(
        at_start, value_upper_bound(plan, node, rows, {first: start}, *box), rtol=1e-6, atol=1e-6
    )
    for share in curve.shares.values():
        share.copy_(0.2 + 0.6 * torch.rand(share.shape, dtype=share.dtype))
    lines = {first: curve.lines()}
    value_upper_bound(plan, node, rows, lines, *box, record)
    values = attaining_values(plan, record, lines, *box)
    found = curve.gradients(record[first].values, values[plan.preact_node(first)])
    step = 1e-5
    for side in (1, -1):
        for neuron in range(4):
            bounds = []
            for sign in (1, -1):
                curve.shares[side][..., neuron] += sign * step
                bounds.append(value_upper_bound(plan, node, rows, {first: curve.lines()}, *box))
                curve.shares[side][..., neuron] -= sign * step
            expected = (bounds[0] - bounds[1]) / (2 * step)
            torch.testing.assert_close(found[side][..., neuron], expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", [nn.Tanh, nn.GELU, nn.Softplus, nn.SiLU, nn.Hardswish])
def test_free_slopes_tighten_the_bound_and_keep_it_sound(kind):
    model, problem = problem_of(kind, eps=0.25)
    plain, free = native_crown(problem), native_alpha(problem)
    assert (free.class_upper_bounds <= plain.class_upper_bounds * (1 + 1e-9)).all()
    assert free.class_upper_bounds.max() < 0.98 * plain.class_upper_bounds.max()
    points = points_in_box(problem.lower, problem.upper, 500)
    values = problem.graph.values(points)
    for activation, (lower, upper) in free.preacts.items():
        z = values[problem.graph.nodes[activation].parents[0]]
        assert (lower <= z).all()
        assert (z <= upper).all()
    sampled = jacobians(model, points).abs().sum(2).amax(0)
    assert (sampled <= free.class_upper_bounds).all()
    none = native_alpha(problem, search=SlopeSearch(steps=0))
    assert (free.class_upper_bounds <= none.class_upper_bounds * (1 + 1e-9)).all()


def test_a_line_that_is_too_low_is_caught(monkeypatch):
    """Negative control: lines above moved down by a hundredth."""
    _, problem = problem_of(nn.Tanh, eps=0.01)
    lines = CurveSlopes.lines

    def lowered(self):
        found = lines(self)
        return found._replace(intercept_gap=found.intercept_gap - 1e-2)

    points = points_in_box(problem.lower, problem.upper, 500)
    values = problem.graph.values(points)
    assert holds(problem, values)
    monkeypatch.setattr(CurveSlopes, "lines", lowered)
    assert not holds(problem, values)


def holds(problem, values) -> bool:
    free = native_alpha(problem)
    return all(
        bool((values[problem.graph.nodes[a].parents[0]] <= upper).all())
        for a, (_, upper) in free.preacts.items()
    )
