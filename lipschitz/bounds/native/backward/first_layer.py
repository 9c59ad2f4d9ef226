"""The last step of a backward pass as one matrix, and l2 bounds of what it sends to the input.

Let ``h = g * s`` be cotangent times slope at the activations that the input reaches by affine maps
alone. The gradient is ``A h`` plus a constant, and where h keeps to a box of radii ``rho`` around
its centre,

    || A (h - centre) ||_2^2  <=  min( ||A||_2^2 ||rho||_2^2,  rho^T |A^T A| rho ).

Both know that entries of the gradient cannot be at their worst all at once, which intervals of
entries forget; the second is never above what interval arithmetic gives the entries.

Shapes: B boxes, D inputs, M neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval, product_interval
from lipschitz.bounds.native.plan import Plan
from lipschitz.norms import Measure, spectral_norm_bound
from lipschitz.rounding import guard

# Largest A and largest ``A^T A``, in numbers (64 MB each in float64). Choices: without ``A^T A``
# only the first of the two bounds is there, without A neither.
_LARGEST_MATRIX, _LARGEST_GRAM = 2**23, 2**23


def _reached(plan: Plan) -> set[int]:
    """Nodes that depend on the input through affine maps alone, on some path."""
    reached = {0}
    for index, node in enumerate(plan.graph.nodes[1:], start=1):
        if node.affine is not None and reached.intersection(node.parents):
            reached.add(index)
    return reached


def _first_activations(plan: Plan) -> list[int]:
    reached = _reached(plan)
    return [a for a in plan.activations if plan.preact_node(a) in reached]


class FirstLayer:
    """The affine maps between the input and the first activations.

    Args:
        plan: The graph.
        measure: Which inputs count.

    Attributes:
        activations: Those reached from the input by affine maps alone.
    """

    @staticmethod
    def of(plan: Plan, measure: Measure) -> FirstLayer | None:
        """The first layer if the norm makes use of it and its matrix is not too large."""
        if measure.norm != "2":
            return None
        key = (FirstLayer, measure.free)  # a tensor is equal to itself alone
        if key not in plan.kept:
            graph, reached = plan.graph, _reached(plan)
            neurons = sum(graph.nodes[a].shape.numel() for a in _first_activations(plan))
            widest = max(neurons, *(graph.nodes[i].shape.numel() for i in reached))
            small = graph.input_shape.numel() * widest <= _LARGEST_MATRIX
            plan.kept[key] = FirstLayer(plan, measure) if small and neurons else None
        return plan.kept[key]

    def __init__(self, plan: Plan, measure: Measure) -> None:
        graph, reached = plan.graph, _reached(plan)
        self.activations = _first_activations(plan)
        inputs = graph.input_shape.numel()
        eye = torch.eye(inputs, dtype=graph.dtype, device=graph.device)
        eye = measure.counted(eye)
        values = {0: eye.reshape(inputs, *graph.input_shape)}
        for index in sorted(reached - {0}):
            node = graph.nodes[index]
            parents = [
                values[p] if p in values else eye.new_zeros(inputs, *graph.nodes[p].shape)
                for p in node.parents
            ]
            values[index] = node.affine.linear(*parents)
        columns = [values[plan.preact_node(a)].flatten(1) for a in self.activations]
        self.matrix = torch.cat(columns, dim=1)  # [D, M]
        last = len(graph.nodes) - 1
        self.direct = values[last].flatten(1) if last in values else None  # [D, C]
        self._gram: Tensor | None = None
        if self.matrix.shape[1] ** 2 <= _LARGEST_GRAM:
            self._gram = (self.matrix.T @ self.matrix).abs()
        self._moving: Tensor | None = None
        self._square = 0.0

    def cotangents(
        self, cotangents: dict[int, Interval], slopes: dict[int, Interval]
    ) -> tuple[Tensor, Tensor]:
        """Centres and radii of ``h = g * s``, each [B, M].

        Args:
            cotangents: Interval of g by activation node, [B, *shape].
            slopes: Interval of s, [B or 1, *shape].
        """
        lowers, uppers = [], []
        for activation in self.activations:
            lower, upper = product_interval(cotangents[activation], slopes[activation])
            lowers.append(lower.flatten(1))
            uppers.append(upper.flatten(1))
        lower, upper = torch.cat(lowers, dim=1), torch.cat(uppers, dim=1)
        centre = (lower + upper) / 2
        return centre, torch.maximum(upper - centre, centre - lower)

    def centre(self, cotangents: Tensor, rows: Tensor) -> Tensor:
        """The gradients that cotangents [B, M] and output directions [B, C] amount to, [B, D]."""
        found = cotangents @ self.matrix.T
        return found if self.direct is None else found + rows @ self.direct.T

    def square_norm(self, moving: Tensor) -> float:
        """Upper bound of ``||A||_2^2``, of the columns of neurons that move at all ([M])."""
        if self._moving is None or bool((moving & ~self._moving).any()):
            self._moving = moving.clone()
            columns = self.matrix[:, moving].double()
            if 0 in columns.shape:
                self._square = 0.0
            else:
                self._square = float(spectral_norm_bound(columns)) ** 2
        return self._square

    def square_distance(self, radii: Tensor) -> tuple[Tensor, Tensor]:
        """Upper bound of ``||A (h - centre)||_2^2`` for radii [B, M].

        Returns:
            The bound, [B], guard included, and half of its derivatives by the radii, [B, M].
        """
        half = self.square_norm((radii > 0).any(0)) * radii
        bound = (half * radii).sum(1)
        if self._gram is not None:
            other = radii @ self._gram
            other_bound = (other * radii).sum(1)
            half = torch.where((other_bound < bound).unsqueeze(1), other, half)
            bound = torch.minimum(bound, other_bound)
        return bound * (1 + 4 * guard(radii.dtype)), half
