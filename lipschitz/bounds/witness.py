"""True gradients that no rounding error can have made up.

A gradient is a lower bound only if its slopes hold together at some point. Where pre-activations
are 0 up to rounding, computed signs need not: of two neurons that are multiples of each other one
may come out positive and the other negative. So the signs at a point are taken from interval
arithmetic, in float64, and a slope that rounding leaves open counts as open.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval, forward_intervals
from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem

# What rounding in float64 may do to an entry of a gradient, as a share of its largest one. A
# choice, many times the unit of 1e-16, since sums of a deep network cancel.
_ROUNDING = 1e-9


@torch.no_grad()
def witness_norms(problem: LocalProblem, points: Tensor, rows: Tensor) -> Tensor:
    """Norm that the true gradient of one row has, at least, at each point.

    It is the gradient's norm wherever the open slopes, if any, do not matter; elsewhere the
    smallest norm that they allow. Never more than the network in its own precision has there.

    Args:
        problem: The problem.
        points: Points of the box, [B, *input_shape].
        rows: Row of the problem for each, [B] integers; ignored where the norm is that of all
            rows together.

    Returns:
        [B], in the dtype of the problem; minus infinity where it is not a number.
    """
    measure, graph = problem.measure, problem.graph.double
    directions = problem.rows if measure.joint else problem.rows[rows].unsqueeze(1)
    batch, count = len(points), directions.shape[-2]  # Jacobians, and rows of each
    directions = directions.expand(batch, -1, -1).flatten(0, 1)
    points = points.repeat_interleave(count, 0)

    def matrices(gradients: Tensor) -> Tensor:
        return gradients.reshape(batch, count, -1)

    computed = measure(matrices(problem.graph.gradients(points, directions)))[:, 0]
    points, directions = points.double(), directions.double()
    entries = true_entries(graph, points, directions)
    norms = measure.at_least(*(matrices(end) for end in entries))[:, 0]
    norms = torch.minimum(norms.to(computed), computed)
    return norms.nan_to_num(-torch.inf, posinf=-torch.inf)


def true_entries(graph: Graph, points: Tensor, directions: Tensor) -> Interval:
    """Intervals of the gradients at points that allow for open kinks.

    Args:
        graph: The network, in float64.
        points: [B, *input_shape].
        directions: Output directions, [B, C].

    Returns:
        [B, *input_shape].
    """
    if not graph.product_nodes:
        return gradient_intervals(graph, points, points, directions)
    gradients = graph.gradients(points, directions)
    margin = _ROUNDING * gradients.flatten(1).abs().amax(1)
    margin = margin.reshape(-1, *[1] * (gradients.dim() - 1))
    lower, upper = gradients - margin, gradients + margin
    open_ = _at_kinks(graph, points)
    if bool(open_.any()):
        chosen = points[open_]
        lower[open_], upper[open_] = gradient_intervals(graph, chosen, chosen, directions[open_])
    return Interval(lower, upper)


def _at_kinks(graph: Graph, points: Tensor) -> Tensor:
    """At which points some pre-activation may be at a kink of its activation, [B]."""
    found = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    bounds = forward_intervals(graph, points, points).bounds
    for index in graph.activation_nodes:
        node = graph.nodes[index]
        lower, upper = (end.flatten(1) for end in bounds[node.parents[0]])
        for kink in node.activation.kinks:
            # An interval that is not a number may hold it.
            found |= ~((kink < lower) | (upper < kink)).all(1)
    return found
