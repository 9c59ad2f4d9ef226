"""L2 bounds by a centre and a distance: interval arithmetic with spectral norms for radii.

A slope in ``[s - rho, s + rho]`` is its centre plus a diagonal matrix of norm at most max rho.
Going back through the network with all slopes at their centres, the cotangents ``G`` of all rows
keep a bound ``e`` on how far, in spectral norm, any true cotangents are from them:

    affine map M:   G M,        e ||M||_2
    slope product:  G diag(s),  e max |s| + || G diag(rho) ||_2

Only open neurons add to the distance, and what they add is known for all rows jointly, where
intervals of entries would assume the worst of every entry at once. Exact for a point; where decided
neurons stand beside open ones it may exceed the product of the layers' norms, so callers take the
smaller of both. By itself a row is the same with R = 1.

Shapes: R rows, N neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.global_norm import layer_norms
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.plan import Plan
from lipschitz.norms import Measure, spectral_norm_bound, upper_magnitude
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard

# Largest matrix of an affine map, in numbers, whose spectral norm is computed anew on every box,
# for the neurons that can be switched on there. A choice: larger maps keep their norm of all
# neurons.
_LARGEST_MATRIX = 2**18


def _length(matrices: Tensor, measure: Measure) -> Tensor:
    """Upper bound of the rows' l2 norms, [R], or of their spectral norm, [1]; [R, ...]."""
    flat = matrices.flatten(1).double()
    if measure.joint:
        return spectral_norm_bound(flat).reshape(1)
    return torch.linalg.vector_norm(flat, dim=1) * (1 + guard(flat.dtype))


class _Layers:
    """Norms of affine maps between neurons that are alive: whose slope is not 0 on all of a box."""

    def __init__(self, plan: Plan, slopes: dict[int, Interval]) -> None:
        self.plan, self.nodes = plan, plan.graph.nodes
        self.whole = layer_norms(plan.graph, "2")
        self.alive = {
            i: ((slope.lower != 0) | (slope.upper != 0)).flatten(1).any(0)
            for i, slope in slopes.items()
        }

    def norms(self, index: int) -> list[float]:
        """Spectral norm of an affine node in each of its inputs."""
        node = self.nodes[index]
        readers = [child for child, _ in self.plan.consumers[index]]
        outputs = self.alive.get(readers[0]) if len(readers) == 1 else None
        inputs = [self.alive.get(parent) for parent in node.parents]
        size = node.shape.numel() * max(self.nodes[p].shape.numel() for p in node.parents)
        if size > _LARGEST_MATRIX or (outputs is None and all(i is None for i in inputs)):
            return self.whole[index]
        found = []
        for slot, alive in enumerate(inputs):
            shape = node.affine.input_shapes[slot]
            eye = torch.eye(
                shape.numel(), dtype=self.plan.graph.dtype, device=self.plan.graph.device
            )
            eye = eye if alive is None else eye[alive]
            matrix = node.affine.linear_from(slot, eye.reshape(-1, *shape))
            matrix = matrix.reshape(len(eye), node.shape.numel())
            matrix = matrix if outputs is None else matrix[:, outputs]
            own = float(spectral_norm_bound(matrix)) if matrix.numel() else 0.0
            found.append(min(own, self.whole[index][slot]))
        return found


@torch.no_grad()
def spectral_bounds(
    plan: Plan,
    problem: LocalProblem,
    slopes: dict[int, Interval],
    cotangents: dict[int, Interval],
) -> Tensor:
    """Upper bound of the rows' l2 norms, or of the spectral norm of all of them.

    Args:
        plan: The graph.
        problem: Its rows.
        slopes: Slope interval by activation node, [1, *shape].
        cotangents: Interval of g by activation node, [R, *shape]; where it is tighter, its radii
            take the place of the distance.

    Returns:
        [R] or [1], rounding guard included.
    """
    nodes, measure, rows = plan.graph.nodes, problem.measure, problem.rows
    layers = _Layers(plan, slopes)
    last = len(nodes) - 1
    zero = _length(rows, measure) * 0
    pending = {last: (rows, zero)}
    for index in range(last, 0, -1):
        if index not in pending:
            continue
        centre, distance = pending.pop(index)
        if nodes[index].affine is None:
            slope = slopes[index]
            if index in cotangents:
                bounds = cotangents[index]
                reach = upper_magnitude(bounds.lower - centre, bounds.upper - centre)
                alive = (slope.lower != 0) | (slope.upper != 0)
                distance = torch.minimum(distance, _length(reach * alive, measure))
            middle = (slope.lower + slope.upper) / 2
            radius = torch.maximum(slope.upper - middle, middle - slope.lower)
            largest = float(upper_magnitude(slope.lower, slope.upper).max())
            distance = distance * largest + _length(centre * radius, measure)
            found = [(centre * middle, distance)]
        else:
            found = [
                (c, distance * n)
                for c, n in zip(
                    nodes[index].affine.adjoint(centre), layers.norms(index), strict=True
                )
            ]
        for parent, (centre, distance) in zip(nodes[index].parents, found, strict=True):
            old = pending.get(parent)
            pending[parent] = (
                (centre, distance) if old is None else (old[0] + centre, old[1] + distance)
            )
    if 0 not in pending:
        return zero.to(rows)
    centre, distance = pending[0]
    length = _length(measure.counted(centre.flatten(1)), measure)
    return ((length + distance) * (1 + 2 * guard(rows.dtype))).to(rows)
