"""Attacks find gradients that sampling misses, and report no more than is there."""

import pytest
import torch
from cases import CASES
from oracles import jacobian, jacobians
from torch import nn

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.lower.ascent import Paces, ascend
from lipschitz.bounds.lower.attack import Attack
from lipschitz.bounds.lower.elites import Elites
from lipschitz.bounds.lower.record import Record
from lipschitz.bounds.lower.softness import Softness
from lipschitz.bounds.true_gradients import Sampling, sample_gradients
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search.options import BranchOptions
from lipschitz.search.run import bound_by_branching

NO_CLIMB = Sampling(ascent_steps=0)


class Corner(nn.Module):
    """Slope 1 in all inputs together, and 100 times as much near one corner of [-1, 1]^D."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.sum = nn.Linear(inputs, 1)
        with torch.no_grad():
            self.sum.weight.copy_(torch.where(torch.arange(inputs) % 3 == 0, -1.0, 1.0)[None])
            self.sum.bias.fill_(-0.35 * inputs)

    def forward(self, x):
        z = self.sum(x)
        return 0.01 * z + torch.relu(z)


class Needle(nn.Module):
    """Slope 1, and 50 on a strip of width 0.002 across a box of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.6]] * 3))
            self.first.bias.copy_(torch.tensor([10.0, -0.7, -0.702]))
            self.last.weight.copy_(torch.tensor([[1.0, 49.0, -49.0]]))
            self.last.bias.zero_()

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def problem_of(model, inputs, eps=1.0):
    model = model.double().eval()
    graph = build_graph(model, (inputs,))
    return model, make_problem(graph, torch.zeros(inputs, dtype=torch.float64), eps)


def check(model, problem, norm, witness):
    assert (problem.lower <= witness).all()
    assert (witness <= problem.upper).all()
    assert norm <= float(jacobian(model, witness).flatten(1).abs().sum(1).max())


def test_an_ascent_finds_a_corner_that_sampling_misses():
    model, problem = problem_of(Corner(60), 60)
    sampled = sample_gradients(problem, NO_CLIMB)
    assert float(sampled.norms) < 1
    found = sample_gradients(problem)
    assert float(found.norms) == pytest.approx(60 * 1.01, rel=1e-9)
    check(model, problem, float(found.norms), found.witnesses[0])


def test_an_attack_finds_a_needle_that_sampling_misses():
    model, problem = problem_of(Needle(), 2)
    sampled = sample_gradients(problem, NO_CLIMB)
    assert float(sampled.norms) < 2
    attack = Attack(problem, Record.of(problem, sampled))
    assert attack.go_on(1.0)
    assert attack.lower_bound == pytest.approx(50 * 1.6, rel=1e-6)
    check(model, problem, attack.lower_bound, attack.witness)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_an_attack_reports_true_gradients_in_the_box(case):
    model = case.model()
    problem = make_problem(build_graph(model, case.input_shape), case.point(), 0.3)
    before = sample_gradients(problem, NO_CLIMB)
    attack = Attack(problem, Record.of(problem, before))
    attack.go_on(0.1)
    assert attack.lower_bound >= float(before.norms.max()) * (1 - 1e-12)
    if attack.lower_bound > 0:  # one of the networks is constant on the box
        check(model, problem, attack.lower_bound, attack.witness)


def test_all_rows_together_are_attacked_as_one():
    model, x = CASES[0].model(), CASES[0].point()
    problem = make_problem(build_graph(model, x.shape), x, 0.3, norm="2", outputs="all")
    attack = Attack(problem, Record(problem))
    assert attack.go_on(0.1)
    matrix = jacobian(model, attack.witness).flatten(1)
    largest = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert attack.lower_bound == pytest.approx(largest, rel=1e-9)
    assert attack.lower_bound <= largest


def test_a_box_of_one_point_is_left_alone():
    _, problem = problem_of(Needle(), 2, eps=0.0)
    assert not Attack(problem, Record(problem)).go_on(0.1)


def test_rows_that_cannot_hold_the_maximum_are_left_alone():
    model, x = CASES[1].model(), CASES[1].point()
    problem = make_problem(build_graph(model, x.shape), x, 0.3)
    found = sample_gradients(problem)
    attack = Attack(problem, Record.of(problem, found))
    best = int(found.norms.argmax())
    upper = torch.zeros_like(found.norms)
    upper[best] = 2 * found.norms[best]
    attack.rule_out(upper)
    attack.go_on(0.05)
    assert (attack.elites.rows == best).all()
    attack.rule_out(torch.zeros_like(upper))
    assert not attack.go_on(0.05)


def test_its_share_of_the_time_is_kept():
    model, x = CASES[1].model(), CASES[1].point()
    problem = make_problem(build_graph(model, x.shape), x, 0.3)
    attack = Attack(problem, Record(problem))
    assert attack.seconds_due(1e6) == 0  # nothing has passed yet
    attack = Attack(problem, Record(problem), begin=-1e6)
    assert 0 < attack.seconds_due(1e6) <= 1
    over = Attack(problem, Record(problem), clock=Clock.of(0.0))
    over.go_on(10.0)
    assert over.spent < 1


def test_what_the_search_finds_is_gone_on_from():
    model, problem = problem_of(Needle(), 2)
    attack = Attack(problem, Record(problem))
    inside = torch.tensor([0.701, 0.0], dtype=torch.float64)
    attack.learn(inside, 0, 80.0 * (1 - 1e-12))
    assert attack.lower_bound == pytest.approx(80.0)
    assert torch.equal(attack.witness, inside)
    attack.go_on(0.05)
    check(model, problem, attack.lower_bound, attack.witness)


def test_a_search_reports_what_its_attack_finds(monkeypatch):
    _, problem = problem_of(Needle(), 2)
    inside = torch.tensor([0.701, 0.0], dtype=torch.float64)

    def found(attack, upper_bound, rows):
        attack.learn(inside, 0, 79.0)
        return True

    monkeypatch.setattr(Attack, "turn", found)
    options = BranchOptions(timeout=0.2, branch="relu", max_domains=1)
    result = bound_by_branching(problem, options, sampling=Sampling(1, 0))
    assert result.lower_bound >= 79.0 * (1 - 1e-12)


def test_climbers_stay_in_the_box_and_end_no_lower_than_they_begin():
    model, x = CASES[1].model(), CASES[1].point()
    problem = make_problem(build_graph(model, x.shape), x, 0.3)
    generator = torch.Generator().manual_seed(0)
    points = x + 0.3 * (2 * torch.rand(12, *x.shape, generator=generator, dtype=x.dtype) - 1)
    rows = torch.arange(12) % len(problem.rows)
    paces = Paces.drawn(12, (0.1, 0.6), generator)
    climbed = ascend(problem, Softness(problem, points), points, rows, paces, 20)
    assert (climbed.points >= problem.lower).all()
    assert (climbed.points <= problem.upper).all()
    index = torch.arange(12)
    before = jacobians(model, points)[index, rows].flatten(1).abs().sum(1)
    after = jacobians(model, climbed.points)[index, rows].flatten(1).abs().sum(1)
    torch.testing.assert_close(after, climbed.norms)
    assert (after >= before * (1 - 1e-9)).all()
    assert (after > before).any()


def test_elites_are_apart_and_of_more_than_one_row():
    _, problem = problem_of(Corner(3), 3)
    elites = Elites(problem, most=4)
    points = torch.arange(18.0, dtype=torch.float64).reshape(6, 3)
    rows = torch.tensor([0, 0, 0, 0, 0, 1])
    norms = torch.tensor([5.0, 5.0, 4.0, 3.0, torch.nan, 1.0], dtype=torch.float64)
    elites.add(points, rows, norms)
    assert elites.norms.tolist() == [5.0, 4.0, 1.0]
    assert elites.rows.tolist() == [0, 0, 1]
