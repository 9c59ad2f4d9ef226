"""Two neurons that are one sum in two orders: a gradient of both at once is made of rounding."""

import pytest
import torch
from torch import nn

import lipschitz.bounds.baselines.lipbab as lipbab
import lipschitz.bounds.baselines.lipmip as lipmip
from lipschitz.bounds.true_gradients import GradientNorms, gradient_norms
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem

METHODS = {"lipmip": (lipmip, lipmip.lipmip_bounds), "lipbab": (lipbab, lipbab.lipbab_bounds)}


class TwinSums(nn.Module):
    """``relu(z) - relu(-z')``, which is z, with z and z' the same sum in another order.

    Near ``z = 0`` rounding may make both positive, or neither: the gradient computed there is the
    weights twice, or 0.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weight = torch.randn(6)
        order = torch.randperm(6)
        self.shuffle = nn.Linear(6, 6, bias=False)
        self.first, self.second = nn.Linear(6, 1, bias=False), nn.Linear(6, 1, bias=False)
        with torch.no_grad():
            self.shuffle.weight.copy_(torch.eye(6)[order])
            self.first.weight.copy_(self.weight[None])
            self.second.weight.copy_(-self.weight[order][None])

    def forward(self, x):
        return torch.relu(self.first(x)) - torch.relu(self.second(self.shuffle(x)))


def computed_gradients(problem, points):
    """The rule before: whatever the network's own arithmetic says."""
    norms, winner = gradient_norms(problem.graph, points, problem.rows).max(dim=0)
    return GradientNorms(norms.clamp(min=0), points[winner])


@pytest.mark.parametrize("method", METHODS)
def test_no_constant_of_rounding_is_called_exact(method, monkeypatch):
    module, bounds = METHODS[method]
    doubled = 0
    for seed in (15, 23, *range(4)):
        model = TwinSums(seed).eval()
        true = float(model.weight.abs().sum())
        problem = make_problem(build_graph(model, (6,)), torch.zeros(6), 1.0)
        outcome = bounds(problem, timeout=20)
        assert float(outcome.found.norms) <= true * (1 + 1e-6)
        assert float(outcome.class_upper_bounds) >= true
        with monkeypatch.context() as patch:  # the test is one that can fail
            patch.setattr(module, "gradients_at", computed_gradients)
            doubled += float(bounds(problem, timeout=20).found.norms) > 1.5 * true
    assert doubled
