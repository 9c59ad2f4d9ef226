"""Optimised linear bounds of terms: never worse for a longer search, the same in parts."""

import pytest
import torch
from torch import nn

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native.terms.gradient import GradientTerms
from lipschitz.bounds.native.terms.intervals import term_intervals
from lipschitz.bounds.native.terms.linear import ONE_PASS, LinearBounds, PlaneSearch
from lipschitz.bounds.native.terms.relaxations import Relaxations
from lipschitz.network.tracing import build_graph

ROWS = 6


def linear_bounds(activation: nn.Module, budget: int = 2**24) -> tuple[LinearBounds, int]:
    torch.manual_seed(0)
    layers = nn.Linear(3, 8), activation, nn.Linear(8, 6), activation, nn.Linear(6, 2)
    source = GradientTerms(build_graph(nn.Sequential(*layers).eval(), (3,)).double)
    centre = torch.tensor([[0.2, -0.4, 0.5], [-0.3, 0.1, 0.9]], dtype=torch.float64)
    lower, upper = centre - 0.3, centre + 0.3
    constants = {source.row: torch.tensor([[1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)}
    intervals = term_intervals(source.terms, lower, upper, constants, {})
    relaxations = Relaxations(source.terms, intervals)
    return LinearBounds(relaxations, constants, lower, upper, budget), source.gradient


def every_sign() -> torch.Tensor:
    unit = torch.eye(3, dtype=torch.float64)
    return torch.cat([unit, -unit]).expand(2, ROWS, 3)


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.GELU()], ids=str)
def test_a_longer_search_never_loosens_and_helps(activation):
    bounds, gradient = linear_bounds(activation)
    found = [
        bounds.upper_bounds(gradient, every_sign(), PlaneSearch(steps=n, patience=99))
        for n in (0, 5, 20)
    ]
    assert (found[1] <= found[0]).all()
    assert (found[2] <= found[1]).all()
    assert (found[2] < found[0] - 1e-4).any()


def test_rows_do_not_depend_on_the_chunks_they_are_bounded_in():
    whole, gradient = linear_bounds(nn.Sigmoid())
    parts, _ = linear_bounds(nn.Sigmoid(), budget=1)
    search = PlaneSearch(steps=4, patience=99)
    for chosen in (search, ONE_PASS):
        first = whole.upper_bounds(gradient, every_sign(), chosen)
        second = parts.upper_bounds(gradient, every_sign(), chosen)
        assert torch.allclose(first, second, rtol=1e-12)


def test_without_time_rows_are_left_at_infinity_and_noted():
    bounds, gradient = linear_bounds(nn.Sigmoid())
    clock = Clock.of(0.0)
    found = bounds.upper_bounds(gradient, every_sign(), clock=clock)
    assert found.isinf().all()
    assert clock.not_reached == ("planes",)


def test_a_term_without_free_shares_is_bounded_once():
    bounds, _ = linear_bounds(nn.Sigmoid())
    coefficients = torch.ones(2, 1, 8, dtype=torch.float64)
    first = bounds.upper_bounds(1, coefficients, PlaneSearch(steps=5))
    assert torch.equal(first, bounds.upper_bounds(1, coefficients))
