"""Regions without inner points are told from others, and only where rows are exact."""

import pytest
import torch
from torch import nn

from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search.engines.exact_rows import HOLLOW, SOLID, ExactRows
from lipschitz.search.engines.regions import RegionSearch
from lipschitz.search.interface import Limits
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.subdomains import NeuronLayout
from lipschitz.words import EXACT


def rows_of(model: nn.Module, inputs: int = 2) -> ExactRows:
    graph = build_graph(model.double().eval(), (inputs,))
    return ExactRows(graph, NeuronLayout(graph, graph.activation_nodes))


def differences(dtype=torch.float64) -> nn.Module:
    """Neurons for a - b, b - c, c - a and a + b of three planes, and one that is their sum."""
    torch.manual_seed(0)
    planes = torch.randn(3, 3)  # single precision: 24 bits
    pairs = torch.tensor([[1.0, -1, 0], [0, 1, -1], [-1, 0, 1], [1, 1, 0]])
    model = nn.Sequential(
        nn.Linear(2, 3), nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()
    )
    model.append(nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(planes[:, :2])
        model[0].bias.copy_(planes[:, 2])
        model[1].weight.copy_(pairs)
        # With a - b > 0 > b - c: the difference itself, and its negative.
        model[3].weight.copy_(torch.tensor([[0.5, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]]))
        model[3].bias.zero_()
    return model.to(dtype)


def look(rows: ExactRows, sign: list[int]) -> int:
    sign = torch.tensor(sign)
    open_ = torch.full((len(sign),), 9.0, dtype=torch.float64)
    return rows.look(sign, -open_, open_)


def test_signs_that_follow_and_signs_that_contradict():
    rows = rows_of(differences())
    assert rows.is_usable
    # The last two neurons have the first one's function, with other sizes and signs.
    assert look(rows, [1, -1, 1, 1, 1, -1]) == SOLID
    assert look(rows, [1, -1, 1, 1, 0, 0]) == SOLID
    assert look(rows, [1, -1, 1, 1, -1, 0]) == HOLLOW
    assert look(rows, [1, -1, 1, 1, 1, 1]) == HOLLOW
    assert look(rows, [1, 0, 1, 1, 0, 0]) == 1


def test_three_planes_that_meet_leave_nothing_inside():
    """a >= b >= c >= a holds where all three are equal only."""
    model = differences()
    rows = rows_of(model)
    weight, bias = model[0].weight, model[0].bias
    meeting = torch.linalg.solve(weight[:2] - weight[1:], bias[1:] - bias[:2]).detach()
    ends = [torch.full((6,), side * 9.0, dtype=torch.float64) for side in (-1, 1)]
    for sign, hollow in (([1, 1, 1, 1], True), ([-1, -1, -1, 1], True), ([1, 1, -1, 1], False)):
        sign = torch.tensor([*sign, 0, 0])
        if sign[0] < 0:  # both of the last layer's are 0 then
            sign[4:] = -1
        assert rows.is_hollow_at(sign, *ends, meeting) is hollow


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(0.1), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)),
    ],
    ids=["leaky", "too many bits"],
)
def test_nothing_is_said_where_sums_are_rounded(model):
    torch.manual_seed(0)
    model = model.double()
    for part in model:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight)
    assert not rows_of(model).is_usable


def extremes(count: int, sign: float) -> list[nn.Module]:
    """The larger (sign 1) or smaller (-1) of each two of ``count`` neighbouring values."""
    pair = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]])
    into = nn.Linear(count, 2 * count, bias=False)
    out = nn.Linear(2 * count, count // 2, bias=False)
    into.weight.data = torch.block_diag(*[pair] * (count // 2))
    weights = torch.tensor([[0.5, -0.5, 0.5 * sign, 0.5 * sign]])
    out.weight.data = torch.block_diag(*[weights] * (count // 2))
    return [into, nn.ReLU(), out]


def lattice() -> nn.Module:
    """The largest of four minima, each of four of six planes."""
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    planes, chosen = nn.Linear(2, 6), nn.Linear(6, 16, bias=False)
    picked = torch.cat([torch.randperm(6, generator=generator)[:4] for _ in range(4)])
    chosen.weight.data = torch.eye(6)[picked]
    levels = [*extremes(16, -1.0), *extremes(8, -1.0), *extremes(4, 1.0), *extremes(2, 1.0)]
    return nn.Sequential(planes, chosen, *levels).eval()


def test_lattices_whose_planes_come_up_often_are_exact():
    model = lattice()
    graph = build_graph(model, (2,))
    problem = make_problem(graph, torch.zeros(2), 4.0)
    result = branch_and_bound(RegionSearch(problem), 0.0, None, Limits(30.0, 1e-4, 64))
    assert result.status == EXACT
    # The gradient is one of the planes'.
    norms = model[0].weight.detach().abs().sum(1)
    assert float((norms / result.upper_bound - 1).abs().min()) < 2e-4
    points = 8 * torch.rand(20000, 2, generator=torch.Generator().manual_seed(0)).double() - 4
    gradients = graph.double.gradients(points, torch.ones(20000, 1).double())
    assert float(gradients.abs().sum(1).max()) <= result.upper_bound * (1 + 1e-9)
    # The same search without exact rows is held up by slivers.
    again = RegionSearch(problem)
    again._exactly = lambda *arguments: None
    held_up = branch_and_bound(again, 0.0, None, Limits(5.0, 1e-4, 64))
    assert held_up.upper_bound > result.upper_bound * 1.01
