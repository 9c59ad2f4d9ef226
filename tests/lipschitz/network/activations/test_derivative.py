"""Derivatives of activations as unary functions: intervals and lines, against dense samples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz.network.activations import Activation, PiecewiseLinear
from lipschitz.network.activations.derivative import Derivative, derivative_of
from lipschitz.network.activations.gated import GELU, Mish, SiLU, TanhGELU
from lipschitz.network.activations.periodic import Sine
from lipschitz.network.activations.piecewise import ELU, Absolute, Hardswish, PReLU
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
    Softplus(100.0),
    Softplus(mirrored=True),
    SiLU(),
    GELU(),
    TanhGELU(),
    Mish(),
    ELU(),
    ELU(2.0),
    ELU(0.5),
    ELU.celu(0.5),
    ELU.selu(),
    Hardswish(),
    Square(),
    Sine(),
]
FIRST = [derivative_of(activation) for activation in CURVED]
SECOND = [
    function.derivative
    for function in FIRST
    if isinstance(function.activation, Sine) or not function.curve.jumps
]
DERIVATIVES = FIRST + SECOND
SUPPORTED = [d for d in DERIVATIVES if d.free_lines]
DTYPES = [torch.float32, torch.float64]


def each(functions: list[Derivative]) -> pytest.MarkDecorator:
    ids = [f"{f}-{getattr(f.activation, 'beta', '')}" for f in functions]
    return pytest.mark.parametrize("function", functions, ids=ids)


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def critical_points(function: Derivative) -> list[float]:
    """Inflections, kinks, jumps and turning points."""
    if isinstance(function.activation, Sine):
        return [k * math.pi / 2 for k in range(-4, 5)]
    points = {*function.breakpoints, *function.turning_points, *function.activation.breakpoints}
    if isinstance(function.activation, Softplus) and not function.activation.mirrored:
        points.add(function.activation.threshold / function.activation.beta)
    return sorted(points)


def boxes(function: Derivative, dtype: torch.dtype, count: int = 150) -> tuple:
    """Intervals of widths 1e-8 to 30, centres up to 50, touching critical points, and points."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    width, sign = 10 ** uniform(-8, math.log10(30)), uniform(-1, 1).sign()
    near, far = uniform(-4, 4), sign * 10 ** uniform(0, math.log10(50))
    lower = [near - width / 2, far - width / 2, near, far, uniform(-30, 0)]
    upper = [near + width / 2, far + width / 2, near, far, uniform(0, 30)]
    small = 10 ** torch.linspace(-8, 1.4, 12, dtype=torch.float64)
    for point in critical_points(function):
        at = torch.full_like(small, point)
        lower += [point - small, at, point - small, point - small / 9, at[:1]]
        upper += [at, point + small, point + small, point + small, at[:1]]
    return torch.cat(lower).to(dtype), torch.cat(upper).to(dtype)


def inside(function: Derivative, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Points of every interval [n, points] in float64: evenly, and at and near critical points."""
    lower, upper = lower.double().unsqueeze(1), upper.double().unsqueeze(1)
    even = lower + (upper - lower) * torch.linspace(0, 1, 301, dtype=torch.float64)
    offsets = 10 ** torch.linspace(-9, 0.5, 20, dtype=torch.float64)
    offsets = torch.cat([-offsets, torch.zeros(1, dtype=torch.float64), offsets])
    close = torch.cat([p + offsets for p in critical_points(function)] or [offsets])
    z = torch.cat([even, close.expand(len(lower), -1)], dim=1)
    z = torch.minimum(torch.maximum(z, lower), upper)
    for kink in function.kinks:
        # An interval that only touches a jump has the values of its own side: not those of a point.
        touches = (z == kink) & (lower < upper) & ((lower == kink) | (upper == kink))
        z = torch.where(touches, torch.where(lower == kink, upper, lower), z)
    return z


def scale(function: Derivative) -> float:
    """By how much narrower its features are than usual."""
    return 1.0 if isinstance(function.activation, Sine) else function.curve.scale


def noise(values: torch.Tensor) -> torch.Tensor:
    """By how much the samples of intervals [n, points] may be off themselves."""
    return 16 * torch.finfo(torch.float64).eps * values.abs().amax(1).clamp(min=1.0)


@every_dtype
@each(DERIVATIVES)
def test_interval_holds_every_value(function, dtype):
    lower, upper = boxes(function, dtype)
    least, most = (end.double() for end in function.interval(lower, upper))
    z = inside(function, lower, upper)
    found = function.forward(z)
    slack = noise(found)
    assert (least <= found.amin(1) + slack).all()
    assert (found.amax(1) - slack <= most).all()
    # Tight, but for rounding and the gaps between samples.
    size = torch.maximum(found.abs().amax(1), found.abs().amax().clamp(max=100.0))
    loose = (2e-4 if dtype == torch.float32 else 1e-7) * size
    loose = loose + 1e-2 * (found.amax(1) - found.amin(1))
    point = lower == upper  # which has both values of a jump
    assert (point | (found.amin(1) - least <= loose)).all()
    assert (point | (most - found.amax(1) <= loose)).all()
    # Negative control: an interval narrower by a hundredth of its width is caught.
    width = most - least
    if bool((width > 0.01).any()):
        assert (least + 1e-2 * width > found.amin(1) + slack).any()
        assert (most - 1e-2 * width < found.amax(1) - slack).any()


@every_dtype
@each(DERIVATIVES)
def test_lines_hold_the_function_between_them(function, dtype):
    lower, upper = boxes(function, dtype)
    lines = [part.double().unsqueeze(1) for part in function.lines(lower, upper)]
    z = inside(function, lower, upper)
    found = function.forward(z)
    slack = noise(found).unsqueeze(1)
    below, above = lines[0] * z + lines[1], lines[2] * z + lines[3]
    assert (below <= found + slack).all()
    assert (found - slack <= above).all()
    if function.free_lines:  # never further away in the middle than constants
        middle = ((lower.double() + upper.double()) / 2).unsqueeze(1)
        least, most = (end.double().unsqueeze(1) for end in function.interval(lower, upper))
        unit = 64 * torch.finfo(dtype).eps
        rounding = unit * (1 + found.abs().amax()) * (1 + middle.abs())
        assert (lines[0] * middle + lines[1] >= least - rounding).all()
        assert (lines[2] * middle + lines[3] <= most + rounding).all()
    # Negative control: lines nearer by a thousandth of the gap are crossed.
    gap = (above - below).amax(1, keepdim=True)
    if bool((gap > 1e-3).any()):
        assert (below + 1e-3 * gap > found + slack).any()
        assert (found - slack > above - 1e-3 * gap).any()


@every_dtype
@each(SUPPORTED)
def test_lines_of_any_slope_are_sound(function, dtype):
    lower, upper = boxes(function, dtype, 60)
    z = inside(function, lower, upper)
    found = function.forward(z)
    slack = noise(found).unsqueeze(1)
    least, most = function.slope_interval(lower, upper)
    assert (least <= most).all()
    generator = torch.Generator().manual_seed(1)
    kinks = function.kinks  # a limit is touched there
    cut = 1e-8 * scale(function) * isinstance(function.activation, Softplus)
    for extra in (0.0, 0.0, 0.0, 0.5):
        share = (1 + 2 * extra) * torch.rand(lower.shape, generator=generator).to(dtype) - extra
        slope = least + share * (most - least)
        for side in (1, -1):
            intercept, point = function.support(slope, lower, upper, side)
            line = slope.double().unsqueeze(1) * z + intercept.double().unsqueeze(1)
            assert (side * (found - line) >= -slack).all()
            assert ((lower <= point) & (point <= upper)).all()
            # It touches the function, at the point that is said.
            at = side * (function.forward(point) - slope * point - intercept).double()
            near = torch.stack([(point - k).abs() < 1e-12 for k in kinks] or [point != point])
            margin = (upper - lower).double() * function.curve.slope_size + found.abs().amax(1)
            margin = margin + slope.double().abs() * z.abs().amax(1) + function.curve.value_size
            room = 40 * torch.finfo(dtype).eps * margin + cut
            room = room + 1e-7 * function.curve.value_size
            room = room + 1e-5 * ((most - least) * (upper - lower)).double()
            room = room + 1e-7 * function.curve.slope_size * (upper - lower).double()
            assert (near.any(0) | (at <= room)).all()


@each(SUPPORTED)
def test_steep_lines_far_out(function):
    """In float32 slope times z is rounded by more than the function's values."""
    generator = torch.Generator().manual_seed(3)
    lower = 100 * torch.rand(500, generator=generator) - 50
    upper = lower + torch.rand(500, generator=generator)
    z = inside(function, lower, upper)
    found = function.forward(z)
    steep = 100 * (torch.rand(500, generator=generator) - 0.5)
    for side in (1, -1):
        intercept, _ = function.support(steep, lower, upper, side)
        line = steep.double().unsqueeze(1) * z + intercept.double().unsqueeze(1)
        assert (side * (found - line) >= -noise(found).unsqueeze(1)).all()


@each(SUPPORTED)
def test_rows_of_slopes_share_intervals(function):
    """Slopes [B, K, n] with intervals [B, 1, n] are as one call for each row."""
    lower, upper = boxes(function, torch.float64, 10)
    least, most = function.slope_interval(lower, upper)
    share = torch.linspace(0, 1, 7, dtype=torch.float64)[None, :, None]
    slope = least + share * (most - least)
    for side in (1, -1):
        ends = lower[None, None], upper[None, None]
        intercept, point = function.support(slope, *ends, side)
        assert intercept.shape == point.shape == slope.shape
        for row in range(7):
            alone = function.support(slope[0, row], lower, upper, side)
            torch.testing.assert_close(alone[0], intercept[0, row], rtol=1e-9, atol=1e-9)


@each(DERIVATIVES)
def test_lines_leave_the_least_area(function):
    """No slope of a fine grid gives a line that is nearer in the middle."""
    generator = torch.Generator().manual_seed(1)
    centre = (8 * torch.rand(80, generator=generator, dtype=torch.float64) - 4) / scale(function)
    radius = 10 ** (torch.rand(80, generator=generator, dtype=torch.float64) * 1.4 - 1)
    radius = radius / scale(function)
    lower, upper = centre - radius, centre + radius
    lines = function.lines(lower, upper)
    least, most = function.slope_interval(lower, upper)
    z = inside(function, lower, upper)
    found = function.forward(z)
    for side, slope, intercept in ((1, *lines[:2]), (-1, *lines[2:])):
        best = torch.full_like(centre, -torch.inf)
        for share in torch.linspace(0, 1, 201).tolist():
            trial = (least + share * (most - least)).unsqueeze(1)
            height = (side * (found - trial * (z - centre.unsqueeze(1)))).amin(1)
            best = torch.maximum(best, height)
        mine = side * (slope * centre + intercept)
        room = ((most - least) * radius).clamp(min=1e-4)
        assert ((best - mine) / room).max() < 2e-3


@each(DERIVATIVES)
def test_the_gap_falls_with_the_square_of_the_width(function):
    """Away from kinks and jumps; over four decades of widths, in float64."""
    generator = torch.Generator().manual_seed(2)
    centre = 4 * torch.rand(400, generator=generator, dtype=torch.float64) - 2
    special = torch.tensor([*function.kinks, 0.0], dtype=torch.float64) * scale(function)
    centre = centre[((centre.unsqueeze(1) - special).abs() > 0.15).all(1)] / scale(function)
    widths = 10 ** torch.linspace(-5, -1, 9, dtype=torch.float64) / scale(function)
    gaps = []
    for width in widths.tolist():
        lines = function.lines(centre - width / 2, centre + width / 2)
        above, below = lines[2] * centre + lines[3], lines[0] * centre + lines[1]
        gaps.append((above - below).mean().log10())
    gaps = torch.stack(gaps)
    if float(gaps[-1]) < -12:  # made of straight lines: nothing but rounding
        return
    trend = torch.stack([widths.log10(), torch.ones_like(widths)], dim=1)
    slope = float(torch.linalg.lstsq(trend, gaps.unsqueeze(1)).solution[0])
    assert slope == pytest.approx(2, abs=0.12)


@every_dtype
@each(DERIVATIVES)
def test_ends_that_are_huge_or_no_numbers(function, dtype):
    inf, nan, huge = math.inf, math.nan, torch.finfo(dtype).max
    lower = torch.tensor([-inf, 0.5, -inf, -huge, 1e30, nan, 0.0, 40.0, -1.0], dtype=dtype)
    upper = torch.tensor([inf, inf, -100.0, huge, huge, 1.0, nan, 50.0, 1.0], dtype=dtype)
    least, most = function.interval(lower, upper)
    assert not (least.isnan() | most.isnan()).any()
    assert (least <= most).all()
    tails = torch.tensor([-1e6, -1e3, 1e3, 1e6], dtype=torch.float64)
    z = torch.cat([inside(function, -tails[3:], tails[3:])[0], torch.linspace(-9, 9, 999), tails])
    everywhere = function.forward(z)
    right = function.forward(z[z > 0.5])
    slack = 1e-15
    for row in (0, 3, 5, 6):
        assert least[row] <= everywhere.min() + slack
        assert everywhere.max() - slack <= most[row]
    if not isinstance(function.activation, Square):  # and no more than that
        size = 1e-3 * everywhere.abs().max()
        assert least[[0, 5, 6]].min() >= everywhere.min() - size
        assert most[[0, 5, 6]].max() <= everywhere.max() + size
    assert least[1] <= right.min() + slack
    assert right.max() - slack <= most[1]
    slopes = function.slope_interval(lower, upper)
    assert not any(end.isnan().any() for end in slopes)
    lines = function.lines(lower, upper)
    assert not any(part.isnan().any() for part in lines)
    alone = function.lines(lower[7:], upper[7:])  # others do not disturb an interval
    for part, mine in zip(lines, alone, strict=True):
        torch.testing.assert_close(part[7:], mine)
    for row in (0, 1, 2, 5, 6):
        assert lines[0][row] == lines[2][row] == 0
        assert (lines[1][row], lines[3][row]) == (least[row], most[row])
    if not function.free_lines:
        return
    for side, end in ((1, least), (-1, most)):
        for slope in (0.0, 0.01, -0.3):
            k = torch.full_like(lower, slope)
            intercept, point = function.support(k, lower, upper, side)
            assert not intercept.isnan().any()
            assert point.isfinite().all()
            rows = [0, 1, 2, 5, 6]
            if slope == 0:
                assert (intercept[rows] == end[rows]).all()
            else:
                assert (intercept[rows] == -side * inf).all()


@each(DERIVATIVES)
def test_tails_that_underflow(function):
    """In float32 nothing is left of the slopes that float64 still has."""
    centre = torch.tensor(
        [-300.0, -110, -104, -95, -88, 88, 95, 104, 110, 300], dtype=torch.float64
    )
    lower, upper = (centre - 5).float(), (centre + 7).float()
    z = inside(function, lower, upper)
    found = function.forward(z)
    slack = noise(found)
    least, most = (end.double() for end in function.interval(lower, upper))
    assert (least - slack <= found.amin(1)).all()
    assert (found.amax(1) <= most + slack).all()
    lines = [part.double().unsqueeze(1) for part in function.lines(lower, upper)]
    assert (lines[0] * z + lines[1] <= found + slack.unsqueeze(1)).all()
    assert (found - slack.unsqueeze(1) <= lines[2] * z + lines[3]).all()
    # A line that is far out is as near as rounding lets it be.
    room = 1e-4 * scale(function) * (1 + found.abs().amax(1)) + (most - least)
    if isinstance(function.activation, Sine):
        return
    middle = centre + 1
    gap = (lines[2] - lines[0])[:, 0] * middle + (lines[3] - lines[1])[:, 0]
    assert (gap <= room).all()


@each(DERIVATIVES)
@settings(max_examples=12)
@given(
    centre=st.floats(-50, 50),
    width=st.sampled_from([0.0, 1e-7, 1e-4, 0.03, 1.0, 9.0, 30.0]),
    at=st.floats(0, 1),
    share=st.floats(0, 1),
    crossed=st.booleans(),
)
def test_any_interval(function, centre, width, at, share, crossed):
    """Ends in either order, points and slopes of any kind."""
    for dtype in DTYPES:
        lower = torch.tensor([centre - width / 2], dtype=dtype)
        upper = torch.tensor([centre + width / 2], dtype=dtype)
        z = lower.double() + at * (upper.double() - lower.double())
        if float(z) in function.kinks:
            continue
        value = function.forward(z)
        slack = 1e-14 * (1 + value.abs())
        ends = (upper, lower) if crossed else (lower, upper)
        least, most = function.interval(*ends)
        assert least - slack <= value <= most + slack
        lines = [part.double() for part in function.lines(*ends)]
        assert lines[0] * z + lines[1] <= value + slack
        assert value - slack <= lines[2] * z + lines[3]
        if function.free_lines:
            low, high = function.slope_interval(*ends)
            slope = low + share * (high - low)
            for side in (1, -1):
                intercept, _ = function.support(slope, *ends, side)
                assert side * (value - slope.double() * z - intercept.double()) >= -slack


def test_softsign_has_a_kink_with_two_slopes_at_zero():
    function = derivative_of(Softsign())
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    at_zero = [float(s) for s in function.slope_interval(zero, zero)]
    assert at_zero == pytest.approx([-2, 2])
    assert float(function.slope_interval(zero, one)[1]) < 0
    assert float(function.slope_interval(-one, zero)[0]) > 0
    # The bell is convex on either side of its kink: the chords lie above, 0.75 of the height.
    lines = function.lines(-one, one)
    assert float(lines.upper_intercept) == pytest.approx(1)
    assert float(lines.lower_intercept) == pytest.approx(0.25)


@pytest.mark.parametrize("activation", [ELU(2.0), ELU.selu(), Hardswish()], ids=str)
def test_what_jumps_has_no_derivative(activation):
    function = derivative_of(activation)
    with pytest.raises(NotImplementedError, match=f"{activation.name.split('(')[0]}.*it jumps"):
        _ = function.derivative
    jump = function.curve.jumps[-1]
    at = torch.tensor([jump], dtype=torch.float64)
    # A point there has the values of both sides, an interval that ends there its own.
    before, after = (float(activation.one_sided_slope(at, after=a)) for a in (False, True))
    least, most = function.interval(at, at)
    assert least <= min(before, after)
    assert max(before, after) <= most
    intercepts = [function.support(at * 0, at, at, side)[0] for side in (1, -1)]
    assert intercepts[0] <= min(before, after)
    assert max(before, after) <= intercepts[1]
    for lines, value in (
        (function.lines(at - 1e-6, at), before),
        (function.lines(at, at + 1e-6), after),
    ):
        assert float(lines[0] * at + lines[1]) == pytest.approx(value, abs=1e-5)
        assert float(lines[2] * at + lines[3]) == pytest.approx(value, abs=1e-5)


def test_softplus_at_the_threshold_of_torch():
    """Its slope jumps to 1 by 2e-9 there; lines stay near all the same."""
    function = derivative_of(Softplus())
    lower, upper = torch.tensor([19.0]).double(), torch.tensor([21.0]).double()
    lines = function.lines(lower, upper)
    z = torch.linspace(19, 21, 1001, dtype=torch.float64)
    assert (function.forward(z) <= lines[2] * z + lines[3]).all()
    assert (lines[0] * z + lines[1] <= function.forward(z)).all()
    assert float((lines[2] - lines[0]).abs()) < 1e-8
    assert float(function.forward(z[-1:])) == 1.0


def test_only_curved_activations_have_a_derivative():
    assert derivative_of(PiecewiseLinear()) is None
    assert derivative_of(Absolute()) is None
    assert derivative_of(PReLU(torch.tensor([0.1, 0.2]))) is None
    assert str(derivative_of(Tanh())) == "tanh'"
    assert str(derivative_of(Tanh()).derivative) == "tanh''"
    with pytest.raises(NotImplementedError, match="derivative number 3 of tanh"):
        _ = derivative_of(Tanh()).derivative.derivative


def test_the_sine_goes_round():
    """Its fourth derivative is itself."""
    z = torch.linspace(-7, 7, 101, dtype=torch.float64)
    function: Activation = derivative_of(Sine())
    wanted = [torch.cos(z), -torch.sin(z), -torch.cos(z), torch.sin(z), torch.cos(z)]
    for value in wanted:
        torch.testing.assert_close(function.forward(z), value)
        function = function.derivative
