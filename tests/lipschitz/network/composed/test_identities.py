"""Functions written with those of the table: values, gradients, and intervals of both."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev, vmap

from lipschitz.bounds.native.interval import forward_intervals
from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.network.tracing import build_graph


class Calls(nn.Module):
    def __init__(self, function, size):
        super().__init__()
        self.first, self.function = nn.Linear(size, size), function

    def forward(self, x):
        return self.function(self.first(x))


def positive(y):
    return F.softplus(y) + 0.2


# name -> (function, input shape)
FUNCTIONS = {
    "hyperbolic": (lambda y: y.sinh() * torch.cosh(y), (4,)),
    "exponentials": (lambda y: torch.exp2(y) + torch.expm1(y.flip(1)), (4,)),
    "logarithms": (
        lambda y: positive(y).log2() + torch.log10(positive(y)) - positive(y).log1p(),
        (4,),
    ),
    "prod": (lambda y: y.prod(1, keepdim=True) + torch.prod(y[:, :3], dim=1)[:, None], (4,)),
    "addcmul": (lambda y: torch.addcmul(y, y.flip(1), y, value=0.5), (4,)),
    "addcdiv": (lambda y: torch.addcdiv(y, torch.ones_like(y), positive(y), value=-2.0), (4,)),
    "lerp": (lambda y: torch.lerp(y, y.flip(1), torch.sigmoid(y)), (4,)),
    "lerp_number": (lambda y: torch.lerp(y, torch.ones_like(y), y.tanh()), (4,)),
    "logaddexp": (lambda y: torch.logaddexp(y, y.flip(1)) + torch.logaddexp(y, y * 0 + 1), (4,)),
    "hypot": (lambda y: torch.hypot(y, positive(y.flip(1))), (4,)),
    "power_of_two": (lambda y: positive(y) ** y.tanh(), (4,)),
    "clamp_each": (lambda y: torch.clamp(y, max=torch.tensor([0.1, 0.2, 0.3, 4.0]).to(y)), (4,)),
    "fmax": (lambda y: torch.fmax(y, y.flip(1)) - torch.fmin(y, y.tanh()), (4,)),
    "vecdot": (lambda y: torch.linalg.vecdot(y, y.flip(1))[:, None], (4,)),
    "cosine": (lambda y: F.cosine_similarity(y, y.tanh() + 1, dim=-1)[:, None], (4,)),
    "distance": (lambda y: F.pairwise_distance(y, y.flip(1) + 3)[:, None], (4,)),
    "response_norm": (lambda y: F.local_response_norm(y, 2, alpha=0.5), (3, 4)),
    "var_mean": (lambda y: torch.cat(torch.var_mean(y, 1), 1), (3, 4)),
    "std_mean": (lambda y: torch.std_mean(y, 2, correction=0)[0], (3, 4)),
    "norm_of_most": (lambda y: torch.linalg.vector_norm(y, math.inf, dim=1), (3, 4)),
    "norm_of_three": (lambda y: torch.linalg.vector_norm(positive(y), 3, dim=1), (3, 4)),
    "norms": (lambda y: torch.linalg.norm(y, dim=2) + torch.linalg.matrix_norm(y)[:, None], (3, 4)),
    "logsumexp_two": (lambda y: y.logsumexp((1, 2))[:, None] + y.logsumexp(-1), (3, 4)),
    "log_softmax_first": (lambda y: y.log_softmax(1), (3, 4)),
    "bilinear_constant": (
        lambda y: F.bilinear(
            y, torch.ones(len(y), 2).to(y), torch.arange(24.0).view(3, 4, 2).to(y)
        ),
        (4,),
    ),
    "einsum_dots": (lambda y: torch.einsum("...ij,...kj->...ik", y, y), (3, 4)),
    "einsum_batch_dots": (lambda y: torch.einsum("b...j,b...j->b...", y, y.tanh()), (3, 4)),
    "einsum_diagonal": (lambda y: torch.einsum("bii,bij->bj", y, y), (4, 4)),
    "einsum_turned": (lambda y: torch.einsum("ibj,kbj->bik", *[y.transpose(0, 1)] * 2), (3, 4)),
    "quotient_of_power": (lambda y: y / positive(y) ** 1.5, (4,)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_gradients_and_intervals(name):
    function, shape = FUNCTIONS[name]
    torch.manual_seed(len(name))
    module = Calls(function, shape[-1]).double().eval()
    x = torch.rand(3, *shape, dtype=torch.float64)
    graph = build_graph(module, shape)
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach().flatten(1))
    expected = vmap(jacrev(lambda p: module(p[None]).flatten()))(x)
    identity = torch.eye(graph.num_outputs, dtype=torch.float64)[:4]
    generator = torch.Generator().manual_seed(0)
    for c, row in enumerate(identity):
        found = graph.gradients(x, row.expand(len(x), -1))
        torch.testing.assert_close(found, expected[:, c], rtol=1e-7, atol=1e-9)
    for eps in (1e-4, 0.02):
        lower, upper = x[:1] - eps, x[:1] + eps
        share = torch.rand(50, *shape, generator=generator, dtype=torch.float64)
        points = lower + (upper - lower) * share
        points = torch.minimum(torch.maximum(points, lower), upper)
        values = forward_intervals(graph, lower, upper).bounds[-1]
        assert (values.lower <= graph.values(points)[-1]).all()
        assert (graph.values(points)[-1] <= values.upper).all()
        bounds = gradient_intervals(graph, lower, upper, identity)
        for c, row in enumerate(identity):
            gradients = graph.gradients(points, row.expand(len(points), -1))
            slack = 1e-12 * (1 + gradients.abs())
            assert (bounds.lower[c] <= gradients + slack).all()
            assert (gradients - slack <= bounds.upper[c]).all()


def test_powers_that_differ_between_entries_are_refused():
    module = Calls(lambda y: positive(y) ** torch.tensor([1.0, 2.0]).to(y), 2).double().eval()
    with pytest.raises(NotImplementedError, match=r"pow.*one number as the exponent"):
        build_graph(module, (2,))
