import pytest
import torch
from cases import CASES
from oracles import jacobian
from torch import nn

from lipschitz.bounds.true_gradients import Sampling, gradient_norms, sample_gradients
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_lower_bound_is_the_true_gradient_norm_at_a_witness_in_the_box(case):
    model = case.model()
    problem = make_problem(build_graph(model, case.input_shape), case.point(), 0.3)
    found = sample_gradients(problem)
    assert (found.witnesses >= problem.lower).all()
    assert (found.witnesses <= problem.upper).all()
    for row, (norm, witness) in enumerate(zip(found.norms, found.witnesses, strict=True)):
        true_norm = jacobian(model, witness)[row].abs().sum()
        torch.testing.assert_close(norm, true_norm)
        assert norm <= true_norm


def test_ascent_beats_sampling_alone():
    case = CASES[1]
    graph = build_graph(case.model(), case.input_shape)
    better = 0
    for seed in range(8):
        problem = make_problem(graph, case.point(seed=seed), 0.5)
        sampled = sample_gradients(problem, Sampling(num_random=4, ascent_steps=0))
        climbed = sample_gradients(problem, Sampling(num_random=4, ascent_steps=20))
        assert (climbed.norms >= sampled.norms).all()
        better += int((climbed.norms > sampled.norms).any())
    assert better >= 4


def test_a_point_on_a_kink_is_no_witness():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).eval()  # relu(x), seen from x = 0
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    graph = build_graph(model, (1,))
    norms = gradient_norms(graph, torch.tensor([[0.0], [1.0], [-1.0]]), torch.ones(1, 1))
    assert norms[:, 0].tolist() == [float("-inf"), 1.0, 0.0]
    problem = make_problem(graph, torch.zeros(1), 0.0)
    assert sample_gradients(problem).norms.tolist() == [0.0]


def test_a_dead_neuron_spoils_no_witness():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0], [1.0]]))  # the first neuron is always 0
        model[0].bias.zero_()
        model[2].weight.fill_(3.0)
    graph = build_graph(model, (1,))
    assert gradient_norms(graph, torch.ones(1, 1), torch.ones(1, 1)).tolist() == [[3.0]]


def test_seed_decides():
    case = CASES[1]
    problem = make_problem(build_graph(case.model(), case.input_shape), case.point(), 0.3)
    again = [sample_gradients(problem, Sampling(seed=s)).witnesses for s in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
