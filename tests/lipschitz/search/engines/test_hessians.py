"""Children of boxes cover their parents, and are never bounded above them."""

import pytest
import torch
from torch import nn

from lipschitz import build_graph, make_problem
from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native.curvature import HessianTerms
from lipschitz.bounds.native.hessian_norms import sign_vectors
from lipschitz.bounds.true_curvature import TrueCurvature
from lipschitz.search.engines.hessians import DirectionSearch, MatrixSearch


def searches(norm: str, clock: Clock):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).eval().double()
    problem = make_problem(build_graph(model, (3,)), torch.zeros(3), 0.5, norm=norm)
    true = TrueCurvature.of(problem, HessianTerms(problem.graph, 2**24))
    if norm == "2":
        return MatrixSearch(true, torch.full((2,), 9.0, dtype=torch.float64), clock), model
    directions = sign_vectors(3, problem.rows)
    first = torch.full((2, len(directions)), 9.0, dtype=torch.float64)
    return DirectionSearch(true, directions, first, clock), model


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_halves(norm):
    search, model = searches(norm, Clock())
    parents = search.root()
    for _ in range(3):
        children = search.children(parents)
        count = len(parents)
        volume = (parents.upper - parents.lower).prod(1)
        halves = (children.upper - children.lower).prod(1)
        torch.testing.assert_close(halves[:count] + halves[count:], volume)
        assert bool((children.upper_bound <= parents.upper_bound.repeat(2)).all())
        middle = (children.lower + children.upper) / 2
        attained = search.witness_norms(middle, children.row)
        assert bool((attained <= children.upper_bound).all())
        parents = children
    found = torch.stack(
        [torch.func.hessian(lambda z, c=c: model(z[None])[0, c])(middle[-1]) for c in (0, 1)]
    )
    row = int(parents.row[-1])
    if norm == "2":
        truth = torch.linalg.matrix_norm(found[row], ord=2)
    else:
        truth = (found[row // 4] @ search.directions[row % 4]).abs().sum()
    torch.testing.assert_close(attained[-1], truth.detach())


def test_without_time_children_keep_the_bounds_of_their_parents():
    search, _ = searches("inf", Clock.of(0.0))
    children = search.children(search.root())
    assert bool((children.upper_bound == 9.0).all())
    assert bool((children.choice >= 0).all())
