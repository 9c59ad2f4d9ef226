"""Coupled pre-activation bounds: against values of points, against lines, with controls."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.coupled import certificate, root
from lipschitz.bounds.coupled.chain import read_chain
from lipschitz.bounds.coupled.descent import Descent
from lipschitz.bounds.coupled.elementwise import grid_of, parts_of
from lipschitz.bounds.coupled.root import coupled_root
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.plan import Plan
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem

ACTIVATIONS = [
    nn.ReLU,
    lambda: nn.LeakyReLU(0.1),
    nn.ReLU6,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.Softplus,
]
NAMES = [
    "relu",
    "leaky",
    "relu6",
    "hardtanh",
    "sigmoid",
    "tanh",
    "gelu",
    "silu",
    "elu",
    "softplus",
]


def network(
    activation=nn.ReLU, inputs=40, width=16, depth=3, gain=2.0, seed=0, dtype=torch.float64
) -> nn.Module:
    torch.manual_seed(seed)
    sizes = [inputs, *[width] * depth]
    layers = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    model = nn.Sequential(*layers, nn.Linear(width, 2)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    return model


def problem_of(model: nn.Module, eps: float = 0.3, shape: tuple[int, ...] = (40,)) -> LocalProblem:
    dtype = next(model.parameters()).dtype
    centre = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return make_problem(build_graph(model, shape), centre, eps)


def points_of(problem: LocalProblem, count: int = 2000) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shares = torch.rand((count, *problem.lower.shape), generator=generator, dtype=torch.float64)
    shares = torch.cat([shares, shares.round()])
    return problem.lower.double() + shares * (problem.upper - problem.lower).double()


def attacked(problem: LocalProblem, node: int, steps: int = 40) -> tuple[Tensor, Tensor]:
    """Smallest and largest values of a node that sign ascent reaches."""
    graph, ends = problem.graph.double, []
    lower, upper = problem.lower.double(), problem.upper.double()
    for sign in (-1, 1):
        count = graph.nodes[node].shape.numel()
        x, best = ((lower + upper) / 2).repeat(count, *[1] * lower.dim()), None
        for step in range(steps):
            x.requires_grad_(True)
            with torch.enable_grad():
                value = sign * graph.values(x)[node].flatten(1).diagonal()
                gradient = torch.autograd.grad(value.sum(), x)[0]
            value = value.detach()
            best = value if best is None else torch.maximum(best, value)
            x = x.detach() + (upper - lower) * gradient.sign() / (2 + step)
            x = torch.minimum(torch.maximum(x, lower), upper)
        ends.append(sign * best)
    return ends[0], ends[1]


def assert_sound(problem: LocalProblem, preacts: dict[int, Interval]) -> None:
    values = problem.graph.double.values(points_of(problem))
    for activation, (lower, upper) in preacts.items():
        node = problem.graph.nodes[activation].parents[0]
        low, high = attacked(problem, node)
        low = torch.minimum(low, values[node].flatten(1).amin(0))
        high = torch.maximum(high, values[node].flatten(1).amax(0))
        assert bool((lower.flatten() <= low).all())
        assert bool((upper.flatten() >= high).all())


@pytest.mark.parametrize("name", NAMES)
def test_contains_values_and_is_nowhere_wider(name):
    number = NAMES.index(name)
    activation, dtype = ACTIVATIONS[number], [torch.float32, torch.float64][number % 2]
    problem = problem_of(network(activation, dtype=dtype))
    before = native_alpha(problem)
    after = coupled_root(problem, before)
    assert_sound(problem, after.preacts)
    for node, (lower, upper) in after.preacts.items():
        assert lower.dtype == dtype
        assert bool((lower >= before.preacts[node].lower).all())
        assert bool((upper <= before.preacts[node].upper).all())
    gradients = problem.graph.double.gradients
    points = points_of(problem, 500)
    for row, bound in zip(problem.rows, after.class_upper_bounds, strict=True):
        norms = gradients(points, row.double().expand(len(points), -1)).flatten(1).abs().sum(1)
        assert float(norms.max()) <= float(bound)
    assert bool((after.class_upper_bounds <= before.class_upper_bounds).all())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid], ids=["relu", "sigmoid"])
def test_many_inputs_are_bounded_far_more_tightly(activation):
    """Lines let all neurons of a layer go to their worst places at once."""
    problem = problem_of(network(activation, inputs=200, width=40, depth=2, gain=2.5), 0.15, (200,))
    before = native_alpha(problem)
    after = coupled_root(problem, before)
    last = max(before.preacts)
    low, high = attacked(problem, problem.graph.nodes[last].parents[0])
    is_open = problem.graph.nodes[last].activation.is_open(*before.preacts[last]).flatten()

    def excess(preacts):
        width = (preacts[last].upper - preacts[last].lower).flatten() / (high - low)
        return float(width[is_open].mean()) - 1

    assert excess(after.preacts) < 0.6 * excess(before.preacts)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    activation=st.sampled_from(ACTIVATIONS),
    inputs=st.integers(1, 6),
    width=st.integers(1, 6),
    depth=st.integers(2, 3),
    eps=st.floats(1e-3, 2.0),
)
def test_random_networks_contain_their_values(seed, activation, inputs, width, depth, eps):
    model = network(activation, inputs, width, depth, seed=seed)
    problem = problem_of(model, eps, (inputs,))
    assert_sound(problem, coupled_root(problem, native_alpha(problem)).preacts)


def test_parts_bound_what_a_neuron_contributes():
    problem = problem_of(network(nn.Sigmoid, depth=2))
    layer = read_chain(problem, Plan(problem.graph))[1]
    preact = native_alpha(problem).preacts[layer.node]
    preact = Interval(*(end.flatten() for end in preact))
    generator = torch.Generator().manual_seed(3)
    h, g = torch.randn(2, 30, 16, generator=generator, dtype=torch.float64)
    p, square = torch.rand(2, 30, 16, generator=generator, dtype=torch.float64)
    bound = parts_of(layer, preact).upper_bounds(h, p, g, square)
    z = torch.lerp(preact.lower, preact.upper, torch.linspace(0, 1, 4001).double().unsqueeze(1))
    zeta = z - layer.centre
    eta = layer.values(z) - layer.values(layer.centre)
    h, p, g, square = (c.unsqueeze(1) for c in (h, p, g, square))
    largest = (h * eta + p * eta**2 - g * zeta - square * zeta**2).amax(1).sum(1)
    assert bool((bound >= largest).all())
    assert bool((bound <= largest + 0.1).all())


def certified(problem: LocalProblem, rounded: bool) -> tuple[Tensor, Tensor]:
    """Proved bounds of the second layer of a network without kinks, and the true largest values."""
    layers = read_chain(problem, Plan(problem.graph))
    preact = Interval(*(end.flatten() for end in native_alpha(problem).preacts[layers[0].node]))
    grids, parts = [grid_of(layers[0], preact, 9, torch.float32)], [parts_of(layers[0], preact)]
    matrices = root._in_units(layers[:1], grids)
    rows = layers[1].matrix * grids[0].value_unit
    single = [matrix.float() for matrix in matrices]
    found = Descent(grids, single, rows.float(), torch.Generator().manual_seed(0))
    for layer in found.layers:  # the multipliers that are exact where nothing bends
        layer.slope_unit, layer.slope_share = torch.ones(()), rows
        layer.log_square = layer.log_square.double()
    used = [matrix.double() for matrix in single] if rounded else matrices
    bound = certificate.proved_bounds(found.layers, used, grids, parts, rows)
    return bound, (layers[1].matrix @ layers[0].matrix).abs().sum(1)


def test_rounded_matrices_prove_nothing():
    """Where all neurons are on, bounds are exact, and matrices in float32 would cut them off."""
    model = network(depth=2)
    with torch.no_grad():
        model[0].bias.fill_(100)
    problem = problem_of(model)
    bound, true = certified(problem, rounded=False)
    assert bool((bound >= true).all())
    assert bool((bound <= true * (1 + 1e-6)).all())
    bound, _ = certified(problem, rounded=True)
    assert not bool((bound >= true).all())


def test_control_too_small_majorants_cut_values_off(monkeypatch):
    """With p at a tenth of what is proved, intervals lose values that are attained."""
    whole = certificate._largest_eigenvalue
    monkeypatch.setattr(certificate, "_largest_eigenvalue", lambda matrix: whole(matrix) / 10)
    problem = problem_of(network(nn.ReLU, inputs=200, width=40, depth=2, gain=2.5), 0.15, (200,))
    with pytest.raises(AssertionError):
        assert_sound(problem, coupled_root(problem, native_alpha(problem)).preacts)


def test_largest_eigenvalue_is_never_below():
    matrix = torch.randn(50, 12, 12, generator=torch.Generator().manual_seed(4)).double()
    matrix = matrix @ matrix.mT
    exact = torch.linalg.eigvalsh(matrix)[:, -1]
    found = certificate._largest_eigenvalue(matrix)
    assert bool((found >= exact).all())
    assert bool((found <= 1.01 * exact).all())


class Skip(nn.Module):
    """A layer that reads more than the one before."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return torch.relu(self.second(y) + x) + y


def test_other_networks_keep_their_bounds(monkeypatch):
    problem = problem_of(Skip().double().eval(), 0.5, (6,))
    before = native_alpha(problem)
    assert coupled_root(problem, before) is before
    one = problem_of(network(depth=1))
    before = native_alpha(one)
    assert coupled_root(one, before) is before
    deep = problem_of(network(depth=3))
    before = native_alpha(deep)
    monkeypatch.setattr("lipschitz.bounds.coupled.chain._LARGEST_MATRIX", 10)
    assert coupled_root(deep, before) is before


def test_convolutions_are_read_as_matrices():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    problem = problem_of(model, 0.3, (1, 6, 6))
    layers = read_chain(problem, Plan(problem.graph))
    assert [layer.matrix.shape for layer in layers] == [(108, 36), (32, 108)]
    before = native_alpha(problem)
    after = coupled_root(problem, before)
    assert_sound(problem, after.preacts)
    assert after is not before


def test_activations_of_activations_are_layers_too():
    torch.manual_seed(0)
    layers = nn.Linear(8, 8), nn.ReLU(), nn.Sigmoid(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
    problem = problem_of(nn.Sequential(*layers).double().eval(), 0.5, (8,))
    assert len(read_chain(problem, Plan(problem.graph))) == 3
    assert_sound(problem, coupled_root(problem, native_alpha(problem)).preacts)


def test_time_that_is_over_leaves_everything_as_it_was():
    problem = problem_of(network())
    before = native_alpha(problem)
    assert coupled_root(problem, before, clock=Clock.of(0.0)) is before


def test_rows_not_reached_keep_their_intervals(monkeypatch):
    """Of a layer that is cut short, the rows that were reached are narrower, others are not."""
    problem = problem_of(network(nn.Sigmoid, inputs=200, width=40, depth=2, gain=2.5), 0.15, (200,))
    before = native_alpha(problem)
    monkeypatch.setattr(Clock, "growing", lambda *_: iter([slice(0, 4)]))
    layers = read_chain(problem, Plan(problem.graph))
    last = layers[-1].node
    found = root.coupled_preactivations(layers, before)[last]
    widths = [(i.upper - i.lower).flatten() for i in (found, before.preacts[last])]
    narrower = widths[0] < widths[1] - 1e-9
    assert 0 < int(narrower.sum()) <= 4
    assert bool((widths[0] <= widths[1]).all())
