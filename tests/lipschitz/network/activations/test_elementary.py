"""Exponential, logarithm and powers: intervals and lines over ten decades, and domains."""

import math

import pytest
import torch

from lipschitz.network.activations import (
    Exponential,
    Logarithm,
    Power,
)
from lipschitz.network.activations.derivative import derivative_of

DTYPES = [torch.float32, torch.float64]
ROOTS = [
    Exponential(),
    Logarithm(),
    Power(0.5),
    Power(-0.5),
    Power(-1.0),
    Power(-2.0),
    Power(3.0),
    Power(4.0),
    Power(1.5),
    Power(-0.5, shift=1e-5, positive=True),
    Power(0.5, shift=1e-2, positive=True),
]
FUNCTIONS = [*ROOTS, *(derivative_of(f) for f in ROOTS)]
FUNCTIONS += [derivative_of(derivative_of(f)) for f in ROOTS]
every_function = pytest.mark.parametrize(
    "function", FUNCTIONS, ids=[f"{f}-{i}" for i, f in enumerate(FUNCTIONS)]
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def boxes(function, dtype, count=400):
    """Intervals of ten decades of ends and widths that the function is defined on."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low, high):
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    if isinstance(function, Exponential):
        lower = uniform(-1, 1).sign() * 10 ** uniform(-5, 1.5)
        upper = (lower + 10 ** uniform(-6, 1.5)).clamp(max=36.0)
        lower = lower.clamp(max=35.0)
    else:
        lower = 10 ** uniform(-5, 5)
        upper = lower * (1 + 10 ** uniform(-6, 4))
        if not function.needs and not (isinstance(function, Power) and function.positive):
            lower = torch.where(uniform(0, 1) > 0.5, lower, -upper * uniform(0, 1))
        if function.needs == "on one side of 0":
            flipped = uniform(0, 1) > 0.5
            lower, upper = (
                torch.where(flipped, -upper, lower),
                torch.where(flipped, -lower, upper),
            )
        if function.needs == "" and isinstance(function, Power) and function.positive:
            lower = torch.where(uniform(0, 1) > 0.7, 0.0, lower)
    return lower.to(dtype), upper.to(dtype)


def inside(lower, upper):
    """Points of every interval in float64, evenly and, of one sign, in equal ratios."""
    lower, upper = lower.double().unsqueeze(1), upper.double().unsqueeze(1)
    share = torch.linspace(0, 1, 501, dtype=torch.float64)
    even = lower + (upper - lower) * share
    ratio = (upper / lower).clamp(min=0)
    near = torch.where((lower > 0) & (ratio > 0), lower * ratio**share, even)
    zero = torch.zeros_like(lower)
    return torch.minimum(torch.maximum(torch.cat([even, near, zero], 1), lower), upper)


def exact(function):
    return function.to("cpu", torch.float64)


@every_dtype
@every_function
def test_intervals_hold_values_and_slopes(function, dtype):
    function = function.to("cpu", dtype)
    lower, upper = boxes(function, dtype)
    z = inside(lower, upper)
    derived = function.derivative
    for found, values in (
        (function.interval(lower, upper), exact(function).forward(z)),
        (function.slope_interval(lower, upper), exact(function).slope(z)),
        (function.slope_interval(lower, upper), exact(derived).forward(z)),
        (derived.interval(lower, upper), exact(function).slope(z)),
    ):
        low, high = (end.double() for end in found)
        least, most = values.amin(1), values.amax(1)
        assert (low <= least).all()
        assert (most <= high).all()
        # Tight, and a negative control.
        scale = torch.maximum(least.abs(), most.abs()).clamp(min=1e-30)
        loose = 1e-4 if dtype == torch.float32 else 1e-6
        assert ((least - low) / scale).max() < loose
        assert ((high - most) / scale).max() < loose
        assert (low + 1e-3 * (high - low) + loose * scale > least).any()


@every_dtype
@every_function
def test_lines_hold_the_function_between_them(function, dtype):
    function = function.to("cpu", dtype)
    lower, upper = boxes(function, dtype)
    z = inside(lower, upper)
    values = exact(function).forward(z)
    below, low, above, high = (p.double().unsqueeze(1) for p in function.lines(lower, upper))
    under, over = below * z + low, above * z + high
    assert (under <= values).all()
    assert (values <= over).all()
    if not any(function.curvatures):
        return
    gap = (over - under).amax(1, keepdim=True)
    assert (under + 1e-3 * gap >= values).any()
    assert (values >= over - 1e-3 * gap).any()


@every_function
def test_lines_of_any_slope_are_sound_and_touch(function):
    function = exact(function)
    lower, upper = boxes(function, torch.float64)
    z = inside(lower, upper)
    values = function.forward(z)
    least, most = function.slope_interval(lower, upper)
    for share in (-0.3, 0.0, 0.05, 0.3, 0.7, 1.0):
        slope = least + share * (most - least)
        for side in (1, -1):
            intercept, point = function.support(slope, lower, upper, side)
            gap = side * (values - slope.unsqueeze(1) * z - intercept.unsqueeze(1))
            assert (gap >= 0).all()
            if not 0 < share < 1:
                continue
            size = values.abs().amax(1) + slope.abs() * torch.maximum(lower.abs(), upper.abs())
            at = function.forward(point) - slope * point - intercept
            assert (at.abs() <= 1e-5 * size.clamp(min=1e-300)).all()


@every_function
def test_the_gap_falls_with_the_square_of_the_width(function):
    function = exact(function)
    centre = torch.full((5,), 1.7, dtype=torch.float64)
    radius = 0.1 / 2.0 ** torch.arange(5, dtype=torch.float64)
    below, low, above, high = function.lines(centre - radius, centre + radius)
    gap = (above * centre + high) - (below * centre + low)
    curved = function.derivative.forward(centre[:1] + 0.1) != function.derivative.forward(
        centre[:1] - 0.1
    )
    if bool(curved):
        assert ((gap[:-1] / gap[1:]).log2() - 2).abs().max() < 0.2
    else:
        assert (gap <= 1e-12 * (1 + function.forward(centre).abs())).all()


@every_function
def test_derivatives_are_autograds(function):
    function = exact(function)
    z = torch.linspace(0.05, 7, 200, dtype=torch.float64).requires_grad_()
    (found,) = torch.autograd.grad(function.forward(z).sum(), z, allow_unused=True)
    found = torch.zeros_like(z) if found is None else found
    torch.testing.assert_close(function.slope(z).detach(), found, rtol=1e-11, atol=1e-300)
    torch.testing.assert_close(
        function.derivative.forward(z).detach(), found, rtol=1e-11, atol=1e-300
    )


@every_dtype
@pytest.mark.parametrize("function", [f for f in FUNCTIONS if f.needs], ids=str)
def test_what_reaches_a_bad_point_is_known_and_has_any_value(function, dtype):
    function = function.to("cpu", dtype)
    lower = torch.tensor([-1.0, 0.0, -math.inf, math.nan, 1.0], dtype=dtype)
    upper = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0], dtype=dtype)
    if function.positive if isinstance(function, Power) else False:
        upper = upper.abs()
    bad = function.is_undefined(*function.known(lower, upper))
    assert bad.tolist() == [True, True, True, True, False]
    for found, overall in (
        (function.interval(lower, upper), function.value_range),
        (function.slope_interval(lower, upper), function.slope_range),
    ):
        assert (found[0][bad] == overall[0]).all()
        assert (found[1][bad] == overall[1]).all()
        assert found[0].isfinite()[~bad].all()
    intercept, _ = function.support(torch.ones_like(lower), lower, upper, 1)
    assert (intercept[bad] == -math.inf).all()
