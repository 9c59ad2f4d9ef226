from dataclasses import replace

import pytest
import torch
from cases import CASES, REFERENCES, Case
from oracles import jacobian, jacobians, points_in_box
from torch import nn

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.lirpa.bounds import LirpaEngine
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import interval_bounds, native_crown
from lipschitz.bounds.native.forward.value_pass import value_upper_bound
from lipschitz.bounds.native.lines import Lines, activation_lines
from lipschitz.bounds.native.plan import Plan, unit_rows
from lipschitz.bounds.native.slopes import optimise
from lipschitz.bounds.native.slopes.attaining import attaining_values
from lipschitz.bounds.native.slopes.optimise import SlopeSearch, optimised_preactivation_rows
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem

THOROUGH = SlopeSearch(steps=80, learning_rate=0.3, decay=0.95, patience=80)


def hand_worked():
    """relu(x) - relu(x + 1) + 0.25 before the last activation."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 1.0]))
        model[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        model[2].bias.fill_(0.25)
    return model.double().eval()


class FlatResidual(nn.Module):
    """A branch that skips a flattening and its reverse, between convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3)
        self.inner, self.last = nn.Linear(50, 50), nn.Linear(18, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        flat = torch.relu(torch.flatten(x, 1))
        flat = flat - torch.relu(self.inner(flat))
        x = torch.relu(self.second(flat.reshape(-1, 2, 5, 5) + x))
        return self.last(torch.flatten(x, 1))


def unflattening():
    return nn.Sequential(
        *(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.Unflatten(1, (2, 4, 4))),
        *(nn.Conv2d(2, 3, 2, stride=2), nn.Flatten(), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()),
        nn.Linear(8, 2),
    )


ODD_SHAPES = [
    Case("flat_residual", FlatResidual, (1, 5, 5)),
    Case("unflattening", unflattening, (4,)),
]


def problem_of(case, eps, dtype=torch.float64):
    model = case.model(dtype)
    return model, make_problem(build_graph(model, case.input_shape), case.point(dtype), eps)


def case_named(name):
    return next(c for c in CASES if c.name == name)


@pytest.mark.parametrize("case", [*CASES, *ODD_SHAPES], ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1, 1.0, 30.0])
def test_sound_and_never_above_crown(case, eps):
    model, problem = problem_of(case, eps)
    plain, found = native_crown(problem), native_alpha(problem)
    assert (found.class_upper_bounds <= plain.class_upper_bounds * (1 + 1e-12)).all()
    points = points_in_box(problem.lower, problem.upper, 50)
    sampled = jacobians(model, points)
    assert (sampled >= found.norm.entries.lower - 1e-9).all()
    assert (sampled <= found.norm.entries.upper + 1e-9).all()
    assert (sampled.abs().flatten(2).sum(2) <= found.class_upper_bounds).all()
    values = problem.graph.values(points)
    for activation, preact in found.preacts.items():
        value = values[problem.graph.nodes[activation].parents[0]]
        assert (value >= preact.lower).all()
        assert (value <= preact.upper).all()
        assert (preact.lower >= plain.preacts[activation].lower).all()
        assert (preact.upper <= plain.preacts[activation].upper).all()
    if eps == 0:
        expected = jacobian(model, case.point()).abs().flatten(1).sum(1)
        torch.testing.assert_close(found.class_upper_bounds, expected)


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r.file}@{r.eps}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference_networks(reference, dtype):
    graph = build_graph(reference.model(dtype), tuple(reference.point().shape))
    problem = make_problem(graph, reference.point(dtype), reference.eps)
    bound = float(native_alpha(problem).class_upper_bounds.max())
    if reference.exact is not None:
        assert bound >= reference.exact
    if reference.released_root is not None:
        assert bound <= reference.released_root + 0.005  # printed with two digits


@pytest.mark.parametrize("name", ["mlp3", "mlp5", "residual_convolution", "convolution"])
@pytest.mark.parametrize("eps", [0.3, 1.0])
def test_intervals_as_tight_as_the_auto_lirpa_engine_s(name, eps):
    _, problem = problem_of(case_named(name), eps)
    theirs, _ = LirpaEngine(problem.graph).preactivation_bounds(problem, optimize=True)
    found = native_alpha(problem, search=THOROUGH).preacts
    for activation, preact in found.items():
        matters = (preact.lower < 0) & (preact.upper > 0)  # a stable neuron needs no more
        ours = (preact.upper - preact.lower)[matters].sum()
        other = (theirs[activation].upper - theirs[activation].lower)[matters].sum()
        assert float(ours) <= 1.003 * float(other)


def test_slopes_reach_the_optimum_of_a_hand_worked_network():
    """z = relu(x) - relu(x + 1) + 1/4 on [-3, 1].

    The chord of relu(x) is (x + 3) / 4. The upper bound (x + 3) / 4 - a (x + 1) + 1/4 is smallest
    over the box for a = 1/4, where it is 3/4; CROWN's own choice is a = 0 (u = -l), with 5/4.
    """
    problem = make_problem(build_graph(hand_worked(), (1,)), torch.tensor([-1.0]), 2.0)
    last = list(native_crown(problem).preacts)[-1]
    assert native_crown(problem).preacts[last].upper.item() == pytest.approx(1.25)
    found = native_alpha(problem, search=THOROUGH).preacts[last].upper.item()
    assert found == pytest.approx(0.75, abs=0.01)
    assert found >= 0.75


def has_slopes(case):
    """Whether a slope of one activation matters to the bounds of another."""
    return len(Plan(build_graph(case.model(), case.input_shape)).activations) > 1


@pytest.mark.parametrize(
    "case", [c for c in (*CASES, *ODD_SHAPES) if has_slopes(c)], ids=lambda c: c.name
)
def test_attaining_values_give_the_derivative(case):
    """Against autograd, by every lower slope, at slopes away from the ends."""
    _, problem = problem_of(case, 0.5)
    plan = Plan(problem.graph)
    preacts = native_crown(problem).preacts
    last = plan.activations[-1]
    node = plan.preact_node(last)
    rows = unit_rows(torch.arange(2), problem.graph.nodes[node].shape, problem.lower)
    centre = (problem.lower + problem.upper)[None] / 2
    radius = (problem.upper - problem.lower)[None] / 2
    slopes, lines = {}, {}
    for a in plan.activations[:-1]:
        slopes[a] = torch.full_like(preacts[a].lower, 0.83).unsqueeze(1).repeat_interleave(4, 1)
        slopes[a].requires_grad_()
        lines[a] = activation_lines(problem.graph.nodes[a].activation, preacts[a], slopes[a])
    record = {}
    bound = value_upper_bound(plan, node, rows, lines, centre, radius, record)
    expected = torch.autograd.grad(
        bound.sum(), list(slopes.values()), allow_unused=True, materialize_grads=True
    )
    values = attaining_values(plan, record, lines, centre, radius)
    for (a, slope), gradient in zip(slopes.items(), expected, strict=True):
        window = record[a]
        ours = window.values.clamp(max=0) * values[plan.preact_node(a)]
        free = (preacts[a].lower < 0) & (preacts[a].upper > 0)
        ours = ours * window.cut(free.unsqueeze(1))
        torch.testing.assert_close(window.having(ours).full().expand_as(slope), gradient)


def test_more_steps_tighten():
    _, problem = problem_of(case_named("mlp5"), 1.0)
    widths = []
    for steps in (0, 3, 40):
        preacts = native_alpha(problem, search=replace(THOROUGH, steps=steps)).preacts
        widths.append(float(sum((p.upper - p.lower).sum() for p in preacts.values())))
    assert widths[0] > widths[1] > widths[2]


def test_chunks_change_nothing():
    for name in ("mlp5", "residual_convolution"):
        _, problem = problem_of(case_named(name), 0.3)
        search = replace(THOROUGH, steps=5)
        whole = native_alpha(problem, search=search, memory_budget=2**34)
        small = native_alpha(problem, search=search, memory_budget=1)
        torch.testing.assert_close(small.class_upper_bounds, whole.class_upper_bounds)
        for activation, preact in whole.preacts.items():
            torch.testing.assert_close(small.preacts[activation], preact)


def test_boxes_in_a_batch_equal_boxes_alone():
    _, problem = problem_of(case_named("mlp5"), 0.3)
    plan, root = Plan(problem.graph), native_crown(problem)
    last = plan.activations[-1]
    radii = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1).double()
    search = replace(THOROUGH, steps=4)

    def bounds(lower, upper):
        return optimised_preactivation_rows(
            plan,
            last,
            torch.arange(3),
            root.preacts,
            root.rounding,
            lower,
            upper,
            search,
            budget=2**20,
        )

    lower, upper = problem.centre - radii, problem.centre + radii
    together = bounds(lower, upper)
    for i in range(3):
        torch.testing.assert_close(
            together[:, i : i + 1], bounds(lower[i : i + 1], upper[i : i + 1])
        )


def test_no_time_gives_interval_arithmetic():
    _, problem = problem_of(case_named("mlp5"), 0.3)
    clock = Clock.of(0.0)
    found = native_alpha(problem, clock=clock)
    assert torch.equal(found.class_upper_bounds, interval_bounds(problem))
    assert "slope optimisation" in clock.not_reached


def test_progress_reports_every_layer():
    _, problem = problem_of(case_named("mlp5"), 3.0)
    lines = []
    native_alpha(problem, progress=lines.append)
    assert len(lines) == 3  # the first layer is exact


def test_a_line_off_by_a_thousandth_is_caught(monkeypatch):
    """Negative control: relu(x) - 1/2 on [-1, 1] attains its bound, so a lower line shows."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        for layer in (0, 2):
            model[layer].weight.fill_(1.0)
            model[layer].bias.fill_(0.0 if layer == 0 else -0.5)
    graph = build_graph(model.double().eval(), (1,))
    problem = make_problem(graph, torch.zeros(1), 1.0)
    last = list(native_crown(problem).preacts)[-1]
    values = graph.values(points_in_box(problem.lower, problem.upper, 20))
    value = values[graph.nodes[last].parents[0]]
    assert (value <= native_alpha(problem).preacts[last].upper).all()
    monkeypatch.setattr(optimise, "Lines", lambda *parts: Lines(*parts[:3], 0.999 * parts[3], True))
    assert not (value <= native_alpha(problem).preacts[last].upper).all()
