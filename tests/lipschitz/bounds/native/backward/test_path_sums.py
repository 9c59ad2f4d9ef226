"""Sums over the paths of one sign."""

from __future__ import annotations

import pytest
import torch
from cases import CASES
from layers import LAYERS
from oracles import jacobian, jacobians, points_in_box

from lipschitz.bounds.native.backward.path_sums import PathSums, SignedSums
from lipschitz.bounds.native.interval import Interval, forward_intervals, slope_intervals
from lipschitz.network.tracing import build_graph


def intervals(graph, lower, upper):
    forward = forward_intervals(graph, lower[None], upper[None])
    preacts = {i: forward.bounds[graph.nodes[i].parents[0]] for i in graph.activation_nodes}
    return slope_intervals(graph, preacts)


JOINED = [case for case in LAYERS if case.name in ("branches", "numbers", "constants_in")]


@pytest.mark.parametrize("case", [*CASES, *JOINED], ids=lambda c: c.name)
def test_difference_at_a_point_is_the_gradient(case):
    model, x = case.model(), case.point()
    graph = build_graph(model, case.input_shape)
    values = graph.values(x[None])
    slopes = {}
    for i in graph.activation_nodes:
        s = graph.nodes[i].activation.slope(values[graph.nodes[i].parents[0]])
        slopes[i] = Interval(s, s)
    rows = torch.eye(graph.num_outputs, dtype=torch.float64)
    positive, negative, magnitude = PathSums(graph)(rows, slopes)
    torch.testing.assert_close(magnitude, positive + negative)
    assert (positive >= 0).all()
    assert (negative >= 0).all()
    torch.testing.assert_close(positive - negative, jacobian(model, x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_sampled_jacobians_lie_between(case):
    model, x = case.model(), case.point()
    graph = build_graph(model, case.input_shape)
    rows = torch.eye(graph.num_outputs, dtype=torch.float64)
    for eps in (0.1, 3.0):
        positive, negative, _ = PathSums(graph)(rows, intervals(graph, x - eps, x + eps))
        values = jacobians(model, points_in_box(x - eps, x + eps, 100))
        assert (values <= positive + 1e-12).all()
        assert (values >= -negative - 1e-12).all()


def test_sums_of_functionals():
    sums = SignedSums(*(torch.tensor([t]) for t in ([1.0, 2.0], [0.0, 3.0], [1.0, 5.0])))
    weights = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    along = sums.along(weights)
    assert along.positive.tolist() == [[1.0, 2.0]]
    assert along.negative.tolist() == [[0.0, 4.0]]
    assert along.magnitude.tolist() == [[1.0, 6.0]]
    dot = sums.each(lambda t: t.expand(2, -1)).dot(weights)
    assert [part.tolist() for part in dot] == [part[0].tolist() for part in along]


def test_margin_is_left_out_only_where_a_sign_is_certain():
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    certain = SignedSums(one, zero, one).enclose(Interval(zero, one))
    assert certain.lower == 0
    assert certain.upper > 1
    open_sign = SignedSums(one, one, 2 * one).enclose(Interval(zero, one))
    assert open_sign.lower < 0


def test_a_known_sign_of_a_cotangent_cuts_the_paths_of_the_other():
    one = torch.ones(3)
    known = Interval(torch.tensor([0.1, 0.0, 0.1]), torch.tensor([0.5, 0.5, 0.5]))
    cut = SignedSums(one, one, 2 * one).cut(known, torch.tensor([True, True, False]))
    assert cut.negative[0] == 0
    assert 0 < cut.negative[1] < 1e-4  # zero is a bound only up to rounding
    assert cut.negative[2] == 1
    assert cut.magnitude.tolist() == [2.0] * 3
    assert cut.positive[0] == pytest.approx(0.5, abs=1e-4)
