"""Norms of intervals of symmetric matrices against brute force."""

import itertools

import pytest
import torch

from lipschitz.bounds.native.hessian_norms import (
    affine_norm_bound,
    best_directions,
    hessian_norm_bound,
    sign_vectors,
    weighted_bound,
)


def matrices(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    return (found + found.mT) / 2


def true_norm(norm: str, found: torch.Tensor) -> torch.Tensor:
    if norm == "2":
        return torch.linalg.matrix_norm(found, ord=2)
    if norm == "1":
        return found.abs().amax((-2, -1))
    size = found.shape[-1]
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=size)), dtype=found.dtype)
    return (found @ signs.T).abs().sum(-2).amax(-1)


def test_sign_vectors_are_all_of_them_up_to_the_sign():
    found = {tuple(row) for row in sign_vectors(4, torch.zeros(1)).int().tolist()}
    both = found | {tuple(-s for s in row) for row in found}
    assert len(found) == 8
    assert both == set(itertools.product([1, -1], repeat=4))


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_and_intervals(norm, dtype):
    middle = matrices(8, 5).to(dtype)
    at_points = hessian_norm_bound(norm, middle, middle)
    truth = true_norm(norm, middle.double())
    assert bool((at_points.double() >= truth).all())
    torch.testing.assert_close(at_points.double(), truth, rtol=1e-4, atol=0)
    radius = 0.1 * matrices(8, 5, 1).abs().to(dtype)
    bounds = hessian_norm_bound(norm, middle - radius, middle + radius).double()
    for seed in range(20):
        moved = middle.double() + radius.double() * matrices(8, 5, seed).sign()
        assert bool((bounds >= true_norm(norm, moved)).all())


@pytest.mark.parametrize("size", [1, 6, 10])
def test_weights_bound_the_norm_and_the_sum_of_magnitudes_bounds_them(size):
    found = matrices(6, size)
    bound = weighted_bound(found).bound
    assert bool((bound >= true_norm("inf", found)).all())
    assert bool((bound <= found.abs().sum((-2, -1)) * (1 + 1e-5)).all())
    if size == 10:
        assert float((bound / true_norm("inf", found)).mean()) < 1.2


def test_zeros():
    zero = torch.zeros(2, 20, 20)
    for norm in ("inf", "1", "2"):
        assert float(hessian_norm_bound(norm, zero, zero).max()) == 0


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_affine_functions(norm):
    columns = matrices(7, 6).unsqueeze(0) * torch.tensor([1.0, *[0.1] * 6])[None, :, None, None]
    gap = 0.01 * matrices(1, 6, 2).abs()
    bound = float(affine_norm_bound(norm, columns, gap))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        u = torch.rand(6, generator=generator, dtype=torch.float64).sub(0.5).sign()
        found = columns[0, 0] + (u[:, None, None] * columns[0, 1:]).sum(0) + gap[0]
        assert float(true_norm(norm, found)) <= bound
    still = float(affine_norm_bound(norm, columns[:, :1].clone(), 0 * gap))
    assert still >= float(true_norm(norm, columns[0, 0]))


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_best_directions_attain_the_norm(norm):
    found = matrices(5, 6)
    along = best_directions(norm, found)
    images = (found @ along.unsqueeze(-1)).squeeze(-1)
    attained = {"inf": images.abs().sum(-1), "1": images.abs().amax(-1)}.get(
        norm, torch.linalg.vector_norm(images, dim=-1)
    )
    torch.testing.assert_close(attained, true_norm(norm, found))


def test_with_many_inputs_a_climb_gets_near():
    found = matrices(4, 14)
    along = best_directions("inf", found)
    attained = (found @ along.unsqueeze(-1)).abs().sum((-2, -1))
    truth = true_norm("inf", found)
    assert bool((attained <= truth * (1 + 1e-12)).all())
    assert bool((attained >= 0.85 * truth).all())
