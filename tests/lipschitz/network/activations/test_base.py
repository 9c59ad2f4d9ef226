"""Slope intervals, images and lines of every activation, against dense samples."""

import math

import pytest
import torch

from lipschitz.network.activations import Activation, PiecewiseLinear, Square
from lipschitz.network.activations.gated import GELU, Mish, SiLU, TanhGELU
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import (
    ELU,
    Absolute,
    Hardswish,
    Hardtanh,
    PReLU,
    Softshrink,
)
from lipschitz.network.activations.smooth import (
    Arctan,
    Erf,
    Sigmoid,
    Softplus,
    Softsign,
    Tanh,
    Tanhshrink,
)

DTYPES = [torch.float32, torch.float64]
ACTIVATIONS = [
    PiecewiseLinear(),
    PiecewiseLinear(0.25),
    PReLU(torch.tensor([-0.5])),
    PReLU(torch.tensor([1.75])),
    Hardtanh(),
    Hardtanh(0.0, 6.0),
    Hardtanh(-math.inf, 0.5),
    Hardswish(),
    Absolute(),
    Softshrink(),
    ELU(),
    ELU(2.0),
    ELU(0.5),
    ELU.celu(1.5),
    ELU.selu(),
    Softplus(),
    Softplus(3.0),
    Softplus(mirrored=True),
    SiLU(),
    Mish(),
    GELU(),
    TanhGELU(),
    Tanh(),
    Tanhshrink(),
    Sigmoid(),
    Arctan(),
    Erf(),
    Softsign(),
    Sine(),
    Square(),
]
every_activation = pytest.mark.parametrize(
    "activation", ACTIVATIONS, ids=[f"{a}-{i}" for i, a in enumerate(ACTIVATIONS)]
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def critical_points(activation: Activation) -> list[float]:
    special = [*activation.breakpoints, *activation.turning_points]
    if isinstance(activation, Sine):
        special = [k * math.pi / 2 for k in range(-9, 10)]
    return [p for p in special if math.isfinite(p)]


def boxes(activation: Activation, dtype: torch.dtype, count: int = 250):
    """Intervals of radii 1e-3 to 1e3, far out, around 0, at critical points and touching them."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    radius = 10 ** uniform(-3, 3)
    centre = 10 ** uniform(-3, 3) * uniform(-1, 1).sign()
    lower, upper = [centre - radius, -radius], [centre + radius, radius * 10 ** uniform(-3, 0)]
    for point in critical_points(activation):
        small = 10 ** torch.linspace(-3, 1, 9, dtype=torch.float64)
        lower += [point - small, torch.full_like(small, point), point - small]
        upper += [torch.full_like(small, point), point + small, point + 2 * small]
    return torch.cat(lower).to(dtype), torch.cat(upper).to(dtype)


def inside(activation: Activation, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Points of every interval [n, points] in float64: evenly, near 0, near critical points."""
    lower, upper = lower.double().unsqueeze(1), upper.double().unsqueeze(1)
    even = lower + (upper - lower) * torch.linspace(0, 1, 1001, dtype=torch.float64)
    near = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    close = [
        p + s * 10 ** torch.linspace(-9, -1, 30, dtype=torch.float64)
        for p in critical_points(activation)
        for s in (-1, 1)
    ]
    special = torch.tensor(critical_points(activation), dtype=torch.float64)
    fixed = torch.cat([near, special, *close]).expand(len(lower), -1)
    if isinstance(activation, Sine):  # its first extremes, wherever the interval is
        first = (2 * lower / math.pi).ceil() + torch.arange(6, dtype=torch.float64)
        fixed = torch.cat([fixed, first * math.pi / 2], dim=1)
    return torch.minimum(torch.maximum(torch.cat([even, fixed], dim=1), lower), upper)


def sampled_slopes(activation: Activation, z: torch.Tensor) -> torch.Tensor:
    """Slopes at points that are no kinks, in float64; NaN at kinks."""
    exact = activation.to("cpu", torch.float64)
    return exact.slope(z).masked_fill(exact.at_kink(z), torch.nan)


def extremes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest number of each row, NaN left out."""
    return values.nan_to_num(torch.inf).amin(1), values.nan_to_num(-torch.inf).amax(1)


@every_dtype
@every_activation
def test_slope_interval_is_the_range_of_slopes(activation, dtype):
    activation = activation.to("cpu", dtype)
    lower, upper = boxes(activation, dtype)
    found = [end.double() for end in activation.slope_interval(lower, upper)]
    least, most = extremes(sampled_slopes(activation, inside(activation, lower, upper)))
    # The samples are rounded too, and so is a constant that is no float of this dtype.
    slack = 0.6 * torch.finfo(dtype).eps * bool(str(activation) == "SELU")
    slack = slack + 4 * torch.finfo(torch.float64).eps * torch.maximum(least.abs(), most.abs())
    assert (found[0] <= least + slack).all()
    assert (most - slack <= found[1]).all()
    # Tight, but for the rounding of slopes that are small differences or powers.
    scale = torch.maximum(least.abs(), most.abs()).clamp(min=0.01)
    loose = 1e-5 if dtype == torch.float64 else 1e-2
    assert ((least - found[0]) / scale).max() < loose
    assert ((found[1] - most) / scale).max() < loose
    # Negative control: an interval narrower by a thousandth of its width is caught.
    width = found[1] - found[0]
    if bool((width > 0.1).any()):
        assert (found[0] + 1e-3 * width > least + slack).any()
        assert (most > found[1] - 1e-3 * width).any()


@every_dtype
@every_activation
def test_image_holds_every_value(activation, dtype):
    activation = activation.to("cpu", dtype)
    lower, upper = boxes(activation, dtype)
    found = [end.double() for end in activation.interval(lower, upper)]
    z = inside(activation, lower, upper)
    values = activation.to("cpu", torch.float64).forward(z)
    least, most = values.amin(1), values.amax(1)
    leaky = 1e-7 * (least.abs() + most.abs()) * isinstance(activation, PiecewiseLinear)
    assert (found[0] <= least + leaky).all()
    assert (most - leaky <= found[1]).all()
    scale = torch.maximum(least.abs(), most.abs()).clamp(min=0.1)
    loose = 1e-4 if dtype == torch.float64 else 1e-2
    assert ((least - found[0]) / scale).max() < loose
    assert ((found[1] - most) / scale).max() < loose
    width = (most - least).clamp(min=1e-2)
    assert (found[0] + 1e-2 * width > least).any()


@every_dtype
@every_activation
def test_lines_hold_the_function_between_them(activation, dtype):
    activation = activation.to("cpu", dtype)
    lower, upper = boxes(activation, dtype)
    lines = [part.double().unsqueeze(1) for part in activation.lines(lower, upper)]
    z = inside(activation, lower, upper)
    values = activation.to("cpu", torch.float64).forward(z)
    below, above = lines[0] * z + lines[1], lines[2] * z + lines[3]
    slack = 1e-6 * values.abs() * (isinstance(activation, PiecewiseLinear) and dtype == DTYPES[0])
    assert (below <= values + slack).all()
    assert (values - slack <= above).all()
    # Negative control: lines nearer by a thousandth of the gap are crossed.
    gap = (above - below).amax(1, keepdim=True)
    assert (below + 1e-3 * gap > values).any()
    assert (values > above - 1e-3 * gap).any()


@every_activation
def test_lines_of_any_slope_are_sound(activation):
    """The intercept belongs to the slope, however that was chosen."""
    activation = activation.to("cpu", torch.float64)
    lower, upper = boxes(activation, torch.float64, 60)
    if isinstance(activation, Sine):
        activation = activation._period
        keep = (lower >= 0) & (upper <= 4 * math.pi)
        lower, upper = lower[keep], upper[keep]
    z = inside(activation, lower, upper)
    values = activation.forward(z)
    least, most = activation.slope_interval(lower, upper)
    for share in (-0.3, 0.0, 0.05, 0.2, 0.7, 0.95, 1.0):
        slope = least + share * (most - least)
        for side in (1, -1):
            intercept, touching = activation.support(slope, lower, upper, side)
            gap = side * (values - slope.unsqueeze(1) * z - intercept.unsqueeze(1))
            assert (gap >= 0).all()
            if not 0 < share < 1:
                continue
            # It touches the function, at the point that is said.
            size = 1 + values.abs().amax(1) + (slope.abs() * (upper.abs() + lower.abs()))
            at = activation.forward(touching) - slope * touching - intercept
            assert (at.abs() <= 1e-5 * size).all()


@every_activation
def test_lines_leave_the_least_area(activation):
    """No slope of a fine grid gives a line that is nearer in the middle."""
    activation = activation.to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(1)
    centre = 8 * torch.rand(100, generator=generator, dtype=torch.float64) - 4
    # The sine over almost a whole period has constants; elsewhere it is as good as the others.
    radius = 10 ** (torch.rand(100, generator=generator, dtype=torch.float64) * 1.4 - 1)
    lower, upper = centre - radius, centre + radius
    lines = activation.lines(lower, upper)
    least, most = activation.slope_interval(lower, upper)
    z = lower.unsqueeze(1) + (upper - lower).unsqueeze(1) * torch.linspace(0, 1, 801).double()
    values = activation.forward(z)
    for side, slope, intercept in ((1, *lines[:2]), (-1, *lines[2:])):
        best = torch.full_like(centre, -torch.inf)
        for share in torch.linspace(0, 1, 201).tolist():
            trial = (least + share * (most - least)).unsqueeze(1)
            height = (side * (values - trial * (z - centre.unsqueeze(1)))).amin(1)
            best = torch.maximum(best, height)
        mine = side * (slope * centre + intercept)
        room = ((most - least) * radius).clamp(min=1e-6)
        assert ((best - mine) / room).max() < 2e-3


@every_dtype
@every_activation
def test_ends_that_are_huge_or_no_numbers(activation, dtype):
    activation = activation.to("cpu", dtype)
    inf, nan, huge = math.inf, math.nan, torch.finfo(dtype).max
    tiny = torch.finfo(dtype).tiny / 4  # subnormal
    lower = torch.tensor([-inf, 0.0, -inf, -huge, -huge, 1e30, nan, 0.0, -tiny, 40.0], dtype=dtype)
    upper = torch.tensor([inf, inf, -100.0, huge, -1e30, huge, 1.0, nan, tiny, 50.0], dtype=dtype)
    found = activation.slope_interval(lower, upper)
    for end in found:
        assert not end.isnan().any()
    assert (found[0] <= found[1]).all()
    # The whole line has every slope, and so may what is not a number.
    finite = [v for v in activation.slope_range if math.isfinite(v)]
    for value in finite:
        value = torch.tensor(value, dtype=dtype)
        assert found[0][0] - 1e-5 <= value <= found[1][0] + 1e-5
        if not isinstance(activation, PiecewiseLinear):
            assert (found[0][[6, 7]] <= value).all()
            assert (value <= found[1][[6, 7]]).all()
    z = torch.linspace(40, 50, 50, dtype=torch.float64)
    far = sampled_slopes(activation, z)
    unit = torch.finfo(dtype).eps * far.abs().max()
    assert found[0][9] <= far.min() + unit
    assert far.max() <= found[1][9] + unit


@every_activation
def test_point_intervals(activation):
    """A point has its own slope, at a kink the slopes of both sides."""
    activation = activation.to("cpu", torch.float64)
    z = torch.tensor([-1.3, 0.37, 2.2], dtype=torch.float64)
    least, most = activation.slope_interval(z, z)
    torch.testing.assert_close(least, activation.slope(z))
    torch.testing.assert_close(most, activation.slope(z))
    for kink in activation.kinks:
        at = torch.tensor([kink], dtype=torch.float64)
        sides = torch.cat([activation.one_sided_slope(at, after=after) for after in (0, 1)])
        least, most = activation.slope_interval(at, at)
        assert least <= sides.min()
        assert sides.max() <= most
        assert bool(activation.at_kink(at))
        # An interval that ends there keeps to its own side.
        before = activation.slope_interval(at - 1e-3, at)
        after = activation.slope_interval(at, at + 1e-3)
        torch.testing.assert_close(before[1], sides[:1], atol=1e-3, rtol=0)
        torch.testing.assert_close(after[0], sides[1:], atol=1e-3, rtol=0)


@every_activation
def test_splits_are_inside_and_narrow_the_slopes(activation):
    activation = activation.to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(2)
    centre = 10 * torch.rand(200, generator=generator, dtype=torch.float64) - 5
    special = torch.tensor([0.0, 0.5, *critical_points(activation)], dtype=torch.float64)
    centre = torch.cat([centre, special, -special]).unsqueeze(1)
    radius = torch.tensor([1e-6, 1e-3, 0.3, 4.0, 300.0], dtype=torch.float64)
    lower, upper = ((centre + sign * radius).flatten() for sign in (-1, 1))
    is_open = activation.is_open(lower, upper).expand(len(lower))
    assert is_open.any()
    least, most = activation.slope_interval(lower[~is_open], upper[~is_open])
    if not activation.kinks:
        assert (most - least <= 1e-12 * torch.maximum(least.abs(), most.abs()).clamp(min=1)).all()
    lower, upper = lower[is_open], upper[is_open]
    least, most = activation.slope_interval(lower, upper)
    point = torch.zeros_like(lower)
    if not activation.splits_at_zero:
        point = activation.split_points(lower, upper)
    assert ((lower < point) & (point < upper)).all()
    for half in ((lower, point), (point, upper)):
        slopes = activation.slope_interval(*half)
        assert (least - 1e-12 <= slopes[0]).all()
        assert (slopes[0] <= slopes[1]).all()
        assert (slopes[1] <= most + 1e-12 * most.abs().clamp(min=1)).all()


@every_activation
def test_smooth_slope_tends_to_the_slope(activation):
    activation = activation.to("cpu", torch.float64)
    z = torch.tensor([-4.1, -1.3, 0.37, 2.2, 7.0], dtype=torch.float64)
    width = torch.tensor(1e-5, dtype=torch.float64)
    torch.testing.assert_close(
        activation.smooth_slope(z, width), activation.slope(z), atol=1e-4, rtol=1e-4
    )
