import numpy as np
import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import points_in_box
from scipy.optimize import linprog

from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.plan import Plan
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search.subdomain_bounds import multipliers as beta
from lipschitz.search.subdomain_bounds.multipliers import SplitTightening, constrained_maximum


def random_program(seed, inputs=4, constraints=3):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(1, 2, inputs, generator=generator, dtype=torch.float64)
    b = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    matrix = torch.randn(1, constraints, inputs, generator=generator, dtype=torch.float64)
    matrix = matrix / matrix.norm(dim=2, keepdim=True)
    offsets = torch.rand(1, constraints, generator=generator, dtype=torch.float64) - 0.3
    return a, b, matrix, offsets


def exact_maximum(a, b, matrix, offsets):
    result = linprog(
        -a.numpy(), A_ub=-matrix.numpy(), b_ub=offsets.numpy(), bounds=[(-1, 1)] * len(a)
    )
    return -np.inf if result.status == 2 else float(b) - result.fun


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_never_below_the_linear_program(seed):
    a, b, matrix, offsets = random_program(seed)
    free = b + a.abs().sum(2)
    for steps in (0, 3, 100):
        found = constrained_maximum(a, b, matrix, offsets, steps=steps)
        assert (found <= free + 1e-12 * (1 + free.abs())).all()
        for row in range(2):
            exact = exact_maximum(a[0, row], b[0, row], matrix[0], offsets[0])
            assert found[0, row] >= exact - 1e-6  # the solver's tolerance


def test_close_to_the_linear_program():
    """Of what constraints can take off the bound, most is taken."""
    shares = []
    for seed in range(40):
        a, b, matrix, offsets = random_program(seed)
        exact = exact_maximum(a[0, 0], b[0, 0], matrix[0], offsets[0])
        free = float(b[0, 0] + a[0, 0].abs().sum())
        if np.isfinite(exact) and exact < free - 1e-6:
            found = float(constrained_maximum(a, b, matrix, offsets, steps=100)[0, 0])
            shares.append((found - exact) / (free - exact))
    assert len(shares) > 10
    assert np.mean(shares) < 0.1


def test_a_multiplier_of_the_wrong_sign_is_caught(monkeypatch):
    """Negative control: negative multipliers must give bounds below the linear program's."""
    a, b, matrix, offsets = random_program(3)
    monkeypatch.setattr(torch.Tensor, "clamp_", lambda self, min: self)
    below = False
    for seed in range(20):
        a, b, matrix, offsets = random_program(seed)
        found = constrained_maximum(a, b, matrix, offsets, steps=50)
        exact = exact_maximum(a[0, 0], b[0, 0], matrix[0], offsets[0])
        below |= bool(found[0, 0] < exact - 1e-6)
    assert below


def split_at_points(problem, root, count, share, seed=0):
    """Subdomains that hold one random point each: some open neurons are cut on its side."""
    generator = torch.Generator().manual_seed(seed)
    points = points_in_box(problem.lower, problem.upper, count, seed)[:count]
    values = problem.graph.values(points)
    preacts = {}
    for activation, bounds in root.preacts.items():
        value = values[problem.graph.nodes[activation].parents[0]]
        lower, upper = (end.expand_as(value).clone() for end in bounds)
        chosen = torch.rand(value.shape, generator=generator) < share
        chosen &= (lower < 0) & (upper > 0)
        lower[chosen & (value >= 0)] = 0
        upper[chosen & (value < 0)] = 0
        preacts[activation] = Interval(lower, upper)
    return values, preacts


def tightening(problem, root, steps=10, budget=2**23):
    return SplitTightening(
        Plan(problem.graph),
        problem.lower[None],
        problem.upper[None],
        root.rounding,
        steps=steps,
        budget=budget,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.1, 1.0])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_no_point_of_a_subdomain_is_lost(case, eps, share):
    problem = make_problem(build_graph(case.model(), case.input_shape), case.point(), eps)
    root = native_crown(problem)
    values, preacts = split_at_points(problem, root, 40, share)
    for activation, (lower, upper) in tightening(problem, root)(preacts).items():
        value = values[problem.graph.nodes[activation].parents[0]]
        assert (value >= lower).all()
        assert (value <= upper).all()
        assert (lower >= preacts[activation].lower).all()
        assert (upper <= preacts[activation].upper).all()


def test_it_tightens_the_first_layer_and_chunks_change_nothing():
    case = next(c for c in CASES if c.name == "mlp3")
    problem = make_problem(build_graph(case.model(), case.input_shape), case.point(), 1.0)
    root = native_crown(problem)
    _, preacts = split_at_points(problem, root, 40, 0.5)
    whole, small = (tightening(problem, root, budget=b)(preacts) for b in (2**30, 1))
    first = min(preacts)
    assert (whole[first].upper < preacts[first].upper - 1e-3).any()
    for activation in preacts:
        torch.testing.assert_close(whole[activation], small[activation])


def test_an_empty_subdomain_crosses():
    """x >= 0 and x + 1 <= 0: the third neuron's interval must cross."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 0.5]))
    problem = make_problem(build_graph(model.double().eval(), (1,)), torch.zeros(1), 2.0)
    root = native_crown(problem)
    (activation,) = root.preacts
    lower, upper = (end.clone() for end in root.preacts[activation])
    lower[0, 0], upper[0, 1] = 0.0, 0.0
    found = tightening(problem, root, steps=30)({activation: Interval(lower, upper)})[activation]
    assert bool((found.lower > found.upper).any())


def test_the_rounding_margin_is_given_back():
    a, b, matrix, offsets = (t.float() for t in random_program(5))
    exact = constrained_maximum(a.double(), b.double(), matrix.double(), offsets.double(), steps=9)
    assert (constrained_maximum(a, b, matrix, offsets, steps=9) >= exact - 1e-5).all()
    assert beta.guard(torch.float32) > 0
