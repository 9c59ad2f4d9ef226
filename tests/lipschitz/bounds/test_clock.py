"""The clock itself, and every method cut short at every look that it takes at one."""

import math
from dataclasses import replace

import pytest
import torch
from cases import CASES, REFERENCES
from shared import problem_of, sampled_jacobians

import lipschitz.bounds.native.forward.preactivations as preactivations
from lipschitz.bounds.baselines.lipbab import lipbab_bounds
from lipschitz.bounds.baselines.lipmip import lipmip_bounds
from lipschitz.bounds.baselines.sampling import sampled_lower_bounds
from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.methods import METHODS, is_installed
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import interval_bounds, native_crown
from lipschitz.bounds.options import MethodOptions
from lipschitz.bounds.sdp.bound import SdpOptions, sdp_bounds
from lipschitz.bounds.true_gradients import Sampling, sample_gradients
from lipschitz.prepared import Prepared
from lipschitz.problem import make_problem
from lipschitz.search.options import BranchOptions
from lipschitz.search.run import bound_by_branching
from lipschitz.words import EXACT, LOWER_BOUND_ONLY, TIMEOUT
from models import build_model

SLACK = 1e-9
# So little that rows come in many chunks.
BUDGET = 3000


class Looks:
    """A time that stands still for so many looks at it, and is then over."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self) -> float:
        self.count -= 1
        return 0.0 if self.count >= 0 else 1e9


def ending_after(looks: int) -> Clock:
    return Clock(1.0, Looks(looks))


def case_named(name):
    return next(case for case in CASES if case.name == name)


# --- the clock ----------------------------------------------------------------------------------


def test_without_a_limit_nobody_looks():
    def never():
        raise AssertionError("looked")

    clock = Clock(None, never)
    assert clock.left == math.inf
    assert clock.allows(1e9)
    assert not clock.is_over
    assert clock.part(0.1) is clock
    assert list(clock.in_time(range(5), "stage")) == [0, 1, 2, 3, 4]
    assert not UNLIMITED.missed
    assert not Clock.of(math.inf).is_limited


def test_parts_and_reserves():
    now = [0.0]
    clock = Clock(10.0, lambda: now[0])
    assert clock.part(0.25).end == 2.5
    assert clock.before(4.0).end == 6.0
    now[0] = 6.0
    assert clock.part(0.5).end == 8.0
    assert (clock.left, clock.allows(4.0), clock.allows(4.1)) == (4.0, True, False)
    now[0] = 20.0
    assert (clock.left, clock.is_over, clock.part(0.5).end) == (0.0, True, 20.0)
    assert not clock.allows(0.0)


def test_pieces_that_will_not_fit_are_not_begun():
    now, lengths = [0.0], [1.0, 3.0, 1.0, 1.0, 1.0]
    clock, done = Clock(9.5, lambda: now[0]), []
    for length in clock.in_time(lengths, "rows", 2):
        now[0] += length
        done.append(length)
    assert done == lengths
    assert not clock.missed
    clock = Clock(7.0, lambda: now[0])
    now[0] = 0.0
    done = []
    for length in clock.in_time(lengths, "rows", 2):
        now[0] += length
        done.append(length)
    assert done == [1.0, 3.0, 1.0]  # after 5 seconds another piece of 3 would not fit
    assert clock.not_reached == ("rows of layer 2",)


def test_slices_grow_as_long_as_they_fit():
    now = [0.0]

    def slices(total: int, end: float | None, seconds: float = 1.0, most: int = 100):
        now[0] = 0.0
        clock = Clock(end, lambda: now[0])
        for part in clock.growing(total, 2, most, "stage"):
            yield part.start, part.stop
            now[0] += seconds * (part.stop - part.start)
        assert bool(clock.missed) == (now[0] < seconds * total)

    assert list(slices(25, None)) == [(0, 25)]
    assert list(slices(25, None, most=10)) == [(0, 10), (10, 20), (20, 25)]
    assert list(slices(25, 100.0)) == [(0, 2), (2, 10), (10, 25)]
    assert list(slices(25, 100.0, most=10)) == [(0, 2), (2, 10), (10, 20), (20, 25)]
    assert list(slices(25, 7.5)) == [(0, 2), (2, 7)]  # five fit, not eight
    assert list(slices(25, 0.0)) == []
    assert list(slices(25, 1.5)) == [(0, 2)]  # nobody knew
    assert list(slices(0, 1.0)) == []


def test_notes_in_words():
    clock = Clock(0.0)
    for layer in (5, 3, 4):
        clock.part(0.5).miss("linear bounds", layer)
    clock.miss("slopes", 2)
    clock.miss("odd ones", 1)
    clock.miss("odd ones", 4)
    clock.miss("search")
    clock.without_notes().miss("nothing")
    assert clock.not_reached == (
        "linear bounds of layers 3 to 5",
        "slopes of layer 2",
        "odd ones of layers 1, 4",
        "search",
    )


# --- cut short at every look --------------------------------------------------------------------


def true_norms(case, eps, problem):
    """Norms of sampled Jacobians, per row or of all rows."""
    jacobians = sampled_jacobians(case, eps, count=200).flatten(2)
    rows = torch.einsum("rc,pcd->prd", problem.rows, jacobians)
    return problem.measure(rows).amax(0)


def cuts(run, most=4000):
    """What a run gives when time is over after every number of looks, up to one that suffices."""
    steps = [*range(40), *range(40, 200, 7), *range(200, most, 61)]
    for looks in steps:
        clock = ending_after(looks)
        found = run(clock)
        yield looks, clock, found
        if not clock.missed and clock.now.count > 0:
            return
    raise AssertionError("never enough")


LINEAR = {
    "crown": lambda problem, clock: native_crown(problem, memory_budget=BUDGET, clock=clock),
    "alpha": lambda problem, clock: native_alpha(problem, memory_budget=BUDGET, clock=clock),
}
SETTINGS = [
    ("mlp5", 0.3, "inf", "each"),
    ("leaky_relu", 0.5, "2", "all"),
    ("mlp3", 0.4, "1", "all"),
    ("mlp3", 0.4, "2", "each"),
    ("residual_convolution", 0.2, "inf", "each"),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("method", LINEAR)
def test_linear_bounds_hold_wherever_they_are_cut(method, setting):
    name, eps, norm, outputs = setting
    case = case_named(name)
    problem = problem_of(case, eps, norm=norm, outputs=outputs)
    true, intervals = true_norms(case, eps, problem), interval_bounds(problem)
    whole = LINEAR[method](problem, UNLIMITED).class_upper_bounds
    words = set()
    for looks, clock, root in cuts(lambda clock: LINEAR[method](problem, clock)):
        bounds = root.class_upper_bounds
        assert (bounds >= true * (1 - SLACK)).all(), looks
        if clock.missed:
            assert (bounds <= intervals).all(), looks
        else:
            assert torch.equal(bounds, whole)
        words |= set(clock.missed)
    assert {"linear bounds", "linear bounds of entries"} <= words
    assert ("slope optimisation" in words) == (method == "alpha")


def test_a_row_that_was_not_reached_but_counts_is_caught(monkeypatch):
    """Negative control: a neuron that was not reached is not one that is dead."""
    case = case_named("mlp5")
    problem = problem_of(case, 3.0)
    true, place = true_norms(case, 3.0, problem), preactivations.place

    def forgetful(base, bounds, indices, mask):
        dead = bounds.new_tensor([-1.0, 2.0]).reshape(2, 1, 1)  # z <= -1 and -z <= 2
        return place(base, torch.where(bounds.isinf(), dead, bounds), indices, mask)

    monkeypatch.setattr(preactivations, "place", forgetful)
    runs = [native_crown(problem, memory_budget=BUDGET, clock=ending_after(n)) for n in range(60)]
    assert any((run.class_upper_bounds < true * (1 - SLACK)).any() for run in runs)


SEARCHING = {
    "sdp": lambda problem: sdp_bounds(problem, SdpOptions(sweeps=20)),
    "lipmip": lambda problem: lipmip_bounds(problem),
    "lipbab": lambda problem: lipbab_bounds(problem),
}


@pytest.mark.parametrize("method", SEARCHING)
def test_methods_that_search_hold_wherever_they_are_cut(method, monkeypatch):
    case, eps = case_named("mlp3"), 0.3
    problem = problem_of(case, eps)
    true, intervals = true_norms(case, eps, problem), interval_bounds(problem)
    for looks in [*range(0, 60, 2), *range(60, 400, 23), 10**6]:
        monkeypatch.setattr(Clock, "of", staticmethod(lambda _, n=looks: ending_after(n)))
        outcome = SEARCHING[method](problem)
        assert (outcome.class_upper_bounds >= true * (1 - SLACK)).all(), looks
        assert (outcome.class_upper_bounds <= intervals * (1 + SLACK)).all(), looks
        assert (outcome.found.norms <= outcome.class_upper_bounds).all()
        if looks == 0:
            assert outcome.status == TIMEOUT
            assert outcome.not_reached
    assert outcome.status != TIMEOUT
    assert not outcome.not_reached


@pytest.mark.parametrize(
    "setting", [{}, {"sdp": "always"}, {"branch": "input", "tolerance": 0.05}], ids=str
)
@pytest.mark.parametrize("norm", ["inf", "1"])
def test_branch_and_bound_holds_wherever_it_is_cut(norm, setting, monkeypatch):
    if norm == "1" and "sdp" in setting:
        pytest.skip("no programs for norm 1")
    case, eps = case_named("mlp3"), 0.3
    problem = problem_of(case, eps, norm=norm)
    true, intervals = true_norms(case, eps, problem), interval_bounds(problem)
    options = BranchOptions(timeout=5 if norm == "1" or "branch" not in setting else 0.5, **setting)
    for looks in [*range(0, 45, 3), *range(45, 400, 71), 10**6]:
        monkeypatch.setattr(Clock, "of", staticmethod(lambda _, n=looks: ending_after(n)))
        result = bound_by_branching(problem, options)
        bounds = torch.tensor(result.class_upper_bounds, dtype=true.dtype)
        assert (bounds >= true * (1 - SLACK)).all(), looks
        assert (bounds <= intervals).all(), looks
        assert result.lower_bound <= result.upper_bound <= result.root_upper_bound
        assert result.upper_bound >= float(true.max()) * (1 - SLACK)
        if looks == 0:
            assert result.status == TIMEOUT
            assert "search" in result.not_reached
    if "branch" not in setting:
        assert result.status == EXACT
        assert not result.not_reached


# --- true gradients -----------------------------------------------------------------------------


def test_gradients_are_true_however_few_there_was_time_for():
    case, eps = case_named("mlp3"), 0.3
    problem = problem_of(case, eps)
    upper = native_crown(problem).class_upper_bounds
    centre = replace(problem, lower=problem.centre, upper=problem.centre)
    least = sample_gradients(centre).norms
    sampling = Sampling(num_random=8, ascent_steps=4, points_at_once=9)
    whole, most = sample_gradients(problem, sampling), 0
    for looks, clock, found in cuts(lambda clock: sample_gradients(problem, sampling, clock=clock)):
        assert (found.norms <= upper).all()
        assert (found.norms >= least * (1 - SLACK)).all(), looks
        most = max(most, looks)
        assert bool(clock.missed) == ("sampled gradients" in clock.not_reached)
    assert torch.equal(found.norms, whole.norms)
    assert most > 10
    outcome = sampled_lower_bounds(problem, clock=ending_after(30))
    assert outcome.status == LOWER_BOUND_ONLY
    assert outcome.not_reached == ("sampled gradients",)


# --- the call -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["crown", "alpha", "sdp", "lipbab", "lipmip"])
def test_results_say_what_was_not_reached(method):
    case = case_named("mlp5")
    problem = problem_of(case, 0.3)
    options = MethodOptions(timeout=1e-9)
    result = Prepared(problem.graph, method=method, engine="native", options=options).bound(problem)
    assert result.status == TIMEOUT
    assert result.not_reached
    assert result.upper_bound <= float(interval_bounds(problem).max()) * (1 + SLACK)
    plain = Prepared(problem.graph, method=method, engine="native").bound(problem)
    assert not plain.not_reached


def test_methods_without_a_search_have_no_limit_unless_asked():
    assert MethodOptions().timeout is None
    assert MethodOptions().search_seconds == 60
    assert MethodOptions(timeout=3).search_seconds == 3
    timed = {name for name, method in METHODS.items() if "native" in method.timed_on}
    assert {name for name, method in METHODS.items() if method.searches} <= timed
    assert {"crown", "alpha", "sampling"} <= timed
    assert not {"ibp", "global", "recurjac", "fastlip", "eclipse"} & timed


def test_auto_lirpa_is_left_for_the_native_engine_in_time():
    if not is_installed("auto_lirpa"):
        pytest.skip("needs auto_LiRPA")
    from lipschitz.bounds.lirpa.bounds import LirpaEngine

    case, eps = case_named("mlp3"), 0.3
    problem = problem_of(case, eps)
    engine = LirpaEngine(problem.graph)
    true, intervals = true_norms(case, eps, problem), interval_bounds(problem)
    words = set()
    for looks in [*range(0, 40, 3), 10**6]:
        clock = ending_after(looks)
        bounds = engine.crown(problem, optimize=False, clock=clock).class_upper_bounds
        assert (bounds >= true * (1 - SLACK)).all(), looks
        if clock.missed:
            assert (bounds <= intervals).all(), looks
        words |= set(clock.missed)
    assert not clock.missed
    assert {"auto_LiRPA's bounds", "auto_LiRPA's bounds of the Jacobian"} <= words


def test_auto_lirpa_bounds_a_small_network_within_seconds():
    """Its calls cost more than their arithmetic, so many rows go into the first one."""
    if not is_installed("auto_lirpa"):
        pytest.skip("needs auto_LiRPA")
    reference = REFERENCES[5]
    x = reference.point()
    options = MethodOptions(timeout=5)
    prepared = Prepared(
        reference.model(), x.shape, method="crown", engine="auto_lirpa", options=options
    )
    result = prepared.bound(make_problem(prepared.graph, x, reference.eps))
    assert result.not_reached == ()
    assert result.upper_bound == pytest.approx(72.8295, rel=1e-4)


# --- the time itself ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["crown", "alpha", "sdp", "bab"])
def test_a_large_network_is_done_in_time(how):
    """Six layers on 3x32x32: CROWN alone takes a minute."""
    torch.manual_seed(0)
    model, x, seconds = build_model("cnn_6layer_stride1_padding0").eval(), torch.rand(3, 32, 32), 3
    if how == "bab":
        prepared = Prepared(model, x.shape, branching=BranchOptions(timeout=seconds))
    else:
        options = MethodOptions(timeout=seconds)
        prepared = Prepared(model, x.shape, method=how, engine="native", options=options)
    problem = make_problem(prepared.graph, x, 4 / 255)
    result = prepared.bound(problem)
    assert result.status == TIMEOUT
    assert "linear bounds of layers 2 to 5" in result.not_reached
    assert result.upper_bound <= float(interval_bounds(problem).max())
    assert (
        result.seconds < seconds + 10
    )  # a minute without; what is promised, 1, on a quiet machine
