"""Splits of neurons at any point as constraints on the input."""

import pytest
import torch
from torch import nn

from lipschitz import make_problem
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.network.tracing import build_graph
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.heuristics import chooser
from tests.cases import mlp
from tests.oracles import points_in_box


@pytest.mark.parametrize("kind", [nn.Tanh, nn.GELU, nn.ReLU6, nn.Hardtanh, nn.ReLU])
def test_points_of_a_subdomain_keep_its_constraints(kind):
    torch.manual_seed(0)
    model = mlp(3, 6, 6, 1, activation=kind).double().eval()
    graph = build_graph(model, (3,))
    problem = make_problem(graph, torch.full((3,), 0.4, dtype=torch.float64), 1.0)
    search = NeuronSearch(problem, native_alpha(problem), chooser("slope"))
    subdomains = search.root()
    for _ in range(4):
        subdomains = subdomains.take(subdomains.choice >= 0)
        assert len(subdomains)
        subdomains = search.children(subdomains)
    matrix, constant = search.constraints(subdomains)
    points = points_in_box(problem.lower, problem.upper, 3000)
    values = graph.values(points)
    z = search.layout.join(
        {i: values[graph.nodes[i].parents[0]] for i in search.layout.slices}, len(points), points
    )
    belongs = (z >= subdomains.preact_lower.unsqueeze(1)).all(2)
    belongs &= (z <= subdomains.preact_upper.unsqueeze(1)).all(2)
    # Every point is in some subdomain: the halves are closed and bounds are sound.
    assert belongs.any(0).all()
    unit = (points - problem.centre) / ((problem.upper - problem.lower) / 2)
    slack = unit @ matrix.transpose(1, 2) + constant.unsqueeze(1)
    kept = (slack >= -1e-12).all(2)
    assert kept[belongs].all()
    # They say something: not every point of the box keeps those of every subdomain.
    assert not kept.all()
    # Negative control: constraints tightened by a tenth lose points.
    assert not ((slack >= 0.1).all(2))[belongs].all()
