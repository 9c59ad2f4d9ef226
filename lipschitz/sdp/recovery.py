"""Points of the box read off a primal solution, where gradients should be large.

A solution's moments belong to a Gaussian; its mean and draws from it say how far open each
uncertain slope wants to be, ``theta = t / g``. A point whose activation pattern agrees is looked
for by projected ascent on that agreement; true gradients along the way are lower bounds, whatever
the relaxation meant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.problem import LocalProblem
from lipschitz.sdp.constraints import Multipliers, group_of
from lipschitz.sdp.program import Program

_STEPS = 24
_DRAWS = 8
_LARGEST_FACTOR = 1024  # variables of a program whose covariance is worth a factorisation


def _draws(moments: Tensor) -> Tensor:
    """The mean of the variables and, of small programs, draws around it: [S, B, N]."""
    scaled = moments / moments[:, :1, :1].clamp(min=1e-12)
    mean = scaled[:, 0]
    if scaled.shape[1] > _LARGEST_FACTOR:
        return mean[None]
    covariance = scaled - mean.unsqueeze(2) * mean.unsqueeze(1)
    covariance = covariance + 1e-6 * torch.eye(scaled.shape[1]).to(scaled)
    factor, info = torch.linalg.cholesky_ex(covariance)
    factor = torch.where((info == 0)[:, None, None], factor, torch.zeros_like(factor))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_DRAWS - 1, *mean.shape, generator=generator, dtype=torch.float64)
    around = (factor @ noise.to(mean).unsqueeze(3)).squeeze(3)
    return torch.cat([mean[None], mean + around.nan_to_num()])


def wanted_slopes(program: Program, multipliers: Multipliers) -> tuple[Tensor, Tensor]:
    """How far open every uncertain slope wants to be, and how much the norm depends on it.

    Args:
        program: B programs.
        multipliers: With moments.

    Returns:
        theta in [0, 1], [S, B, V] for S draws, and weights >= 0, [B, V].

    Raises:
        ValueError: The multipliers came without moments.
    """
    if multipliers.moments is None:
        raise ValueError("no primal solution is kept with these multipliers")
    values = _draws(multipliers.moments.to(program.objective))
    t = program.t_scale * values[..., 1 + program.inputs :] + program.t_shift
    g = (program.cotangent @ values.unsqueeze(3)).squeeze(3)
    usable = g.abs() > 1e-12
    theta = torch.where(usable, t / torch.where(usable, g, 1.0), 0.5).clamp(0, 1)
    # The multiplier of a variable is what the bound pays for not knowing it.
    paid = multipliers.diagonal[:, group_of(program)[1 + program.inputs :]]
    return theta, paid.clamp(min=0).to(theta)


def points_to_try(problem: LocalProblem, program: Program, multipliers: Multipliers) -> Tensor:
    """Points near which the activation pattern of the solutions holds.

    Args:
        problem: The problem the programs belong to.
        program: B programs.
        multipliers: Their solutions, with moments.

    Returns:
        Points of the box, [P, B, *input_shape]: P of every program.
    """
    graph = problem.graph
    if not graph.activation_nodes:
        return problem.centre.expand(1, len(program), *problem.centre.shape)
    theta, weight = wanted_slopes(program, multipliers)
    total = sum(graph.nodes[a].shape.numel() for a in graph.activation_nodes)
    target = theta.new_zeros(*theta.shape[:2], total + 1)
    place = torch.where(program.neuron >= 0, program.neuron, total).expand(theta.shape)
    largest = weight.amax() if weight.numel() else 0.0
    target.scatter_(2, place, (2 * theta - 1) * (weight + 1e-3 * largest))
    target = target.flatten(0, 1)[:, :total].to(problem.centre)
    point = problem.centre.expand(len(target), *problem.centre.shape).clone()
    radius = (problem.upper - problem.lower) / 2
    visited = []
    for step in range(_STEPS):
        point.requires_grad_()
        with torch.enable_grad():
            values = graph.values(point)
            preacts = [values[graph.nodes[a].parents[0]].flatten(1) for a in graph.activation_nodes]
            flat = torch.cat(preacts, 1)
            scale = flat.detach().abs().mean().clamp(min=torch.finfo(flat.dtype).tiny)
            agreement = (target * torch.tanh(flat / scale)).sum()
            if not agreement.requires_grad:
                break
            direction = torch.autograd.grad(agreement, point)[0].sign()
        with torch.no_grad():
            point = point + (1 - step / _STEPS) * 0.5 * radius * direction
            point = torch.minimum(torch.maximum(point, problem.lower), problem.upper)
        visited.append(point)
    points = torch.cat(visited) if visited else point.detach()
    return points.reshape(-1, len(program), *problem.centre.shape)
