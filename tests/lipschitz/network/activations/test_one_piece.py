"""The quick lines against the slow ones, and where they do not serve."""

import pytest
import torch

from lipschitz.network.activations.derivative import Derivative
from lipschitz.network.activations.gated import GELU, SiLU
from lipschitz.network.activations.one_piece import curvature_of, on_one_piece
from lipschitz.network.activations.piecewise import ELU
from lipschitz.network.activations.smooth import Sigmoid, Softplus, Tanh

FUNCTIONS = [
    f for a in (Sigmoid(), Tanh(), GELU(), SiLU(), Softplus(), ELU()) for f in (a, Derivative(a))
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_quick_lines_are_those_of_least_area(function):
    generator = torch.Generator().manual_seed(0)
    centre = 4 * torch.randn(2000, generator=generator, dtype=torch.float64)
    radius = 10 ** (-4 * torch.rand(2000, generator=generator, dtype=torch.float64))
    lower, upper = centre - radius, centre + radius
    whole = on_one_piece(lower, upper, function.breakpoints, function.kinks)
    assert whole.any()
    assert bool(whole.all()) == (not function.breakpoints)
    quick = function.lines(lower, upper)
    slow = function._hull_lines(lower, upper)
    heights = [[lines[i] * centre + lines[i + 1] for i in (0, 2)] for lines in (quick, slow)]
    assert (heights[0][0] >= heights[1][0] - 1e-9).all()
    assert (heights[0][1] <= heights[1][1] + 1e-9).all()


def test_what_lies_on_one_piece():
    inf = torch.inf
    lower = torch.tensor([-2.0, -2.0, 1.0, 0.0, 1.0, -inf, torch.nan])
    upper = torch.tensor([-1.0, 2.0, 3.0, 1.0, 1.0, -1.0, 1.0])
    expected = [True, False, True, True, True, False, False]
    assert on_one_piece(lower, upper, (0.0,)).tolist() == expected
    # A point at a jump has two values.
    assert on_one_piece(lower, upper, (0.0, 1.0), (1.0,)).tolist() == [
        True, False, True, True, False, False, False,
    ]  # fmt: skip
    assert curvature_of(lower[:5], (0.0,), (1, -1)).tolist() == [1, 1, -1, -1, -1]
