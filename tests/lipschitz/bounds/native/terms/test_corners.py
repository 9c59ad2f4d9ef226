"""The second pass: sound, never looser than the first, and on a quadratic network exact."""

import pytest
import torch
from curved import NAMES, curved_problem, true_jacobians

from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.plan import unit_rows
from lipschitz.bounds.native.plane_rows import ProblemPlanes
from lipschitz.bounds.native.terms.linear import ONE_PASS, PlaneSearch

TWO_PASSES = PlaneSearch(steps=0, corners=True)


@torch.no_grad()
def both_bounds(name, eps):
    """Every entry's and every negated entry's bound, by one pass and by two, [R, 2D]."""
    problem = curved_problem(name, eps)
    joint = ProblemPlanes.of(problem, native_crown(problem), optimize=False).joint
    count = problem.centre.numel()
    rows = unit_rows(torch.arange(count), problem.centre.shape, problem.centre)
    rows = rows.expand(len(problem.rows), *rows.shape[1:])
    values = true_jacobians(name, problem).flatten(2)
    once, twice = (joint.upper_bounds(rows, search) for search in (ONE_PASS, TWO_PASSES))
    return once, twice, torch.cat([values, -values], dim=2)


@pytest.mark.parametrize("name", NAMES)
def test_two_passes_are_sound_and_never_looser(name):
    for eps in (1e-3, 0.2, 2.0):
        once, twice, values = both_bounds(name, eps)
        assert bool((twice <= once).all())
        assert bool((values <= twice + 1e-11 * (1 + values.abs())).all())


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "convolution"])
def test_the_second_pass_gains(name):
    once, twice, values = both_bounds(name, 0.2)
    truth = values.amax(0)
    assert float((twice - truth).sum()) < 0.999 * float((once - truth).sum())
