"""Every method on every network: the promises of an upper bound."""

import pytest
import torch
from cases import CASES, REFERENCES, RandomNet
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import jacobians, points_in_box
from shared import attacked_norms, graph_of, problem_of

from lipschitz import METHODS, MethodOptions, Prepared, make_problem
from lipschitz.bounds.methods import LOWER, choose_engine, kind_of
from lipschitz.bounds.options import SlopeOptimization
from lipschitz.bounds.outcome import class_upper_bounds
from lipschitz.bounds.true_gradients import Sampling, sample_gradients
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph

# A method that needs an optional package has its promises tested where that package is, and so
# has the one that promises nothing above.
PAIRS = [
    (method, engine)
    for method, entry in METHODS.items()
    for engine in entry.prepare
    if entry.extra is None and entry.certifies != LOWER
]
# A search's bounds, and those of an optimisation, hold whenever it is stopped.
OPTIONS = MethodOptions(timeout=0.05, slopes=SlopeOptimization(iterations=3))
# Large gradients are looked for once for all methods, not by each of them.
FEW = Sampling(num_random=4, ascent_steps=2)
# Each method's bound is at most that of the one before it, on the same box and engine.
ORDERS = {"native": ["global", "ibp", "recurjac", "crown", "alpha"], "auto_lirpa": ["ibp", "crown"]}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize(("method", "engine"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_true_gradient_beats_an_upper_bound(case, method, engine, dtype):
    prepared = Prepared(graph_of(case, dtype), method=method, engine=engine, options=OPTIONS)
    for eps in (1e-3, 0.1, 3.0):
        result = prepared.bound(problem_of(case, eps, dtype), sampling=FEW)
        assert result.lower_bound <= result.upper_bound == max(result.class_upper_bounds)
        assert result.dtype == str(dtype).removeprefix("torch.")
        upper_bounds = torch.tensor(result.class_upper_bounds, dtype=dtype)
        assert (attacked_norms(case, eps, dtype) <= upper_bounds).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bound_one_percent_too_low_is_caught(dtype):
    """Negative control of the above, in a small box: its gradients nearly reach the bound."""
    for case in CASES:
        prepared = Prepared(graph_of(case, dtype), method="crown", engine="native")
        upper_bounds = prepared.upper_bounds(problem_of(case, 1e-3, dtype))
        caught = attacked_norms(case, 1e-3, dtype) > 0.99 * upper_bounds
        assert caught.any() or case.name == "relu_last"  # every gradient there is 0


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("engine", ORDERS)
def test_tighter_methods_are_tighter(case, eps, engine):
    bounds = []
    for method in ORDERS[engine]:
        prepared = Prepared(graph_of(case), method=method, engine=engine)
        bounds.append(float(prepared.upper_bounds(problem_of(case, eps)).max()))
    assert bounds == pytest.approx(sorted(bounds, reverse=True), rel=1e-9)


@pytest.mark.parametrize("reference", [r for r in REFERENCES if r.exact], ids=lambda r: r.file)
@pytest.mark.parametrize(("method", "engine"), PAIRS)
def test_no_bound_is_below_the_exact_constant(reference, method, engine):
    prepared = Prepared(reference.model(), (16,), method=method, engine=engine, options=OPTIONS)
    result = prepared.bound(make_problem(prepared.graph, reference.point(), reference.eps))
    assert result.lower_bound <= reference.exact * (1 + 1e-9)
    assert reference.exact * (1 - 1e-9) <= result.upper_bound  # stored to 11 digits


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([0.0, 1e-3, 0.05, 0.5, 2.0, 100.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    negative_slope=st.sampled_from([0.0, 0.2]),
    residual=st.booleans(),
)
def test_random_networks_and_boxes(sizes, seed, eps, scale, negative_slope, residual):
    model = RandomNet(sizes, seed, scale, negative_slope, residual)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sizes[0], generator=generator, dtype=torch.float64)
    problem = make_problem(build_graph(model, (sizes[0],)), x, eps)
    norms = jacobians(model, points_in_box(problem.lower, problem.upper, 30, seed))
    norms = norms.abs().flatten(2).sum(2).amax(0)
    norms = torch.maximum(norms, sample_gradients(problem).norms)
    slack = 1e-12 * (1 + norms)
    for method, engine in PAIRS:
        prepared = Prepared(problem.graph, method=method, engine=engine, options=OPTIONS)
        result = prepared.bound(problem, sampling=FEW)
        assert (norms <= torch.tensor(result.class_upper_bounds, dtype=norms.dtype) + slack).all()


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("crown", "local, upper bound"),
        ("global", "global, upper bound"),
        ("lipmip", "local, exact given time"),
        ("bab", "local, exact given time"),
        ("lipsdp", "global L2 x sqrt(D), upper bound"),
        ("eclipse", "local L2 x sqrt(D), upper bound"),
        ("sampling", "local, lower bound"),
    ],
)
def test_every_number_says_what_it_is(method, kind):
    assert kind_of(method) == kind


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(InputError, match="did you mean 'crown'"):
        choose_engine("crwn", None)
    with pytest.raises(InputError, match="use native"):
        choose_engine("global", "auto_lirpa")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bound_that_is_no_number_never_certifies(bad):
    with pytest.raises(InputError, match="not a finite number"):
        class_upper_bounds(lambda problem: torch.tensor([1.0, bad]), None)
