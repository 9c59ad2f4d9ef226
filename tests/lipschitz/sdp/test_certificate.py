"""What any multipliers prove: against true gradients, and against exact rational arithmetic."""

import dataclasses
from fractions import Fraction

import pytest
import torch
from cases import CASES, mlp
from oracles import jacobians, points_in_box
from torch import nn

from lipschitz.native.crown import native_crown
from lipschitz.problem import make_problem
from lipschitz.sdp import certificate
from lipschitz.sdp.boxes import root_facts, solve_boxes
from lipschitz.sdp.certificate import certified_bound
from lipschitz.sdp.constraints import Multipliers
from lipschitz.sdp.interior_point import SolveOptions, solve
from lipschitz.sdp.program import Program, build_program
from lipschitz.tracing import build_graph

SLACK = 1e-9


def random_network(seed: int) -> tuple[nn.Module, float]:
    """A small MLP with some dead, doubled and cancelling neurons, and the radius of a box."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    torch.manual_seed(seed)
    sizes = [number(1, 4), *(number(1, 6) for _ in range(number(1, 3))), number(1, 3)]
    leaky = number(0, 2) == 0
    model = mlp(*sizes, activation=(lambda: nn.LeakyReLU(0.3)) if leaky else nn.ReLU).double()
    scale = [1e-3, 1.0, 2.5, 1e3][number(0, 3)]
    with torch.no_grad():
        for layer in model[1::2]:
            layer.weight.mul_(scale)
            kind = number(0, 7)
            if kind == 0:
                layer.bias.zero_()
            elif kind == 1:
                layer.weight[0] = 0
            elif kind == 2:
                layer.weight[-1], layer.bias[-1] = layer.weight[0], layer.bias[0]
            elif kind == 3:
                layer.weight[:, -1] = -layer.weight[:, 0]
    return model.eval(), [0.01, 0.5, 2.0, 100.0][number(0, 3)]


def programs(seeds: range, norm: str):
    """Programs, solved multipliers and the largest norm among sampled gradients."""
    for seed in seeds:
        model, eps = random_network(seed)
        x = torch.full((model[1].in_features,), 0.3, dtype=torch.float64)
        problem = make_problem(build_graph(model, x.shape), x, eps, norm=norm, outputs="each")
        root = native_crown(problem)
        rows = torch.arange(len(problem.rows))
        facts = root_facts(problem, root, rows)
        with torch.no_grad():
            solved = solve_boxes(
                problem, facts, root.class_upper_bounds, SolveOptions(iterations=30)
            )
        gradients = jacobians(model, points_in_box(problem.lower, problem.upper, 150, seed))
        true = gradients.norm(dim=2) if norm == "2" else gradients.abs().sum(2)
        yield solved.program, solved.multipliers, true.amax(0)


def variants(solved: Multipliers, seed: int) -> list[Multipliers]:
    """Good, spoilt and senseless multipliers."""
    generator = torch.Generator().manual_seed(seed)
    d, c = solved.diagonal, solved.product
    noise = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in (d, c)]
    shifted = d.clone()
    shifted[:, 0] -= d.sum(1)
    found = [(d, c), (d / 2, c), (d, c / 2), (d, -c), (d, 0 * c), (0 * d, c), (shifted, 10 * c)]
    found += [(size * noise[0], size * noise[1]) for size in (1e-6, 1.0, 1e6, 1e150, 1e306)]
    found += [(d + 0.1 * d.abs().amax() * noise[0], c * (1 + noise[1]))]
    return [Multipliers(*pair) for pair in found]


def violations(norm: str = "inf", bound=certified_bound) -> int:
    """How often a bound is below a true gradient."""
    count = 0
    for number, (program, solved, true) in enumerate(programs(range(25), norm)):
        for multipliers in variants(solved, number):
            found = bound(program, multipliers)
            assert not found.isnan().any()
            count += int((found < true * (1 - SLACK) - 1e-15).sum())
    return count


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_any_multipliers_give_a_bound(norm):
    assert violations(norm) == 0


def _without_shift(monkeypatch):
    monkeypatch.setattr(certificate, "_proved_shift", lambda dual, rounded: torch.zeros(len(dual)))
    return certified_bound


def _half_the_sum(monkeypatch):
    def bound(program, multipliers):
        summed = multipliers.diagonal.clamp(min=0).sum(1)
        return certified_bound(program, multipliers) - summed / 2

    return bound


def _without_the_constant(monkeypatch):
    def bound(program, multipliers):
        objective = program.objective.clone()
        objective[:, 0] = objective[:, :, 0] = 0
        return certified_bound(dataclasses.replace(program, objective=objective), multipliers)

    return bound


@pytest.mark.parametrize("spoil", [_without_shift, _half_the_sum, _without_the_constant])
def test_a_wrong_certificate_is_caught(spoil, monkeypatch):
    """Negative controls."""
    assert violations(bound=spoil(monkeypatch)) > 0


def test_multipliers_of_the_wrong_sign_count_as_none():
    """They prove the bound of a program with its inequalities reversed, which is often too low."""
    too_low = 0
    for program, solved, true in programs(range(25), "inf"):
        if not program.products:
            continue
        reversed_ = dataclasses.replace(program, factor=-program.factor)
        scale = certified_bound(program, solved).clamp(min=1e-9)
        found = solve(reversed_, scale, SolveOptions(iterations=30))
        too_low += int((certified_bound(reversed_, found) < true * (1 - 1e-3)).sum())
        negative = dataclasses.replace(found, product=-found.product)
        assert (certified_bound(program, negative) >= true * (1 - SLACK) - 1e-15).all()
    assert too_low > 0


def test_trace_of_the_ball_counts_u_once():
    """With the trace of the box the shift costs more; without the ball's own it proves too much."""
    tight = loose = 0
    for program, solved, _ in programs(range(10), "2"):
        assert program.ball
        no_multipliers = Multipliers(0 * solved.diagonal, 0 * solved.product)
        bound = certified_bound(program, no_multipliers)
        smallest = torch.linalg.eigvalsh(-program.objective)[:, 0]
        trace = 2 + program.size - 1 - program.inputs
        assert torch.allclose(bound, -smallest.clamp(max=0) * trace, rtol=1e-6, atol=1e-12)
        tight, loose = tight + trace, loose + program.size
    assert tight < loose


# --- exact arithmetic ---------------------------------------------------------------------------


def exact_dual(program: Program, multipliers: Multipliers, b: int) -> list[list[Fraction]]:
    """``Z = diag(d) - O - sum_k c_k C_k`` of one program over the rationals."""
    size = program.size
    z = [[-Fraction(float(v)) for v in row] for row in program.objective[b]]
    for i in range(size):
        group = i if not program.ball or i == 0 else max(1, i - program.inputs + 1)
        value = Fraction(float(multipliers.diagonal[b, group]))
        z[i][i] += max(value, Fraction(0)) if i else value
    for k in range(program.products):
        c = max(Fraction(float(multipliers.product[b, k])), Fraction(0))
        first = [Fraction(0)] * size
        first[int(program.variable[b, k])] += Fraction(float(program.scale[b, k]))
        first[0] += Fraction(float(program.shift[b, k]))
        second = [Fraction(float(v)) for v in program.factor[b, k]]
        for i in range(size):
            for j in range(size):
                z[i][j] -= c * (first[i] * second[j] + first[j] * second[i]) / 2
    return z


def is_semidefinite(z: list[list[Fraction]]) -> bool:
    """By elimination without any rounding."""
    z, size = [row[:] for row in z], len(z)
    for p in range(size):
        if z[p][p] < 0 or (z[p][p] == 0 and any(z[p][p + 1 :])):
            return False
        for i in range(p + 1, size):
            if z[p][p] and z[i][p]:
                ratio = z[i][p] / z[p][p]
                z[i] = [a - ratio * b for a, b in zip(z[i], z[p], strict=True)]
    return True


def shift_it_claims(program: Program, multipliers: Multipliers, b: int) -> Fraction:
    """The s with bound = sum of d + trace times s, as far as the bound can be read for it."""
    bound = Fraction(float(certified_bound(program, multipliers)[b]))
    d = [Fraction(float(v)) for v in multipliers.diagonal[b]]
    summed = d[0] + sum(max(v, Fraction(0)) for v in d[1:])
    trace = 2 + program.size - 1 - program.inputs if program.ball else program.size
    return (bound - summed) / trace


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_proved_over_the_rationals(norm):
    """The claimed shift makes the exact Z semidefinite: no rounding is left to trust."""
    tested = 0
    for number, (program, solved, _) in enumerate(programs(range(12), norm)):
        if program.size > 12:
            continue
        for multipliers in variants(solved, number)[:9]:
            shift = shift_it_claims(program, multipliers, 0)
            z = exact_dual(program, multipliers, 0)
            for i, row in enumerate(z):
                row[i] += shift
            assert is_semidefinite(z)
            tested += 1
    assert tested > 50


def test_exact_arithmetic_sees_a_missing_shift():
    """Negative control."""
    seen = 0
    for number, (program, solved, _) in enumerate(programs(range(4), "inf")):
        multipliers = variants(solved, number)[1]
        seen += not is_semidefinite(exact_dual(program, multipliers, 0))
    assert seen > 0


@pytest.mark.parametrize("gap", [2.0**-30, 2.0**-45, 2.0**-51])
def test_shift_of_a_matrix_with_a_known_eigenvalue(gap):
    """[[1, 1 + gap], [1 + gap, 1]] has the eigenvalues -gap and 2 + gap."""
    matrix = torch.ones(1, 2, 2, dtype=torch.float64)
    matrix[:, 0, 1] += gap
    matrix[:, 1, 0] += gap
    shift = float(certificate._proved_shift(matrix, torch.zeros(1, dtype=torch.float64)))
    assert gap <= shift <= gap + 1e-11


# --- no numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_proves_nothing(value):
    problem = make_problem(build_graph(CASES[1].model(), (5,)), CASES[1].point(), 1.0)
    facts = root_facts(problem, native_crown(problem), torch.arange(3))
    with torch.no_grad():
        program = build_program(problem.graph.double, facts)
    good = Multipliers(
        torch.ones(3, program.size, dtype=torch.float64),
        torch.ones(3, program.products, dtype=torch.float64),
    )
    usual = certified_bound(program, good)
    assert torch.isfinite(usual).all()
    for name in ("diagonal", "product"):
        spoilt = getattr(good, name).clone()
        spoilt[1, 0] = value
        bound = certified_bound(program, dataclasses.replace(good, **{name: spoilt}))
        # An infinite price of nothing counts as 0, like every negative one.
        assert bound[1] == torch.inf or (name == "product" and value == -torch.inf)
        assert torch.allclose(bound[[0, 2]], usual[[0, 2]], rtol=1e-9)
    for name in ("objective", "factor"):
        spoilt = getattr(program, name).clone()
        spoilt[1, 0, 0] = value
        bound = certified_bound(dataclasses.replace(program, **{name: spoilt}), good)
        assert bound[1] == torch.inf
        assert torch.allclose(bound[[0, 2]], usual[[0, 2]], rtol=1e-9)
    with torch.no_grad():
        solved = solve_boxes(problem, facts, torch.full((3,), value).double(), SolveOptions())
    assert not solved.upper_bound.isnan().any()
