"""Conversions between precisions that keep bounds bounds."""

import math

import pytest
import torch

from lipschitz.rounding import rounded_up


@pytest.mark.parametrize("value", [0.1, -0.1, 1e-79, -1e-79, 3e38, 1e39, -1e39, 0.0, 1.0, math.inf])
def test_rounded_up_is_the_smallest_number_not_below(value):
    found = rounded_up(torch.tensor(value, dtype=torch.float64), torch.float32)
    assert found.dtype == torch.float32
    assert float(found) >= value
    below = torch.nextafter(found, torch.tensor(-math.inf))
    assert float(below) < value or float(found) == value


def test_rounded_up_keeps_what_is_no_number():
    values = torch.tensor([math.nan, 1.5], dtype=torch.float64)
    found = rounded_up(values, torch.float32)
    assert found[0].isnan()
    assert float(found[1]) == 1.5
    assert torch.equal(rounded_up(found[1:], torch.float32), found[1:])
