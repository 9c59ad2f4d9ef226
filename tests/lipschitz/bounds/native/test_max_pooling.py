"""Networks with max pooling: bounds by lines for the maximum against gradients and the tree."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lipschitz import BranchOptions, local_lipschitz
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import interval_bounds, native_crown
from lipschitz.bounds.native.pool_lines import RoutingLines
from lipschitz.network.graph import Graph
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem
from tests.oracles import jacobians


def overlapping() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(3, 4, 2),
        nn.MaxPool2d(2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def one_dimensional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 3, 3),
        nn.Tanh(),
        nn.MaxPool1d(3, 2, 1),
        nn.AvgPool1d(2, 1),
        nn.Conv1d(3, 2, 2),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )


def large_windows() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2),
        nn.LeakyReLU(0.2),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )


def three_dimensional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(1, 2, 2), nn.ReLU(), nn.MaxPool3d(2, 1), nn.Flatten(), nn.Linear(16, 3)
    )


NETWORKS = [
    (overlapping, (1, 8, 8)),
    (one_dimensional, (2, 9)),
    (large_windows, (1, 6, 6)),
    (three_dimensional, (1, 4, 4, 4)),
]


def prepared(
    make, shape: tuple[int, ...], seed: int, eps: float, dtype: torch.dtype, norm: str = "inf"
) -> tuple[nn.Module, LocalProblem]:
    torch.manual_seed(seed)
    model = make().to(dtype).eval()
    x = torch.randn(shape, dtype=dtype)
    return model, make_problem(build_graph(model, shape), x, eps, norm=norm, outputs="each")


def by_tree(problem: LocalProblem) -> LocalProblem:
    graph = problem.graph
    nodes = [replace(node, pooled=None) for node in graph.nodes]
    return replace(problem, graph=Graph(nodes, graph.device, graph.dtype))


def sampled(model: nn.Module, problem: LocalProblem, count: int = 300) -> Tensor:
    """Largest gradient norms of every output at points and corners of the box."""
    lower, upper = problem.lower, problem.upper
    share = torch.rand(count, *lower.shape, dtype=lower.dtype)
    share[::2] = share[::2].round()
    gradients = jacobians(model, lower + share * (upper - lower)).flatten(2)
    return problem.measure.each(gradients).amax(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.02, 0.2])
@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_no_gradient_is_above_the_bounds(make, shape, eps, dtype):
    for seed in range(2):
        model, problem = prepared(make, shape, seed, eps, dtype)
        crown, alpha = (f(problem).class_upper_bounds for f in (native_crown, native_alpha))
        found = sampled(model, problem) * (1 - 1e4 * torch.finfo(dtype).eps)
        assert (found <= alpha).all()
        assert (alpha <= crown * (1 + 1e-4)).all()
        assert (crown <= interval_bounds(problem) * (1 + 1e-4)).all()
        assert not (found <= alpha / 50).all()  # not a bound of any size


def test_control_chords_without_their_gap_are_caught(monkeypatch):
    """Negative control: sampled gradients are above bounds whose chords lie too low."""
    whole = RoutingLines.of

    def too_low(cotangent, routes):
        return replace(whole(cotangent, routes), share=0 * cotangent.upper, gap=0 * cotangent.upper)

    monkeypatch.setattr(RoutingLines, "of", staticmethod(too_low))
    caught = 0
    for make, shape in NETWORKS:
        model, problem = prepared(make, shape, 0, 0.2, torch.float64)
        caught += int((sampled(model, problem) > native_crown(problem).class_upper_bounds).any())
    assert caught


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_bounds_are_never_looser_than_those_of_the_tree(make, shape, norm):
    tighter = 0
    for seed in range(3):
        for eps in (0.05, 0.2):
            _, problem = prepared(make, shape, seed, eps, torch.float64, norm)
            for bound in (native_crown, partial(native_alpha, planes=False)):
                ours = bound(problem).class_upper_bounds
                trees = bound(by_tree(problem)).class_upper_bounds
                assert (ours <= trees * (1 + 1e-9)).all()
                tighter += int((ours < 0.99 * trees).any())
    assert tighter


def test_a_maximum_whose_cotangent_has_either_sign_costs_one_chord():
    """``y1 - y2`` of two maxima with the same entries is 0; each by itself is bounded alone."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.MaxPool1d(4), nn.Flatten(), nn.Linear(1, 1), nn.ReLU()
    )
    model = nn.Sequential(model, nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        for layer, weight in ((model[0][3], 1.0), (model[1], 3.0)):
            layer.weight.fill_(weight), layer.bias.zero_()
    found = local_lipschitz(model, torch.zeros(4).double(), 1.0, method="crown", engine="native")
    assert found.upper_bound == pytest.approx(3.0)  # the tree of relaxations has more entries


def test_relu_before_a_maximum_is_one_neuron_for_every_window():
    graph = build_graph(nn.Sequential(nn.ReLU(), nn.MaxPool1d(4), nn.Flatten()).eval(), (2, 8))
    ends = [node for node in graph.nodes if node.pooled is not None]
    assert len(ends) == 1
    assert graph.nodes[graph.activation_nodes[-1]].shape.numel() == 4
    assert sum(graph.nodes[i].shape.numel() for i in graph.activation_nodes) == 4 + 4 * 3


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_the_search_is_exact_and_agrees_with_that_of_the_tree(norm):
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(8, 2)
    )
    model = model.double().eval()
    x, graph = torch.randn(1, 6, 6).double(), build_graph(model, (1, 6, 6))
    tree = Graph([replace(n, pooled=None) for n in graph.nodes], graph.device, graph.dtype)
    options = BranchOptions(branch="relu", timeout=30)
    ours, trees = (
        local_lipschitz(g, x, 0.1, norm=norm, outputs="each", branching=options)
        for g in (graph, tree)
    )
    assert ours.status == trees.status == "exact"
    assert ours.upper_bound == pytest.approx(trees.upper_bound, rel=2e-4)
    assert ours.root_upper_bound <= trees.root_upper_bound * (1 + 1e-9)


def test_the_search_finds_what_a_grid_finds():
    """Windows that overlap, between layers with ReLU: exact, and not below any gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 9),
        nn.Unflatten(1, (1, 9)),
        nn.MaxPool1d(3, 2),
        nn.Flatten(),
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Unflatten(1, (2, 3)),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(2, 2),
    )
    model = model.double().eval()
    x = torch.tensor([0.3, -0.2]).double()
    grid = torch.linspace(-1.5, 1.5, 301).double()
    exact = float(jacobians(model, x + torch.cartesian_prod(grid, grid)).abs().sum(2).max())
    for branch in ("relu", "input"):
        options = BranchOptions(branch=branch, timeout=30)
        found = local_lipschitz(model, x, 1.5, branching=options)
        assert found.status == "exact"
        assert found.upper_bound == pytest.approx(exact, rel=1e-3)
