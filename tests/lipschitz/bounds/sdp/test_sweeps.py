"""The sweeps against an established solver, on their own matrices and on formulas written anew."""

import dataclasses
import time
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import CASES, REFERENCES, Case, mlp
from shared import problem_of
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.sdp.boxes import root_facts
from lipschitz.bounds.sdp.certificate import certified_bound
from lipschitz.bounds.sdp.dual import Multipliers, dual_matrix
from lipschitz.bounds.sdp.program import Facts, Program, build_program
from lipschitz.bounds.sdp.sweeps import Sweeps, rank_for
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem

MANY = 200


def swept(program: Program, count: int, clock: Clock = UNLIMITED) -> Sweeps:
    """Vectors after so many sweeps from a cold start."""
    with torch.no_grad():
        sweeps = Sweeps(program, rank_for(int(program.sizes.max())))
        sweeps.go_on(count, clock)
    return sweeps


def bounds_of(program: Program, count: int = MANY) -> Tensor:
    """Certified bounds after so many sweeps."""
    return certified_bound(program, swept(program, count).multipliers())


def solver_of(cvxpy):
    return "CLARABEL" if "CLARABEL" in cvxpy.installed_solvers() else "SCS"


def solved_by_cvxpy(program: Program) -> float:
    """Optimum of a single program from the matrices of its unit multipliers."""
    cvxpy = pytest.importorskip("cvxpy")
    entry = program.sign[:, :1] if program.ball else program.sign
    shapes = (program.sign[:, 0], entry, program.gap, program.gap, program.sign, program.sign)
    nothing = Multipliers(*(torch.zeros_like(part) for part in shapes))
    plain = dual_matrix(program, nothing).matrix[0]
    moments = cvxpy.Variable(plain.shape, PSD=True)
    limits = [moments[0, 0] == 1]
    for name in ("entry", "neuron", "product", "below", "above"):
        for k in range(getattr(nothing, name).shape[1]):
            unit = torch.zeros_like(getattr(nothing, name))
            unit[:, k] = 1
            dual = dual_matrix(program, dataclasses.replace(nothing, **{name: unit}))
            form = (dual.matrix[0] - plain).numpy()
            if not form.any() or (program.ball and name in ("below", "above")):
                continue
            limits.append(cvxpy.sum(cvxpy.multiply(form, moments)) <= float(dual.total))
    objective = cvxpy.Maximize(-cvxpy.sum(cvxpy.multiply(plain.numpy(), moments)))
    return float(cvxpy.Problem(objective, limits).solve(solver=solver_of(cvxpy)))


def program_of(model, x, eps, norm: str = "inf") -> tuple[Program, Tensor]:
    """Programs of all outputs and their linear bounds."""
    return programs_of(make_problem(build_graph(model, x.shape), x, eps, norm=norm, outputs="each"))


@cache
def program_of_case(case: Case, norm: str = "inf") -> Program:
    return programs_of(problem_of(case, 1.0, torch.float64, norm))[0]


def programs_of(problem: LocalProblem) -> tuple[Program, Tensor]:
    root = native_crown(problem)
    facts = root_facts(problem, root, torch.arange(len(problem.rows)))
    with torch.no_grad():
        program = build_program(problem.graph.double, facts, problem.norm)
    return program, root.class_upper_bounds


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("name", ["mlp3", "leaky_relu", "residual_from_input"])
def test_agrees_with_an_established_solver(name, norm):
    case = next(c for c in CASES if c.name == name)
    program = program_of_case(case, norm)
    program = program.take(torch.tensor([0]))
    assert bounds_of(program).item() == pytest.approx(solved_by_cvxpy(program), rel=1e-3)


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
    sweeps = swept(program, MANY)
    bound = certified_bound(program, sweeps.multipliers()).item()
    anew = written_down_anew(weights, slopes, cotangents, entries, row, norm == "2")
    assert bound == pytest.approx(anew, rel=1e-3)
    assert sweeps.value.item() == pytest.approx(anew, rel=1e-3)


def _parameters(model):
    layers = model[1::2]
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


# --- sweeps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_vectors_value_is_below_what_is_certified(case, norm):
    program = program_of_case(case, norm)
    for working in (program, program.to(torch.float32)):
        sweeps = swept(working, 0)
        for more in (0, 3, 37):
            with torch.no_grad():
                sweeps.go_on(more)
            bound = certified_bound(program, sweeps.multipliers())
            slack = 1e-4 if working is not program else 1e-5
            assert (sweeps.value.double() <= bound * (1 + slack) + 1e-9).all()
    assert (bound <= sweeps.value.double() * 1.1 + 1e-6).all()


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_more_sweeps_are_hardly_ever_worse(norm):
    reference = REFERENCES[2]
    program, _ = program_of(reference.model(), reference.point(), reference.eps, norm)
    counts = (1, 4, 16, 64, 256)
    sweeps = swept(program, 0)
    values, bounds = [], []
    with torch.no_grad():
        for before, after in pairwise((0, *counts)):
            sweeps.go_on(after - before)
            values.append(sweeps.value.clone())
            bounds.append(certified_bound(program, sweeps.multipliers()))
    assert sweeps.done == counts[-1]
    for before, after in pairwise(values):
        assert (after >= before * (1 - 1e-2)).all()
    for before, after in pairwise(bounds[1:]):
        assert (after <= before * (1 + 1e-2)).all()
    assert (bounds[-1] < 0.97 * bounds[0]).all()
    assert bounds[-1].sum() < 0.9 * bounds[0].sum()
    assert (bounds[-1] <= values[-1] * (1 + 1e-2)).all()


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
        bounds = bounds_of(together)
        for b in range(3):
            facts = root_facts(problem, root, torch.tensor([b]))
            alone = build_program(
                problem.graph.double, dataclasses.replace(facts, entry_sign=sign[b : b + 1])
            )
            assert bounds[b].item() == pytest.approx(bounds_of(alone).item(), rel=1e-3)
    assert len(set(together.is_free.sum(1).tolist())) == 3


def test_some_of_the_programs_go_on_as_they_would_among_all():
    program = program_of_case(CASES[1])
    every, which = swept(program, 5), torch.tensor([2, 0])
    some = every.take(which)
    before = every.value.clone()
    with torch.no_grad():
        some.go_on(5)
        assert torch.equal(every.value, before)
        every.go_on(5)
    torch.testing.assert_close(some.value, every.value[which], rtol=1e-9, atol=0)
    for own, among in zip(some.multipliers().parts(), every.multipliers().parts(), strict=True):
        torch.testing.assert_close(own, among[which], rtol=1e-9, atol=1e-12)


@cache
def bounds_of_case(case: Case, norm: str = "inf") -> Tensor:
    return bounds_of(program_of_case(case, norm), 10)


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, 1e-300, 0.0])
def test_ends_on_any_coefficients(value, norm):
    case = CASES[1]
    program = program_of_case(case, norm)
    rows = program.rows.clone()
    rows[0] = value
    spoilt = dataclasses.replace(program, rows=rows)
    bounds = bounds_of(spoilt, 10)
    assert not bounds.isnan().any()
    assert torch.allclose(bounds[1:], bounds_of_case(case, norm)[1:], rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, 0.0])
@pytest.mark.parametrize("name", ["gap", "centre", "radius", "entry_lower", "entry_upper"])
def test_ends_on_any_intervals(name, value):
    program = program_of_case(CASES[1])
    part = getattr(program, name).clone()
    part[0] = value
    bounds = bounds_of(dataclasses.replace(program, **{name: part}), 10)
    assert not bounds.isnan().any()
    assert torch.allclose(bounds[1:], bounds_of_case(CASES[1])[1:], rtol=1e-6)


def test_stops_at_the_deadline():
    reference = REFERENCES[2]
    program, _ = program_of(reference.model(), reference.point(), reference.eps)
    late = swept(program, 10, clock=Clock(0.0))
    assert late.done == 0
    assert torch.isfinite(certified_bound(program, late.multipliers())).all()
    begin = time.monotonic()
    in_time = swept(program, 10**9, clock=Clock.of(0.2))
    assert time.monotonic() < begin + 60  # all of them would take days
    assert 0 < in_time.done < 10**9
