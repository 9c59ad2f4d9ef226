"""Boxes and neurons in one search: certified against dense points, exact where kinks meet."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from lipschitz import BranchOptions, local_lipschitz
from lipschitz.bounds.clock import Clock
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem
from lipschitz.search.engines import regions
from lipschitz.search.engines.region_boxes import halves
from lipschitz.search.engines.regions import RegionSearch, can_search_regions
from lipschitz.search.interface import Limits
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.run import bound_by_branching
from lipschitz.words import BOTH, EXACT, INTERRUPTED

SLACK = 1e-9


def network(inputs: int, hidden: int, depth: int, seed: int, activation=None) -> nn.Module:
    torch.manual_seed(seed)
    sizes = [inputs, *[hidden] * depth, 2]
    layers = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation or nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double().eval()


def problem_of(model: nn.Module, inputs: int, eps: float, dtype=torch.float64, **asked):
    graph = build_graph(model.to(dtype), (inputs,))
    centre = torch.linspace(-0.2, 0.3, inputs, dtype=dtype)
    return make_problem(graph, centre, eps, outputs="each", **asked)


def points_of(problem: LocalProblem, count: int = 20000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, *problem.centre.shape)
    share = torch.rand(shape, generator=generator, dtype=torch.float64)
    lower, upper = problem.lower.double(), problem.upper.double()
    return lower + share * (upper - lower)


def largest(problem: LocalProblem) -> torch.Tensor:
    """The largest norm of every row at many points, [R]."""
    points, graph = points_of(problem), problem.graph.double
    return torch.stack(
        [
            problem.measure.of_rows(graph.gradients(points, row.expand(len(points), -1))).max()
            for row in problem.rows.double()
        ]
    )


def searched(problem, seconds=20.0, batch_size=64, known=None, **more):
    search = RegionSearch(problem, known, **more)
    return search, branch_and_bound(search, 0.0, None, Limits(seconds, 1e-4, batch_size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_exact_and_above_all_true_gradients(inputs, norm, dtype):
    for seed, activation in ((0, nn.ReLU()), (1, nn.LeakyReLU(0.2))):
        model = network(inputs, 12, 3, seed, activation)
        problem = problem_of(model, inputs, 1.0, dtype, norm=norm)
        true = largest(problem)
        _, result = searched(problem)
        assert result.status == EXACT
        assert (result.row_upper_bounds >= true * (1 - SLACK)).all()
        assert result.witness.dtype == dtype
        gradients = problem.graph.gradients(result.witness.expand(2, -1), problem.rows)
        assert float(problem.measure.of_rows(gradients).max()) >= result.lower_bound * (1 - 1e-6)


def test_control_norms_without_the_slopes_columns_are_caught(monkeypatch):
    """Negative control: bounds that forget what open slopes move are below true gradients."""
    whole = regions.norms_of_zonotopes

    def without_columns(gradients, measure):
        return whole(replace(gradients, columns=0 * gradients.columns), measure)

    monkeypatch.setattr(regions, "norms_of_zonotopes", without_columns)
    problem = problem_of(network(2, 12, 3, 0), 2, 1.0)
    try:
        _, result = searched(problem)
    except ArithmeticError:  # the search saw a true gradient above its bound
        return
    assert not bool((result.row_upper_bounds >= largest(problem) * (1 - SLACK)).all())


def test_one_input_is_followed_piece_by_piece():
    """The exact value from all breakpoints of the network, each found by bisection."""
    model = network(1, 16, 3, 4)
    problem = problem_of(model, 1, 2.0)
    graph, row = problem.graph, problem.rows[:1]
    grid = torch.linspace(float(problem.lower), float(problem.upper), 40001, dtype=torch.float64)
    slopes = graph.gradients(grid[:, None], row.expand(len(grid), -1)).abs()
    _, result = searched(problem_of(model, 1, 2.0, classes=[0]))
    assert result.status == EXACT
    assert float(slopes.max()) * (1 - SLACK) <= result.upper_bound
    assert result.upper_bound <= float(slopes.max()) * (1 + 2e-4)


def test_where_kinks_meet_neurons_are_split():
    """Cutting the box alone never gets below 2 here; the truth is 1."""
    moved = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        moved[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        moved[0].bias.copy_(torch.tensor([-1 / 3, 1 / 3]))
        moved[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        moved[2].bias.zero_()
    x = torch.zeros(1, dtype=torch.float64)
    found = local_lipschitz(moved, x, eps=1.0, branching=BranchOptions(timeout=20))
    assert found.status == EXACT
    assert abs(found.upper_bound - 1) < 1e-6
    _, result = searched(make_problem(build_graph(moved, (1,)), x, 1.0))
    assert result.status == EXACT
    assert abs(result.upper_bound - 1) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_children_cover_their_parents(seed):
    """Every point of the box keeps to the bound of each subdomain that holds it, at any depth."""
    problem = problem_of(network(2, 10, 3, seed), 2, 1.0, classes=[0])
    search = RegionSearch(problem)
    points = points_of(problem, 3000)
    values = problem.graph.values(points)
    signs = torch.cat(
        [values[problem.graph.nodes[i].parents[0]] for i in problem.graph.activation_nodes], 1
    )
    row = problem.rows.expand(len(points), -1)
    norms = problem.measure.of_rows(problem.graph.gradients(points, row))
    regions = search.root()
    for _ in range(7):
        regions = search.children(regions.take((regions.choice >= 0) & (regions.upper_bound > 0)))
        best = torch.full_like(norms, -torch.inf)
        for k in range(len(regions)):
            inside = ((points >= regions.lower[k]) & (points <= regions.upper[k])).all(1)
            inside &= (signs * regions.sign[k] >= 0).all(1)
            bound = regions.upper_bound[k]
            assert not inside.any() or float(norms[inside].max()) <= float(bound) * (1 + SLACK)
            best[inside] = torch.maximum(best[inside], bound)
        if not len(regions):
            break
        # What was closed on the way is a leaf whose bound is attained.
        leaves = regions.choice < 0
        if bool(leaves.any()):
            break
        assert (best >= norms * (1 - SLACK)).all()


@pytest.mark.parametrize("seconds", [0.02, 0.3])
def test_certified_whenever_it_stops(seconds):
    problem = problem_of(network(5, 24, 4, 7), 5, 1.0, torch.float32)
    true = largest(problem)
    clock = Clock.of(seconds)
    known = torch.full((2,), 1e6)
    _, result = searched(problem, seconds, known=known, clock=clock)
    assert (result.row_upper_bounds >= true * (1 - SLACK)).all()
    assert result.lower_bound <= result.upper_bound <= 1e6


def test_rows_that_time_does_not_reach_keep_what_is_known():
    problem = problem_of(network(3, 8, 2, 0), 3, 0.5)
    known = torch.tensor([3.0, 5.0], dtype=torch.float64)
    search = RegionSearch(problem, known, clock=Clock(end=0.0, now=lambda: 1.0))
    assert search.root().upper_bound.tolist() == [3.0, 5.0]
    assert (search.root().choice >= 0).all()


def test_fixed_inputs_and_inputs_that_do_not_count():
    model = network(3, 12, 2, 3)
    graph = build_graph(model, (3,))
    x, eps = torch.zeros(3, dtype=torch.float64), torch.tensor([0.5, 0.0, 0.5]).double()
    for inputs in ("all", "free"):
        problem = make_problem(graph, x, eps, inputs=inputs)
        _, result = searched(problem)
        assert result.status == EXACT
        assert (result.row_upper_bounds >= largest(problem) * (1 - SLACK)).all()
    at_point = make_problem(graph, x + 0.1, 0.0)
    _, result = searched(at_point)
    assert result.status == EXACT


def test_auto_searches_both_and_is_no_looser_than_neurons():
    problem = problem_of(network(4, 16, 3, 5), 4, 0.5, torch.float32)
    both = bound_by_branching(problem, BranchOptions(timeout=20))
    neurons = bound_by_branching(problem, BranchOptions(timeout=1.0, branch="relu"))
    assert both.branch == BOTH
    assert both.status == EXACT
    assert both.upper_bound <= neurons.upper_bound * (1 + 2e-4)
    assert both.upper_bound >= neurons.lower_bound


@pytest.mark.parametrize("where", ["__init__", "children", "settle"])
def test_an_interrupt_returns_what_is_known(monkeypatch, where):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    problem = problem_of(network(3, 16, 3, 5), 3, 1.0)
    monkeypatch.setattr(RegionSearch, where, interrupt)
    result = bound_by_branching(problem, BranchOptions(timeout=20))
    assert result.status == INTERRUPTED
    true = float(largest(problem).max())
    assert true * (1 - SLACK) <= result.upper_bound <= result.root_upper_bound
    assert result.lower_bound <= result.upper_bound


def test_what_can_be_searched():
    assert can_search_regions(build_graph(network(2, 4, 1, 0), (2,)))
    for other in (nn.Tanh(), nn.ReLU6(), nn.PReLU()):
        assert not can_search_regions(build_graph(network(2, 4, 1, 0, other), (2,)))


def test_a_split_fixes_linked_signs():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double().eval()
    with torch.no_grad():
        model[0].weight[1] = -model[0].weight[0]
        model[0].bias[1] = -model[0].bias[0]
    problem = problem_of(model, 2, 1.0)
    search = RegionSearch(problem)
    chosen = torch.full_like(search.root().choice, 2)  # the first neuron, after two inputs
    both = halves(search.root().having(choice=chosen), search._links)
    assert both.sign.tolist() == [[-1, 1, 0, 0], [1, -1, 0, 0]]


class Lattice(nn.Module):
    """The larger of two planes, written as lattices are, with a plane compared with itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.planes, self.pairs = nn.Linear(2, 3), nn.Linear(3, 12, bias=False)
        self.joined = nn.Linear(12, 3, bias=False)
        rows, out = [], torch.zeros(3, 12)
        for k, (i, j) in enumerate(((0, 1), (1, 2), (2, 2))):
            for n, (a, b) in enumerate(((1, 1), (-1, -1), (1, -1), (-1, 1))):
                row = torch.zeros(3)
                row[i] += a
                row[j] += b
                rows.append(row)
                out[k, 4 * k + n] = (0.5, -0.5, 0.5, 0.5)[n]
        self.pairs.weight.data, self.joined.weight.data = torch.stack(rows), out

    def forward(self, x):
        return self.joined(torch.relu(self.pairs(self.planes(x))))


def test_a_lattice_of_two_inputs_is_exact():
    graph = build_graph(Lattice().double().eval(), (2,))
    problem = make_problem(graph, torch.zeros(2, dtype=torch.float64), 2.0)
    search, result = searched(problem)
    assert search._links.is_zero.tolist() == [False] * 10 + [True, True]
    assert result.status == EXACT
    assert (result.row_upper_bounds >= largest(problem) * (1 - SLACK)).all()
