import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipschitz.network.activations import PiecewiseLinear

SLOPES = [0.0, 0.01, 0.7]


@pytest.mark.parametrize("negative_slope", SLOPES)
@given(
    centre=st.floats(-3, 3, allow_subnormal=False),
    width=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 1e3]),
)
def test_slope_interval_holds_every_slope_inside_and_is_attained(negative_slope, centre, width):
    activation = PiecewiseLinear(negative_slope)
    lower = torch.tensor([centre - width], dtype=torch.float64)
    upper = torch.tensor([centre + width], dtype=torch.float64)
    slope_lower, slope_upper = activation.slope_interval(lower, upper)
    z = torch.linspace(float(lower), float(upper), 101, dtype=torch.float64)
    inside = activation.slope(z[z != 0])
    if len(inside):
        assert slope_lower <= inside.min()
        assert inside.max() <= slope_upper
        if float(upper) != 0 and float(lower) != 0:
            assert slope_upper - slope_lower == inside.max() - inside.min()


@pytest.mark.parametrize("negative_slope", SLOPES)
def test_kinks(negative_slope):
    activation = PiecewiseLinear(negative_slope)

    def interval(lower, upper):
        bounds = activation.slope_interval(torch.tensor([lower]), torch.tensor([upper]))
        return tuple(round(float(b), 6) for b in bounds)

    assert interval(0.0, 0.0) == (negative_slope, 1)  # a point at the kink: all Clarke slopes
    assert interval(0.0, 1.0) == (1, 1)  # closed halves
    assert interval(-1.0, 0.0) == (negative_slope, negative_slope)
    assert interval(-1e-30, 1e-30) == (negative_slope, 1)


@pytest.mark.parametrize("negative_slope", SLOPES)
def test_slope_is_autograds(negative_slope):
    activation = PiecewiseLinear(negative_slope)
    z = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 3.0], requires_grad=True)
    (expected,) = torch.autograd.grad(activation.forward(z).sum(), z)
    torch.testing.assert_close(activation.slope(z.detach()), expected)
    assert activation.slope(torch.zeros(1), slope_at_kink=0.25) == 0.25


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2.0, float("nan")])
def test_slopes_outside_the_convex_range_are_refused(bad):
    with pytest.raises(NotImplementedError, match="slope"):
        PiecewiseLinear(bad)
