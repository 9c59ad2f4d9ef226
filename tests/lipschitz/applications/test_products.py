"""Radii and signs of networks with products of two values."""

import pytest
import torch
from products import encoder, network
from torch import nn

from lipschitz import Prepared
from lipschitz.applications.radii import certify_example
from lipschitz.applications.sign_search import SignLimits
from lipschitz.applications.signs import entry_signs
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem


class Classifier(nn.Module):
    """One encoder layer, the mean over tokens, three classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = encoder(norm_first=True, activation="gelu"), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


def test_radii_of_attention_are_sound_and_of_use():
    module = Classifier().double().eval()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = int(module(x[None]).argmax())
    found = {
        method: certify_example(Prepared(module, (4, 8), method=method), x, label)
        for method in ("ibp", "crown")
    }
    radius = found["crown"].radius
    assert radius > 5 * found["ibp"].radius > 0
    generator = torch.Generator().manual_seed(2)
    signs = torch.rand(2000, 4, 8, generator=generator, dtype=torch.float64).sub(0.5).sign()
    assert (module(x + radius * signs).argmax(1) == label).all()
    point = x.clone().requires_grad_()
    for _ in range(30):  # an attack that stays inside
        logits = module(point[None])[0]
        others = torch.cat([logits[:label], logits[label + 1 :]]).max()
        (gradient,) = torch.autograd.grad(logits[label] - others, point)
        step = point - radius / 10 * gradient.sign()
        point = step.clamp(x - radius, x + radius).detach().requires_grad_()
        assert int(module(point[None]).argmax()) == label


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize(("name", "eps"), [("plant", 0.1), ("div", 0.2), ("attention", 0.05)])
def test_signs_are_those_of_every_gradient(name, eps, dtype):
    module, x = network(name, dtype)
    graph = build_graph(module, x.shape[1:])
    problem = make_problem(graph, x[0], eps, classes=[0])
    features = list(range(min(4, x[0].numel())))
    signs = entry_signs(problem, features, limits=SignLimits(timeout=2.0))
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(500, *x.shape[1:], generator=generator, dtype=torch.float64)
    share[250:] = share[250:].round()
    lower, upper = problem.lower.double(), problem.upper.double()
    points = lower + share * (upper - lower)
    rows = problem.rows.double().expand(len(points), -1)
    gradients = graph.double.gradients(points, rows).flatten(1)
    for sign in signs:
        values = gradients[:, sign.feature]
        assert sign.lower <= values.min()
        assert values.max() <= sign.upper
        if sign.verdict == "increasing":
            assert (values >= 0).all()
        elif sign.verdict == "decreasing":
            assert (values <= 0).all()
        elif sign.verdict == "neither":
            assert sign.positive is not None
            assert sign.negative is not None
    assert any(sign.verdict in ("increasing", "decreasing") for sign in signs)


def test_signs_that_the_root_leaves_open_are_found_by_cutting_the_box():
    """The factor of tanh is at least .93 - .5 - .421, which the whole box does not show."""

    class Bent(nn.Module):
        def forward(self, x):
            a, b = x[:, :1], x[:, 1:]
            return torch.tanh(a) * (0.93 + torch.sin(4 * b) * torch.cos(4 * b + 1))

    graph = build_graph(Bent().double().eval(), (2,))
    problem = make_problem(graph, torch.tensor([0.0, 0.5], dtype=torch.float64), 0.5)
    without = entry_signs(problem, [0], limits=SignLimits(timeout=0.0))[0]
    found = entry_signs(problem, [0], limits=SignLimits(timeout=10.0))[0]
    assert without.verdict == "undecided"
    assert found.verdict == "increasing"
    assert found.domains > 0


def test_slopes_below_the_smallest_number_of_single_precision_are_not_constant():
    class Tiny(nn.Module):
        def forward(self, x):
            return x[:, :1] * torch.exp(-200 - x[:, 1:] ** 2)

    graph = build_graph(Tiny().eval(), (2,))
    problem = make_problem(graph, torch.tensor([0.5, 0.3]), 0.1)
    rising, falling = entry_signs(problem, [0, 1], limits=SignLimits(timeout=0.0))
    assert (rising.verdict, falling.verdict) == ("increasing", "decreasing")
    assert rising.upper > 0 > falling.lower
