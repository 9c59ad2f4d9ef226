"""Inputs along which a functional of the gradient rises or falls: never wrong, and of use."""

import pytest
import torch
from curved import ACTIVATIONS, SMOOTH
from torch import nn

from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.network.tracing import build_graph
from lipschitz.norms import Measure
from lipschitz.search.engines.climbing import climb, steepest
from lipschitz.search.engines.trends import Effort, Trends, hessian_terms

WHOLE = torch.tensor([-1.0, -1.0], dtype=torch.float64), torch.tensor([1.0, 1.0]).double()


def model_of(activation: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Linear(2, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 2)
    return nn.Sequential(*layers).double().eval()


def trends_of(model: nn.Module, weights=None) -> Trends:
    graph = build_graph(model, (2,))
    terms = hessian_terms(graph, default_memory_budget(graph.device))
    return Trends(terms, WHOLE, Measure(), weights)


def boxes(count: int, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Random boxes in the whole one, many of which touch its border."""
    generator = torch.Generator().manual_seed(0)
    centre = 2.4 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1.2
    return (centre - radius).clamp(-1, 1 - radius), (centre + radius).clamp(radius - 1, 1)


def grid(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    axis = torch.linspace(0, 1, 21, dtype=torch.float64)
    return lower + torch.cartesian_prod(axis, axis) * (upper - lower)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("name", SMOOTH)
def test_largest_values_are_where_it_says(name, functional):
    model = model_of(ACTIVATIONS[name])
    weights = torch.tensor([[0.6, -0.8]], dtype=torch.float64) if functional else None
    trends, direction = trends_of(model, weights), torch.tensor([[1.0, -0.5]]).double()

    def values(points):
        gradients = trends.terms.graph.gradients(points, direction.expand(len(points), -1))
        return gradients.abs().sum(1) if weights is None else gradients @ weights[0]

    moved = dropped = 0
    lower, upper = boxes(60, 0.05)
    rows = torch.zeros(len(lower), dtype=torch.long)
    sides = trends.sides(rows, direction.expand(len(lower), -1), lower, upper)
    for low, high, least, most, empty in zip(lower, upper, *sides, strict=True):
        assert (low <= least).all()
        assert (most <= high).all()
        inside, side = values(grid(low, high)).max(), values(grid(least, most)).max()
        assert inside <= side + 1e-12
        if empty:
            dropped += 1
            beyond = values(grid((low - 0.02).clamp(min=-1), (high + 0.02).clamp(max=1))).max()
            assert beyond > inside
        moved += bool((low != least).any() or (high != most).any())
    assert moved > 20  # the test is of use
    assert dropped > 5


def test_a_box_that_holds_the_largest_value_stays():
    """Negative control: with the whole box's ends unknown, every box would be dropped."""
    model = model_of(nn.Tanh())
    trends, direction = trends_of(model), torch.tensor([[1.0, 0.0]]).double()
    points, rows = grid(*WHOLE), direction.expand(441, -1)
    terms, steepest_of = trends.terms, steepest(Measure())
    points = climb(terms, rows, points, *WHOLE, steepest_of)
    best = points[terms.graph.gradients(points, rows).abs().sum(1).argmax()]
    lower, upper = (best - 1e-3).clamp(min=-1)[None], (best + 1e-3).clamp(max=1)[None]
    row = torch.zeros(1, dtype=torch.long)
    assert bool((best.abs() == 1).any())  # on the border
    assert not bool(trends.sides(row, direction, lower, upper)[2])
    far = torch.full((2,), 5.0, dtype=torch.float64)
    wrong = Trends(trends.terms, (-far, far), Measure())
    assert bool(wrong.sides(row, direction, lower, upper)[2])


def test_networks_without_hessians_have_no_trends():
    for activation in (nn.ReLU(), nn.ELU(2.0), nn.Hardswish()):
        graph = build_graph(model_of(activation), (2,))
        assert hessian_terms(graph, 2**20) is None


def test_effort_follows_what_pays():
    effort, counts = Effort(), []

    def useless(count):
        counts.append(count)
        return 0

    def useful(count):
        counts.append(count)
        return count

    for _ in range(8):
        effort.run(100, useless)
    assert counts == [4, 2, 1, 1, 1]  # then pauses of one round and of two
    counts.clear()
    effort = Effort()
    for _ in range(4):
        effort.run(10, useful)
    assert counts == [4, 8, 10, 10]
