"""The batched feasibility test: its proofs are right, and it finds what there is to find."""

import pytest
import torch

from lipschitz.bounds.feasibility import batched as feasibility
from lipschitz.bounds.feasibility.batched import farkas, search_feasible
from lipschitz.bounds.feasibility.by_program import check_leaf


def random_constraints(seed, dtype=torch.float64, count=200, rows=12, inputs=4, spread=0.6):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, rows, inputs, generator=generator, dtype=torch.float64)
    matrix = matrix / matrix.norm(dim=2, keepdim=True)
    constant = spread * torch.randn(count, rows, generator=generator, dtype=torch.float64)
    return matrix.to(dtype), constant.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6])
def test_agrees_with_the_linear_program(dtype, spread):
    matrix, constant = random_constraints(0, dtype, spread=spread)
    test = search_feasible(matrix, constant, steps=200)
    verdicts = [check_leaf(m, c) for m, c in zip(matrix, constant, strict=True)]
    empty = torch.tensor([v.empty for v in verdicts])
    assert not (test.empty & ~empty).any()
    assert not (test.found & empty).any()
    assert float((test.empty | test.found).float().mean()) > 0.9  # few are left to the solver


def test_found_points_satisfy_the_constraints():
    matrix, constant = random_constraints(1, spread=0.2)
    test = search_feasible(matrix, constant)
    slack = torch.einsum("bkd,bd->bk", matrix, test.point) + constant
    assert (slack[test.found] >= -1e-12).all()
    assert (test.point.abs() <= 1).all()
    assert test.found.any()


def test_farkas_never_rejects_a_region_with_a_point():
    generator = torch.Generator().manual_seed(2)
    matrix, constant = random_constraints(2)
    point = 2 * torch.rand(len(matrix), 4, generator=generator, dtype=torch.float64) - 1
    constant = -torch.einsum("bkd,bd->bk", matrix, point) + constant.abs() * 1e-3
    for _ in range(20):
        multipliers = torch.rand(constant.shape, generator=generator, dtype=torch.float64)
        assert not farkas(matrix, constant, multipliers).any()
    assert not search_feasible(matrix, constant).empty.any()


def test_a_proof_without_the_box_term_is_caught(monkeypatch):
    """Negative control: forgetting the reach of the box calls feasible regions empty."""

    def wrong(matrix, constant, multipliers):
        return (multipliers * constant).sum(1) < 0

    monkeypatch.setattr(feasibility, "farkas", wrong)
    matrix, constant = random_constraints(1, spread=0.2)
    empty = torch.tensor([check_leaf(m, c).empty for m, c in zip(matrix, constant, strict=True)])
    assert (search_feasible(matrix, constant).empty & ~empty).any()
