"""Branch and bound: exact against enumeration, certified whenever and however it stops."""

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from cases import CASES, REFERENCES, Case, mlp
from enumeration import exact_constants
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import jacobians, points_in_box
from shared import problem_of as problem_of_case
from shared import sampled_jacobians
from torch import nn

import lipschitz.search.engines.neurons as native_search
import lipschitz.search.run as searching
import lipschitz.search.splits as splits
from commands.progress import ProgressBar, trace_to
from commands.row_file import read_rows
from lipschitz.bounds.lirpa.bounds import LirpaEngine
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.true_gradients import sample_gradients
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search.engines.inputs import InputSearch
from lipschitz.search.engines.lirpa import LirpaSearch
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.heuristics import chooser
from lipschitz.search.interface import Limits
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.options import BranchOptions
from lipschitz.search.run import bound_by_branching
from lipschitz.words import EXACT, HEURISTICS

SLACK = 1e-9


def problem_of(model, x, eps):
    return make_problem(build_graph(model, x.shape), x, eps)


def searched(problem, *, heuristic="sign", limits=None, watch=None, wrap=None, **options):
    bounding = NeuronSearch(problem, native_crown(problem), chooser(heuristic), **options)
    found = sample_gradients(problem)
    best = int(found.norms.argmax())
    return branch_and_bound(
        bounding if wrap is None else wrap(bounding),
        float(found.norms[best]),
        found.witnesses[best],
        limits or Limits(timeout=30, batch_size=64),
        watch,
    )


def tiny_net(seed: int, sizes: tuple[int, ...], activation=nn.ReLU) -> nn.Module:
    torch.manual_seed(seed)
    model = mlp(*sizes, activation=activation).double().eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2.5)
    return model


def exact_of(model, problem) -> np.ndarray:
    return exact_constants(model, problem.lower.flatten().numpy(), problem.upper.flatten().numpy())


@cache
def solved(seed: int, sizes: tuple[int, ...], eps: float):
    """A tiny network's problem and its exact values by enumeration."""
    model = tiny_net(seed, sizes)
    problem = problem_of(model, torch.full((sizes[0],), 0.3, dtype=torch.float64), eps)
    return problem, exact_of(model, problem)


def test_exact_equals_enumeration():
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 10**6),
        hidden=st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda h: sum(h) <= 9),
        inputs=st.integers(1, 3),
        eps=st.sampled_from([0.05, 0.4, 1.5]),
        heuristic=st.sampled_from(sorted(HEURISTICS)),
        leaky=st.booleans(),
    )
    def check(seed, hidden, inputs, eps, heuristic, leaky):
        activation = (lambda: nn.LeakyReLU(0.2)) if leaky else nn.ReLU
        model = tiny_net(seed, (inputs, *hidden, 2), activation)
        problem = problem_of(model, torch.full((inputs,), 0.3, dtype=torch.float64), eps)
        result = searched(problem, heuristic=heuristic, refresh_every=1)
        exact = exact_of(model, problem)
        assert result.status == EXACT
        assert result.lower_bound <= exact.max() * (1 + SLACK) + 1e-12
        assert result.upper_bound >= exact.max() * (1 - SLACK)
        assert result.upper_bound <= result.lower_bound * (1 + 1.001e-4) + 1e-12
        assert (result.row_upper_bounds.numpy() >= exact * (1 - SLACK)).all()

    check()


@pytest.mark.parametrize("options", [{}, {"refresh_every": 0}, {"feasibility_steps": 1}], ids=str)
@pytest.mark.parametrize(
    "reference", [r for r in REFERENCES if r.exact], ids=lambda r: f"{r.file}-{r.eps}"
)
def test_reference_values(reference, options):
    problem = problem_of(reference.model(), reference.point(), reference.eps)
    result = searched(problem, limits=Limits(timeout=60), **options)
    assert result.status == EXACT
    assert result.upper_bound >= reference.exact * (1 - 1e-8)
    assert result.lower_bound <= reference.exact * (1 + 1e-8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.02, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds_hold_on_every_architecture(case: Case, eps, dtype):
    model, problem = case.model(dtype), problem_of_case(case, eps, dtype)
    root = native_crown(problem)
    result = searched(problem, limits=Limits(timeout=0.3, batch_size=64))
    sampled = sampled_jacobians(case, eps, dtype, 200).flatten(2).abs().sum(2).amax(0)
    rounding = 1e-5 if dtype == torch.float32 else SLACK
    assert (result.row_upper_bounds >= sampled * (1 - rounding)).all()
    assert (result.row_upper_bounds <= root.class_upper_bounds).all()
    assert result.lower_bound <= result.upper_bound
    if result.witness is not None:
        assert (problem.lower <= result.witness).all()
        assert (result.witness <= problem.upper).all()
        at_witness = jacobians(model, result.witness[None]).flatten(2).abs().sum(2).max()
        assert float(at_witness) == pytest.approx(result.lower_bound, rel=rounding)


def test_float32_brackets_float64():
    reference = REFERENCES[3]
    results = [
        searched(problem_of(reference.model(d), reference.point(d), reference.eps))
        for d in (torch.float32, torch.float64)
    ]
    assert results[0].upper_bound >= results[1].lower_bound
    assert results[0].lower_bound <= results[1].upper_bound
    assert results[0].upper_bound == pytest.approx(results[1].upper_bound, rel=2e-4)


# --- anytime ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def medium():
    """A problem whose search takes some rounds, and its exact value."""
    model = tiny_net(3, (3, 8, 6, 2))
    problem = problem_of(model, torch.full((3,), 0.3, dtype=torch.float64), 1.5)
    result = searched(problem, limits=Limits(tolerance=1e-9, batch_size=4, timeout=60))
    assert result.status == EXACT
    assert result.domains > 40
    return problem, result.upper_bound


def test_progress_is_monotone_and_certified(medium):
    problem, exact = medium
    seen = []
    searched(problem, limits=Limits(batch_size=4, tolerance=1e-9, timeout=60), watch=seen.append)
    assert len(seen) > 8
    for state in seen:
        assert state.lower_bound <= exact * (1 + SLACK)
        assert state.upper_bound >= exact * (1 - SLACK)
    for before, after in itertools.pairwise(seen):
        assert after.upper_bound <= before.upper_bound
        assert after.lower_bound >= before.lower_bound


class Interrupting:
    """Raises KeyboardInterrupt at the n-th call of the engine."""

    def __init__(self, bounding, calls: int) -> None:
        self.bounding, self.left = bounding, calls

    def __getattr__(self, name):
        method = getattr(self.bounding, name)

        def call(*arguments):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return method(*arguments)

        return method if name in ("root", "attack") else call


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 8, 13, 21, 34])
def test_interrupted_bounds_stay_certified(medium, calls):
    problem, exact = medium
    result = searched(
        problem,
        limits=Limits(batch_size=4, tolerance=1e-9, timeout=60),
        wrap=lambda bounding: Interrupting(bounding, calls),
    )
    assert result.status == "interrupted"
    assert result.lower_bound <= exact * (1 + SLACK)
    assert result.upper_bound >= exact * (1 - SLACK)
    assert float(result.row_upper_bounds.max()) >= exact * (1 - SLACK)


@pytest.mark.parametrize("max_domains", [1, 3, 10])
def test_domain_limit_stays_certified(medium, max_domains):
    problem, exact = medium
    limits = Limits(batch_size=4, tolerance=1e-9, timeout=60, max_domains=max_domains)
    result = searched(problem, limits=limits)
    assert result.upper_bound >= exact * (1 - SLACK)
    assert result.lower_bound <= exact * (1 + SLACK)
    assert result.status in (EXACT, "domain_limit")
    if max_domains == 1:
        assert result.status == "domain_limit"


def test_timeout_zero_returns_the_root_bound(medium):
    problem, exact = medium
    result = searched(problem, limits=Limits(timeout=0))
    assert result.status == "timeout"
    assert exact <= result.upper_bound <= float(native_crown(problem).class_upper_bounds.max())


def test_two_runs_are_equal(medium):
    problem, _ = medium
    runs = [searched(problem, limits=Limits(timeout=60, batch_size=n)) for n in (16, 16)]
    first, second = (dataclasses.asdict(run) for run in runs)
    for key, value in first.items():
        assert (
            torch.equal(torch.as_tensor(second[key]), value)
            if torch.is_tensor(value)
            else (second[key] == value)
        )


@pytest.mark.parametrize("eps", [0.0, 1e-12])
def test_point_box_gives_the_gradient_norm(eps):
    model = tiny_net(5, (3, 6, 4, 2))
    x = torch.full((3,), 0.3, dtype=torch.float64)
    result = searched(problem_of(model, x, eps))
    true = float(jacobians(model, x[None]).abs().sum(2).max())
    assert result.status == EXACT
    assert result.upper_bound == pytest.approx(true, rel=1e-9)


# --- negative controls --------------------------------------------------------------------------


def test_a_split_that_forgets_a_strip_is_caught(monkeypatch):
    """Halves that leave out 0 < z < strip must lose the maximum of some network."""
    true_halves = splits.closed_halves

    def with_a_strip(parents, table=None):
        both = true_halves(parents, table)
        count, total = parents.preact_lower.shape
        neuron = parents.choice < total
        above = neuron.nonzero()[:, 0] + count
        at = (above, parents.choice[neuron])
        both.preact_lower[at] = both.preact_lower[at] + 0.4 * both.preact_upper[at]
        return both

    assert _too_small() == 0
    monkeypatch.setattr(native_search, "closed_halves", with_a_strip)
    assert _too_small() > 0


def test_a_relaxation_off_by_a_thousandth_is_caught(monkeypatch):
    true_bound = native_search.vector_bound

    def too_small(*arguments, **options):
        bound = true_bound(*arguments, **options)
        return dataclasses.replace(bound, upper_bound=bound.upper_bound * 0.999)

    monkeypatch.setattr(native_search, "vector_bound", too_small)
    assert _too_small() > 0


def _too_small() -> int:
    """Tiny networks whose upper bound is below the exact value, or contradicts itself."""
    failures = 0
    for seed in range(12):
        problem, exact = solved(seed, (2, 5, 3, 2), 1.5)
        bounding = NeuronSearch(problem, native_crown(problem), chooser("sign"))
        try:
            result = branch_and_bound(bounding, 0.0, None, Limits(timeout=2, tolerance=1e-6))
        except ArithmeticError:  # the search met a gradient above its own bound
            failures += 1
            continue
        failures += result.upper_bound < exact.max() * (1 - 1e-7)
    return failures


# --- cutting the input, the whole call ----------------------------------------------------------


@pytest.mark.parametrize("branch", ["relu", "input", "auto"])
@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_every_way_of_branching_reaches_the_exact_value(branch, inputs):
    for seed in range(3):
        problem, values = solved(seed, (inputs, 5, 4, 2), 0.7)
        exact = values.max()
        closes = branch != "input" or inputs == 1
        options = BranchOptions(timeout=20 if closes else 0.3, branch=branch, tolerance=1e-3)
        result = bound_by_branching(problem, options)
        assert result.branch == branch or branch == "auto"
        assert result.upper_bound >= exact * (1 - SLACK)
        assert result.lower_bound <= exact * (1 + SLACK)
        assert result.upper_bound <= result.root_upper_bound
        if closes:
            assert result.status == EXACT


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_input_search_is_certified(case: Case):
    problem = problem_of_case(case, 0.3)
    result = branch_and_bound(InputSearch(problem), 0.0, None, Limits(timeout=0.2, batch_size=32))
    sampled = sampled_jacobians(case, 0.3, count=200).flatten(2).abs().sum(2).amax(0)
    assert (result.row_upper_bounds >= sampled * (1 - SLACK)).all()
    assert result.lower_bound <= result.upper_bound


@pytest.mark.parametrize("changed", [{"branch": "both"}, {"refresh": "yes"}, {"heuristic": "best"}])
def test_unknown_options_are_refused(medium, changed):
    with pytest.raises(InputError, match=r"both|yes|best"):
        bound_by_branching(medium[0], BranchOptions(**changed))


@pytest.mark.parametrize("refresh", ["on", "off", "auto"])
def test_refresh_changes_speed_only(medium, refresh):
    problem, exact = medium
    result = bound_by_branching(problem, BranchOptions(refresh=refresh, branch="relu"))
    assert result.status == EXACT
    assert result.upper_bound == pytest.approx(exact, rel=1.1e-4)


def test_watchers(medium, tmp_path, capsys):
    problem, _ = medium
    bar, trace = ProgressBar(timeout=60, disable=False), trace_to(tmp_path / "trace.jsonl", 7)

    def watch(state):
        bar(state)
        trace(state)

    bound_by_branching(problem, BranchOptions(branch="relu", batch_size=2), watch)
    bar.close()
    rows = read_rows(tmp_path / "trace.jsonl")
    assert rows
    assert rows[0]["example"] == 7
    assert [row["finished"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert {"seconds", "upper_bound", "lower_bound", "domains", "open_domains"} <= set(rows[0])
    shown = capsys.readouterr()
    assert "upper" in shown.err
    assert not shown.out


@pytest.mark.parametrize("seed", range(6))
def test_splitting_the_input_s_own_activation_is_certified_on_auto_lirpa(seed):
    """Its pre-activation is the input itself, of which auto_LiRPA sees the whole box only."""
    torch.manual_seed(seed)
    model = mlp(1, 4, 1, activation=lambda: nn.LeakyReLU(0.01)).double()
    model = nn.Sequential(nn.LeakyReLU(0.01), *model[1:]).eval()
    problem = problem_of(model, torch.zeros(1, dtype=torch.float64), 0.2)
    engine = LirpaEngine(problem.graph)
    search = LirpaSearch(problem, engine, engine.crown(problem, optimize=False), chooser("slope"))
    root = search.root()
    halves = search.children(root.having(choice=torch.zeros_like(root.choice)))
    for sign, upper_bound in zip((-1, 1), halves.upper_bound.tolist(), strict=True):
        points = sign * torch.linspace(0.001, 0.2, 100, dtype=torch.float64)[:, None]
        assert upper_bound >= float(jacobians(model, points).abs().max()) * (1 - SLACK)


def test_values_that_overflow_prove_nothing():
    model = mlp(2, 4, 4, 2).eval()
    with torch.no_grad():
        for layer in model[1::2]:
            layer.weight.mul_(100)
    problem = make_problem(build_graph(model, (2,)), torch.zeros(2), 1e38)
    result = bound_by_branching(problem, BranchOptions(timeout=1, branch="relu"))
    sampled = jacobians(model, points_in_box(-torch.ones(2), torch.ones(2), 300)).abs().sum(2)
    assert result.upper_bound >= float(sampled.max()) * (1 - 1e-5)
    assert np.isfinite(result.upper_bound)


def test_a_root_bound_that_is_no_number_is_refused(medium, monkeypatch):
    nothing = dataclasses.replace(
        native_crown(medium[0]), class_upper_bounds=torch.tensor([1.0, torch.nan])
    )
    monkeypatch.setattr(searching, "native_alpha", lambda *a, **k: nothing)
    with pytest.raises(InputError, match="overflow"):
        bound_by_branching(medium[0], BranchOptions(timeout=1, branch="relu"))


@pytest.mark.parametrize("where", ["trial", "preparation"])
def test_an_interrupt_before_the_search_ends_it(medium, monkeypatch, where):
    problem, exact = medium

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    # Boxes and neurons are searched by turns, as in networks of other activations.
    monkeypatch.setattr(searching, "can_search_regions", lambda graph: False)
    monkeypatch.setattr(NeuronSearch, "children" if where == "trial" else "__init__", interrupt)
    result = bound_by_branching(problem, BranchOptions(branch="auto", tolerance=1e-9))
    assert result.status == "interrupted"
    assert result.lower_bound <= exact * (1 + SLACK)
    assert result.upper_bound >= exact * (1 - SLACK)
    assert result.branch is None
