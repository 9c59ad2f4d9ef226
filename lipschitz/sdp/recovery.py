"""Points of the box read off a primal solution, where gradients should be large.

The first moments of a solution say how far open each uncertain slope wants to be,
``theta = t / g``. A point whose activation pattern agrees is looked for by projected descent on
the neurons that disagree; true gradients along the way are lower bounds, whatever the relaxation
meant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.problem import LocalProblem
from lipschitz.sdp.interior_point import Multipliers
from lipschitz.sdp.program import Program

_STEPS = 24


def wanted_slopes(program: Program, multipliers: Multipliers) -> tuple[Tensor, Tensor]:
    """How far open every uncertain slope wants to be, and how much the norm depends on it.

    Args:
        program: B programs.
        multipliers: With moments.

    Returns:
        theta in [0, 1] and weights >= 0, both [B, V].

    Raises:
        ValueError: The multipliers came without moments.
    """
    if multipliers.moments is None:
        raise ValueError("no primal solution is kept with these multipliers")
    moments = multipliers.moments.to(program.objective)
    point = moments[:, 0] / moments[:, :1, 0].clamp(min=1e-12)
    t = program.t_scale * point[:, 1 + program.inputs :] + program.t_shift
    g = (program.cotangent @ point.unsqueeze(2)).squeeze(2)
    usable = g.abs() > 1e-12
    theta = torch.where(usable, t / torch.where(usable, g, 1.0), 0.5).clamp(0, 1)
    # The multiplier of a variable is what the bound pays for not knowing it.
    weight = multipliers.diagonal[:, -theta.shape[1] :] if theta.shape[1] else theta
    return theta, weight.clamp(min=0).to(theta)


def points_to_try(problem: LocalProblem, program: Program, multipliers: Multipliers) -> Tensor:
    """Points near which the activation pattern of the solutions holds.

    Args:
        problem: The problem the programs belong to.
        program: B programs.
        multipliers: Their solutions, with moments.

    Returns:
        [P, *input_shape], points of the box.
    """
    graph = problem.graph
    theta, weight = wanted_slopes(program, multipliers)
    total = sum(graph.nodes[a].shape.numel() for a in graph.activation_nodes)
    target = theta.new_zeros(len(program), total + 1)
    place = torch.where(program.neuron >= 0, program.neuron, total)
    target.scatter_(1, place, (2 * theta - 1) * (weight + 1e-3 * weight.amax()))
    target = target[:, :total].to(problem.centre)
    point = problem.centre.expand(len(program), *problem.centre.shape).clone()
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
    return torch.cat(visited) if visited else point.detach()
