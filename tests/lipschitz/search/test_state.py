"""Thresholds and float32 bounds: what is open for one comparison is open for all of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz.search.interface import Limits, Report
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.pool import DomainPool
from lipschitz.search.state import SearchState
from lipschitz.search.subdomains import Batch
from lipschitz.words import BOUND, EXACT

# Met in a run of 1,000 points: the nearest float32 number above the threshold is the bound.
LARGEST, THRESHOLD = 0.42435425520, 0.42435424322


class Shrinking:
    """Subdomains whose halves have a share of the bound, or are leaves that nothing attains."""

    def __init__(self, bounds, share=0.9, dtype=torch.float32):
        self.bounds, self.share = torch.tensor(bounds, dtype=dtype), share
        self.splits = 0

    def root(self):
        row = torch.arange(len(self.bounds))
        return Batch(row, self.bounds, row)

    def children(self, parents):
        assert len(parents)
        self.splits += len(parents)
        smaller = parents.having(upper_bound=parents.upper_bound * self.share)
        return Batch(*(torch.cat([end, end]) for end in vars(smaller).values()))

    def refine(self, subdomains, threshold=0.0):
        assert len(subdomains)
        return Report(subdomains, torch.zeros(0, 1), subdomains.row[:0])

    def settle(self, leaves):
        return Report(leaves, torch.zeros(0, 1), leaves.row[:0])

    def witness_norms(self, points, rows):
        raise AssertionError("nothing here gives points")


def ulps(value, count):
    """The float32 number ``count`` places from a value's nearest."""
    number = torch.tensor(value, dtype=torch.float32)
    towards = torch.tensor(math.copysign(math.inf, count))
    for _ in range(abs(count)):
        number = torch.nextafter(number, towards)
    return float(number)


def test_the_numbers_that_ended_a_run():
    bound = float(torch.tensor(LARGEST, dtype=torch.float32))
    assert bound > THRESHOLD
    assert abs(bound - LARGEST) < 1e-11
    # As a Python float the bound is above the threshold, as float32 they are one number.
    pool = DomainPool(Shrinking([bound]).root())
    assert pool.largest() > THRESHOLD
    assert not len(pool.strongest(1, THRESHOLD))
    for tolerance in (0.0, 1e-4):
        lower = THRESHOLD / (1 + tolerance)
        bounding = Shrinking([bound, 0.3])
        result = branch_and_bound(bounding, lower, None, Limits(10, tolerance, 8))
        assert result.status == EXACT
        assert bounding.splits == 1
        assert result.upper_bound == lower or result.upper_bound <= THRESHOLD


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    value=st.floats(1e-30, 1e30) | st.floats(0.1, 10),
    offsets=st.lists(st.integers(-2, 2), min_size=1, max_size=5),
    between=st.floats(-1, 1),
    tolerance=st.sampled_from([0.0, 1e-9, 1e-4]),
    share=st.sampled_from([0.5, 1 - 2**-24, 1.0]),
)
def test_thresholds_within_an_ulp_of_bounds(value, offsets, between, tolerance, share):
    bounds = [ulps(value, offset) for offset in offsets]
    near = ulps(value, 0)
    threshold = near + between * (ulps(value, 1) - near)
    lower = threshold / (1 + tolerance)
    exact_threshold = lower * (1 + tolerance)
    bounding = Shrinking(bounds, share)
    state = SearchState(bounding, lower, None)
    rounded = state.threshold(tolerance)
    assert rounded <= exact_threshold
    assert rounded == float(torch.tensor(rounded))
    for bound in state.root_bounds:  # one verdict, in whatever precision
        assert bool(bound > rounded) == (float(bound) > rounded) == (float(bound) > exact_threshold)
    for _ in range(3):
        if state.upper_bound <= lower * (1 + tolerance) or state.is_over(rounded):
            break
        state.round(4, rounded)
    # Nothing that is above the threshold has been lost, whichever way it left the pool.
    kept = max(max(bounds) * share**3, lower)
    assert state.upper_bound >= kept * (1 - 1e-6)
    result = branch_and_bound(
        Shrinking(bounds, share), lower, None, Limits(10 if share < 1 else 0.05, tolerance, 4, 99)
    )
    assert result.upper_bound >= lower
    if result.status == EXACT:
        assert result.upper_bound <= exact_threshold


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, 1 / 3, THRESHOLD, 1e-50, 0.0, math.inf])
def test_rounded_down_is_the_largest_number_not_above(value, dtype):
    from lipschitz.rounding import rounded_down

    found = rounded_down(value, dtype)
    number = torch.tensor(found, dtype=dtype)
    assert float(number) == found <= value
    if math.isfinite(value):
        assert float(torch.nextafter(number, torch.tensor(math.inf, dtype=dtype))) > value


def test_a_gap_that_nothing_closes_is_a_bound():
    class Stuck(Shrinking):
        def settle(self, leaves):
            return Report(leaves.take(slice(0, 0)), torch.zeros(0, 1), leaves.row[:0], 0, leaves)

        def root(self):
            row = torch.arange(len(self.bounds))
            return Batch(row, self.bounds, row - 99)

    bound = ulps(LARGEST, 0)
    assert branch_and_bound(Stuck([bound]), THRESHOLD, None, Limits(10, 0.0, 8)).status == BOUND
