"""Interval arithmetic of the Jacobian of any network, products of two values included.

The Jacobian of a product holds the values of both factors, so its intervals are those of the graph
of values and derivatives (:mod:`lipschitz.network.derivative`). Without products, the shorter way
of :mod:`lipschitz.bounds.native.interval` gives the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import (
    Interval,
    check_domains,
    forward_intervals,
    jacobian_interval,
    slope_intervals,
)
from lipschitz.bounds.native.terms.gradient import GradientTerms
from lipschitz.bounds.native.terms.intervals import term_intervals
from lipschitz.network.graph import Graph
from lipschitz.norms import Measure


def gradient_intervals(graph: Graph, lower: Tensor, upper: Tensor, rows: Tensor) -> Interval:
    """Interval bounds of ``J(x)^T row`` over boxes.

    Args:
        graph: The network.
        lower, upper: Boxes, [B or 1, *input_shape].
        rows: Output directions, [B, C].

    Returns:
        [B, *input_shape].

    Raises:
        InputError: A function's argument may reach where it is not defined.
    """
    if not graph.product_nodes and all(node.closed is None for node in graph.nodes):
        forward = forward_intervals(graph, lower, upper)
        preacts = {i: forward.bounds[graph.nodes[i].parents[0]] for i in graph.activation_nodes}
        return jacobian_interval(graph, rows, slope_intervals(graph, preacts))
    source = GradientTerms(graph)
    bounds = term_intervals(source.terms, lower, upper, {source.row: rows}, {}).bounds
    check_domains(graph, source.preacts(bounds))
    found = bounds[source.gradient]
    return Interval(*(end.expand(len(rows), *graph.input_shape) for end in found))


@torch.no_grad()
def interval_bound(
    graph: Graph, lower: Tensor, upper: Tensor, rows: Tensor, measure: Measure | None = None
) -> Tensor:
    """Upper bound of the Jacobian's norm over one box by interval arithmetic alone.

    Args:
        graph: The network.
        lower, upper: The box, [*input_shape].
        rows: Output directions [R, C].
        measure: The norm, that of Linf if None.

    Returns:
        [R], or [1] of all rows together; rounding guard included.
    """
    entries = gradient_intervals(graph, lower[None], upper[None], rows)
    return (measure or Measure()).upper_bound(*entries)
