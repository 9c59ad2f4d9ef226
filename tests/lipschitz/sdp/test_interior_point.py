"""The solver against an established one, on its own matrices and on formulas written down anew."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import CASES, REFERENCES, mlp

from lipschitz.native.alpha import native_alpha
from lipschitz.native.crown import native_crown
from lipschitz.native.interval import Interval
from lipschitz.problem import make_problem
from lipschitz.sdp.boxes import root_facts
from lipschitz.sdp.certificate import certified_bound
from lipschitz.sdp.constraints import group_of
from lipschitz.sdp.interior_point import SolveOptions, solve
from lipschitz.sdp.program import Facts, Program, build_program
from lipschitz.tracing import build_graph

PRECISE = SolveOptions(tolerance=1e-6, iterations=80)


def solver_of(cvxpy):
    return "CLARABEL" if "CLARABEL" in cvxpy.installed_solvers() else "SCS"


def solved_by_cvxpy(program: Program, b: int) -> float:
    """Optimum of one program from its matrices."""
    cvxpy = pytest.importorskip("cvxpy")
    moments = cvxpy.Variable((program.size, program.size), PSD=True)
    group = group_of(program).numpy()
    diagonal = cvxpy.diag(moments)
    groups = [np.flatnonzero(group == g) for g in range(1, group.max() + 1)]
    limits = [cvxpy.sum(diagonal[members]) <= 1 for members in groups]
    limits.append(moments[0, 0] == 1)
    for k in range(program.products):
        first = np.zeros(program.size)
        first[int(program.variable[b, k])] = float(program.scale[b, k])
        first[0] += float(program.shift[b, k])
        limits.append(first @ moments @ program.factor[b, k].numpy() >= 0)
    objective = cvxpy.Maximize(cvxpy.sum(cvxpy.multiply(program.objective[b].numpy(), moments)))
    return float(cvxpy.Problem(objective, limits).solve(solver=solver_of(cvxpy)))


def program_of(model, x, eps, norm: str = "inf"):
    """Programs of all outputs and their linear bounds."""
    problem = make_problem(build_graph(model, x.shape), x, eps, norm=norm, outputs="each")
    root = native_crown(problem)
    facts = root_facts(problem, root, torch.arange(len(problem.rows)))
    with torch.no_grad():
        return build_program(problem.graph.double, facts, norm), root.class_upper_bounds


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("name", ["mlp3", "leaky_relu", "residual_from_input"])
def test_agrees_with_an_established_solver(name, norm):
    case = next(c for c in CASES if c.name == name)
    program, linear = program_of(case.model(), case.point(), 1.0, norm)
    bound = certified_bound(program, solve(program, linear, PRECISE))
    optimum = solved_by_cvxpy(program, 0)
    assert float(bound[0]) == pytest.approx(optimum, rel=1e-3)


def interval_facts(weights, biases, lower, upper, row):
    """Slope, cotangent and entry intervals of an MLP with ReLU by interval arithmetic, in numpy."""
    slopes = []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        middle, reach = weight @ centre + bias, np.abs(weight) @ radius
        low, high = middle - reach, middle + reach
        slopes.append(((low >= 0).astype(float), (high > 0).astype(float)))
        lower, upper = np.maximum(low, 0), np.maximum(high, 0)
    low = high = weights[-1].T @ row
    cotangents = []
    for weight, (slope_low, slope_high) in zip(weights[-2::-1], slopes[::-1], strict=True):
        cotangents.append((low, high))
        ends = [low * slope_low, low * slope_high, high * slope_low, high * slope_high]
        centre, radius = (np.max(ends, 0) + np.min(ends, 0)) / 2, np.ptp(ends, 0) / 2
        low, high = weight.T @ centre - np.abs(weight.T) @ radius, weight.T @ centre
        high = high + np.abs(weight.T) @ radius
    return slopes, cotangents[::-1], (low, high)


def written_down_anew(weights, slopes, cotangents, entries, row, ball: bool) -> float:
    """The program of the module's docstring in its own, unscaled, variables (1, u, t)."""
    cvxpy = pytest.importorskip("cvxpy")
    is_open = [high > low for low, high in slopes]
    u = np.flatnonzero((entries[0] < 0) & (entries[1] > 0)) if not ball else range(len(entries[0]))
    u, size = list(u), 1 + len(u) + int(sum(o.sum() for o in is_open))
    moments = cvxpy.Variable((size, size), PSD=True)
    limits, constant = [moments[0, 0] == 1], np.eye(size)[0]

    def product(left, right):
        return left @ moments @ right

    g, place = np.outer(weights[-1].T @ row, constant), 1 + len(u)
    for layer in range(len(slopes) - 1, -1, -1):
        h = g * slopes[layer][0][:, None]
        for n in np.flatnonzero(is_open[layer]):
            t, place = np.eye(size)[place], place + 1
            low, high = min(cotangents[layer][0][n], 0), max(cotangents[layer][1][n], 0)
            limits.append(product(t - low * constant, high * constant - t) >= 0)
            limits.append(product(t, g[n] - t) >= 0)
            h[n] += t  # the slopes of a ReLU are 0 or 1
        g = weights[layer].T @ h
    value = 0
    for i in range(len(g)):
        if i not in u:
            value = value + product((1 if entries[0][i] >= 0 else -1) * constant, g[i])
            continue
        own = np.eye(size)[1 + u.index(i)]
        value = value + product(own, g[i])
        if not ball:
            limits.append(product(own, own) <= 1)
            limits.append(product(constant - own, g[i] - entries[0][i] * constant) >= 0)
            limits.append(product(constant + own, entries[1][i] * constant - g[i]) >= 0)
    if ball:
        limits.append(sum(moments[1 + k, 1 + k] for k in range(len(u))) <= 1)
    return float(cvxpy.Problem(cvxpy.Maximize(value), limits).solve(solver=solver_of(cvxpy)))


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("sizes", [(3, 5, 2), (2, 4, 3, 2), (3, 3, 3, 3, 1)], ids=str)
def test_agrees_with_the_formulas_written_down_anew(sizes, norm):
    torch.manual_seed(2)
    model = mlp(*sizes).double().eval()
    x = torch.full((sizes[0],), 0.3, dtype=torch.float64)
    problem = make_problem(build_graph(model, x.shape), x, 1.0, norm=norm, outputs="each")
    weights, biases = ([p.detach().numpy() for p in part] for part in _parameters(model))
    row = problem.rows[0].numpy()
    box = problem.lower.numpy(), problem.upper.numpy()
    slopes, cotangents, entries = interval_facts(weights, biases, *box, row)

    def interval(ends):
        return Interval(*(torch.from_numpy(end)[None] for end in ends))

    nodes = problem.graph.activation_nodes
    facts = Facts(
        problem.rows[:1],
        {a: interval(s) for a, s in zip(nodes, slopes, strict=True)},
        {a: interval(c) for a, c in zip(nodes, cotangents, strict=True)},
        interval(entries),
    )
    with torch.no_grad():
        program = build_program(problem.graph.double, facts, norm)
    scale = torch.tensor([np.maximum(*map(np.abs, entries)).sum()])
    bound = float(certified_bound(program, solve(program, scale, PRECISE))[0])
    anew = written_down_anew(weights, slopes, cotangents, entries, row, norm == "2")
    assert bound == pytest.approx(anew, rel=1e-3)


def _parameters(model):
    layers = model[1::2]
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


# --- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_more_steps_are_never_worse(norm):
    reference = REFERENCES[2]
    program, linear = program_of(reference.model(), reference.point(), reference.eps, norm)
    seen = []
    solve(program, linear, SolveOptions(iterations=25), lambda values: seen.append(values.clone()))
    assert len(seen) > 5
    for before, after in pairwise(seen):
        assert (after <= before).all()
    bounds = [
        certified_bound(program, solve(program, linear, SolveOptions(iterations=n)))
        for n in (0, 1, 2, 5, 10, 25)
    ]
    for before, after in pairwise(bounds):
        assert (after <= before * (1 + 1e-9)).all()
    assert (bounds[-1] < 0.8 * bounds[0]).all()


def test_a_program_is_solved_alike_alone_and_beside_larger_ones():
    """Variables that a program of the batch does not use change nothing."""
    case = CASES[1]
    problem = make_problem(build_graph(case.model(), case.point().shape), case.point(), 1.0)
    root = native_alpha(problem)
    every = root_facts(problem, root, torch.arange(len(problem.rows)))
    sign = torch.zeros_like(every.entries.lower)
    sign[0], sign[1, :2] = 1, -1  # three programs of three sizes
    with torch.no_grad():
        together = build_program(problem.graph.double, dataclasses.replace(every, entry_sign=sign))
        bounds = certified_bound(together, solve(together, root.class_upper_bounds, PRECISE))
        for b in range(3):
            facts = root_facts(problem, root, torch.tensor([b]))
            alone = build_program(
                problem.graph.double, dataclasses.replace(facts, entry_sign=sign[b : b + 1])
            )
            scale = root.class_upper_bounds[b : b + 1]
            own = certified_bound(alone, solve(alone, scale, PRECISE))
            assert float(bounds[b]) == pytest.approx(float(own[0]), rel=1e-4)
    sizes = (together.entry >= 0).sum(1).tolist()
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, 0.0])
def test_ends_on_any_coefficients(value):
    case = CASES[1]
    program, linear = program_of(case.model(), case.point(), 1.0)
    objective = program.objective.clone()
    objective[0] = value
    spoilt = dataclasses.replace(program, objective=objective)
    found = solve(spoilt, linear, SolveOptions(iterations=10))
    bounds = certified_bound(spoilt, found)
    assert not bounds.isnan().any()
    usual = certified_bound(program, solve(program, linear, SolveOptions(iterations=10)))
    assert torch.allclose(bounds[1:], usual[1:], rtol=1e-6)


def test_stops_below_a_value_and_at_the_deadline():
    reference = REFERENCES[2]
    program, linear = program_of(reference.model(), reference.point(), reference.eps)
    steps = []
    enough = torch.full_like(linear, torch.inf)
    solve(program, linear, SolveOptions(stop_below=enough), steps.append)
    assert len(steps) == 1
    late = solve(program, linear, SolveOptions(deadline=0.0), steps.append)
    assert len(steps) == 1
    assert torch.isfinite(certified_bound(program, late)).all()
