"""The linear program of a leaf and its witness."""

import pytest
import torch

from lipschitz.bounds.feasibility import by_program as leaf
from lipschitz.bounds.feasibility.by_program import check_leaf


def constraints(rows, constants):
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(constants, dtype=torch.float64)


def test_a_contradiction_is_empty():
    verdict = check_leaf(*constraints([[1.0, 0.0], [-1.0, 0.0]], [-0.5, 0.4]))  # x >= .5, x <= .4
    assert verdict.empty
    assert verdict.point is None


def test_outside_the_box_is_empty():
    assert check_leaf(*constraints([[1.0, 1.0]], [-2.001])).empty


@pytest.mark.parametrize("thickness", [0.0, 1e-13])
def test_a_region_without_interior_is_not_called_empty(thickness):
    verdict = check_leaf(*constraints([[1.0], [-1.0]], [-0.5, 0.5 + thickness]))
    assert not verdict.empty


def test_the_point_has_the_largest_slack():
    verdict = check_leaf(*constraints([[1.0, 0.0], [-1.0, 0.0]], [-0.2, 0.6]))
    assert not verdict.empty
    assert float(verdict.point[0]) == pytest.approx(0.4, abs=1e-6)


def test_no_constraint_is_the_whole_box():
    assert check_leaf(*constraints([[0.0, 0.0]], [0.0])).point is not None


def test_a_failing_solver_proves_nothing(monkeypatch):
    class Failed:
        status = 4

    monkeypatch.setattr(leaf, "linprog", lambda *a, **k: Failed())
    verdict = check_leaf(*constraints([[1.0], [-1.0]], [-0.5, 0.4]))
    assert not verdict.empty
    assert verdict.point is None


def test_wrong_multipliers_prove_nothing(monkeypatch):
    """Negative control: a solver that claims infeasibility with multipliers that do not show it."""
    true_linprog = leaf.linprog

    def lying(*arguments, **options):
        solution = true_linprog(*arguments, **options)
        solution.ineqlin.marginals = -abs(solution.ineqlin.marginals[::-1]) - [1.0, 0.0]
        solution.fun = 1.0
        return solution

    monkeypatch.setattr(leaf, "linprog", lying)
    assert not check_leaf(*constraints([[1.0], [-1.0]], [0.5, 0.4])).empty


@pytest.mark.parametrize("seed", range(5))
def test_empty_agrees_with_sampling(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(40, 6, 3, generator=generator, dtype=torch.float64)
    constant = 0.4 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    points = 2 * torch.rand(5000, 3, generator=generator, dtype=torch.float64) - 1
    empty = 0
    for rows, offsets in zip(matrix, constant, strict=True):
        inside = bool(((points @ rows.T + offsets) >= 0).all(1).any())
        verdict = check_leaf(rows, offsets)
        assert not (inside and verdict.empty)
        if verdict.point is not None:
            assert float(verdict.point.abs().max()) <= 1
        empty += verdict.empty
    assert 0 < empty < 40
