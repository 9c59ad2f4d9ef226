"""The closed forms against random feasible vectors and the conditions of their optimality."""

import pytest
import torch
from torch import Tensor

from lipschitz.bounds.sdp.closed_forms import Best, Signs, best_between, best_signs

COUNT, SAMPLES = 400, 3000


def between_cases(seed: int, rank: int, *, wide: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, g and boxes that contain 0, some with an end there, [1, R, m] and [1, m]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, g = normal(1, rank, COUNT), normal(1, rank, COUNT)
    weight[:, 1:] *= normal(1, 1, COUNT).exp()
    g[:, 1:] *= (2 * normal(1, 1, COUNT)).exp() * 0.3
    radius = wide * normal(1, COUNT).exp()
    centre = radius * (2 * torch.rand(1, COUNT, generator=generator, dtype=torch.float64) - 1)
    centre[:, ::3] = radius[:, ::3] * g[:, 0, ::3].sign()  # g of known sign
    return weight, g, centre, radius


def slacks_of_t(t: Tensor, g: Tensor, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """By how much both constraints hold, over the rank at dimension 1."""
    off = t.square().sum(1) - 2 * centre * t[:, 0] + centre**2
    return (t * (g - t)).sum(1), radius**2 - off


def kkt_of_t(best: Best, weight: Tensor, g: Tensor, centre: Tensor, radius: Tensor) -> float:
    """Error of the stationarity and of complementary slackness, relative to the terms."""
    product, box = best.product.unsqueeze(1), best.box.unsqueeze(1)
    shifted = best.t.clone()
    shifted[:, 0] -= centre
    rest = weight + product * (g - 2 * best.t) - 2 * box * shifted
    scale = weight.norm(dim=1) + (product * g).norm(dim=1) + (2 * box * shifted).norm(dim=1)
    first, second = slacks_of_t(best.t, g, centre, radius)
    unused = best.product * first.abs() + best.box * second.abs()
    size = g.norm(dim=1) + radius
    return float(((rest.norm(dim=1) + unused / size) / scale).max())


@pytest.mark.parametrize("wide", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [2, 3, 8])
def test_between_satisfies_the_optimality_conditions(rank: int, wide: float):
    weight, g, centre, radius = between_cases(rank, rank, wide=wide)
    best = best_between(weight, g, centre, radius)
    scale = (g.norm(dim=1) + radius) ** 2
    for slack in slacks_of_t(best.t, g, centre, radius):
        assert (slack >= -1e-5 * scale).all()
    assert (best.product >= 0).all()
    assert (best.box >= 0).all()
    assert kkt_of_t(best, weight, g, centre, radius) <= 1e-4
    kinds = [(best.product > 0) & (best.box == 0), (best.product == 0) & (best.box > 0)]
    kinds.append((best.product > 0) & (best.box > 0))
    assert all(bool(kind.any()) for kind in kinds)


@pytest.mark.parametrize("rank", [2, 3])
def test_no_feasible_t_is_better(rank: int):
    weight, g, centre, radius = between_cases(10 + rank, rank, wide=1.0)
    best = best_between(weight, g, centre, radius)
    value = (weight * best.t).sum(1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, rank, COUNT, generator=generator, dtype=torch.float64)
    length = torch.rand(SAMPLES, 1, COUNT, generator=generator, dtype=torch.float64) ** 0.5
    ball = g / 2 + g.norm(dim=1, keepdim=True) / 2 * length * noise / noise.norm(dim=1)[:, None]
    near = best.t + 0.05 * noise * length * best.t.norm(dim=1, keepdim=True)
    for t in (ball, near):
        first, second = slacks_of_t(t, g, centre, radius)
        feasible = (first >= 0) & (second >= 0)
        assert feasible.sum() > COUNT
        sampled = (weight * t).sum(1).masked_fill(~feasible, -torch.inf).amax(0)
        assert (sampled <= value[0] + 1e-5 * weight.norm(dim=1)[0] * g.norm(dim=1)[0]).all()


def test_optimality_conditions_see_a_worse_t():
    """Negative control."""
    case = between_cases(0, 3, wide=1.0)
    best = best_between(*case)
    assert kkt_of_t(best._replace(t=0.99 * best.t), *case) > 1e-3
    assert kkt_of_t(best._replace(product=0 * best.product), *case) > 1e-3


def test_a_neuron_without_a_box_has_no_t():
    weight, g, centre, radius = between_cases(0, 3, wide=1.0)
    centre[:, 0] = radius[:, 0] = 0
    best = best_between(weight, g, centre, radius)
    assert not best.t[:, :, 0].any()
    assert not best.product[:, 0].any()
    assert not best.box[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros_give_numbers(dtype: torch.dtype):
    """Nothing counts, g is 0, the box ends at g or at 0: every combination."""
    ends = torch.tensor([0.0, 1e-30, 1.0], dtype=dtype)
    grid = torch.cartesian_prod(ends, ends, ends, ends, ends)
    weight, g = (torch.stack(part.unbind(1), 0)[None] for part in (grid[:, :2], grid[:, 2:4]))
    radius = grid[:, 4][None] / 2
    best = best_between(weight, g, radius, radius)
    assert all(torch.isfinite(part).all() for part in best)
    signs = best_signs(g - weight, -radius, radius)
    assert all(torch.isfinite(part).all() for part in signs)


# --- signs --------------------------------------------------------------------------------------


def sign_cases(seed: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entries with an interval around 0 that contains their first component."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lower, upper = -0.01 - uniform(1, COUNT) ** 3, 0.01 + uniform(1, COUNT) ** 3
    noise = torch.randn(1, rank, COUNT, generator=generator, dtype=torch.float64)
    jacobian = noise * (3 * uniform(1, 1, COUNT) - 2).exp()
    jacobian[:, 0] = lower + (0.01 + 0.98 * uniform(1, COUNT)) * (upper - lower)
    return jacobian, lower, upper


def u_of(signs: Signs, jacobian: Tensor) -> Tensor:
    u = jacobian * signs.across.unsqueeze(1)
    u[:, 0] = signs.along
    return u


def slacks_of_u(u: Tensor, jacobian: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
    """By how much the ball and both McCormick products hold."""
    along = (u * jacobian).sum(1)
    below = jacobian[:, 0] - lower - along + lower * u[:, 0]
    above = upper - jacobian[:, 0] + upper * u[:, 0] - along
    return 1 - u.square().sum(1), below, above


def kkt_of_u(signs: Signs, jacobian: Tensor, lower: Tensor, upper: Tensor) -> float:
    """Error of the stationarity and of complementary slackness, relative to the entries."""
    u = u_of(signs, jacobian)
    rest = jacobian * (1 - signs.below - signs.above).unsqueeze(1)
    rest[:, 0] += signs.below * lower + signs.above * upper
    rest = rest - 2 * signs.box.unsqueeze(1) * u
    slacks = slacks_of_u(u, jacobian, lower, upper)
    parts = zip(slacks, (signs.box, signs.below, signs.above), strict=True)
    unused = sum(slack.abs() * part for slack, part in parts)
    scale = jacobian.norm(dim=1) + upper - lower
    return float(((rest.norm(dim=1) + unused) / scale).max())


@pytest.mark.parametrize("rank", [2, 3, 8])
def test_signs_satisfy_the_optimality_conditions(rank: int):
    jacobian, lower, upper = sign_cases(rank, rank)
    signs = best_signs(jacobian, lower, upper)
    scale = jacobian.norm(dim=1) + upper - lower
    ball, *lines = slacks_of_u(u_of(signs, jacobian), jacobian, lower, upper)
    assert (ball >= -1e-5).all()
    for slack in lines:
        assert (slack >= -1e-5 * scale).all()
    for part in (signs.box, signs.below, signs.above):
        assert (part >= 0).all()
    assert kkt_of_u(signs, jacobian, lower, upper) <= 1e-4
    active = torch.stack([signs.below > 0, signs.above > 0])
    for kind in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert (active == torch.tensor(kind)[:, None, None]).all(0).any()


@pytest.mark.parametrize("rank", [2, 3])
def test_no_feasible_u_is_better(rank: int):
    jacobian, lower, upper = sign_cases(20 + rank, rank)
    u = u_of(best_signs(jacobian, lower, upper), jacobian)
    value = (u * jacobian).sum(1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, rank, COUNT, generator=generator, dtype=torch.float64)
    length = torch.rand(SAMPLES, 1, COUNT, generator=generator, dtype=torch.float64) ** 0.5
    for tried in (length * noise / noise.norm(dim=1)[:, None], u + 0.05 * length * noise):
        feasible = torch.stack(slacks_of_u(tried, jacobian, lower, upper)).amin(0) >= 0
        assert feasible.sum() > COUNT
        sampled = (tried * jacobian).sum(1).masked_fill(~feasible, -torch.inf).amax(0)
        assert (sampled <= value[0] + 1e-5 * jacobian.norm(dim=1)[0]).all()


def test_optimality_conditions_see_a_worse_u():
    """Negative control."""
    case = sign_cases(0, 3)
    signs = best_signs(*case)
    assert kkt_of_u(signs._replace(across=0.9 * signs.across), *case) > 1e-3
    assert kkt_of_u(signs._replace(below=0 * signs.below), *case) > 1e-3
