"""Points of the box read off a program's vectors, where gradients should be large.

The vectors stand for a Gaussian; its mean and draws from it say how far open each uncertain slope
wants to be, ``theta = t / g``. A point whose activation pattern agrees is looked for by projected
ascent on that agreement; true gradients along the way are lower bounds, whatever the relaxation
meant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.sdp.sweeps import Sweeps
from lipschitz.problem import LocalProblem

# Steps of ascent, and activation patterns tried: the mean and seven draws. Choices: fewer may find
# smaller gradients, which makes lower bounds worse, never wrong.
_STEPS = 24
_DRAWS = 8


def wanted_slopes(sweeps: Sweeps) -> tuple[Tensor, Tensor]:
    """How far open every uncertain slope wants to be, and how much the norm depends on it.

    Returns:
        theta in [0, 1], [S, B, M] for S draws of which the first is the mean, and weights >= 0,
        [B, M].
    """
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(_DRAWS, sweeps.rank, generator=generator, dtype=torch.float64)
    draw[0] = 0
    draw[:, 0] = 1
    t, g = (torch.einsum("sr,brm->sbm", draw.to(v), v) for v in (sweeps.t, sweeps.g))
    usable = g.abs() > 1e-12
    theta = torch.where(usable, t / torch.where(usable, g, 1.0), 0.5)
    return theta.nan_to_num(0.5).clamp(0, 1), _paid(sweeps).nan_to_num()


def _paid(sweeps: Sweeps) -> Tensor:
    """What the constraints of each t add to the bound, multiplier times slack, [B, M].

    Both vanish where the mean says that ``theta`` is 0 or 1.
    """
    program = sweeps.program
    t, g = sweeps.t[:, 0], sweeps.g[:, 0]
    by_box = sweeps.box * (program.radius**2 - (t - program.centre) ** 2)
    by_product = sweeps.product * t * (g - t)
    return by_box.clamp(min=0) + by_product.clamp(min=0)


def points_to_try(problem: LocalProblem, sweeps: Sweeps) -> Tensor:
    """Points near which the activation pattern of the vectors holds.

    Args:
        problem: The problem the programs belong to.
        sweeps: The vectors of B programs.

    Returns:
        Points of the box, [P, B, *input_shape]: P of every program.
    """
    graph, batch = problem.graph, len(sweeps.program)
    if not len(sweeps.program.neuron):
        return problem.centre.expand(1, batch, *problem.centre.shape)
    theta, weight = wanted_slopes(sweeps)
    total = sum(graph.nodes[a].shape.numel() for a in graph.activation_nodes)
    target = theta.new_zeros(*theta.shape[:2], total)
    target[:, :, sweeps.program.neuron] = (2 * theta - 1) * (weight + 1e-3 * weight.amax())
    target = target.flatten(0, 1).to(problem.centre)
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
    return points.reshape(-1, batch, *problem.centre.shape)
