import torch
from hypothesis import given
from hypothesis import strategies as st

from lipschitz.relaxation import absolute_value_chord, slope_product_lines

numbers = st.floats(-1e3, 1e3, allow_subnormal=False)


def column(*values):
    return [torch.tensor([v], dtype=torch.float64) for v in values]


def lines_and_samples(a, b, s, t):
    g_lower, g_upper, slope_lower, slope_upper = column(min(a, b), max(a, b), min(s, t), max(s, t))
    lines = slope_product_lines(g_lower, g_upper, slope_lower, slope_upper)
    fractions = torch.linspace(0, 1, 21, dtype=torch.float64)
    g = (g_lower + fractions * (g_upper - g_lower))[:, None]
    slope = (slope_lower + fractions * (slope_upper - slope_lower))[None]
    return lines, g, slope


@given(numbers, numbers, st.floats(-1, 2), st.floats(-1, 2))
def test_lines_enclose_the_product(a, b, s, t):
    lines, g, slope = lines_and_samples(a, b, s, t)
    slack = 1e-12 * (1 + max(abs(a), abs(b)))
    assert (g * slope <= lines.upper_slope * g + lines.upper_intercept + slack).all()
    assert (g * slope >= lines.lower_slope * g + lines.lower_intercept - slack).all()


def test_a_line_off_by_a_thousandth_is_caught():
    """Negative control of the test above."""
    lines, g, slope = lines_and_samples(-1.0, 2.0, 0.0, 1.0)
    assert not (g * slope <= 0.999 * (lines.upper_slope * g + lines.upper_intercept) + 1e-12).all()
    assert not (g * slope >= 0.999 * (lines.lower_slope * g + lines.lower_intercept) - 1e-12).all()


def test_unstable_relu_has_the_papers_relaxation():
    g_lower, g_upper = column(-1.0, 3.0)
    lines = slope_product_lines(g_lower, g_upper, torch.zeros(1).double(), torch.ones(1).double())
    # upper: g_hi / (g_hi - g_lo) and -g_lo g_hi / (g_hi - g_lo); lower: the mirror image
    assert [float(v) for v in lines] == [0.25, -0.75, 0.75, 0.75]


def test_a_certain_slope_is_exact_whatever_g_is():
    infinite = torch.full((1,), float("inf"), dtype=torch.float64)
    half = torch.full((1,), 0.5, dtype=torch.float64)
    lines = slope_product_lines(-infinite, infinite, half, half)
    assert [float(v) for v in lines] == [0.5, 0.0, 0.5, 0.0]


def test_one_sided_g_needs_no_intercept():
    lines = slope_product_lines(*column(1.0, 2.0, 0.0, 1.0))
    assert [float(v) for v in lines] == [0.0, 0.0, 1.0, 0.0]
    lines = slope_product_lines(*column(-2.0, -1.0, 0.0, 1.0))
    assert [float(v) for v in lines] == [1.0, 0.0, 0.0, 0.0]


@given(numbers, numbers)
def test_chord_is_above_the_absolute_value_and_meets_it_at_the_ends(a, b):
    lower, upper = column(min(a, b), max(a, b))
    slope, intercept = absolute_value_chord(lower, upper)
    g = lower + torch.linspace(0, 1, 21, dtype=torch.float64) * (upper - lower)
    slack = 1e-12 * (1 + max(abs(a), abs(b)))
    assert (g.abs() <= slope * g + intercept + slack).all()
    for end in (lower, upper):
        assert abs(float(slope * end + intercept - end.abs())) <= slack
