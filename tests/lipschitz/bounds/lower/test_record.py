"""Certified gradients of every row: kinks that matter, kinks that do not."""

import torch
from torch import nn

from lipschitz.bounds.lower.record import Record
from lipschitz.bounds.true_gradients import Sampling, sample_gradients
from lipschitz.bounds.witness import witness_norms
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem


class EqualSums(nn.Module):
    """The larger of two equal sums, as a two-level lattice writes it: ``b + relu(a - b)``.

    The neuron is 0 everywhere, so every point of the box is on its kink.
    """

    def __init__(self, inputs: int = 2, pairs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(inputs, pairs)
        self.both = nn.Linear(pairs, 2 * pairs, bias=False)
        with torch.no_grad():
            self.both.weight.copy_(torch.eye(pairs).repeat(2, 1))

    def forward(self, x):
        first, second = self.both(self.linear(x)).chunk(2, 1)
        return (second + torch.relu(first - second)).sum(1, keepdim=True)


def test_a_neuron_that_is_0_on_the_whole_box_hides_no_gradient():
    for dtype in (torch.float32, torch.float64):
        model = EqualSums().to(dtype).eval()
        true = float(model.linear.weight.detach().sum(0).abs().sum())
        problem = make_problem(build_graph(model, (2,)), torch.zeros(2, dtype=dtype), 0.05)
        found = sample_gradients(problem, Sampling(num_random=4, ascent_steps=0))
        assert true * (1 - 1e-4) <= float(found.norms) <= true * (1 + 1e-6)
        row = torch.zeros(1, dtype=torch.long)
        norms = witness_norms(problem, problem.centre[None], row)
        assert float(norms) >= true * (1 - 1e-4)


def test_a_kink_at_the_centre_does_not_hide_the_rest_of_the_box():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[3.0, -2.0]])), model[2].bias.zero_()
    x = torch.zeros(2, dtype=torch.float64)
    problem = make_problem(build_graph(model, (2,)), x, 0.5)
    record = Record(problem)
    row = torch.zeros(1, dtype=torch.long)
    assert float(witness_norms(problem, x[None], row)) == 0
    record.offer(x[None], row, torch.tensor([5.0], dtype=torch.float64))
    assert float(record.norms) > 0
    point = record.points[0]
    assert ((point >= problem.lower) & (point <= problem.upper)).all()
    assert (point != 0).all()


def test_a_region_that_is_0_stays_0():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double().eval()
    with torch.no_grad():
        model[0].weight.fill_(-1.0), model[0].bias.fill_(-1.0)
    problem = make_problem(build_graph(model, (1,)), torch.zeros(1).double(), 0.5)
    assert sample_gradients(problem).norms.tolist() == [0.0]


def test_what_is_not_certified_gives_way_to_the_next():
    """Of two candidates the first is a norm of rounding: twice the true one."""
    model = nn.Sequential(nn.Linear(2, 1)).double().eval()
    problem = make_problem(build_graph(model, (2,)), torch.zeros(2).double(), 1.0)
    true = float(model[0].weight.detach().abs().sum())
    record = Record(problem)
    points = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).double()
    norms = torch.tensor([2 * true, true]).double()
    record.offer(points, torch.zeros(2, dtype=torch.long), norms)
    assert float(record.norms) <= true * (1 + 1e-12)
    assert float(record.norms) >= true * (1 - 1e-9)
