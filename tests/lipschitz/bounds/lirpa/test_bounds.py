from fractions import Fraction
from functools import cache

import pytest
import torch
from cases import CASES, REFERENCES, Case
from oracles import exact_preactivations, jacobian, network_at_its_kinks
from shared import graph_of, problem_of, sampled_jacobians

from lipschitz.bounds.lirpa import bounds as lirpa_bounds
from lipschitz.bounds.lirpa.bounds import LirpaEngine
from lipschitz.bounds.native.terms.jacobian import interval_bound
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.relaxation import LineBounds, slope_product_lines


@cache
def engine_of(case: Case) -> LirpaEngine:
    return LirpaEngine(graph_of(case))


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r.file}@{r.eps}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference_networks(reference, dtype):
    graph = build_graph(reference.model(dtype), tuple(reference.point().shape))
    engine = LirpaEngine(graph)
    problem = make_problem(graph, reference.point(dtype), reference.eps)
    plain = float(engine.crown(problem, optimize=False).class_upper_bounds.max())
    optimized = float(engine.crown(problem, optimize=True).class_upper_bounds.max())
    assert plain == pytest.approx(reference.crown_root, rel=1e-5)
    assert optimized <= plain
    if reference.exact is not None:
        assert optimized >= reference.exact
    if reference.released_root is not None:
        assert optimized <= reference.released_root + 0.005  # printed with two digits


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("optimize", [False, True])
def test_no_sampled_gradient_beats_a_bound(case, eps, optimize):
    found = engine_of(case).crown(problem_of(case, eps), optimize=optimize)
    sampled = sampled_jacobians(case, eps)
    assert (sampled >= found.norm.entries.lower - 1e-9).all()
    assert (sampled <= found.norm.entries.upper + 1e-9).all()
    assert (sampled.abs().flatten(2).sum(2) <= found.class_upper_bounds).all()
    if eps == 0:
        expected = jacobian(case.model(), case.point()).abs().flatten(1).sum(1)
        torch.testing.assert_close(found.class_upper_bounds, expected)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_interval_bounds_are_the_native_ones(case):
    problem, engine = problem_of(case, 0.2), engine_of(case)
    native = interval_bound(problem.graph, problem.lower, problem.upper, problem.rows)
    torch.testing.assert_close(engine.ibp(problem), native, rtol=1e-9, atol=1e-9)
    linear = engine.crown(problem, optimize=False).class_upper_bounds
    assert (linear <= native * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["mlp3", "convolution", "residual_convolution"])
def test_chunks_of_rows_and_of_classes_change_nothing(name):
    case = next(c for c in CASES if c.name == name)
    graph = build_graph(case.model(), case.input_shape)
    problem = make_problem(graph, case.point(), 0.2)
    whole = LirpaEngine(graph).crown(problem, optimize=False)
    small = LirpaEngine(graph, memory_budget=1).crown(problem, optimize=False, rows_at_once=1)
    torch.testing.assert_close(small.class_upper_bounds, whole.class_upper_bounds)
    torch.testing.assert_close(small.norm.entries, whole.norm.entries)


def test_optimised_slopes_tighten():
    case = next(c for c in CASES if c.name == "mlp5")
    graph = build_graph(case.model(), case.input_shape)
    problem = make_problem(graph, case.point(), 0.5)
    plain = LirpaEngine(graph).preactivation_bounds(problem, optimize=False)[0]
    tight = LirpaEngine(graph).preactivation_bounds(problem, optimize=True)[0]
    gains = [plain[i].upper - plain[i].lower - (tight[i].upper - tight[i].lower) for i in plain]
    assert all((g >= -1e-9).all() for g in gains)
    assert any((g > 1e-3).any() for g in gains)


def test_a_relaxation_off_by_a_thousandth_is_caught(monkeypatch):
    """Negative control of the reference values: they must not survive a scaled relaxation."""

    def wrong(*arguments):
        lines = slope_product_lines(*arguments)
        return LineBounds(*lines[:2], *(0.999 * line for line in lines[2:]))

    reference = REFERENCES[4]
    graph = build_graph(reference.model(), (16,))
    problem = make_problem(graph, reference.point(), reference.eps)
    monkeypatch.setattr("lipschitz.bounds.lirpa.operators.slope_product_lines", wrong)
    bound = float(LirpaEngine(graph).crown(problem, optimize=False).class_upper_bounds.max())
    assert bound != pytest.approx(reference.crown_root, rel=1e-5)


def test_rounding_of_earlier_layers_excludes_no_point():
    """Large terms cancel in one layer; the next, whose own terms are tiny, must allow for it."""
    for seed in range(30):
        model, x = network_at_its_kinks(seed)
        problem = make_problem(build_graph(model, (2,)), x, 0.0)
        preacts, _ = LirpaEngine(problem.graph).preactivation_bounds(problem, optimize=False)
        for bounds, values in zip(preacts.values(), exact_preactivations(model, x), strict=True):
            for low, high, value in zip(*(b[0].tolist() for b in bounds), values, strict=True):
                assert Fraction(low) <= value <= Fraction(high)


def test_torch_keeps_its_default_dtype():
    graph = build_graph(CASES[1].model(), CASES[1].input_shape)
    LirpaEngine(graph).crown(make_problem(graph, CASES[1].point(), 0.1), optimize=True)
    assert torch.get_default_dtype() == torch.float32
    assert (
        lirpa_bounds.LirpaEngine(graph).ibp(make_problem(graph, CASES[1].point(), 0.1)).dtype
        == torch.float64
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_cuda_agrees_with_the_cpu(case):
    bounds = []
    for device in ("cpu", "cuda"):
        graph = build_graph(case.model().to(device), case.input_shape)
        problem = make_problem(graph, case.point(), 0.2)
        bounds.append(LirpaEngine(graph).crown(problem, optimize=True).class_upper_bounds.cpu())
    torch.testing.assert_close(*bounds, rtol=1e-6, atol=1e-6)
