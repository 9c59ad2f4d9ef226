"""The program against the network: every point of the box is a feasible point of the program."""

import dataclasses

import pytest
import torch
from cases import CASES, Case, mlp
from oracles import jacobians, points_in_box
from torch import Tensor, nn

from lipschitz.native.crown import native_crown
from lipschitz.native.interval import Interval
from lipschitz.problem import LocalProblem, make_problem
from lipschitz.sdp.boxes import root_facts
from lipschitz.sdp.program import Facts, Program, build_program
from lipschitz.tracing import build_graph

SLACK = 1e-9


def problem_of(model: nn.Module, x: Tensor, eps: float | Tensor) -> LocalProblem:
    return make_problem(build_graph(model, x.shape), x, eps)


def facts_of(problem: LocalProblem) -> Facts:
    return root_facts(problem, native_crown(problem), torch.arange(len(problem.rows)))


def true_variables(problem: LocalProblem, facts: Facts, program: Program, x: Tensor, u: Tensor):
    """y = (1, u, t) of a point, [B, N]; the t one after the other, since g depends on earlier ones.

    Args:
        u: Values of the entries' variables, [B, inputs].
    """
    graph, batch = problem.graph, len(program)
    values = graph.values(x[None])
    slopes, lower, upper = [], [], []
    for a in graph.activation_nodes:
        node = graph.nodes[a]
        slopes.append(node.activation.slope(values[node.parents[0]], None).flatten(1))
        lower.append(facts.slopes[a].lower.flatten(1))
        upper.append(facts.slopes[a].upper.flatten(1))
    y = torch.zeros(batch, program.size, dtype=torch.float64)
    y[:, 0], y[:, 1 : 1 + program.inputs] = 1, u
    if not slopes:
        return y
    slope, lower, upper = (
        torch.cat([p.expand(batch, -1) for p in parts], 1) for parts in (slopes, lower, upper)
    )
    for k in range(program.neuron.shape[1]):
        used = (program.neuron[:, k] >= 0) & (program.t_scale[:, k] > 0)
        b = used.nonzero()[:, 0]
        n = program.neuron[b, k]
        theta = (slope[b, n] - lower[b, n]) / (upper[b, n] - lower[b, n])
        t = theta * (program.cotangent[b, k] * y[b]).sum(1)
        y[b, 1 + program.inputs + k] = (t - program.t_shift[b, k]) / program.t_scale[b, k]
    return y


def violation(program: Program, y: Tensor, ball: bool) -> float:
    """By how much y breaks what the program says of it."""
    u, t = y[:, 1 : 1 + program.inputs], y[:, 1 + program.inputs :]
    found = [t.abs() - 1, u.square().sum(1) - 1 if ball else u.abs() - 1]
    first = program.scale * y.gather(1, program.variable) + program.shift
    found.append(-first * (program.factor * y.unsqueeze(1)).sum(2))
    return max((float(f.amax()) for f in found if f.numel()), default=-1.0)


def compared(problem: LocalProblem, facts: Facts, model: nn.Module, norm: str):
    """Largest violation of the constraints and error of the objective over points of the box."""
    with torch.no_grad():
        program = build_program(problem.graph.double, facts, norm)
    worst = error = 0.0
    for x in points_in_box(problem.lower, problem.upper, 12):
        jacobian = jacobians(model, x[None])[0].flatten(1)[: len(program)]
        norms = jacobian.norm(dim=1) if norm == "2" else jacobian.abs().sum(1)
        if norm == "2":
            u = jacobian / norms.clamp(min=1e-300)[:, None]
        else:
            is_open = (facts.entries.lower < 0) & (facts.entries.upper > 0)
            is_open = is_open.flatten(1).expand(len(program), -1)
            u = torch.zeros(len(program), program.inputs, dtype=torch.float64)
            b, i = is_open.nonzero(as_tuple=True)
            u[b, (is_open.cumsum(1) - 1)[b, i]] = jacobian.sign()[b, i]
        y = true_variables(problem, facts, program, x, u)
        value = (y.unsqueeze(1) @ program.objective @ y.unsqueeze(2)).detach().flatten()
        worst = max(worst, violation(program, y, norm == "2"))
        error = max(error, float(((value - norms).abs() / (1 + norms)).max()))
    return worst, error


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_point_is_feasible_and_its_value_is_the_norm(case: Case, norm):
    for eps in (0.1, 2.0):
        problem = problem_of(case.model(), case.point(), eps)
        worst, error = compared(problem, facts_of(problem), case.model(), norm)
        assert worst <= SLACK
        assert error <= SLACK


def test_intervals_that_are_too_narrow_are_caught():
    """Negative control."""
    case = CASES[1]
    problem = problem_of(case.model(), case.point(), 2.0)
    facts = facts_of(problem)
    cut = {i: Interval(0.2 * c.lower, 0.2 * c.upper) for i, c in facts.cotangents.items()}
    entries = Interval(0.2 * facts.entries.lower, 0.2 * facts.entries.upper)
    for wrong in ({"cotangents": cut}, {"entries": entries}):
        changed = dataclasses.replace(facts, **wrong)
        assert compared(problem, changed, case.model(), "inf")[0] > 0.01


def test_a_sign_fixed_by_a_split_counts_the_entry_with_it():
    case = CASES[1]
    problem = problem_of(case.model(), case.point(), 2.0)
    facts = facts_of(problem)
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(-1, 2, facts.entries.lower.shape, generator=generator).double()
    split = dataclasses.replace(facts, entry_sign=sign)
    program = build_program(problem.graph.double, split)
    assert program.inputs < build_program(problem.graph.double, facts).inputs
    known = torch.where(facts.entries.lower >= 0, 1.0, facts.entries.upper.le(0) * -1.0)
    counted = torch.where(sign != 0, sign, known.double())
    for x in points_in_box(problem.lower, problem.upper, 12):
        jacobian = jacobians(case.model(), x[None])[0]
        u = torch.zeros(len(program), program.inputs, dtype=torch.float64)
        b, i = (counted == 0).nonzero(as_tuple=True)
        u[b, ((counted == 0).cumsum(1) - 1)[b, i]] = jacobian.sign()[b, i]
        y = true_variables(problem, split, program, x, u)
        value = (y.unsqueeze(1) @ program.objective @ y.unsqueeze(2)).detach().flatten()
        expected = torch.where(counted == 0, jacobian.abs(), counted * jacobian).sum(1)
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert violation(program, y, False) <= SLACK


def test_without_open_slopes_or_entries_nothing_is_left_to_relax():
    model = mlp(3, 4, 2).double().eval()
    problem = problem_of(model, torch.full((3,), 0.5, dtype=torch.float64), 0.0)
    program = build_program(problem.graph.double, facts_of(problem))
    assert (program.size, program.products, program.inputs) == (1, 0, 0)
    true = jacobians(model, problem.centre[None])[0].abs().sum(1)
    assert program.objective[:, 0, 0].tolist() == pytest.approx(true.tolist())
