"""The program against the network: every point of the box is a feasible point of the program.

Tested through the matrix that is certified: ``sum of d - y . Z y`` is the norm at true variables y
if all multipliers are 0, and each multiplier adds something that is not negative.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from cases import CASES, Case, mlp
from oracles import jacobians, points_in_box
from torch import Tensor, nn

from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.sdp.boxes import root_facts
from lipschitz.bounds.sdp.dual import DualMatrix, Multipliers, dual_matrix
from lipschitz.bounds.sdp.program import Facts, Program, build_program
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem

SLACK = 1e-9
FAMILIES = ("entry", "neuron", "product", "below", "above")
MOST_UNITS = 30


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def problem_of(model: nn.Module, x: Tensor, eps: float | Tensor) -> LocalProblem:
    return make_problem(build_graph(model, x.shape), x, eps)


@torch.enable_grad()
def autograd_jacobians(model: nn.Module, points: Tensor) -> Tensor:
    return jacobians(model, points)


def facts_of(problem: LocalProblem) -> Facts:
    return root_facts(problem, native_crown(problem), torch.arange(len(problem.rows)))


def program_of(problem: LocalProblem, facts: Facts, norm: str = "inf") -> Program:
    return build_program(problem.graph.double, facts, norm)


def true_variables(
    problem: LocalProblem, facts: Facts, program: Program, x: Tensor
) -> tuple[Tensor, Tensor]:
    """z of a point, [B, M], and the Jacobian that its t stand for, [B, D].

    The t come one layer after the other, since g depends on earlier ones.
    """
    graph, batch = problem.graph, len(program)
    values = graph.values(x[None])
    thetas = [x.new_zeros(batch, 0)]
    for a, places in program.places.items():
        node = graph.nodes[a]
        slope = node.activation.slope(values[node.parents[0]], None).flatten(1)
        lower = facts.slopes[a].lower.flatten(1)
        thetas.append((slope - lower).expand(batch, -1)[:, places])
    theta = torch.cat(thetas, 1) / torch.where(program.is_open, program.gap, 1.0)
    theta, z = theta * program.is_open, torch.zeros_like(theta)

    def between(part: slice, g: Tensor) -> Tensor:
        t = theta[:, part] * g[:, 0]
        scale = torch.where(program.is_open, program.radius, 1.0)[:, part]
        z[:, part] = (t - program.centre[:, part]) / scale
        return t.unsqueeze(1)

    jacobian = program.pull_back(program.rows.unsqueeze(1), between)[:, 0]
    return z, jacobian


def laid_out(program: Program, u: Tensor, z: Tensor) -> Tensor:
    """y = (1, u, z), [B, N]: for each program what has a variable there, in its order.

    Args:
        u: [B, D].
        z: [B, M].
    """
    inputs, neurons = (int(m.sum(1).max()) for m in (program.is_free, program.is_open))
    y = torch.zeros(len(program), 1 + inputs + neurons, dtype=torch.float64)
    y[:, 0] = 1
    for first, mask, value in ((1, program.is_free, u), (1 + inputs, program.is_open, z)):
        b, i = mask.nonzero(as_tuple=True)
        y[b, first + (mask.cumsum(1) - 1)[b, i]] = value[b, i]
    return y


def best_u(jacobian: Tensor, norm: str) -> Tensor:
    """The u at which the norm is attained."""
    if norm == "2":
        return jacobian / jacobian.norm(dim=1).clamp(min=1e-300)[:, None]
    return jacobian.sign()


def no_multipliers(program: Program) -> Multipliers:
    entry = program.sign[:, :1] if program.ball else program.sign
    shapes = (program.sign[:, 0], entry, program.gap, program.gap, program.sign, program.sign)
    return Multipliers(*(torch.zeros_like(part) for part in shapes))


def used(program: Program, family: str) -> Tensor:
    """Which multipliers of a family belong to a variable."""
    if family == "entry" and program.ball:
        return program.is_free.any(1, keepdim=True)
    return program.is_open if family in ("neuron", "product") else program.is_free


def trials(program: Program, norm: str) -> list[tuple[Program, Tensor, Multipliers]]:
    """Multipliers of a single family: random ones of every program, and single ones of the first.

    Each comes with the programs that it belongs to and their numbers.
    """
    generator = torch.Generator().manual_seed(0)
    nothing, every, found = no_multipliers(program), torch.arange(len(program)), []
    for family in FAMILIES:
        mask = used(program, family)
        if (norm == "2" and family in ("below", "above")) or not mask.any():
            continue
        for _ in range(2):
            noise = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
            part = dataclasses.replace(nothing, **{family: noise**4 * mask})
            found.append((program, every, part))
        single = mask[0].nonzero()[:, 0]
        single = single[torch.randperm(len(single), generator=generator)[:MOST_UNITS]]
        if len(single):
            first = torch.zeros_like(single)
            units = torch.nn.functional.one_hot(single, mask.shape[1]).double()
            part = dataclasses.replace(nothing.take(first), **{family: units})
            found.append((program.take(first), first, part))
    return found


class Tried:
    """The programs with the matrices Z of the multipliers to try."""

    def __init__(self, program: Program, norm: str) -> None:
        self.program = program
        self.plain = dual_matrix(program, no_multipliers(program))
        self.others = [
            (some, numbers, dual_matrix(some, multipliers))
            for some, numbers, multipliers in trials(program, norm)
        ]

    def norms(self, u: Tensor, z: Tensor) -> Tensor:
        """What is said about the norm without multipliers, [B]."""
        return value(self.plain, laid_out(self.program, u, z))

    def violation(self, u: Tensor, z: Tensor) -> float:
        """The largest part of the norm that multipliers take away."""
        base, worst = self.norms(u, z), 0.0
        for some, numbers, dual in self.others:
            added = value(dual, laid_out(some, u[numbers], z[numbers])) - base[numbers]
            worst = max(worst, float((-added / (1 + base[numbers].abs())).max()))
        return worst


def value(dual: DualMatrix, y: Tensor) -> Tensor:
    """``sum of d - y . Z y``, [B]."""
    return dual.total - torch.einsum("bi,bij,bj->b", y, dual.matrix, y)


def compared(problem: LocalProblem, facts: Facts, model: nn.Module, norm: str):
    """Largest violation of the constraints and error of the norm over points of the box."""
    program = program_of(problem, facts, norm)
    tried, worst, error = Tried(program, norm), 0.0, 0.0
    for x in points_in_box(problem.lower, problem.upper, 12):
        jacobian = autograd_jacobians(model, x[None])[0].flatten(1)[: len(program)]
        norms = jacobian.norm(dim=1) if norm == "2" else jacobian.abs().sum(1)
        z, own = true_variables(problem, facts, program, x)
        assert torch.allclose(own, jacobian, rtol=1e-9, atol=1e-9)
        u = best_u(jacobian, norm)
        error = max(error, float(((tried.norms(u, z) - norms).abs() / (1 + norms)).max()))
        worst = max(worst, tried.violation(u, z))
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
    program = program_of(problem, split)
    assert (program.sizes < program_of(problem, facts).sizes).all()
    known = torch.where(facts.entries.lower >= 0, 1.0, facts.entries.upper.le(0) * -1.0)
    counted = torch.where(sign != 0, sign, known.double())
    tried = Tried(program, "inf")
    for x in points_in_box(problem.lower, problem.upper, 12):
        jacobian = autograd_jacobians(case.model(), x[None])[0]
        z, _ = true_variables(problem, split, program, x)
        expected = torch.where(counted == 0, jacobian.abs(), counted * jacobian).sum(1)
        assert tried.norms(jacobian.sign(), z) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert tried.violation(jacobian.sign(), z) <= SLACK


def test_without_open_slopes_or_entries_nothing_is_left_to_relax():
    model = mlp(3, 4, 2).double().eval()
    problem = problem_of(model, torch.full((3,), 0.5, dtype=torch.float64), 0.0)
    program = program_of(problem, facts_of(problem))
    dual = dual_matrix(program, no_multipliers(program))
    assert program.sizes.tolist() == [1, 1]
    assert dual.matrix.shape == (2, 1, 1)
    assert dual.trace.tolist() == [1, 1]
    true = autograd_jacobians(model, problem.centre[None])[0].abs().sum(1)
    assert (-dual.matrix[:, 0, 0]).tolist() == pytest.approx(true.tolist())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_forward_is_the_adjoint_of_backward(case: Case):
    """``J . j + g . p = t . w`` for any t, where w is how much the t count for (j, p)."""
    problem = problem_of(case.model(), case.point(), 1.0)
    program, generator = program_of(problem, facts_of(problem)), torch.Generator().manual_seed(0)
    shapes = [(len(program), 3, n) for n in (len(program.neuron), program.sign.shape[1])]
    t, p, j = (torch.randn(shapes[i], generator=generator, dtype=torch.float64) for i in (0, 0, 1))
    g, counts = torch.zeros_like(t), torch.zeros_like(t)

    def between(part: slice, found: Tensor) -> Tensor:
        g[:, :, part] = found
        return t[:, :, part]

    def weighted(part: slice, h: Tensor) -> Tensor:
        counts[:, :, part] = h * program.gap[:, part].unsqueeze(1)
        return p[:, :, part]

    start = torch.zeros(len(program), 3, program.rows.shape[1], dtype=torch.float64)
    jacobian = program.pull_back(start, between)
    program.push_forward(j, weighted)
    left, right = (jacobian * j).sum(2) + (g * p).sum(2), (t * counts).sum(2)
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    assert case.name == "affine" or (right.abs() > 1e-6).any()
