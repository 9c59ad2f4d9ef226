"""True gradients that no rounding error can have made up.

A gradient is a lower bound only if its slopes hold together at some point. Where pre-activations
are 0 up to rounding, computed signs need not: of two neurons that are multiples of each other one
may come out positive and the other negative. So the signs at a point are taken from interval
arithmetic, in float64, and a slope that rounding leaves open counts as open.

A neuron may be 0 on a whole region, as where a network compares two equal sums. Its slope is open
at every point of it and matters at none. Backwards that cannot be seen: what passes through it
cancels only in the layer before. Forwards it can, the neuron's own gradient being 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import (
    Interval,
    forward_intervals,
    intersect,
    product_interval,
    slope_intervals,
)
from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem

# What rounding in float64 may do to an entry of a gradient, as a share of its largest one. A
# choice, many times the unit of 1e-16, since sums of a deep network cancel.
_ROUNDING = 1e-9
# Share of its largest entry above which a gradient's interval is open by more than rounding.
_OPEN = 1e-6
# Inputs up to which open gradients are computed forwards too, and numbers of the largest layer in
# one batch of them. Choices: a witness beyond counts for less where slopes are open.
_MOST_INPUTS, _NUMBERS_AT_ONCE = 256, 2**22


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
        return _sharpened(graph, points, directions)
    gradients = graph.gradients(points, directions)
    margin = _ROUNDING * gradients.flatten(1).abs().amax(1)
    margin = margin.reshape(-1, *[1] * (gradients.dim() - 1))
    lower, upper = gradients - margin, gradients + margin
    open_ = _at_kinks(graph, points)
    if bool(open_.any()):
        chosen = points[open_]
        lower[open_], upper[open_] = gradient_intervals(graph, chosen, chosen, directions[open_])
    return Interval(lower, upper)


def _sharpened(graph: Graph, points: Tensor, directions: Tensor) -> Interval:
    """Intervals of the gradients by passes backwards, and forwards where much is open."""
    lower, upper = gradient_intervals(graph, points, points, directions)
    entries, inputs = (upper - lower).flatten(1), points[0].numel()
    largest = torch.maximum(lower.abs(), upper.abs()).flatten(1).amax(1)
    open_ = (entries.amax(1) > _OPEN * largest).nonzero()[:, 0]
    if not len(open_) or inputs > _MOST_INPUTS or not graph.activation_nodes:
        return Interval(lower, upper)
    layer = max(node.shape.numel() for node in graph.nodes)
    for some in open_.split(max(1, _NUMBERS_AT_ONCE // (layer * inputs))):
        forwards = _forwards(graph, points[some], directions[some])
        lower[some], upper[some] = intersect(Interval(lower[some], upper[some]), forwards)
    return Interval(lower, upper)


def _forwards(graph: Graph, points: Tensor, directions: Tensor) -> Interval:
    """Intervals of the gradients at points from those of every node's derivative by each input."""
    count, inputs = len(points), points[0].numel()
    bounds = forward_intervals(graph, points, points).bounds
    preacts = {i: bounds[graph.nodes[i].parents[0]] for i in graph.activation_nodes}
    slopes = slope_intervals(graph, preacts)
    unit = torch.eye(inputs).to(points).repeat(count, 1).reshape(-1, *graph.input_shape)
    tangents = [Interval(unit, unit)]
    for index, node in enumerate(graph.nodes[1:], start=1):
        known = [tangents[p] for p in node.parents]
        if node.affine is None:
            slope = Interval(*(end.repeat_interleave(inputs, 0) for end in slopes[index]))
            tangents.append(product_interval(known[0], slope))
            continue
        centre = node.affine.linear(*((k.lower + k.upper) / 2 for k in known))
        radius = node.affine.magnitude().linear(*((k.upper - k.lower) / 2 for k in known))
        tangents.append(Interval(centre - radius, centre + radius))
    last = tangents[-1]
    rows = directions.repeat_interleave(inputs, 0)
    centre = (rows * (last.lower + last.upper) / 2).sum(1).reshape(count, -1)
    radius = (rows.abs() * (last.upper - last.lower) / 2).sum(1).reshape(count, -1)
    radius = radius + _ROUNDING * centre.abs().amax(1, keepdim=True)
    return Interval(
        *(e.reshape(count, *graph.input_shape) for e in (centre - radius, centre + radius))
    )


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
