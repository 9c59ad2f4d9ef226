"""Entries and products by planes, against true derivatives, chords and the counted work."""

import time
from itertools import pairwise

import pytest
import torch
from curved import NAMES, curved_problem, true_jacobians
from torch import nn

from lipschitz import make_problem
from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native import plane_rows
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.plane_rows import ProblemPlanes, work_of_a_pass
from lipschitz.bounds.native.terms import relaxations
from lipschitz.network.derivative import Terms
from lipschitz.network.tracing import build_graph


def planes_of(problem, optimize=True, **options):
    return ProblemPlanes.of(problem, native_crown(problem), optimize=optimize, **options)


def holds(bounds, values, slack=1e-11):
    size = slack * (1 + float(values.abs().max()))
    return bool(((values >= bounds.lower - size) & (values <= bounds.upper + size)).all())


def directions_of(problem, count=3):
    generator = torch.Generator().manual_seed(5)
    shape = (count, *problem.centre.shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(problem.centre)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_true_derivatives_stay_inside(name, optimize):
    for eps, dtype in ((1e-3, torch.float64), (0.2, torch.float32), (2.0, torch.float64)):
        problem = curved_problem(name, eps, dtype)
        planes, values = planes_of(problem, optimize), true_jacobians(name, problem)
        assert holds(planes.entries(), values)
        vectors = directions_of(problem)
        products = values.flatten(2) @ vectors.flatten(1).double().T
        assert holds(planes.along(vectors), products)


@pytest.mark.parametrize("name", ["sigmoid", "convolution"])
def test_a_wrong_plane_is_caught(name, monkeypatch):
    """Negative control: planes a tenth of the way too low cut true derivatives off."""
    real = relaxations.Relaxations.product

    def wrong(self, index, coefficients, shares):
        of_v, of_g, constant, size = real(self, index, coefficients, shares)
        return of_v, of_g, constant - 0.1 * size, size

    monkeypatch.setattr(relaxations.Relaxations, "product", wrong)
    problem = curved_problem(name, 0.01)
    planes, values = planes_of(problem), true_jacobians(name, problem)
    assert not holds(planes.entries(), values)
    vectors = directions_of(problem)
    assert not holds(planes.along(vectors), values.flatten(2) @ vectors.flatten(1).T)


def test_what_is_done_with_a_row_depends_on_the_work(monkeypatch):
    """Steps, two passes, one, none: each is sound, and none is looser than the next."""
    problem = curved_problem("many_inputs", 0.1)
    values = true_jacobians("many_inputs", problem)
    work = 2 * len(problem.rows) * 40 * work_of_a_pass(planes_of(problem).joint.terms)
    found = []
    for of_steps, largest in ((10**11, 10**11), (0, 3 * work), (0, work), (0, work - 1)):
        monkeypatch.setattr(plane_rows, "_LARGEST_WORK_OF_STEPS", of_steps)
        monkeypatch.setattr(plane_rows, "_LARGEST_WORK", largest)
        found.append(planes_of(problem).entries())
        assert holds(found[-1], values)
    for tight, loose in pairwise(found):
        assert bool((tight.upper <= loose.upper + 1e-12).all())
        assert float(tight.upper.sum()) < float(loose.upper.sum())
    assert bool(torch.isinf(found[-1].lower).all() and torch.isinf(found[-1].upper).all())


def test_without_optimisation_the_limit_is_lower(monkeypatch):
    problem = curved_problem("many_inputs", 0.1)
    monkeypatch.setattr(plane_rows, "_LARGEST_QUICK_WORK", 0)
    assert bool(torch.isinf(planes_of(problem, optimize=False).entries().upper).all())
    assert bool(torch.isfinite(planes_of(problem).entries().upper).all())


@pytest.mark.parametrize("optimize", [pytest.param(True, marks=pytest.mark.slow), False])
def test_small_chunks_change_nothing(optimize, monkeypatch):
    problem = curved_problem("convolution", 0.2)
    whole = planes_of(problem, optimize).entries()
    monkeypatch.setattr(plane_rows, "_INPUTS_AT_ONCE", 25)
    parts = planes_of(problem, optimize, memory_budget=2**15).entries()
    for one, other in zip(whole, parts, strict=True):
        # The optimisation ends for each chunk by itself, so its results differ slightly.
        slack = {"rtol": 2e-2, "atol": 1e-6} if optimize else {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(one, other, **slack)


def test_networks_of_straight_pieces_have_no_planes():
    graph = build_graph(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).eval(), (3,))
    assert planes_of(make_problem(graph, torch.zeros(3), 0.1)) is None


def test_the_time_limit_is_noted_and_kept():
    problem = curved_problem("convolution", 0.2)
    over = Clock.of(0.0)
    assert planes_of(problem, clock=over) is None
    assert over.not_reached == ("planes",)
    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Linear(400, 300), nn.Sigmoid(), nn.Linear(300, 300), nn.Sigmoid(), nn.Linear(300, 10)
    )
    problem = make_problem(build_graph(wide.eval(), (400,)), torch.zeros(400), 0.1)
    root, clock = native_crown(problem), Clock.of(0.3)
    begin = time.perf_counter()
    ends = ProblemPlanes.of(problem, root, clock=clock).entries()
    assert time.perf_counter() - begin < 0.3 + 2  # to the end it takes many seconds
    assert clock.not_reached == ("planes",)
    assert bool((ends.upper >= ends.lower).all())


def test_work_is_counted_by_multiplications():
    graph = build_graph(nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4)), (20,))
    terms = Terms(graph)
    row = terms.constant((4,))
    terms.gradient(terms.output, row)
    numbers = sum(t.shape.numel() for t in terms.terms[1:])
    assert work_of_a_pass(terms) == 2 * (20 * 30 + 30 * 4) + 10 * numbers
    image = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1))
    terms = Terms(build_graph(image.eval(), (2, 6, 6)))
    numbers = sum(t.shape.numel() for t in terms.terms[1:])
    assert work_of_a_pass(terms) == 3 * 2 * 9 * 16 + 48 + 10 * numbers
