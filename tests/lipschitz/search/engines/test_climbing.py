"""Ascent on curved networks: points of the box, never lower than the start, near the top."""

import pytest
import torch
from torch import nn

from lipschitz.network.tracing import build_graph
from lipschitz.norms import Measure
from lipschitz.search.engines.climbing import climb, steepest
from lipschitz.search.engines.trends import hessian_terms


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_climbs_to_the_largest_gradient(norm):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double().eval()
    graph, measure = build_graph(model, (2,)), Measure(norm)
    lower, upper = -torch.ones(2).double(), torch.ones(2).double()
    axis = torch.linspace(-1, 1, 101, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    rows = torch.ones(len(points), 1).double()
    values = measure.of_rows(graph.gradients(points, rows))
    start = points[::2000]
    found = climb(hessian_terms(graph, 2**24), rows[::2000], start, lower, upper, steepest(measure))
    assert found.shape == start.shape
    assert ((found >= lower) & (found <= upper)).all()
    reached = measure.of_rows(graph.gradients(found, rows[::2000]))
    assert (reached >= values[::2000]).all()
    assert float(reached.max()) >= float(values.max()) * (1 - 1e-3)
