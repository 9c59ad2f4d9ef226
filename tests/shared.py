"""What many tests need of one case, found once per process: nothing here is ever changed."""

from __future__ import annotations

from functools import cache

import torch
from cases import Case
from oracles import jacobians, points_in_box
from torch import Tensor

from lipschitz.bounds.true_gradients import sample_gradients
from lipschitz.network.graph import Graph
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem


@cache
def graph_of(case: Case, dtype: torch.dtype = torch.float64) -> Graph:
    return build_graph(case.model(dtype), case.input_shape)


@cache
def problem_of(
    case: Case,
    eps: float,
    dtype: torch.dtype = torch.float64,
    norm: str = "inf",
    outputs: str = "each",
) -> LocalProblem:
    graph = graph_of(case, dtype)
    return make_problem(graph, case.point(dtype), eps, norm=norm, outputs=outputs)


@cache
def sampled_jacobians(
    case: Case, eps: float, dtype: torch.dtype = torch.float64, count: int = 50
) -> Tensor:
    """Jacobians by autograd at random points and corners of a case's box, [P, C, *shape]."""
    problem = problem_of(case, eps, dtype)
    return jacobians(case.model(dtype), points_in_box(problem.lower, problem.upper, count))


@cache
def attacked_norms(case: Case, eps: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Largest l1 norms of true gradients found by sampling and by climbing, per output [C]."""
    sampled = sampled_jacobians(case, eps, dtype).abs().flatten(2).sum(2).amax(0)
    return torch.maximum(sampled, sample_gradients(problem_of(case, eps, dtype)).norms)
