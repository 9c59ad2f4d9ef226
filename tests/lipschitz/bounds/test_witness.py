"""True gradients as witnesses, at points where rounding decides the computed slopes too."""

import pytest
import torch
from cases import CASES
from oracles import jacobians, points_in_box
from products import network
from torch import nn

from lipschitz.bounds.true_gradients import sample_gradients
from lipschitz.bounds.witness import witness_norms
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_witness_norms_are_those_of_autograd(case):
    model, x = case.model(), case.point()
    problem = make_problem(build_graph(model, x.shape), x, 0.3)
    points = points_in_box(problem.lower, problem.upper, 4)
    rows = torch.arange(len(points)) % len(problem.rows)
    expected = jacobians(model, points).flatten(2).abs().sum(2)[torch.arange(len(points)), rows]
    torch.testing.assert_close(witness_norms(problem, points, rows), expected)


def test_a_kink_that_matters_counts_with_its_smallest_norm():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[0].bias.fill_(0.0)
    x = torch.zeros(1, dtype=torch.float64)
    problem = make_problem(build_graph(model, x.shape), x, 1.0)
    norms = witness_norms(problem, torch.tensor([[0.0], [0.5]]).double(), torch.tensor([0, 0]))
    assert norms[0] == 0
    assert norms[1] > 0


def test_slopes_that_rounding_has_mixed_are_no_gradient():
    """c relu(z) - relu(c z) is 0 everywhere, but computed signs of z and c z may differ."""
    factors = torch.tensor([1.0, 3.0, 5.0, 7.0, 11.0, 13.0]).double()
    misled = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randint(1, 1000, (3,), generator=generator).double()
        x = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
        bias = torch.round((weight * x).sum() * 64) / 64  # so that its multiples are exact
        x[2] = (bias - weight[:2] @ x[:2]) / weight[2]
        model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5)).double().eval()
        with torch.no_grad():
            model[0].weight.copy_(factors[:, None] * weight)
            model[0].bias.copy_(-factors * bias)
            model[2].weight.copy_(torch.cat([factors[1:, None], -torch.eye(5)], dim=1))
            model[2].bias.zero_()
        problem = make_problem(build_graph(model, (3,)), x, 0.0)
        assert (sample_gradients(problem).norms == 0).all()
        norms = witness_norms(problem, x.expand(5, 3), torch.arange(5))
        assert (norms == 0).all()
        misled += bool((jacobians(model, x[None]) != 0).any())
    assert misled > 5  # autograd at the same points


def test_float32_norms_are_those_of_both_precisions():
    model, x = CASES[1].model(torch.float32), CASES[1].point(torch.float32)
    problem = make_problem(build_graph(model, x.shape), x, 0.3)
    points = points_in_box(problem.lower, problem.upper, 20)
    norms = witness_norms(problem, points, torch.zeros(len(points), dtype=torch.long))
    assert norms.dtype == torch.float32
    for m, p in ((model, points), (CASES[1].model(), points.double())):
        true = jacobians(m, p)[:, 0].abs().sum(1)
        assert (norms <= true * (1 + 1e-6)).all()


def test_rounding_does_not_hide_gradients_of_deep_products():
    """By intervals at the point, two layers of attention left nothing of this gradient."""
    module, x = network("encoder")
    graph = build_graph(module, x.shape[1:])
    problem = make_problem(graph, x[0], 0.01, classes=[0])
    rows = torch.zeros(len(x), dtype=torch.long)
    gradients = graph.gradients(x, problem.rows.expand(len(x), -1))
    true = gradients.abs().flatten(1).sum(1)
    found = witness_norms(problem, x, rows)
    assert (found <= true).all()
    assert (found >= true * (1 - 1e-6)).all()


class _Kinked(nn.Module):
    """``y (relu(z) - relu(-z))`` is ``y z``, with a kink that is none at z = 0."""

    def forward(self, x):
        z = x[:, :1] - x[:, 1:2]
        return x[:, 2:] * (torch.relu(z) - torch.relu(-z))


def test_kinks_beside_products_stay_open():
    graph = build_graph(_Kinked().eval(), (3,)).double
    point = torch.tensor([[0.5, 0.5, 2.0], [0.6, 0.5, 2.0]], dtype=torch.float64)
    problem = make_problem(graph, point[0], 0.1)
    found = witness_norms(problem, point, torch.zeros(2, dtype=torch.long))
    assert float(found[0]) <= 1e-6  # at the kink slopes from 0 to 2 are possible
    assert float(found[1]) == pytest.approx(2 + 2 + 0.1, rel=1e-6)
