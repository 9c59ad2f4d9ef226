import dataclasses

import pytest
import torch
from cases import REFERENCES
from oracles import jacobians, points_in_box

from lipschitz import MethodOptions, Prepared, make_problem
from lipschitz.native.alpha import native_alpha
from lipschitz.sdp.boxes import root_facts
from lipschitz.sdp.certificate import certified_bound
from lipschitz.sdp.interior_point import SolveOptions, Solver, solve
from lipschitz.sdp.program import build_program
from lipschitz.sdp.warm import WarmStarts
from lipschitz.tracing import build_graph

OPTIONS = SolveOptions(tolerance=1e-3)


def problem_at(eps):
    reference = REFERENCES[5]  # width 32
    x = reference.point().double()
    graph = build_graph(reference.model().double(), x.shape)
    return make_problem(graph, x, eps)


def facts_at(eps):
    problem = problem_at(eps)
    root = native_alpha(problem)
    rows = root.class_upper_bounds.argsort(descending=True)[:3]
    return problem, root_facts(problem, root, rows), root.class_upper_bounds[rows]


def steps(program, scale, start=None):
    """Steps until the gap is closed, and the dual values there."""
    solver = Solver(program, scale, start)
    count = 0
    while bool((solver.gap > 1e-3).any()):
        solver.step()
        count += 1
        assert count < 60
    return count, solver.value * scale


def remembered(problem, program, scale):
    neurons = sum(problem.graph.nodes[a].shape.numel() for a in problem.graph.activation_nodes)
    starts = WarmStarts(problem.centre.numel(), neurons, problem.rows)
    return starts, starts.keep(program, solve(program, scale, OPTIONS))


def related(change):
    """A program and one related to it: an entry's sign fixed, or a larger box."""
    problem, facts, scale = facts_at(0.1)
    program = build_program(problem.graph, facts)
    if change == "sign":
        sign = torch.zeros_like(facts.entries.lower)
        sign[:, program.entry[:, 0].min()] = 1
        other = build_program(problem.graph, dataclasses.replace(facts, entry_sign=sign))
        return problem, program, scale, other, scale
    wider = facts_at(0.11)
    return problem, program, scale, build_program(problem.graph, wider[1]), wider[2]


@pytest.mark.parametrize("change", ["sign", "radius"])
def test_related_programs_need_fewer_steps_and_end_at_the_same_value(change):
    problem, program, scale, other, other_scale = related(change)
    starts, numbers = remembered(problem, program, scale)
    start = starts.begin(numbers, other)
    assert bool(start.known.all())
    cold, cold_value = steps(other, other_scale)
    warm, warm_value = steps(other, other_scale, start)
    assert warm < cold
    torch.testing.assert_close(warm_value, cold_value, rtol=3e-3, atol=0)


def test_what_is_not_remembered_begins_cold():
    problem, program, scale, other, other_scale = related("sign")
    starts, numbers = remembered(problem, program, scale)
    nothing = starts.begin(torch.full_like(numbers, -1), other)
    assert not bool(nothing.known.any())
    cold, warm = Solver(other, other_scale), Solver(other, other_scale, nothing)
    assert torch.equal(cold.multipliers, warm.multipliers)
    starts.number.fill_(10**6)  # overwritten since
    assert not bool(starts.begin(numbers, other).known.any())


def test_any_start_is_certified():
    """A start that has nothing to do with the program costs tightness at most."""
    problem, program, scale, other, other_scale = related("radius")
    starts, numbers = remembered(problem, program, scale)
    start = starts.begin(numbers.flip(0), other)
    noise = torch.randn(start.multipliers.product.shape, generator=torch.Generator().manual_seed(0))
    odd = dataclasses.replace(start.multipliers, product=start.multipliers.product * noise.exp())
    found = solve(other, other_scale, SolveOptions(iterations=2), start=start)
    worse = dataclasses.replace(start, multipliers=odd)
    for multipliers in (found, solve(other, other_scale, SolveOptions(iterations=1), start=worse)):
        optimum = solve(other, other_scale, SolveOptions(tolerance=1e-6)).diagonal.sum(1)
        assert bool((certified_bound(other, multipliers) >= optimum * (1 - 1e-6)).all())


def test_radii_around_one_point_share_their_solutions():
    prepared = Prepared(problem_at(0.1).graph, method="sdp", options=MethodOptions(timeout=30))
    model = REFERENCES[5].model().double()
    for eps in (0.05, 0.1, 0.08):
        problem = problem_at(eps)
        shared = prepared.upper_bounds(problem)
        alone = Prepared(problem.graph, method="sdp").upper_bounds(problem)
        assert float(shared.max()) == pytest.approx(float(alone.max()), rel=5e-3)
        gradients = jacobians(model, points_in_box(problem.lower, problem.upper, 200))
        assert bool((shared >= gradients.flatten(2).abs().sum(2).amax(0) * (1 - 1e-9)).all())
