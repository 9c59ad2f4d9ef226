"""Zonotopes around pre-activations and gradients hold every point of their regions."""

import pytest
import torch
from torch import nn

from lipschitz.bounds.native.plan import Plan
from lipschitz.network.tracing import build_graph
from lipschitz.norms import Measure
from lipschitz.search.subdomain_bounds.halfspaces import smaller_boxes
from lipschitz.search.subdomain_bounds.zonotope_norms import norms_of_zonotopes
from lipschitz.search.subdomain_bounds.zonotopes import Gradients, ZonotopePass
from lipschitz.search.subdomains import NeuronLayout


class Branched(nn.Module):
    """Two branches of different depth that are added, and a value that skips both."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(3, 8)
        self.last, self.activation = nn.Linear(8, 2), activation

    def forward(self, x):
        deep = self.activation(self.second(self.activation(self.first(x))))
        return self.last(self.activation(deep + self.third(x) - 0.3))


def convolutional() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    )


MODELS = {
    "relu": lambda: Branched(nn.ReLU()),
    "leaky": lambda: Branched(nn.LeakyReLU(0.3)),
    "convolution": convolutional,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_every_point_with_the_fixed_signs_is_inside(name, dtype):
    model = MODELS[name]().to(dtype).eval()
    graph = build_graph(model, (3,))
    plan = Plan(graph)
    layout = NeuronLayout(graph, plan.activations)
    engine = ZonotopePass(plan, layout)
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(12, 3, generator=generator, dtype=torch.float64) - 0.5
    radius = torch.logspace(-3, 0, 12, dtype=torch.float64)[:, None].expand(12, 3)
    lower, upper = (centres - radius).to(dtype), (centres + radius).to(dtype)
    share = torch.rand(400, 12, 3, generator=generator, dtype=torch.float64)
    points = (lower + share * (upper.double() - lower)).reshape(-1, 3)
    exact = graph.double
    values = exact.values(points)
    preacts = torch.cat([values[exact.nodes[i].parents[0]].flatten(1) for i in layout.slices], 1)
    preacts = preacts.reshape(400, 12, -1)
    # Some signs of a point of each box are fixed, so that the region is not empty.
    fixed = torch.rand(12, layout.total, generator=generator) < 0.4
    sign = torch.where(fixed, preacts[0].sign(), 0.0).to(torch.int8)
    rows = torch.eye(2, dtype=dtype)[torch.arange(12) % 2]
    neurons = engine.neurons(lower, upper, sign)
    gradients = engine.gradients(rows, neurons, sign)
    inside = (preacts * sign >= 0).all(2)
    assert not neurons.empty.any()
    true = exact.gradients(points, rows.double().repeat(400, 1)).reshape(400, 12, 3)
    radius = gradients.columns.abs().sum(1) + gradients.rounding
    for k in range(12):
        here = preacts[inside[:, k], k]
        assert len(here)
        assert (here >= neurons.lower[k].double() - 1e-12).all()
        assert (here <= neurons.upper[k].double() + 1e-12).all()
        off = (true[inside[:, k], k] - gradients.centre[k].double()).abs()
        assert (off <= radius[k].double() + 1e-12).all()
        for norm in ("inf", "1", "2"):
            measure = Measure(norm)
            bound = norms_of_zonotopes(gradients, measure).upper_bound[k].double()
            assert (measure.of_rows(true[inside[:, k], k]) <= bound + 1e-12).all()
        tied = (neurons.spaces.matrix[k].double(), neurons.spaces.constant[k].double())
        middle, half = (lower[k] + upper[k]).double() / 2, (upper[k] - lower[k]).double() / 2
        moved = (points.reshape(400, 12, 3)[inside[:, k], k] - middle) / half
        assert (moved @ tied[0].T + tied[1] >= -1e-6 * (dtype == torch.float32) - 1e-12).all()


def test_contradictory_signs_are_empty():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    model[0].weight.data = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    model[0].bias = nn.Parameter(torch.tensor([-0.5, 0.5], dtype=torch.float64))
    graph = build_graph(model, (1,))
    plan = Plan(graph)
    engine = ZonotopePass(plan, NeuronLayout(graph, plan.activations))
    ends = -torch.ones(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    sign = torch.tensor([[1, -1], [-1, 1]], dtype=torch.int8)  # x >= 0.5 and x <= -0.5; the rest
    neurons = engine.neurons(*ends, sign)
    box, empty = smaller_boxes(*ends, neurons.spaces, ends[0].dtype)
    assert (empty | neurons.empty).tolist() == [True, False]
    assert abs(float(box.lower[1]) + 0.5) < 1e-12
    assert abs(float(box.upper[1]) - 0.5) < 1e-12


@pytest.mark.parametrize("inputs", [1, 2, 4, 7])
@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_norms_hold_for_every_choice_of_symbols(norm, inputs):
    generator = torch.Generator().manual_seed(inputs)
    centre = torch.randn(5, inputs, generator=generator, dtype=torch.float64)
    columns = torch.randn(5, 6, inputs, generator=generator, dtype=torch.float64)
    columns = columns * torch.tensor([0.0, 0.1, 0.5, 1.0, 3.0]).double()[:, None, None]
    gradients = Gradients(centre, columns, torch.zeros(5, 6).long(), torch.zeros_like(centre))
    found = norms_of_zonotopes(gradients, Measure(norm))
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 6)
    all_norms = Measure(norm).of_rows(centre[:, None] + corners @ columns)
    assert (found.upper_bound >= all_norms.amax(1) * (1 - 1e-12)).all()
    if norm != "2" and inputs <= 5:  # nothing is lost: the norm is largest at a corner
        assert (found.upper_bound <= all_norms.amax(1) * (1 + 1e-9)).all()
