"""Branch and bound in L1 and L2: exact against enumeration, and certified when it is not."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from cases import CASES, REFERENCES, mlp
from enumeration import exact_constants
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import jacobians, points_in_box
from shared import problem_of, sampled_jacobians
from torch import nn

from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.sdp.bound import sdp_bounds
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search.engines.functionals import FunctionalSearch
from lipschitz.search.engines.largest_entry import EntrySearch
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.options import BranchOptions
from lipschitz.search.run import bound_by_branching
from lipschitz.words import EXACT, HEURISTICS

NORMS = {
    "2": lambda jacobian: np.linalg.norm(jacobian, axis=1),
    "1": lambda jacobian: np.abs(jacobian).max(1),
}
SLACK = 1e-9


@cache
def tiny_problem(seed, sizes, norm, eps, leaky=False):
    torch.manual_seed(seed)
    activation = (lambda: nn.LeakyReLU(0.2)) if leaky else nn.ReLU
    model = mlp(*sizes, activation=activation).double().eval()
    with torch.no_grad():
        for layer in model[1::2]:
            layer.weight.mul_(2.5)
    x = torch.full((sizes[0],), 0.3, dtype=torch.float64)
    graph = build_graph(model, (sizes[0],))
    problem = make_problem(graph, x, eps, norm=norm, outputs="each")
    ends = (end.flatten().numpy() for end in (problem.lower, problem.upper))
    return problem, exact_constants(model, *ends, NORMS[norm])


@pytest.mark.parametrize("norm", NORMS)
def test_exact_equals_enumeration(norm):
    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 10**6),
        hidden=st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda h: sum(h) <= 8),
        inputs=st.integers(1, 3),
        eps=st.sampled_from([0.05, 0.4, 1.5]),
        heuristic=st.sampled_from(sorted(HEURISTICS)),
        branch=st.sampled_from(["relu", "relu", "input"]),
        leaky=st.booleans(),
    )
    def check(seed, hidden, inputs, eps, heuristic, branch, leaky):
        problem, exact = tiny_problem(seed, (inputs, *hidden, 2), norm, eps, leaky)
        options = BranchOptions(timeout=10, heuristic=heuristic, branch=branch)
        result = bound_by_branching(problem, options)
        assert result.lower_bound <= exact.max() * (1 + SLACK) + 1e-12
        assert result.upper_bound >= exact.max() * (1 - SLACK)
        assert (np.array(result.class_upper_bounds) >= exact * (1 - SLACK)).all()
        if branch == "relu":  # cutting boxes may stop short where kinks meet
            assert result.status == EXACT
            assert result.upper_bound <= result.lower_bound * (1 + 1.001e-4) + 1e-12

    check()


@pytest.mark.parametrize("norm", NORMS)
def test_a_bound_off_by_a_thousandth_is_caught(norm, monkeypatch):
    """Negative control."""
    search = NeuronSearch if norm == "2" else FunctionalSearch
    true_bound = search._vector_bound

    def too_small(self, *arguments):
        bound = true_bound(self, *arguments)
        return dataclasses.replace(bound, upper_bound=bound.upper_bound * 0.99)

    def failures():
        found = 0
        for seed in range(4):
            problem, exact = tiny_problem(seed, (2, 4, 3, 2), norm, 1.5)
            options = BranchOptions(timeout=2, tolerance=1e-6, branch="relu")
            try:
                result = bound_by_branching(problem, options)
            except ArithmeticError:  # the search met a gradient above its own bound
                found += 1
                continue
            found += result.upper_bound < exact.max() * (1 - 1e-7)
            found += result.lower_bound > exact.max() * (1 + 1e-7)
        return found

    assert failures() == 0
    monkeypatch.setattr(search, "_vector_bound", too_small)
    assert failures() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_hold_on_every_architecture(norm):
    for case in CASES:
        for eps, dtype in ((0.02, torch.float32), (0.4, torch.float64)):
            model, problem = case.model(dtype), problem_of(case, eps, dtype, norm)
            result = bound_by_branching(problem, BranchOptions(timeout=0.15, branch="relu"))
            sampled = problem.measure(sampled_jacobians(case, eps, dtype, 100).flatten(2)).amax(0)
            rounding = 1e-5 if dtype == torch.float32 else SLACK
            bounds = torch.tensor(result.class_upper_bounds, dtype=dtype)
            assert (bounds >= sampled * (1 - rounding)).all()
            assert result.lower_bound <= result.upper_bound <= result.root_upper_bound
            if result.witness is not None:
                norms = problem.measure(jacobians(model, result.witness[None]).flatten(2))
                assert result.lower_bound <= float(norms.max()) * (1 + rounding)


@pytest.mark.parametrize("norm", NORMS)
def test_a_real_network_is_solved(norm):
    reference = next(r for r in REFERENCES if r.file.endswith("mlp_3layer_16") and r.eps == 0.2)
    problem = make_problem(
        build_graph(reference.model(), (16,)), reference.point(), 0.2, norm=norm, outputs="each"
    )
    result = bound_by_branching(problem, BranchOptions(timeout=60))
    assert result.status == EXACT
    # Found by splitting neurons and by splitting signs as well.
    assert result.upper_bound == pytest.approx({"2": 6.870192, "1": 4.668588}[norm], rel=2e-4)


def test_only_free_inputs_are_searched():
    reference = next(r for r in REFERENCES if r.file.endswith("mlp_3layer_16") and r.eps == 0.05)
    eps = torch.zeros(16, dtype=torch.float64)
    eps[:5] = 0.1
    graph = build_graph(reference.model(), (16,))
    for norm in ("inf", "1", "2"):
        problem = make_problem(
            graph, reference.point(), eps, norm=norm, outputs="each", inputs="free"
        )
        result = bound_by_branching(problem, BranchOptions(timeout=20))
        points = points_in_box(problem.lower, problem.upper, 200)
        jacobian = jacobians(reference.model(), points)[:, :, :5]
        sampled = dataclasses.replace(problem.measure, free=None)(jacobian).max()
        assert result.status == EXACT
        assert float(sampled) <= result.upper_bound <= float(sampled) * 1.2


class SteepSum(nn.Module):
    """A network beside a steep sum of the inputs: no entry of the Jacobian changes its sign."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(3, 8, 6, 2)

    def forward(self, x):
        return self.inner(x) + 20 * x.sum(1, keepdim=True)


def test_programs_without_an_open_sign():
    torch.manual_seed(0)
    model = SteepSum().double().eval()
    problem = make_problem(build_graph(model, (3,)), torch.zeros(3).double(), 2.0)
    assert native_alpha(problem).norm.entries.lower.min() > 0
    found = [
        bound_by_branching(problem, BranchOptions(timeout=20, sdp=sdp, branch="relu"))
        for sdp in ("always", "never")
    ]
    assert [result.status for result in found] == [EXACT, EXACT]
    assert found[0].root_upper_bound > found[0].upper_bound  # so programs were solved
    assert found[0].upper_bound == pytest.approx(found[1].upper_bound, rel=2e-4)
    points = points_in_box(problem.lower, problem.upper, 500)
    sampled = problem.measure(jacobians(model, points)).max()
    assert float(sampled) <= found[0].upper_bound * (1 + SLACK)


def test_entries_without_room_keep_their_bound():
    problem, exact = tiny_problem(3, (3, 5, 3, 2), "1", 1.5)
    root = native_alpha(problem)
    search = EntrySearch(problem, root, 0.0, largest=1)
    assert len(search.rows) == 1
    assert (search.row_bounds(search.root().upper_bound).numpy() >= exact * (1 - SLACK)).all()


def test_what_no_search_bounds_is_refused():
    case = CASES[0]
    graph = build_graph(case.model(), case.input_shape)
    with pytest.raises(InputError, match="single outputs"):
        bound_by_branching(make_problem(graph, case.point(), 0.1, norm=2))
    with pytest.raises(InputError, match="semidefinite programs do not bound norm 1"):
        bound_by_branching(
            make_problem(graph, case.point(), 0.1, norm=1, outputs="each"),
            BranchOptions(sdp="always"),
        )


def test_semidefinite_programs_of_norm_2_find_the_exact_value():
    found = []
    for seed in range(4):
        problem, exact = tiny_problem(seed, (2, 4, 3, 2), "2", 1.5)
        program = sdp_bounds(problem).class_upper_bounds.numpy()
        linear = native_crown(problem).class_upper_bounds.numpy()
        limited = BranchOptions(timeout=10, sdp="always", branch="relu")
        result = bound_by_branching(problem, limited)
        assert (program >= exact * (1 - SLACK)).all()
        assert (np.array(result.class_upper_bounds) >= exact * (1 - SLACK)).all()
        assert result.status == EXACT
        assert result.upper_bound <= exact.max() * (1 + 1.001e-4)
        found.append((program.max() / exact.max(), linear.max() / exact.max()))
    programs, linears = np.array(found).T
    assert (programs <= linears * (1 + SLACK)).all()
    assert (programs < 0.999 * linears).any()
