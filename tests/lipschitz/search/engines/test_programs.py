"""Programs inside branch and bound: exact against enumeration, certified however it stops."""

import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from cases import CASES, REFERENCES, mlp
from enumeration import exact_constants
from oracles import jacobians, points_in_box
from shared import problem_of as problem_of_case
from shared import sampled_jacobians
from torch import nn

import lipschitz.bounds.sdp.boxes as boxes
import lipschitz.search.engines.programs as search
from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.crown import native_crown
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search import with_programs
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.engines.programs import ProgramSearch
from lipschitz.search.heuristics import chooser
from lipschitz.search.interface import Limits
from lipschitz.search.options import BranchOptions
from lipschitz.search.run import bound_by_branching
from lipschitz.search.state import SearchState
from lipschitz.words import DOMAIN_LIMIT, EXACT, INTERRUPTED

SLACK = 1e-9


@pytest.fixture(autouse=True)
def _programs_at_once(monkeypatch):
    """Small problems are over before their programs begin; here these begin at once."""
    monkeypatch.setattr(with_programs, "_FIRST_LINEAR", 1e-5)
    monkeypatch.setattr(with_programs, "_MOST_LINEAR", 1e-5)


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
    problem = problem_of_case(case, 0.4, dtype)
    options = BranchOptions(timeout=0.2, sdp="always", branch="relu", tolerance=1e-6)
    result = bound_by_branching(problem, options)
    gradients = sampled_jacobians(case, 0.4, dtype, 200)
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
        sdp: bound_by_branching(problem, BranchOptions(timeout=1.5, sdp=sdp))
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
    monkeypatch.setattr(with_programs, "_FIRST_LINEAR", 0.25)
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

    FILES = ("bounds/sdp/", "lipschitz/search/")

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

    monkeypatch.setattr(ProgramSearch, "__init__", interrupt)
    result = bound_by_branching(problem, BranchOptions(branch="relu", tolerance=1e-9))
    assert result.status == INTERRUPTED
    assert is_certified(result, exact)


@pytest.mark.parametrize("timeout", [1e-9, 1e-3, 0.05])
def test_too_little_time_stays_certified(medium, timeout):
    _, problem, exact = medium
    options = BranchOptions(timeout=timeout, sdp="always", branch="relu", tolerance=1e-9)
    assert is_certified(bound_by_branching(problem, options), exact)


# --- both kinds of bounds in one search ---------------------------------------------------------


def begun(problem, rounds=0, batch=3, **options):
    """The state of a search with programs after some rounds."""
    root = native_crown(problem)
    native = NeuronSearch(problem, root, chooser("sign"))
    state = SearchState(ProgramSearch(native, root, UNLIMITED, **options), 0.0, None)
    for _ in range(rounds):
        if not state.is_over(0.0):
            state.round(batch, 0.0)
    return state


def open_of(state):
    return state.pool.read(state.pool.strongest(len(state.pool), float("-inf")))


def test_every_round_leaves_a_bound_for_every_part_of_the_box(medium):
    """What waits for its program stays in the pool."""
    _, problem, exact = medium
    with torch.no_grad():
        state = begun(problem)
        for _ in range(15):
            if state.is_over(0.0):
                break
            state.round(3, 0.0)
            rows = state.result("").row_upper_bounds.numpy()
            assert (rows >= exact * (1 - SLACK)).all()
    assert state.bounding.solved > 3


def test_what_waits_and_gets_lost_is_caught(monkeypatch):
    """Negative control of the same comparison, and of the whole search."""
    refine = ProgramSearch.refine
    monkeypatch.setattr(
        ProgramSearch, "refine", lambda self, *a: refine(self, *a).having(postponed=None)
    )
    monkeypatch.setattr(search, "_FEWEST", 1)
    too_low = 0
    for seed in range(4):
        model, problem = problem_of(seed, (3, 4, 3, 2))
        options = BranchOptions(timeout=1, sdp="always", branch="relu", tolerance=1e-7)
        try:
            result = bound_by_branching(problem, options)
        except ArithmeticError:  # a gradient above its own bound
            too_low += 1
            continue
        rows = torch.tensor(result.class_upper_bounds).numpy()
        too_low += bool((rows < exact_of(model, problem) * (1 - 1e-6)).any())
    assert too_low > 0


def test_the_bound_is_the_smaller_of_both_kinds(medium):
    _, problem, _ = medium
    with torch.no_grad():
        left = open_of(begun(problem, 6))
    assert torch.equal(left.upper_bound, left.linear.minimum(left.program))
    assert (left.program < left.linear).any()
    assert (left.linear < torch.inf).all()


def test_linear_bounds_are_those_of_a_search_without_programs(medium):
    """Nothing that a program has said is taken for a linear bound: what lags would be hidden."""
    _, problem, _ = medium
    with torch.no_grad():
        state = begun(problem)
        native, parents = state.bounding.native, state.bounding.root()
        for _ in range(3):
            parents = parents.take(parents.choice >= 0)
            alone = native.children(parents.bounded_linearly())
            low = parents.program.new_full(parents.program.shape, 1e-3)
            children = state.bounding.children(parents.having(program=low))
            assert torch.equal(children.linear, alone.upper_bound)
            assert (children.upper_bound == 1e-3).any()
            parents = children.having(program=torch.full_like(children.program, torch.inf))


def test_programs_are_solved_where_the_linear_bound_lags(medium):
    _, problem, _ = medium
    with torch.no_grad():
        state = begun(problem, 2)
        searching = state.bounding
        searching.seconds_per_program, searching.seconds_per_split = 7e-3, 1e-3
        searching.gain_of_split = 0.05
        assert searching.lag == pytest.approx(3 * 0.05)
        parents = open_of(state)
        parents = parents.take((parents.choice >= 0) & ~parents.solved)
        assert len(parents)
        behind = parents.having(linear=1.3 * parents.upper_bound)
        ahead = parents.having(linear=1.1 * parents.upper_bound)
        for given, wanted in ((behind, True), (ahead, False)):
            given = given.having(origin=given.origin.clamp(min=0))
            before = searching.solved
            searching.refine(given)
            assert (searching.solved > before) == wanted
            searching.seconds_per_program = 7e-3
            assert bool(searching._wanting(given).all()) == wanted
        assert searching._wanting(ahead.having(origin=torch.full_like(ahead.origin, -1))).all()
        assert not searching._wanting(behind.having(solved=~behind.solved)).any()
        searching.clock = Clock(0.0)
        assert not searching._wanting(behind).any()


def test_what_a_split_gains_is_measured_on_its_worse_half(medium):
    _, problem, _ = medium
    with torch.no_grad():
        searching = begun(problem).bounding
        assert searching.lag == 0.0  # at first every subdomain wants a program
        parents = searching.root()
        halves = searching.children(parents).linear.reshape(2, -1)
        expected = (1 - halves.amax(0).clamp(min=0) / parents.linear).mean()
    assert searching.gain_of_split == pytest.approx(search._LATEST_SPLITS * float(expected))
    assert searching.seconds_per_split > 0


def test_always_is_a_program_for_all_that_is_split(medium):
    _, problem, _ = medium
    with torch.no_grad():
        state = begun(problem, always=True)
        split, children = [], state.bounding.children
        state.bounding.children = lambda parents: split.append(parents) or children(parents)
        for _ in range(8):
            if not state.is_over(0.0):
                state.round(3, 0.0)
    assert len(split) > 3
    assert all(bool(parents.solved.all()) for parents in split)


def test_linear_bounds_go_on_alone_while_the_gap_closes_fast(medium, monkeypatch):
    """The share of the time doubles as long as every doubling takes two fifths of the gap."""
    _, problem, _ = medium
    monkeypatch.setattr(with_programs, "_FIRST_LINEAR", 0.01)
    monkeypatch.setattr(with_programs, "_MOST_LINEAR", 0.08)
    searched = with_programs.branch_and_bound
    limits = Limits(timeout=100.0, begin=time.perf_counter())
    for gaps, expected in (((8, 4, 2, 1), 4), ((8, 4, 3, 1), 3), ((8, 7, 2, 1), 2)):
        seen = []

        def scripted(*arguments, gaps=gaps, seen=seen):
            seen.append(arguments[3].timeout)
            found = searched(arguments[0], 0.0, None, Limits(timeout=0.0))
            return replace(found, upper_bound=float(gaps[len(seen) - 1]), lower_bound=0.0)

        monkeypatch.setattr(with_programs, "branch_and_bound", scripted)
        native = begun(problem).bounding.native
        with_programs._linear_first(native, (0.0, None), limits, None)
        assert len(seen) == expected
        assert seen[0] > 1  # after what has passed by then
        assert [t - seen[0] for t in seen] == pytest.approx([0, 1, 3, 7][:expected], abs=1e-9)


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
