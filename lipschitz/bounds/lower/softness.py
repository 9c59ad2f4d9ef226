"""Slopes whose kinks are spread out, so that gradients of piecewise linear networks can be climbed.

How far a kink is spread goes by how much that neuron's pre-activation varies in the box: a width
far above it makes all slopes alike, one far below it leaves nothing to climb.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.network.graph import Node, SlopeFunction
from lipschitz.problem import LocalProblem

# Least variation of a neuron, as a share of the mean magnitude in its layer: what does not vary at
# all has a slope of its own all the same.
_LEAST = 1e-6


class Softness:
    """Variation of every neuron in the box, from the values at some of its points.

    Args:
        problem: The problem.
        points: Points of the box, [P, *input_shape].
    """

    def __init__(self, problem: LocalProblem, points: Tensor) -> None:
        graph = problem.graph
        values = graph.values(points)
        self._variation: dict[int, Tensor] = {}
        for index in graph.activation_nodes:
            node = graph.nodes[index]
            if node.activation.kinks:
                preact = values[node.parents[0]]
                least = _LEAST * preact.abs().mean() + torch.finfo(preact.dtype).tiny
                spread = preact.std(0, unbiased=False, keepdim=True).clamp(min=least)
                self._variation[id(node)] = spread.nan_to_num(1.0, posinf=1.0)

    @property
    def is_smooth(self) -> bool:
        """Whether no activation has a kink, so that slopes are climbed as they are."""
        return not self._variation

    def slopes(self, width: Tensor) -> SlopeFunction:
        """Slopes with kinks spread by so many times a neuron's variation, ``width`` [P]."""

        def slope(node: Node, preact: Tensor) -> Tensor:
            variation = self._variation.get(id(node))
            if variation is None:
                return node.activation.slope(preact)
            spread = width.reshape(-1, *[1] * (preact.dim() - 1)) * variation
            return node.activation.smooth_slope(preact, spread)

        return slope
