"""Planes against true gradients, against chords, and how fast their excess shrinks."""

import math

import pytest
import torch
from curved import NAMES, curved_problem
from torch import nn

from lipschitz import MethodOptions, Prepared, make_problem
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.joint import with_planes
from lipschitz.bounds.native.terms import relaxations
from lipschitz.bounds.native.terms.gradient import has_curves
from lipschitz.bounds.native.terms.linear import PlaneSearch
from lipschitz.network.tracing import build_graph

FEW = PlaneSearch(steps=3)


def largest_true_norms(problem, count: int = 400):
    """Largest norm of each row, or of all together, at corners and random points of the box."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(count, *problem.centre.shape, generator=generator, dtype=torch.float64)
    share[: count // 2] = share[: count // 2].round()
    graph = problem.graph.double
    points = problem.lower.double() + share * (problem.upper - problem.lower).double()
    rows = problem.rows.double()
    jacobians = torch.stack(
        [graph.gradients(points, row.expand(count, -1)).flatten(1) for row in rows], dim=1
    )
    return problem.measure(jacobians).amax(0)


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
@pytest.mark.parametrize("name", NAMES)
def test_no_true_gradient_beats_the_bound_and_no_chord_either(name, norm):
    for eps, dtype in ((1e-3, torch.float64), (0.2, torch.float32), (2.0, torch.float64)):
        problem = curved_problem(name, eps, dtype, norm, "each")
        root = native_crown(problem)
        bounds = with_planes(problem, root, search=FEW).class_upper_bounds
        assert bool((bounds >= largest_true_norms(problem) * (1 - 1e-9)).all())
        assert bool((bounds <= root.class_upper_bounds).all())


@pytest.mark.parametrize("norm", ["1", "2"])
@pytest.mark.parametrize("name", ["tanh", "residual", "convolution"])
def test_all_outputs_together(name, norm):
    problem = curved_problem(name, 0.1, norm=norm, outputs="all")
    root = native_crown(problem)
    bound = with_planes(problem, root, search=FEW).class_upper_bounds
    assert bound.shape == (1,)
    assert largest_true_norms(problem)[0] <= bound[0] <= root.class_upper_bounds[0]


@pytest.mark.parametrize("name", ["sigmoid", "gelu", "tanh"])
def test_entries_hold_every_true_entry(name):
    problem = curved_problem(name, 0.3)
    root = native_crown(problem)
    entries = with_planes(problem, root, search=FEW).norm.entries
    share = torch.rand(300, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    points = problem.lower + share * (problem.upper - problem.lower)
    for row, lower, upper in zip(problem.rows, *entries, strict=True):
        found = problem.graph.gradients(points, row.expand(300, -1))
        assert bool(((found >= lower) & (found <= upper)).all())
    before = root.norm.entries
    assert float((entries.upper - entries.lower).sum()) < float((before.upper - before.lower).sum())


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "softplus", "sine"])
def test_the_excess_shrinks_with_the_square_of_the_radius(name):
    """And only linearly with chords, the negative control."""
    excess = {True: [], False: []}
    radii = (1e-4, 1e-3, 1e-2)
    for eps in radii:
        problem = curved_problem(name, eps)
        root = native_crown(problem)
        truth = float(largest_true_norms(problem).max())
        for planes in (True, False):
            found = with_planes(problem, root) if planes else root
            bound = float(found.class_upper_bounds.max())
            excess[planes].append(max(bound / truth - 1, 1e-13))
    steps = math.log(radii[-1] / radii[0])
    slopes = {k: math.log(v[-1] / v[0]) / steps for k, v in excess.items()}
    assert slopes[True] > 1.6
    assert 0.8 < slopes[False] < 1.2


def test_a_wrong_plane_is_caught(monkeypatch):
    """Negative control: a plane a tenth of the way too low cuts true gradients off."""
    real = relaxations.Relaxations.product

    def wrong(self, index, coefficients, shares):
        of_v, of_g, constant, size = real(self, index, coefficients, shares)
        return of_v, of_g, constant - 0.1 * size, size

    monkeypatch.setattr(relaxations.Relaxations, "product", wrong)
    problem = curved_problem("tanh", 0.05)
    bounds = with_planes(problem, native_crown(problem), search=FEW).class_upper_bounds
    assert not bool((bounds >= largest_true_norms(problem)).all())


def test_without_curves_nothing_is_done():
    graph = build_graph(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).eval(), (3,))
    assert not has_curves(graph)
    problem = make_problem(graph, torch.zeros(3), 0.1)
    root = native_crown(problem)
    assert with_planes(problem, root) is root


def test_small_chunks_change_nothing():
    problem = curved_problem("residual", 0.2)
    root = native_crown(problem)
    whole = with_planes(problem, root).class_upper_bounds
    parts = with_planes(problem, root, memory_budget=1).class_upper_bounds
    torch.testing.assert_close(whole, parts, rtol=2e-3, atol=0)


def test_planes_without_steps_are_never_tighter_than_with_them():
    problem = curved_problem("sigmoid", 0.3)
    plain, steps = (
        Prepared(
            problem.graph, method="joint", options=MethodOptions(optimize=optimize)
        ).upper_bounds(problem)
        for optimize in (False, True)
    )
    crown = native_crown(problem).class_upper_bounds
    assert (steps <= plain).all()
    assert (plain <= crown).all()
    assert (steps < plain).any()
