"""Columns of the Jacobian, bounded forward: the l1 norm of ``J e_i`` over all outputs jointly.

The tangent of a direction v runs through the network's maps without their biases, and every
activation multiplies it by its slope: ``h = t * s``, the product that the backward pass has too.
So the tangent network is bounded like the network, with the lines of slope products in place of
those of activations, on the single input v. A column's l1 norm ends in the chords of ``|J_ci|``
over the outputs c, which one pass bounds jointly; row by row they could only be added up.

Shapes: V directions (boxes of the tangent network), R rows.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.forward.preactivations import preactivation_rows
from lipschitz.bounds.native.forward.value_pass import value_upper_bound
from lipschitz.bounds.native.interval import Interval, intersect, product_interval
from lipschitz.bounds.native.lines import Lines, product_lines
from lipschitz.bounds.native.memory.budget import row_chunks
from lipschitz.bounds.native.plan import Exactness, Plan
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.norms import Measure
from lipschitz.problem import LocalProblem
from lipschitz.relaxation import absolute_value_chord
from lipschitz.rounding import raise_upper_bound

# Largest work, in rows times numbers of the widest node, for which CROWN bounds the tangents at a
# deeper layer: some seconds. A choice: beyond it these keep interval arithmetic, which is looser.
_LARGEST_WORK = 2 * 10**8
STAGE = "columns of the Jacobian"


def _tangent_lines(
    plan: Plan, directions: Tensor, slopes: dict[int, Interval], budget: int, everywhere: int
) -> dict[int, Lines]:
    """Lines of ``h = t * s`` by activation node, for directions [V, *input_shape].

    ``everywhere`` is how many directions there are in all.
    """
    values = {0: Interval(directions, directions)}
    exactness = {0: Exactness.CONSTANT}
    lines: dict[int, Lines] = {}
    for index, node in enumerate(plan.graph.nodes[1:], start=1):
        if node.affine is not None:
            inputs = [values[p] for p in node.parents]
            centre = node.affine.linear(*((i.lower + i.upper) / 2 for i in inputs))
            radius = plan.magnitudes[index].linear(*((i.upper - i.lower) / 2 for i in inputs))
            values[index] = Interval(centre - radius, centre + radius)
            total = Exactness.CONSTANT
            for parent in node.parents:
                total = total.plus(plan.affine_exactness(index, exactness[parent]))
            exactness[index] = total
            continue
        parent = node.parents[0]
        tangent, before = values[parent], exactness[parent]
        if index not in slopes:  # the output does not read it
            values[index], exactness[index] = tangent, before
            continue
        slope = slopes[index]
        uncertain = slope.lower != slope.upper
        indices = needed_indices(uncertain)
        work = everywhere * len(indices) * plan.largest
        if before is Exactness.LOOSE and len(indices) and work <= _LARGEST_WORK:
            rows = preactivation_rows(plan, index, indices, lines, directions, directions, budget)
            tangent = intersect(tangent, place(tangent, rows, indices, uncertain))
        lines[index] = product_lines(tangent, slope)
        values[index] = product_interval(tangent, slope)
        if bool(uncertain.any()):
            before = Exactness.INDEPENDENT if before is Exactness.CONSTANT else Exactness.LOOSE
        exactness[index] = before
    return lines


def column_sums(
    plan: Plan,
    problem: LocalProblem,
    measure: Measure,
    slopes: dict[int, Interval],
    entries: Interval,
    budget: int,
    clock: Clock = UNLIMITED,
) -> tuple[Tensor, Interval]:
    """Upper bound of the largest column sum of magnitudes, and the entries' intervals.

    Args:
        plan: The graph.
        problem: Its rows are the Jacobian's.
        measure: Which inputs count.
        slopes: Slope interval by activation node, [1, *shape].
        entries: Intervals of the Jacobian, [R, *input_shape].
        budget: Bytes for rows.
        clock: When to stop; columns not reached are summed from the given intervals.

    Returns:
        A number, and the intervals intersected with those found here, [R, *input_shape].
    """
    rows, shape = problem.rows, problem.graph.input_shape
    count, inputs = len(rows), shape.numel()
    bare = copy.copy(plan)
    bare.biases = {}
    last = len(plan.graph.nodes) - 1
    slopes = {a: slopes[a] for a in plan.activations}
    lower, upper = (end.reshape(count, inputs).T.clone() for end in entries)  # [D, R]
    sums = torch.maximum(lower.abs(), upper.abs()).sum(1)
    both = torch.cat([rows, -rows]).unsqueeze(0)
    zero = lower.new_zeros(1, *shape)
    chunks = row_chunks(inputs, 1, plan.largest * count, budget, rows.element_size())
    for part, _ in clock.in_time(chunks, STAGE):
        size = len(range(inputs)[part])
        directions = lower.new_zeros(size, inputs)
        directions[torch.arange(size), torch.arange(part.start, part.start + size)] = 1
        directions = directions.reshape(size, *shape)
        lines = _tangent_lines(bare, directions, slopes, budget, inputs)
        found = value_upper_bound(bare, last, both, lines, directions, zero)
        above, below = found.expand(size, -1).chunk(2, dim=1)
        upper[part] = torch.minimum(upper[part], above)
        lower[part] = torch.maximum(lower[part], -below)
        slope, intercept = absolute_value_chord(lower[part], upper[part])
        joint = (slope @ rows).unsqueeze(1)
        total = value_upper_bound(bare, last, joint, lines, directions, zero)[:, 0]
        simple = torch.maximum(lower[part].abs(), upper[part].abs()).sum(1)
        sums[part] = torch.minimum(total + intercept.sum(1), simple)
    bound = raise_upper_bound(measure.counted(sums).max())
    return bound, Interval(*(end.T.reshape(count, *shape) for end in (lower, upper)))
