"""Norms of the gradients that one row, or all rows together, have at points as computed.

Computed slopes at a kink are those on its left, which need not be a gradient's: whoever reports
such a norm has it certified first (:mod:`lipschitz.bounds.witness`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipschitz.network.graph import Graph, Node, SlopeFunction
from lipschitz.problem import LocalProblem


def rows_of_points(problem: LocalProblem, rows: Tensor) -> Tensor:
    """Output directions of every point, [P * each, C]: its own row, or all rows together.

    Args:
        problem: The problem.
        rows: Row of every point, [P] integers; ignored where the norm is of all rows together.
    """
    if problem.measure.joint:
        return problem.rows.repeat(len(rows), 1)
    return problem.rows[rows]


def norms_of(
    problem: LocalProblem,
    values: Sequence[Tensor],
    rows: Tensor,
    slope: SlopeFunction | None = None,
) -> Tensor:
    """Norms of the gradients at points, [P]; minus infinity where they are not numbers.

    Args:
        problem: The problem.
        values: Value of every node at the points.
        rows: Row of every point, [P].
        slope: Slopes of the activations, one for each point; the true ones if None.
    """
    count = len(rows)
    directions = rows_of_points(problem, rows)
    each = len(directions) // count

    def repeated(node: Node, preact: Tensor) -> Tensor:
        found = node.activation.slope(preact) if slope is None else slope(node, preact)
        return found if each == 1 else found.repeat_interleave(each, 0)

    gradients = problem.graph.pull_back(values, directions, repeated)
    norms = problem.measure(gradients.reshape(count, each, -1))[:, 0]
    return norms.nan_to_num(-torch.inf, posinf=-torch.inf)


def norms_at(problem: LocalProblem, points: Tensor, rows: Tensor) -> Tensor:
    """Norms of the gradients at points [P, *input_shape], each of its row [P]: [P]."""
    return norms_of(problem, problem.graph.values(points), rows)


def numbers_of(graph: Graph) -> int:
    """Numbers that the values of one point take."""
    return sum(node.shape.numel() for node in graph.nodes)


def inside(problem: LocalProblem, points: Tensor) -> Tensor:
    """Points moved into the box, same shape."""
    return torch.minimum(torch.maximum(points, problem.lower), problem.upper)
