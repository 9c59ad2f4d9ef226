"""Programs inside branch and bound: exact against enumeration, certified however it stops."""

import sys
import threading
from itertools import pairwise

import pytest
import torch
from cases import CASES, REFERENCES, mlp
from enumeration import exact_constants
from oracles import jacobians, points_in_box
from torch import nn

import lipschitz.combined_search as combined_search
import lipschitz.sdp.boxes as boxes
import lipschitz.sdp.portfolio as portfolio
from bab import branch_and_bound
from lipschitz.branching import chooser
from lipschitz.native.crown import native_crown
from lipschitz.native.search import NativeSearch
from lipschitz.problem import DOMAIN_LIMIT, EXACT, INTERRUPTED, make_problem
from lipschitz.sdp.portfolio import Portfolio
from lipschitz.sdp.search import ProgramSearch
from lipschitz.search_state import SearchState
from lipschitz.search_types import Limits
from lipschitz.searching import BranchOptions, bound_by_branching
from lipschitz.tracing import build_graph

SLACK = 1e-9


@pytest.fixture(autouse=True)
def _programs_at_once(monkeypatch):
    """Small problems are over before their programs begin; here these begin at once."""
    monkeypatch.setattr(combined_search, "_FIRST_LINEAR", 1e-5)
    monkeypatch.setattr(portfolio, "_FIRST_SHARE", 5e-4)


def problem_of(seed, sizes=(3, 8, 6, 2), eps=1.5, scale=2.5, activation=nn.ReLU, **options):
    torch.manual_seed(seed)
    model = mlp(*sizes, activation=activation).double().eval()
    with torch.no_grad():
        for layer in model[1::2]:
            layer.weight.mul_(scale)
    x = torch.full((sizes[0],), 0.3, dtype=torch.float64)
    return model, make_problem(build_graph(model, x.shape), x, eps, **options)


def exact_of(model, problem):
    return exact_constants(model, problem.lower.numpy(), problem.upper.numpy())


def is_certified(result, exact, slack=SLACK):
    """Bounds on the right sides, row by row, and a witness that attains the lower one."""
    return (
        result.lower_bound <= exact.max() * (1 + slack)
        and result.upper_bound >= exact.max() * (1 - slack)
        and all(a >= b * (1 - slack) for a, b in zip(result.class_upper_bounds, exact, strict=True))
    )


@pytest.fixture(scope="module")
def medium():
    """A problem whose search takes some rounds, and its exact values."""
    model, problem = problem_of(3, (3, 5, 4, 2))
    return model, problem, exact_of(model, problem)


@pytest.mark.parametrize("sdp", ["always", "never"])
def test_an_affine_network_whose_bounds_do_not_quite_meet(sdp):
    """In float32 the rounding guards alone keep the search open."""
    case = next(c for c in CASES if c.name == "affine")
    model, x = case.model(torch.float32), case.point(torch.float32)
    problem = make_problem(build_graph(model, x.shape), x, 0.4)
    options = BranchOptions(timeout=2, sdp=sdp, branch="relu", tolerance=1e-9)
    result = bound_by_branching(problem, options)
    assert result.upper_bound == pytest.approx(result.lower_bound, rel=1e-5)


@pytest.mark.parametrize("sdp", ["always", "auto"])
@pytest.mark.parametrize("leaky", [False, True])
def test_exact_equals_enumeration(sdp, leaky):
    activation = (lambda: nn.LeakyReLU(0.2)) if leaky else nn.ReLU
    for seed, sizes in enumerate([(1, 4, 2), (2, 4, 3, 2), (3, 3, 2, 3, 1)]):
        model, problem = problem_of(seed, sizes, activation=activation)
        options = BranchOptions(timeout=20, sdp=sdp, branch="relu", batch_size=4, tolerance=1e-6)
        result = bound_by_branching(problem, options)
        exact = exact_of(model, problem)
        assert result.status == EXACT
        assert is_certified(result, exact)
        assert result.upper_bound <= exact.max() * (1 + 2e-6)
        at = jacobians(model, result.witness[None]).abs().sum(2).max()
        assert float(at) >= result.lower_bound * (1 - SLACK)


@pytest.mark.parametrize("options", [{"norm": "2"}, {"inputs": "free"}], ids=str)
def test_other_measures(options):
    eps = torch.tensor([1.5, 0.0, 1.0], dtype=torch.float64)
    model, problem = problem_of(5, (3, 6, 4, 2), eps=eps, outputs="each", **options)
    found = [
        bound_by_branching(problem, BranchOptions(timeout=5, sdp=sdp, branch="relu"))
        for sdp in ("always", "auto", "never")
    ]
    gradients = jacobians(model, points_in_box(problem.lower, problem.upper, 400))
    counted = gradients[..., eps > 0].abs().sum(2)
    true = gradients.norm(dim=2) if problem.norm == "2" else counted
    for result in found:
        assert result.upper_bound >= float(true.max()) * (1 - SLACK)
    assert max(r.lower_bound for r in found) <= min(r.upper_bound for r in found) * (1 + SLACK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_bounds_hold_on_every_architecture(case, dtype):
    model, x = case.model(dtype), case.point(dtype)
    problem = make_problem(build_graph(model, x.shape), x, 0.4)
    options = BranchOptions(timeout=0.5, sdp="always", branch="relu", tolerance=1e-6)
    result = bound_by_branching(problem, options)
    gradients = jacobians(model, points_in_box(problem.lower, problem.upper, 200))
    true = gradients.flatten(2).abs().sum(2).amax(0)
    rounding = 1e-5 if dtype == torch.float32 else SLACK
    assert (true.new_tensor(result.class_upper_bounds) >= true * (1 - rounding)).all()
    assert result.lower_bound <= result.upper_bound <= result.root_upper_bound


def test_programs_close_what_linear_bounds_do_not():
    """Width 32 at eps 0.2: the root's program is better than seconds of splits."""
    reference = REFERENCES[5]
    x = reference.point()
    problem = make_problem(build_graph(reference.model(), x.shape), x, reference.eps)
    found = {
        sdp: bound_by_branching(problem, BranchOptions(timeout=0.4, sdp=sdp))
        for sdp in ("always", "never")
    }
    assert found["always"].upper_bound <= 36.5
    assert found["never"].lower_bound <= found["always"].upper_bound


# --- anytime ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sdp", ["always", "auto"])
def test_what_is_watched_is_monotone_and_ends_once(medium, sdp):
    _, problem, exact = medium
    seen = []
    options = BranchOptions(timeout=20, sdp=sdp, branch="relu", batch_size=2, tolerance=1e-7)
    result = bound_by_branching(problem, options, seen.append)
    assert len(seen) > 5
    assert [s.finished for s in seen] == [False] * (len(seen) - 1) + [True]
    for before, after in pairwise(seen):
        assert after.upper_bound <= before.upper_bound
        assert after.lower_bound >= before.lower_bound
        assert after.domains >= before.domains
        assert after.lower_bound <= exact.max() * (1 + SLACK)
        assert after.upper_bound >= exact.max() * (1 - SLACK)
    assert seen[-1].upper_bound == result.upper_bound


def test_what_linear_bounds_found_first_is_kept(medium, monkeypatch):
    """The programs begin anew, with the root's bound; the smaller of both is reported."""
    _, problem, exact = medium
    monkeypatch.setattr(combined_search, "_FIRST_LINEAR", 0.25)
    seen = []
    options = BranchOptions(timeout=0.2, branch="relu", batch_size=1, tolerance=1e-9)
    result = bound_by_branching(problem, options, seen.append)
    assert all(after.upper_bound <= before.upper_bound for before, after in pairwise(seen))
    assert exact.max() * (1 - SLACK) <= result.upper_bound <= seen[0].upper_bound


@pytest.mark.parametrize("max_domains", [1, 3, 10])
@pytest.mark.parametrize("sdp", ["always", "auto"])
def test_domain_limit_stays_certified(medium, sdp, max_domains):
    _, problem, exact = medium
    options = BranchOptions(
        timeout=20, sdp=sdp, branch="relu", max_domains=max_domains, batch_size=4, tolerance=1e-9
    )
    result = bound_by_branching(problem, options)
    assert is_certified(result, exact)
    assert result.status in (EXACT, DOMAIN_LIMIT)
    assert result.status == DOMAIN_LIMIT or max_domains > 1


class _After:
    """Raises KeyboardInterrupt at the n-th line that this thread runs in the search's files."""

    FILES = ("lipschitz/sdp/", "search_state", "domain_pool", "bab.py", "native/search")

    def __init__(self, lines: int) -> None:
        self.left, self.thread = lines, threading.get_ident()

    def __call__(self, frame, event, argument):
        if not any(name in frame.f_code.co_filename for name in self.FILES):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("sdp", ["always", "auto"])
def test_an_interrupt_at_any_line_stays_certified(medium, sdp):
    model, problem, exact = medium
    options = BranchOptions(timeout=20, sdp=sdp, branch="relu", batch_size=2, tolerance=1e-9)
    statuses = []
    for lines in (400, 700, 1100, 1500, 2100, 2900, 4000, 5500, 7500):
        before = sys.gettrace()
        sys.settrace(_After(lines))
        try:
            result = bound_by_branching(problem, options)
        except KeyboardInterrupt:  # in the lines between a search and its caller
            continue
        finally:
            sys.settrace(before)
            torch.set_grad_enabled(True)  # Ctrl-C may hit the end of a no_grad block
        assert is_certified(result, exact)
        if result.witness is not None:
            at = jacobians(model, result.witness[None]).abs().sum(2).max()
            assert float(at) >= result.lower_bound * (1 - SLACK)
        statuses.append(result.status)
    assert statuses.count(INTERRUPTED) >= 5


def test_an_interrupt_while_programs_are_prepared_keeps_the_first_search(medium, monkeypatch):
    _, problem, exact = medium

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    for where in (ProgramSearch, Portfolio):
        with monkeypatch.context() as patch:
            patch.setattr(where, "__init__", interrupt)
            result = bound_by_branching(problem, BranchOptions(branch="relu", tolerance=1e-9))
        assert result.status == INTERRUPTED
        assert is_certified(result, exact)


@pytest.mark.parametrize("timeout", [0, 1e-3, 0.05])
def test_too_little_time_stays_certified(medium, timeout):
    _, problem, exact = medium
    options = BranchOptions(timeout=timeout, sdp="always", branch="relu", tolerance=1e-9)
    assert is_certified(bound_by_branching(problem, options), exact)


# --- the two searches together ------------------------------------------------------------------


def searches(problem, **options):
    root = native_crown(problem)
    native = NativeSearch(problem, root, chooser("sign"))
    programs = ProgramSearch(native, root, float("inf"))
    return Portfolio(programs, native, 0.0, None, end=float("inf"), **options)


def test_the_linear_search_sets_out_from_all_that_is_left(medium):
    """Nothing open, closed or given up may get lost, for any row."""
    _, problem, exact = medium
    with torch.no_grad():
        state = searches(problem)
        for _ in range(6):
            state.by_programs.round(2, 0.0)
        state.by_programs.fold(3)
        old = state.by_programs
        new = state._set_out()
    assert new.upper_bound == old.upper_bound
    assert new.folded == old.folded > 0
    assert len(new.pool) <= len(old.pool)
    rows = old.result("").row_upper_bounds
    assert torch.equal(new.result("").row_upper_bounds, rows)
    assert (rows.numpy() >= exact * (1 - SLACK)).all()


def test_a_closed_region_lost_on_the_way_is_caught(medium):
    """Negative control of the same comparison."""
    _, problem, exact = medium
    with torch.no_grad():
        state = searches(problem)
        for _ in range(6):
            state.by_programs.round(2, 0.0)
        pool = state.by_programs.pool
        strongest = pool.strongest(len(pool) // 2 + 1, float("-inf"))
        state.by_programs.close(pool.read(strongest))
        pool.drop(strongest)
        assert (state._set_out().result("").row_upper_bounds.numpy() >= exact * (1 - SLACK)).all()
        state.by_programs.closed_rows.fill_(-torch.inf)
        assert (state._set_out().result("").row_upper_bounds.numpy() < exact * (1 - SLACK)).any()


def test_an_open_region_lost_on_the_way_is_caught(monkeypatch):
    """Negative control of the whole search: it sets out from half of what is open."""
    set_out = Portfolio._set_out

    def forgetful(self):
        state = set_out(self)
        state.pool.drop(state.pool.strongest(max(1, len(state.pool) // 2), float("-inf")))
        return state

    monkeypatch.setattr(Portfolio, "_set_out", forgetful)
    monkeypatch.setattr(Portfolio, "_next", lambda self, now: _linear_after_programs(self, 4))
    limits = Limits(timeout=1, tolerance=1e-7, batch_size=2)
    too_low = 0
    for seed in range(4):
        model, problem = problem_of(seed, (3, 4, 3, 2))
        with torch.no_grad():
            state = searches(problem)
            try:
                result = branch_and_bound(state.native, 0.0, None, limits, None, state)
            except ArithmeticError:  # a gradient above its own bound
                too_low += 1
                continue
        too_low += result.upper_bound < exact_of(model, problem).max() * (1 - 1e-6)
    assert too_low > 0


def _linear_after_programs(state, rounds):
    state.rounds = getattr(state, "rounds", 0) + 1
    if state.rounds <= rounds:
        return 0
    if state.by_splits is None:
        state.by_splits = state._set_out()
        state.courses.append(portfolio._Course(state.by_splits.upper_bound))
    return 1


def test_postponed_subdomains_wait_in_the_pool(medium):
    """Every round leaves an upper bound for every part of the box."""
    _, problem, exact = medium
    with torch.no_grad():
        state = searches(problem, linear=False).by_programs
        for _ in range(15):
            if state.is_over(0.0):
                break
            state.round(3, 0.0)
            rows = state.result("").row_upper_bounds.numpy()
            assert (rows >= exact * (1 - SLACK)).all()
    assert state.bounding.solved > 3


def test_the_other_search_goes_on_where_one_has_given_up(medium):
    _, problem, _ = medium
    with torch.no_grad():
        state = searches(problem)
        state.by_programs.round(2, 0.0)
        state.by_splits = state._set_out()
        state.courses.append(portfolio._Course(state.by_splits.upper_bound))
        assert not state.is_over(0.0)
        state.by_splits.fold(0)
        assert state.by_splits.is_over(0.0)
        assert not state.is_over(0.0)
        domains = state.by_programs.domains
        state.round(2, 0.0)
        assert state.by_splits.domains == 0
        assert state.by_programs.domains >= domains
        state.by_programs.fold(0)
        assert state.is_over(0.0)


def test_course_expects_a_little_less_from_every_doubling():
    course = portfolio._Course(100.0)
    for seconds, bound in ((1.0, 90.0), (1.0, 83.0), (2.0, 78.0)):
        course.note(seconds, bound)
    assert course.expected(0.0) == 78.0
    first = 5.0 * portfolio._DECAY  # the latest doubling gained 83 - 78
    assert course.expected(4.0) == pytest.approx(78.0 - first)
    assert course.expected(12.0) == pytest.approx(78.0 - first * (1 + portfolio._DECAY))


def test_programs_of_the_wrong_bound_are_caught(monkeypatch):
    """Negative control: certificates a tenth too low."""
    certified = boxes.certified_bound
    monkeypatch.setattr(boxes, "certified_bound", lambda p, m: 0.9 * certified(p, m))
    too_low = 0
    for seed in range(4):
        model, problem = problem_of(seed, (3, 4, 3, 2))
        try:
            result = bound_by_branching(
                problem, BranchOptions(timeout=2, sdp="always", branch="relu", tolerance=1e-7)
            )
        except ArithmeticError:
            too_low += 1
            continue
        too_low += result.upper_bound < exact_of(model, problem).max() * (1 - 1e-6)
    assert too_low > 0


def test_a_search_state_alone_is_the_same_interface(medium):
    """Portfolio stands in for SearchState in the loop."""
    names = {n for n in dir(SearchState) if not n.startswith("_")}
    assert names - {"closed_bound", "close", "look"} <= set(dir(Portfolio))
