"""Random compositions of products, softmax, normalisation and gates: bounds hold in every one."""

import copy
import math
from unittest.mock import patch

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from products import causal, positive
from torch import nn

from lipschitz.bounds.native.crown import interval_bounds
from lipschitz.bounds.native.products import product_bounds
from lipschitz.bounds.native.terms import relaxations
from lipschitz.bounds.true_gradients import Sampling, sample_gradients
from lipschitz.network.composed import softmax
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem

SHAPE = (3, 4)
# Of values [B, 3, 4] to the same shape.
STEPS = {
    "mul": lambda y: y * y.flip(-1),
    "mul_broadcast": lambda y: y * y[..., :1],
    "square": lambda y: y * y,
    "div": lambda y: y / positive(y.flip(-1)),
    "softmax": lambda y: F.softmax(5 * y, -1),
    "softmax_outer": lambda y: F.softmax(y, 1) * y,
    "masked": lambda y: (y @ y.mT).masked_fill(causal(3), -math.inf).softmax(-1) @ y,
    "attention": lambda y: F.softmax(y @ y.mT / 2, -1) @ y,
    "log_softmax": lambda y: F.log_softmax(y, -1),
    "layer_norm": lambda y: F.layer_norm(y, (4,), eps=1e-2),
    "norm_without_eps": lambda y: (y + 2) * (y + 2).square().add(0.1).mean(-1, True).rsqrt(),
    "gate": lambda y: y * torch.sigmoid(y.flip(-1)),
    "relu_gate": lambda y: F.relu(y) * y.flip(-1),
    "maximum": lambda y: torch.maximum(y, y.flip(-1)),
    "trig": lambda y: y.sin() * y.flip(-1).cos(),
    "exp_tanh": lambda y: torch.exp(y / 4) * y.tanh(),
    "cube": lambda y: y**3 / 6,
    "residual": lambda y: y + y.tanh() * y.flip(1),
}


class Composition(nn.Module):
    """Steps between two linear layers, of an input divided by its scale."""

    def __init__(self, names, scale, seed):
        super().__init__()
        self.steps, self.scale = [STEPS[name] for name in names], scale
        self.first, self.last = nn.Linear(4, 4), nn.Linear(12, 2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, x):
        y = self.first(x / self.scale)
        for step in self.steps:
            y = step(y)
        return self.last(y.flatten(1))


def problem_of(names, scale, radius, seed, dtype, norm="inf", outputs="each", corner=False):
    """Of a random composition; its box is open in some coordinates only, or begins at 0."""
    module = Composition(names, scale, seed).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    x = scale * torch.randn(SHAPE, generator=generator).to(dtype)
    eps = scale * radius * torch.randint(0, 3, SHAPE, generator=generator).to(dtype)
    lower, upper = (torch.zeros_like(x), 2 * eps) if corner else (x - eps, x + eps)
    box = {"x_lower": lower, "x_upper": upper}
    return module, make_problem(
        build_graph(copy.deepcopy(module).double(), SHAPE).to("cpu", dtype),
        norm=norm,
        outputs=outputs,
        **box,
    )


def points_of(problem, count=60):
    """Points inside the box and corners, in float64."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    share[count // 2 :] = share[count // 2 :].round()
    lower, upper = problem.lower.double(), problem.upper.double()
    return torch.minimum(lower + share * (upper - lower), upper)


def true_norms(module, problem, points):
    """Norms of the module's own Jacobians, by autograd in float64: [points, rows or 1]."""
    points = points.double().requires_grad_()
    y = copy.deepcopy(module).double()(points)
    rows = [torch.autograd.grad(y[:, c].sum(), points, retain_graph=True)[0] for c in range(2)]
    return problem.measure(torch.stack(rows, 1).flatten(2))


CASES = {
    "names": st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=3),
    "scale": st.sampled_from([1.0, 1e3, 1e6]),
    "radius": st.sampled_from([1e-6, 1e-3, 1e-2, 0.1]),
    "seed": st.integers(0, 99),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "norm": st.sampled_from(["inf", "1", "2"]),
    "outputs": st.sampled_from(["each", "all"]),
    "corner": st.booleans(),
}


@settings(max_examples=40)
@given(st.fixed_dictionaries(CASES), st.booleans())
def test_bounds_of_random_compositions(case, by_sum):
    with patch.object(softmax, "_MOST_DIFFERENCES", 0 if by_sum else 10**6):
        module, problem = problem_of(**case)
    if not problem.graph.product_nodes:
        return
    slack = 1e-9 if case["dtype"] == torch.float64 else 1e-5
    bound = product_bounds(problem).class_upper_bounds.double()
    assert (bound >= true_norms(module, problem, points_of(problem)).amax(0) * (1 - slack)).all()
    assert (bound <= interval_bounds(problem) * (1 + 1e-4) + 1e-30).all()
    found = sample_gradients(problem, Sampling(num_random=8, ascent_steps=2))
    at_witness = true_norms(module, problem, found.witnesses)
    assert (found.norms <= at_witness.diagonal() * (1 + slack) + 1e-30).all()
    assert (found.norms <= bound).all()


def test_planes_too_low_are_noticed():
    """Negative control: planes a little below the products end below true gradients."""
    original = relaxations.Planes.of

    def too_low(*arguments):
        planes = original(*arguments)
        return planes._replace(gap=-planes.gap - 0.05 * planes.size)

    caught = 0
    with patch.object(relaxations.Planes, "of", too_low):
        for name in ("mul", "attention", "layer_norm"):
            module, problem = problem_of([name], 1.0, 0.1, 0, torch.float64)
            true = true_norms(module, problem, points_of(problem)).amax(0)
            caught += bool((product_bounds(problem).class_upper_bounds < true).any())
    assert caught
