"""Boxes are cut before the root is optimised, go on where that pays, and stop where it does not."""

import pytest
import torch
from torch import nn

import lipschitz.search.run as running
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem
from lipschitz.search.boxes_first import BoxesFirst, can_cut_first
from lipschitz.search.engines.inputs import InputSearch
from lipschitz.search.interface import Limits
from lipschitz.search.options import BranchOptions
from lipschitz.search.run import bound_by_branching
from lipschitz.words import EXACT, TIMEOUT


def problem_of(activation, inputs, eps, *, scale=2.0, hidden=16, dtype=torch.float32):
    torch.manual_seed(0)
    layers = []
    for before, after in ((inputs, hidden), (hidden, hidden), (hidden, 2)):
        layers += [nn.Linear(before, after), activation]
        layers[-2].weight.data *= scale
    graph = build_graph(nn.Sequential(*layers[:-1]).to(dtype).eval(), (inputs,))
    return make_problem(graph, torch.full((inputs,), 0.1, dtype=dtype), eps)


def test_a_controller_needs_no_optimised_root(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the root was optimised")

    monkeypatch.setattr(running, "native_alpha", refuse)
    seen = []
    problem = problem_of(nn.Tanh(), 4, 0.1)
    result = bound_by_branching(problem, BranchOptions(timeout=20), seen.append)
    assert result.status == EXACT
    assert result.branch == "input"
    assert result.upper_bound <= result.root_upper_bound
    assert [state.finished for state in seen] == [False] * (len(seen) - 1) + [True]
    asked = BranchOptions(timeout=20, branch="input")
    assert bound_by_branching(problem, asked).status == EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neurons_are_split_where_boxes_do_not_close(monkeypatch, dtype):
    """As the boxes' share of the gap says; whichever it is, the bound is certified."""
    problem = problem_of(nn.Tanh(), 8, 0.5, dtype=dtype)
    taken = []
    for ahead in (False, True):
        monkeypatch.setattr(BoxesFirst, "is_promising", False)
        monkeypatch.setattr(BoxesFirst, "is_ahead_of", lambda self, other, root, a=ahead: a)
        result = bound_by_branching(problem, BranchOptions(timeout=2.0))
        taken.append(result.branch)
        assert result.lower_bound <= result.upper_bound <= result.root_upper_bound
        shape = (2000, 8)
        share = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double().round()
        points = problem.lower.double() + share * (problem.upper - problem.lower).double()
        for row, bound in zip(problem.rows.double(), result.class_upper_bounds, strict=True):
            gradients = problem.graph.double.gradients(points, row.expand(shape[0], -1))
            assert bound >= float(gradients.abs().sum(1).max()) * (1 - 1e-9)
    assert taken == ["relu", "input"]


def test_what_is_promising():
    boxes = BoxesFirst(InputSearch(problem_of(nn.Tanh(), 6, 0.1)), 0.0, None)
    first = float(boxes.state.root_bounds.max())
    assert not boxes.is_promising
    result = boxes.begin(Limits(timeout=60.0))
    assert result.upper_bound < first
    assert boxes.is_promising
    few = BoxesFirst(InputSearch(problem_of(nn.Tanh(), 3, 0.5)), 0.0, None)
    assert few.is_promising
    with_kinks = BoxesFirst(InputSearch(problem_of(nn.ELU(2.0), 3, 0.5)), 0.0, None)
    assert not with_kinks.is_promising


def test_it_keeps_its_time():
    problem = problem_of(nn.GELU(), 12, 0.5, scale=3.0)
    boxes = BoxesFirst(InputSearch(problem), 0.0, None)
    result = boxes.begin(Limits(timeout=0.5))
    assert result.status == TIMEOUT
    assert boxes.seconds == pytest.approx(0.1)


def test_which_networks_are_meant():
    assert can_cut_first(problem_of(nn.Tanh(), 4, 0.1).graph)
    assert not can_cut_first(problem_of(nn.ReLU(), 4, 0.1).graph)
    assert not can_cut_first(problem_of(nn.Tanh(), 40, 0.1).graph)
