import pytest
import torch
from cases import CASES
from oracles import jacobian, jacobians, points_in_box

from lipschitz.bounds.native.interval import (
    forward_intervals,
    jacobian_interval,
    product_interval,
    slope_intervals,
)
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [1e-3, 0.1, 1.0, 30.0])
def test_every_value_and_every_jacobian_entry_is_enclosed(case, eps):
    model = case.model()
    graph = build_graph(model, case.input_shape)
    problem = make_problem(graph, case.point(), eps)
    forward = forward_intervals(graph, problem.lower[None], problem.upper[None])
    preacts = {i: forward.bounds[graph.nodes[i].parents[0]] for i in graph.activation_nodes}
    entries = jacobian_interval(graph, problem.rows, slope_intervals(graph, preacts))
    points = points_in_box(problem.lower, problem.upper, 50)
    for value, bounds in zip(graph.values(points), forward.bounds, strict=True):
        assert (value >= bounds.lower).all()
        assert (value <= bounds.upper).all()
    sampled = jacobians(model, points)
    assert (sampled >= entries.lower - 1e-9).all()
    assert (sampled <= entries.upper + 1e-9).all()


def test_float32_values_stay_inside_despite_rounding():
    """The widening is there for this: values at corners of a box are sums of equal sign."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3000, 50).eval()
    graph = build_graph(layer, (3000,))
    centre = torch.rand(3000)
    bounds = forward_intervals(graph, centre[None] - 0.1, centre[None] + 0.1).bounds[1]
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    lower, upper = (centre - 0.1).double(), (centre + 0.1).double()
    highest = weight.clamp(min=0) @ upper + weight.clamp(max=0) @ lower + bias
    assert (highest <= bounds.upper.double()).all()


def test_product_of_intervals():
    g = torch.tensor([-2.0, 1.0, -3.0]), torch.tensor([1.0, 4.0, -1.0])
    s = torch.zeros(3), torch.tensor([1.0, 0.5, 1.0])
    lower, upper = product_interval(g, s)
    assert lower.tolist() == [-2, 0, -3]
    assert upper.tolist() == [1, 2, 0]


def test_an_interval_too_narrow_is_caught():
    """Negative control: entries scaled by 0.999 must be beaten by a sampled Jacobian."""
    case = next(c for c in CASES if c.name == "affine")
    model = case.model()
    graph = build_graph(model, case.input_shape)
    entries = jacobian_interval(graph, torch.eye(2).double(), {})
    j = jacobian(model, case.point())
    assert not (j.abs() <= 0.999 * entries.upper.abs() + 1e-9).all()
