"""Boxes of few inputs on curved networks: exact against dense grids, certified, and few of them."""

import pytest
import torch
from curved import ACTIVATIONS
from torch import nn

from lipschitz.bounds.true_gradients import sample_gradients
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem
from lipschitz.search.engines.functionals import FunctionalBisection, Functionals
from lipschitz.search.engines.inputs import InputSearch, whole_boxes
from lipschitz.search.interface import Limits
from lipschitz.search.loop import branch_and_bound
from lipschitz.words import BOUND, EXACT

SLACK = 1e-9
GRIDS = {1: 4001, 2: 101, 3: 25}


def network(activation: nn.Module, inputs: int, *, scale: float = 2.0, hidden: int = 8):
    torch.manual_seed(inputs)
    layers = []
    for before, after in ((inputs, hidden), (hidden, hidden), (hidden, 2)):
        layers += [nn.Linear(before, after), activation]
        layers[-2].weight.data *= scale
    return nn.Sequential(*layers[:-1]).eval()


def problem_of(model: nn.Module, inputs: int, eps: float, dtype=torch.float64, **asked):
    graph = build_graph(model, (inputs,)).to("cpu", dtype)
    centre = torch.linspace(-0.3, 0.4, inputs, dtype=dtype)
    return make_problem(graph, centre, eps, **asked)


def points_of(problem: LocalProblem) -> torch.Tensor:
    """A dense grid on the box, ends included, in float64."""
    inputs = problem.centre.numel()
    axis = torch.linspace(0, 1, GRIDS[inputs], dtype=torch.float64)
    share = torch.cartesian_prod(*[axis] * inputs).reshape(-1, inputs)
    lower, upper = problem.lower.double(), problem.upper.double()
    return torch.minimum(lower + share * (upper - lower), upper)


def largest(problem: LocalProblem) -> torch.Tensor:
    """The largest true norm of every row on the grid, [R]."""
    points, graph = points_of(problem), problem.graph.double
    norms = []
    for row in problem.rows.double():
        gradients = graph.gradients(points, row.expand(len(points), -1)).flatten(1)
        norms.append(problem.measure.of_rows(gradients).max())
    return torch.stack(norms)


def searched(problem, seconds=10.0, **limits):
    limits = Limits(seconds, limits.pop("tolerance", 1e-4), limits.pop("batch_size", 64))
    found = sample_gradients(problem)
    best = int(found.norms.argmax())
    search = InputSearch(problem)
    start = float(found.norms[best]), found.witnesses[best]
    return search, branch_and_bound(search, *start, limits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "softplus", "elu", "celu", "softsign"])
def test_exact_within_a_grid_of_true_gradients(name, norm, dtype):
    for inputs in (1, 2):
        model = network(ACTIVATIONS[name], inputs)
        problem = problem_of(model, inputs, 0.3, dtype, norm=norm, outputs="each")
        true = largest(problem)
        _, result = searched(problem)
        assert result.status == EXACT
        assert (result.row_upper_bounds >= true * (1 - SLACK)).all()
        assert float(true.max()) * (1 - SLACK) <= result.upper_bound
        # The grid comes this near to the largest gradient.
        assert result.upper_bound <= float(true.max()) * 1.002
        # Points and values are of the network's own precision.
        assert result.witness.dtype == dtype
        gradient = problem.graph.gradients(result.witness.expand(2, -1), problem.rows)
        assert float(problem.measure.of_rows(gradient).max()) >= result.lower_bound * (1 - 1e-6)


@pytest.mark.parametrize("name", ["elu_with_a_kink", "hardswish", "selu", "gelu_tanh"])
@pytest.mark.parametrize("seconds", [0.01, 0.3])
def test_certified_whenever_it_stops(name, seconds):
    model = network(ACTIVATIONS[name], 3, scale=3.0)
    problem = problem_of(model, 3, 0.5)
    true = largest(problem)
    _, result = searched(problem, seconds)
    assert (result.row_upper_bounds >= true * (1 - SLACK)).all()
    assert result.upper_bound >= float(true.max()) * (1 - SLACK)
    assert result.lower_bound <= result.upper_bound


def test_single_precision_closes_a_gap_below_its_margins_of_rounding():
    """In float32 the margins of deep, wide layers alone are above 1e-4."""
    torch.manual_seed(0)
    layers = []
    for before, after in ((2, 64), (64, 64), (64, 64), (64, 3)):
        layers += [nn.Linear(before, after), nn.Sigmoid()]
        layers[-2].weight.data *= 4.0
    problem = problem_of(nn.Sequential(*layers[:-1]).eval(), 2, 0.05, torch.float32)
    search, result = searched(problem)
    assert search.problem.graph.dtype == torch.float64
    assert result.status == EXACT
    assert result.witness.dtype == torch.float32


class Uneven(nn.Module):
    """Far more curved along its first input than along the others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = network(nn.Tanh(), 4, scale=1.5, hidden=16)

    def forward(self, x):
        return self.net(x * x.new_tensor([4.0, 0.05, 0.05, 0.05]))


def test_the_input_that_matters_is_cut():
    """Cutting every input alike takes thousands of boxes."""
    problem = problem_of(Uneven().eval(), 4, 0.5)
    search, result = searched(problem)
    assert result.status == EXACT
    assert result.domains < 600
    assert int(search.root().choice[0]) == 0


def test_agrees_with_other_bounds_of_the_whole_box():
    problem = problem_of(network(nn.Tanh(), 2), 2, 0.2)
    known = torch.tensor([0.1, 1e9], dtype=torch.float64)
    first = InputSearch(problem, known).root()
    assert float(first.upper_bound[0]) == 0.1  # never above what is known
    assert float(first.upper_bound[1]) < 1e9


def test_boxes_that_time_did_not_reach_have_their_parent_s_bound():
    class Over:
        """A clock that allows nothing."""

        is_over = True

        def growing(self, *sizes):
            return iter(())

    problem = problem_of(network(nn.Tanh(), 2), 2, 0.2)
    search = InputSearch(problem)
    search.clock = Over()
    parents = search.root()
    children = search.children(parents)
    assert torch.equal(children.upper_bound, parents.upper_bound.repeat(2))
    assert (children.choice >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["tanh", "gelu", "elu_with_a_kink"])
def test_functionals_are_bounded_by_a_row_of_their_own(name, dtype):
    """A difference of entries is bounded as such, not by the entries' intervals."""
    problem = problem_of(network(ACTIVATIONS[name], 2), 2, 0.2, dtype)
    weights = torch.tensor([[1.0, -1.0], [1.0, 0.0]], dtype=dtype)
    search = FunctionalBisection(Functionals(problem, weights))
    points, graph = points_of(problem), problem.graph.double
    values = []
    for row, weight in zip(problem.rows.double(), weights.double(), strict=True):
        values.append((graph.gradients(points, row.expand(len(points), -1)) @ weight).max())
    true = torch.stack(values)
    boxes = search.root()
    assert (boxes.upper_bound >= true - SLACK).all()
    for _ in range(9):  # every box is cut, so all that counts is the largest bound of a row
        boxes = search.children(boxes)
        bounds = torch.stack([boxes.upper_bound[boxes.row == row].max() for row in (0, 1)])
        assert (bounds >= true - SLACK).all()
    assert (bounds <= true + 0.02).all()


def test_a_box_without_length_is_a_leaf():
    problem = problem_of(network(nn.Tanh(), 2), 2, 0.0)
    search, result = searched(problem)
    assert (search.root().choice == -1).all()
    assert result.status in (EXACT, BOUND)
    boxes = whole_boxes(search.problem, search.root().upper_bound)
    assert torch.equal(boxes.lower, boxes.upper)


def test_a_single_entry_has_rows_of_its_own():
    """At the kink of one neuron affine forms forward bound the entry loosely, rows do not."""
    torch.manual_seed(0)
    layers = nn.Linear(1, 8), nn.ELU(2.0), nn.Linear(8, 8), nn.ELU(2.0), nn.Linear(8, 1)
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(3)
    problem = problem_of(model, 1, 0.5)
    points = points_of(problem)
    hidden = model[2](model[1](model[0](points)))
    crossing = ((hidden[1:] > 0) != (hidden[:-1] > 0)).nonzero()
    assert len(crossing)
    search = InputSearch(problem)
    for place, neuron in crossing.tolist():
        low, high = points[place], points[place + 1]
        for _ in range(60):  # the kink of this neuron, by bisection
            middle = (low + high) / 2
            value = model[2](model[1](model[0](torch.stack([low, middle]))))[:, neuron]
            low, high = (low, middle) if (value[0] > 0) != (value[1] > 0) else (middle, high)
        lower, upper = (low - 1e-9)[None], (high + 1e-9)[None]
        box = search.root().having(
            lower=lower, upper=upper, upper_bound=torch.full((1,), torch.inf, dtype=torch.float64)
        )
        sides = problem.graph.gradients(torch.cat([lower, upper]), problem.rows.expand(2, -1))
        assert float(sides.abs().max()) <= float(search._bounded(box).upper_bound) + SLACK
        assert float(search._bounded(box).upper_bound) <= float(sides.abs().max()) * (1 + 1e-5)
