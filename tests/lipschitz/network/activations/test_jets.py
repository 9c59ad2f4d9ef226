"""Closed-form derivatives of curved activations, against autograd of torch's own functions."""

import pytest
import torch

from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.activations.gated import GELU, Mish, SiLU, TanhGELU
from lipschitz.network.activations.jets import HIGHEST, formula_ends, is_differentiable, jet
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import ELU, Hardswish, Hardtanh
from lipschitz.network.activations.smooth import (
    Arctan,
    Erf,
    Sigmoid,
    Softplus,
    Softsign,
    Square,
    Tanh,
    Tanhshrink,
)

CURVED = [
    Sigmoid(),
    Tanh(),
    Tanhshrink(),
    Arctan(),
    Erf(),
    Softsign(),
    Softplus(),
    Softplus(3.0),
    Softplus(0.2),
    Softplus(mirrored=True),
    SiLU(),
    GELU(),
    TanhGELU(),
    Mish(),
    ELU(),
    ELU(2.0),
    ELU.celu(0.5),
    ELU.selu(),
    Hardswish(),
    Square(),
    Sine(),
]
every_curved = pytest.mark.parametrize(
    "activation", CURVED, ids=[f"{a}-{i}" for i, a in enumerate(CURVED)]
)


def by_formula(activation, order: int, z: torch.Tensor) -> torch.Tensor:
    """The derivative by the formula that holds at each z."""
    value = jet(activation, 0, z)(order)
    for formula, end in enumerate(formula_ends(activation), start=1):
        value = torch.where(z > end, jet(activation, formula, z)(order), value)
    return value


def derived(values: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The derivative of values of z by autograd; 0 where they do not depend on it."""
    if not values.requires_grad:
        return torch.zeros_like(z)
    (found,) = torch.autograd.grad(values.sum(), z, create_graph=True, allow_unused=True)
    return torch.zeros_like(z) if found is None else found


def points() -> torch.Tensor:
    """[-8, 8] densely and the tails, without the points where formulas meet."""
    middle = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    tails = torch.tensor([9.0, 12.0, 15.0, 19.5], dtype=torch.float64)
    z = torch.cat([-tails, middle, tails])
    return z[(z.abs() > 1e-9) & ((z.abs() - 3).abs() > 1e-9)]


def reference(activation, order: int, z: torch.Tensor) -> torch.Tensor:
    """By autograd of the function; of the closed form one order lower where torch has no rule."""
    z = z.clone().requires_grad_()
    if isinstance(activation, Hardswish | TanhGELU) and order > 1:
        return derived(by_formula(activation, order - 1, z), z).detach()
    value = activation.forward(z)
    for _ in range(order):
        value = derived(value, z)
    return value.detach()


@every_curved
@pytest.mark.parametrize("order", range(1, HIGHEST + 1))
def test_equals_autograd(activation, order):
    z = points()
    if isinstance(activation, Softplus):  # torch cuts it at 20
        z = z[activation.beta * z < 20]
    wanted, found = reference(activation, order, z), by_formula(activation, order, z)
    largest = wanted.abs().amax().clamp(min=1.0)
    difference = (found - wanted).abs().amax()
    assert difference <= 1e-10 * largest
    # Negative control: a formula that is off by 0.01 % is caught.
    if bool((wanted != 0).any()):
        assert (1.0001 * found - wanted).abs().amax() > 1e-10 * largest


@every_curved
def test_rounding_is_a_few_units_of_the_largest_value(activation):
    """Bounds are widened by 8 units of values and 16 of slopes, the third order at most."""
    z = torch.cat([torch.linspace(-60, 60, 20_001), torch.linspace(-8, 8, 20_001)])
    for order, units in ((1, 4), (2, 4), (3, 10)):
        exact = by_formula(activation, order, z.double())
        largest = exact.abs() if activation == Square() else exact.abs().amax()
        error = (by_formula(activation, order, z).double() - exact).abs()
        assert (error <= units * torch.finfo(torch.float32).eps * largest).all()


@every_curved
def test_far_out_nothing_is_left_that_is_no_number(activation):
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor([-1e30, -1e9, -1e4, -200.0, 200.0, 1e4, 1e9, 1e30], dtype=dtype)
        for order in range(1, HIGHEST + 1):
            assert not by_formula(activation, order, z).isnan().any()


@every_curved
def test_one_call_gives_every_order(activation):
    z = torch.linspace(-4, 4, 101, dtype=torch.float64)
    for formula in range(len(formula_ends(activation)) + 1):
        together = jet(activation, formula, z)
        for order in range(HIGHEST, 0, -1):
            assert torch.equal(together(order), jet(activation, formula, z)(order))


def test_formulas_meet_where_the_function_is_continuous():
    """The first derivative of ELU, CELU and softsign; not of ELU(2), SELU and Hardswish."""
    continuous = [ELU(), ELU.celu(0.5), Softsign()]
    jumping = [ELU(2.0), ELU.selu(), Hardswish()]
    for activation in continuous + jumping:
        for formula, end in enumerate(formula_ends(activation)):
            at = torch.tensor(end, dtype=torch.float64)
            before, after = (jet(activation, f, at)(1) for f in (formula, formula + 1))
            assert (abs(before - after) < 1e-14) == (activation in continuous)


def test_what_is_made_of_lines_has_no_formulas():
    assert is_differentiable(Sigmoid())
    assert not is_differentiable(PiecewiseLinear())
    assert not is_differentiable(Hardtanh())
