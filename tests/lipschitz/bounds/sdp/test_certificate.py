"""What any multipliers prove: against true gradients, and against exact rational arithmetic."""

import dataclasses
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache

import pytest
import torch
from cases import CASES, mlp
from oracles import jacobians, points_in_box
from torch import Tensor, nn

from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.sdp import certificate
from lipschitz.bounds.sdp.boxes import Effort, root_facts, solve_boxes, warm_starts
from lipschitz.bounds.sdp.certificate import certified_bound
from lipschitz.bounds.sdp.dual import Multipliers, dual_matrix
from lipschitz.bounds.sdp.program import Facts, Program, build_program
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem

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


def programs(seeds: range, norm: str) -> Iterator[tuple[Program, Multipliers, Tensor]]:
    """Programs, good multipliers and the largest norms among sampled gradients."""
    for seed in seeds:
        program, multipliers, true, _ = solved_network(seed, norm)
        yield program, multipliers, true


@cache
def solved_network(seed: int, norm: str) -> tuple[Program, Multipliers, Tensor, nn.Module]:
    """Programs of a random network's outputs, their multipliers, true norms, and the network."""
    model, eps = random_network(seed)
    x = torch.full((model[1].in_features,), 0.3, dtype=torch.float64)
    problem = make_problem(build_graph(model, x.shape), x, eps, norm=norm, outputs="each")
    root = native_crown(problem)
    rows = torch.arange(len(problem.rows))
    facts, starts = root_facts(problem, root, rows), warm_starts(problem, root)
    known, effort = root.class_upper_bounds, Effort(1e-6, 60)
    with torch.no_grad():
        solved = solve_boxes(problem, facts, known, effort, starts, torch.full_like(rows, -1))
        multipliers = solved.sweeps.multipliers()
    gradients = jacobians(model, points_in_box(problem.lower, problem.upper, 150, seed))
    true = gradients.norm(dim=2) if norm == "2" else gradients.abs().sum(2)
    return solved.program, multipliers, true.amax(0), model


def variants(solved: Multipliers, seed: int) -> list[Multipliers]:
    """Good, spoilt and senseless multipliers: of the squares first, then of the products."""
    generator = torch.Generator().manual_seed(seed)
    d, c = solved.parts()[:3], solved.parts()[3:]

    def times(parts: list[Tensor], factor: float) -> list[Tensor]:
        return [factor * part for part in parts]

    def noise(parts: list[Tensor]) -> list[Tensor]:
        return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parts]

    noise_d, noise_c = noise(d), noise(c)
    shifted = [-sum(part.reshape(len(part), -1).sum(1) for part in d[1:]), *d[1:]]
    found = [(d, c), (times(d, 0.5), c), (d, times(c, 0.5)), (d, times(c, -1)), (d, times(c, 0))]
    found += [(times(d, 0), c), (shifted, times(c, 10)), (times(d, -1), times(c, -1))]
    found += [
        (times(noise_d, size), times(noise_c, size)) for size in (1e-6, 1.0, 1e6, 1e150, 1e306)
    ]
    largest = max(float(part.abs().amax()) for part in d if part.numel())
    added = [part + 0.1 * largest * n for part, n in zip(d, noise_d, strict=True)]
    found.append((added, [part * (1 + n) for part, n in zip(c, noise_c, strict=True)]))
    return [Multipliers(*first, *second) for first, second in found]


Bound = Callable[[Program, Multipliers], Tensor]


def violations(norm: str = "inf", bound: Bound = certified_bound, networks: int = 25) -> int:
    """How often a bound is below a true gradient."""
    count = 0
    for number, (program, solved, true) in enumerate(programs(range(networks), norm)):
        for multipliers in variants(solved, number):
            found = bound(program, multipliers)
            assert not found.isnan().any()
            count += int((found < true * (1 - SLACK) - 1e-15).sum())
    return count


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_any_multipliers_give_a_bound(norm):
    assert violations(norm) == 0


def usable(multipliers: Multipliers) -> Multipliers:
    """What counts of multipliers: those of inequalities that are negative count as 0."""
    constant, *others = multipliers.parts()
    return Multipliers(constant, *(part.clamp(min=0) for part in others))


def _without_shift(monkeypatch):
    monkeypatch.setattr(
        certificate, "_proved_shift", lambda matrix, scale, usable: torch.zeros_like(scale)
    )
    return certified_bound


def _half_the_sum(monkeypatch):
    def bound(program, multipliers):
        total = dual_matrix(program, usable(multipliers)).total
        return certified_bound(program, multipliers) - total.clamp(min=0, max=1e300) / 2

    return bound


def _changed(name):
    def spoil(monkeypatch):
        def bound(program, multipliers):
            nothing = torch.zeros_like(getattr(program, name))
            return certified_bound(dataclasses.replace(program, **{name: nothing}), multipliers)

        return bound

    spoil.__name__ = f"without_{name}"
    return spoil


@pytest.mark.parametrize(
    "spoil",
    [_without_shift, _half_the_sum, *map(_changed, ("rows", "sign", "centre", "gap", "radius"))],
    ids=lambda spoil: spoil.__name__,
)
def test_a_wrong_certificate_is_caught(spoil, monkeypatch):
    """Negative controls."""
    assert violations(bound=spoil(monkeypatch), networks=25) > 0


def test_multipliers_of_the_wrong_sign_count_as_none():
    """They prove the bound of a program with its inequalities reversed, which is often too low.

    With -1 for every McCormick product of ``|J| <= w`` the norm counts three times, less 2 w for
    every entry.
    """
    problem, facts = small_problem()
    wide = 4 * torch.maximum(facts.entries.lower.abs(), facts.entries.upper.abs())
    facts = dataclasses.replace(facts, entries=Interval(-wide, wide))
    root, nothing = native_crown(problem), torch.full((3,), -1)
    known, starts = root.class_upper_bounds, warm_starts(problem, root)
    with torch.no_grad():
        solved = solve_boxes(problem, facts, known, Effort(), starts, nothing)
    program, good = solved.program, solved.sweeps.multipliers()
    less = 2 * wide.sum(1)
    squares = (3 * good.constant - less, 3 * good.entry, 3 * good.neuron)
    reversed_ = -torch.ones_like(program.sign)
    negative = Multipliers(*squares, 3 * good.product, reversed_, reversed_)
    dual = dual_matrix(program, negative)
    unclamped = dual.total - dual.trace * torch.linalg.eigvalsh(dual.matrix)[:, 0].clamp(max=0)
    gradients = jacobians(CASES[1].model(), points_in_box(problem.lower, problem.upper, 150))
    true = gradients.abs().sum(2).amax(0)
    assert (unclamped < true * (1 - 1e-3)).all()
    assert (certified_bound(program, negative) >= true * (1 - SLACK)).all()


def test_trace_of_the_ball_counts_u_once():
    """With the trace of the box the shift costs more; without the ball's own it proves too much."""
    tight = loose = 0
    for program, solved, _ in programs(range(10), "2"):
        assert program.ball
        no_multipliers = Multipliers(*(0 * part for part in solved.parts()))
        dual = dual_matrix(program, no_multipliers)
        trace = 2 + program.is_open.sum(1)
        assert torch.equal(dual.trace, trace.double())
        smallest = torch.linalg.eigvalsh(dual.matrix)[:, 0]
        least = -smallest.clamp(max=0) * trace
        bound = certified_bound(program, no_multipliers)
        assert (bound >= least * (1 - 1e-12)).all()
        assert (bound <= 4.1 * least + 1e-9).all()
        tight, loose = tight + trace.sum(), loose + program.sizes.sum()
    assert tight < loose


# --- exact arithmetic ---------------------------------------------------------------------------

Vector = list[Fraction]


def exact_dual(program: Program, multipliers: Multipliers, model: nn.Module) -> list[Vector]:
    """Z of the first program over the rationals, for a network of linear layers."""
    free = program.is_free[0].nonzero()[:, 0].tolist()
    open_ = program.is_open[0].nonzero()[:, 0].tolist()
    size = 1 + len(free) + len(open_)
    slot_u = {i: 1 + k for k, i in enumerate(free)}
    slot_z = {n: 1 + len(free) + k for k, n in enumerate(open_)}

    def one(slot: int) -> Vector:
        return [Fraction(int(slot == i)) for i in range(size)]

    def summed(*terms: tuple[object, Vector]) -> Vector:
        weighted = [(Fraction(float(factor)), vector) for factor, vector in terms]
        return [sum((f * v[i] for f, v in weighted), Fraction(0)) for i in range(size)]

    z = [[Fraction(0)] * size for _ in range(size)]

    def subtract(factor: object, left: Vector, right: Vector) -> None:
        c = Fraction(float(factor)) / 2
        for i in range(size):
            for j in range(size):
                z[i][j] -= c * (left[i] * right[j] + left[j] * right[i])

    m, constant = usable(multipliers), one(0)
    z[0][0] += Fraction(float(m.constant[0]))
    for i, slot in slot_u.items():
        z[slot][slot] += Fraction(float(m.entry[0, 0 if program.ball else i]))
    for n, slot in slot_z.items():
        z[slot][slot] += Fraction(float(m.neuron[0, n]))
    cotangent = [summed((value, constant)) for value in program.rows[0]]
    layers = list(model[1::2])
    nodes = program.graph.activation_nodes
    for index in range(len(layers) - 1, -1, -1):
        columns = layers[index].weight.detach().T.tolist()
        cotangent = [summed(*zip(column, cotangent, strict=True)) for column in columns]
        if index == 0:
            break
        node = nodes[index - 1]
        slopes = program.slope_lower[node][0].flatten()
        h = [summed((slope, g)) for slope, g in zip(slopes, cotangent, strict=True)]
        first = program.slices[node].start if node in program.slices else 0
        for k, place in enumerate(program.places.get(node, torch.empty(0)).tolist(), first):
            if k not in slot_z:
                continue
            t = summed((program.centre[0, k], constant), (program.radius[0, k], one(slot_z[k])))
            subtract(m.product[0, k], t, summed((1, cotangent[place]), (-1, t)))
            h[place] = summed((1, h[place]), (program.gap[0, k], t))
        cotangent = h
    for i, j in enumerate(cotangent):
        if i not in slot_u:
            subtract(program.sign[0, i], constant, j)
            continue
        u, lower, upper = one(slot_u[i]), program.entry_lower[0, i], program.entry_upper[0, i]
        subtract(1, u, j)
        low, high = summed((1, j), (-lower, constant)), summed((upper, constant), (-1, j))
        subtract(m.below[0, i], summed((1, constant), (-1, u)), low)
        subtract(m.above[0, i], summed((1, constant), (1, u)), high)
    return z


def is_semidefinite(z: list[Vector]) -> bool:
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


def shift_it_claims(program: Program, multipliers: Multipliers) -> Fraction:
    """The s with bound = sum of d + trace times s, as far as the bound can be read for it."""
    m, bound = usable(multipliers), Fraction(float(certified_bound(program, multipliers)[0]))
    entry = m.entry[0] if program.ball else m.entry[0, program.is_free[0]]
    d = [m.constant, entry if program.is_free.any() else entry[:0], m.neuron[0, program.is_open[0]]]
    summed = sum((Fraction(v) for part in d for v in part.tolist()), Fraction(0))
    shared = int(program.is_free[0].sum()) - 1 if program.ball else 0
    return (bound - summed) / (int(program.sizes[0]) - shared)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_proved_over_the_rationals(norm):
    """The claimed shift makes the exact Z semidefinite: no rounding is left to trust."""
    tested, first = 0, torch.tensor([0])
    for number in range(12):
        program, solved, _, model = solved_network(number, norm)
        program = program.take(first)
        if program.sizes[0] > 12:
            continue
        for multipliers in variants(solved.take(first), number)[:11]:
            shift = shift_it_claims(program, multipliers)
            z = exact_dual(program, multipliers, model)
            for i, row in enumerate(z):
                row[i] += shift
            assert is_semidefinite(z)
            tested += 1
    assert tested > 50


def test_the_matrix_is_that_over_the_rationals():
    first = torch.tensor([0])
    for number in range(8):
        program, solved, _, model = solved_network(number, "inf")
        program, solved = program.take(first), solved.take(first)
        exact = torch.tensor(
            [[float(v) for v in row] for row in exact_dual(program, solved, model)]
        )
        found = dual_matrix(program, usable(solved)).matrix[0]
        torch.testing.assert_close(found, exact.double(), rtol=1e-6, atol=1e-6)


def test_exact_arithmetic_sees_a_missing_shift():
    """Negative control."""
    seen, first = 0, torch.tensor([0])
    for number in range(4):
        program, solved, _, model = solved_network(number, "inf")
        halved = variants(solved.take(first), number)[1]
        seen += not is_semidefinite(exact_dual(program.take(first), halved, model))
    assert seen > 0


@pytest.mark.parametrize("gap", [2.0**-30, 2.0**-45, 2.0**-51])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e3])
def test_shift_of_a_matrix_with_a_known_eigenvalue(gap, scale):
    """[[1, 1 + gap], [1 + gap, 1]] has the eigenvalues -gap and 2 + gap."""
    matrix = torch.ones(1, 2, 2, dtype=torch.float64)
    matrix[:, 0, 1] += gap
    matrix[:, 1, 0] += gap
    share = torch.tensor([scale], dtype=torch.float64)
    shift = float(certificate._proved_shift(matrix, share, torch.ones(1, dtype=torch.bool)))
    assert gap <= shift <= max(4.1 * gap, 1e-4 * scale) + 1e-11


def test_a_shift_out_of_reach_proves_nothing():
    matrix = -1e30 * torch.eye(2, dtype=torch.float64)[None]
    scale = torch.tensor([1e-6], dtype=torch.float64)
    assert certificate._proved_shift(matrix, scale, torch.tensor([True])).tolist() == [torch.inf]


# --- no numbers ---------------------------------------------------------------------------------


def small_problem() -> tuple[LocalProblem, Facts]:
    problem = make_problem(build_graph(CASES[1].model(), (5,)), CASES[1].point(), 1.0)
    return problem, root_facts(problem, native_crown(problem), torch.arange(3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_proves_nothing(value):
    problem, facts = small_problem()
    with torch.no_grad():
        program = build_program(problem.graph.double, facts)
    entry, neuron = torch.ones_like(program.sign), torch.ones_like(program.gap)
    good = Multipliers(torch.ones(3).double(), entry, neuron, neuron, entry, entry)
    usual = certified_bound(program, good)
    assert torch.isfinite(usual).all()
    for field in dataclasses.fields(Multipliers):
        spoilt = getattr(good, field.name).clone()
        spoilt.view(3, -1)[1, 0] = value
        bound = certified_bound(program, dataclasses.replace(good, **{field.name: spoilt}))
        assert bound[1] == torch.inf
        assert torch.allclose(bound[[0, 2]], usual[[0, 2]], rtol=1e-9)
    free = int(program.is_free[1].nonzero()[0])
    for name, place in (
        ("rows", 0),
        ("centre", 0),
        ("gap", 0),
        ("entry_lower", free),
        ("entry_upper", free),
    ):
        spoilt = getattr(program, name).clone()
        spoilt[1, place] = value
        bound = certified_bound(dataclasses.replace(program, **{name: spoilt}), good)
        assert bound[1] == torch.inf
        assert torch.allclose(bound[[0, 2]], usual[[0, 2]], rtol=1e-9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("what", ["cotangents", "entries", "slopes"])
def test_intervals_that_are_no_numbers_prove_nothing(what, value):
    problem, facts = small_problem()
    root = native_crown(problem)
    starts, known = warm_starts(problem, root), root.class_upper_bounds

    def spoilt(interval: Interval) -> Interval:
        lower, upper = (end.expand(3, *end.shape[1:]).clone() for end in interval)
        lower[1], upper[1] = -value, value
        return Interval(lower, upper)

    given = getattr(facts, what)
    changed = spoilt(given) if what == "entries" else {i: spoilt(c) for i, c in given.items()}
    nothing, effort = torch.full((3,), -1), Effort(sweeps=60)
    with torch.no_grad():
        usual, found = (
            solve_boxes(problem, f, torch.full_like(known, torch.inf), effort, starts, nothing)
            for f in (facts, dataclasses.replace(facts, **{what: changed}))
        )
    true = jacobians(CASES[1].model(), points_in_box(problem.lower, problem.upper, 150))
    bound = found.upper_bound
    assert bound[1] >= true.abs().sum(2).amax(0)[1]
    assert torch.allclose(bound[[0, 2]], usual.upper_bound[[0, 2]], rtol=1e-2)


def test_without_a_known_bound():
    problem, facts = small_problem()
    starts = warm_starts(problem, native_crown(problem))
    known, nothing = torch.full((3,), torch.inf).double(), torch.full((3,), -1)
    with torch.no_grad():
        solved = solve_boxes(problem, facts, known, Effort(), starts, nothing)
    assert torch.isfinite(solved.upper_bound).all()
