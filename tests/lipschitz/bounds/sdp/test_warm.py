import dataclasses

import pytest
import torch
from cases import REFERENCES
from oracles import jacobians, points_in_box
from torch import Tensor

from lipschitz import MethodOptions, Prepared, make_problem
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.sdp.boxes import root_facts
from lipschitz.bounds.sdp.certificate import certified_bound
from lipschitz.bounds.sdp.program import Program, build_program
from lipschitz.bounds.sdp.sweeps import Sweeps
from lipschitz.bounds.sdp.warm import WarmStarts
from lipschitz.network.tracing import build_graph

RANK = 8


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def problem_at(eps):
    reference = REFERENCES[5]  # width 32
    x = reference.point().double()
    graph = build_graph(reference.model().double(), x.shape)
    return make_problem(graph, x, eps)


def facts_at(eps):
    problem = problem_at(eps)
    root = native_alpha(problem)
    rows = root.class_upper_bounds.argsort(descending=True)[:3]
    return problem, root_facts(problem, root, rows)


def swept(program: Program, count: int, weights: Tensor | None = None) -> Sweeps:
    sweeps = Sweeps(program, RANK, weights)
    sweeps.go_on(count)
    return sweeps


def bounds_of(program: Program, count: int, weights: Tensor | None = None) -> Tensor:
    return certified_bound(program, swept(program, count, weights).multipliers())


def remembered(problem, program: Program) -> tuple[WarmStarts, Tensor]:
    neurons = sum(problem.graph.nodes[a].shape.numel() for a in problem.graph.activation_nodes)
    starts = WarmStarts(neurons, RANK, problem.rows)
    return starts, starts.keep(swept(program, 100))


def related(change):
    """A program and one related to it: an entry's sign fixed, or a larger box."""
    problem, facts = facts_at(0.1)
    program = build_program(problem.graph, facts)
    if change == "sign":
        sign = torch.zeros_like(facts.entries.lower)
        sign[:, int(program.is_free.all(0).nonzero()[0])] = 1
        return (
            problem,
            program,
            build_program(problem.graph, dataclasses.replace(facts, entry_sign=sign)),
        )
    return problem, program, build_program(problem.graph, facts_at(0.11)[1])


@pytest.mark.parametrize("change", ["sign", "radius"])
def test_related_programs_begin_better_and_end_at_the_same_value(change):
    problem, program, other = related(change)
    starts, numbers = remembered(problem, program)
    start = starts.begin(numbers, other)
    assert start.shape == (len(other), RANK, len(other.neuron))
    for count in (0, 2):
        cold, warm = bounds_of(other, count), bounds_of(other, count, start)
        assert warm.sum() < cold.sum()
    cold, warm = bounds_of(other, 100), bounds_of(other, 100, start)
    torch.testing.assert_close(warm, cold, rtol=1e-2, atol=0)


def test_the_same_program_goes_on_where_it_was():
    problem, program, _ = related("sign")
    starts, numbers = remembered(problem, program)
    again = Sweeps(program, RANK, starts.begin(numbers, program))
    long = swept(program, 100)
    torch.testing.assert_close(again.value, long.value, rtol=1e-5, atol=0)


def test_what_is_not_remembered_begins_cold():
    problem, program, other = related("sign")
    starts, numbers = remembered(problem, program)
    assert starts.begin(torch.full_like(numbers, -1), other) is None
    some = numbers.clone()
    some[1] = -1
    mixed = Sweeps(other, RANK, starts.begin(some, other))
    cold, warm = Sweeps(other, RANK), Sweeps(other, RANK, starts.begin(numbers, other))
    torch.testing.assert_close(mixed.value[1], cold.value[1], rtol=1e-5, atol=0)
    assert torch.equal(mixed.value[[0, 2]], warm.value[[0, 2]])
    starts.number.fill_(10**6)  # overwritten since
    assert starts.begin(numbers, other) is None


def test_the_oldest_are_overwritten():
    problem, program, _ = related("sign")
    neurons = sum(problem.graph.nodes[a].shape.numel() for a in problem.graph.activation_nodes)
    starts = WarmStarts(neurons, RANK, problem.rows)
    starts.capacity = 4
    starts.number = starts.number[:4]
    sweeps = swept(program, 5)
    first, second = starts.keep(sweeps), starts.keep(sweeps)
    assert (first.tolist(), second.tolist()) == ([0, 1, 2], [3, 4, 5])
    found = starts.begin(second, program)
    assert torch.equal(found, sweeps.weights.to(found))
    left = starts.begin(first, program)
    assert torch.equal(left[2], sweeps.weights[2].to(left))
    assert not torch.equal(left[0], sweeps.weights[0].to(left))
    starts.capacity = 2  # less than a batch: its last ones stay
    starts.number = starts.number[:2].fill_(-1)
    third = starts.keep(sweeps)
    left = starts.begin(third, program)
    assert not torch.equal(left[0], sweeps.weights[0].to(left))
    assert torch.equal(left[1:], sweeps.weights[1:].to(left))


def test_any_start_is_certified():
    """A start that has nothing to do with the program costs tightness at most."""
    problem, program, other = related("radius")
    starts, numbers = remembered(problem, program)
    start = starts.begin(numbers.flip(0), other)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    optimum = swept(other, 300).value
    for weights in (start, start * noise.exp(), 1e6 * noise, 0 * noise, start / 0.0):
        for count in (0, 1, 2):
            assert bool((bounds_of(other, count, weights) >= optimum * (1 - 1e-6)).all())


def test_radii_around_one_point_share_their_solutions():
    prepared = Prepared(problem_at(0.1).graph, method="sdp", options=MethodOptions(timeout=30))
    model = REFERENCES[5].model().double()
    for eps in (0.05, 0.1, 0.08):
        problem = problem_at(eps)
        shared = prepared.upper_bounds(problem)
        alone = Prepared(problem.graph, method="sdp").upper_bounds(problem)
        assert float(shared.max()) == pytest.approx(float(alone.max()), rel=5e-3)
        with torch.enable_grad():
            gradients = jacobians(model, points_in_box(problem.lower, problem.upper, 200))
        assert bool((shared >= gradients.flatten(2).abs().sum(2).amax(0) * (1 - 1e-9)).all())
