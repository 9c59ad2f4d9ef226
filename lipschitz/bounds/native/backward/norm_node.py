"""The last node of the Jacobian's graph: from bounds of a gradient to bounds of its norm.

For Linf the l1 norm is bounded by the chords of ``|J_i|`` (Shi et al. 2022). For L1 the largest
entry is as well known as the entries are. For L2 the square is bounded, ``J_i^2`` by its chord,

    J_i^2  <=  (lower + upper) J_i - lower * upper,

all entries jointly by one pass. The same, seen from any reference point c, reads
``||J||^2 = 2 c . J - ||c||^2 + ||J - c||^2``: the chord takes the intervals' centre and bounds the
distance by their radii. A second pass takes the gradient of the centres one layer earlier and
bounds the distance by :mod:`lipschitz.bounds.native.backward.first_layer`; a third bounds the l1
norm, since ``||J||_2^2 <= ||J||_1 max |J_i|``. The least of them all counts.

Shapes: B boxes, D inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.backward.cotangent_pass import cotangent_upper_bound
from lipschitz.bounds.native.backward.first_layer import FirstLayer
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import Lines
from lipschitz.bounds.native.plan import Plan
from lipschitz.norms import Measure


def norm_node(
    plan: Plan,
    measure: Measure,
    rows: Tensor,
    entries: Interval,
    lines: dict[int, Lines],
    cotangents: dict[int, Interval],
    slopes: dict[int, Interval],
    first: FirstLayer | None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Upper bound of the norm of every row.

    Args:
        plan: The graph.
        measure: The norm, of each row.
        rows: Output directions, [B, C].
        entries: Intervals of the gradients, [B, *input_shape].
        lines: Lines of the slope products by activation node.
        cotangents: Interval of g by activation node, [B, *shape].
        slopes: Interval of s, [B or 1, *shape].
        first: The first layer, for L2; None leaves its bound out.

    Returns:
        The bound, [B], and by activation node how much it counts ``h = g * s``, [B, *shape].
    """
    lower, upper = (end.flatten(1) for end in entries)
    if measure.norm == "1":
        return measure.upper_bound(lower, upper), {}
    slope, intercept = measure.chord(lower, upper)
    passes = [slope]
    if measure.norm == "2":
        absolute = measure.in_norm("inf")
        absolute_slope, absolute_intercept = absolute.chord(lower, upper)
        passes.append(absolute_slope)
        if first is not None:
            centres, radii = first.cotangents(cotangents, slopes)
            # Nearer to every gradient in the intervals for being among them.
            centre = measure.counted(first.centre(centres, rows)).clamp(
                measure.counted(lower), measure.counted(upper)
            )
            passes.append(2 * centre)
    coefficients = torch.stack(passes, dim=1)
    coefficients = coefficients.reshape(*coefficients.shape[:2], *plan.graph.input_shape)
    recorded: dict[int, Tensor] = {}
    found = cotangent_upper_bound(plan, 0, coefficients, lines, rows, recorded)
    bound = measure.close(found[:, 0] + intercept.sum(1), lower, upper)
    if measure.norm == "2":
        sums = absolute.close(found[:, 1] + absolute_intercept.sum(1), lower, upper)
        largest = measure.in_norm("1").upper_bound(lower, upper)
        bound = torch.minimum(bound, (sums * largest).sqrt())
        if first is not None:
            reach = measure.counted(torch.maximum(upper - centre, centre - lower))
            distance, _ = first.square_distance(radii)
            distance = torch.minimum(distance, reach.square().sum(1))
            around = measure.close(
                found[:, 2] - centre.square().sum(1) + distance, lower, upper, distance
            )
            bound = torch.minimum(bound, around)
    return bound, {i: c[:, 0] for i, c in recorded.items()}
