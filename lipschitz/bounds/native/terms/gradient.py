"""The terms of a network's gradients, and which way of bounding them costs less."""

from __future__ import annotations

from functools import cached_property

import torch

from lipschitz.bounds.native.interval import Interval, slope_intervals
from lipschitz.bounds.native.terms.narrowing import Narrowing
from lipschitz.network.activations.derivative import derivative_of
from lipschitz.network.derivative import Terms
from lipschitz.network.graph import Graph

# Inputs up to which affine forms are carried forward. A choice: they are bounded in one chunk, and
# their numbers grow with the inputs.
MOST_FORWARD_INPUTS = 32


def has_curves(graph: Graph) -> bool:
    """Whether an activation's slope depends on more than the side of its kinks."""
    kinds = (graph.nodes[i].activation for i in graph.activation_nodes)
    return any(derivative_of(kind) is not None for kind in kinds)


class GradientTerms:
    """Values of a network and of ``J(x)^T r`` as one graph.

    Args:
        graph: The network.

    Attributes:
        graph: The network.
        terms: All values.
        row: The constant r, an output direction.
        gradient: ``J(x)^T r``.
        at_nodes: The cotangent of every node that depends on the input.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.terms = graph, Terms(graph)
        self.row = self.terms.constant((graph.num_outputs,))
        self.gradient, self.at_nodes = self.terms.gradient(self.terms.output, self.row)

    @property
    def size(self) -> int:
        """Numbers of all nonlinear terms together."""
        return sum(t.shape.numel() for t in self.terms.terms if t.is_product or t.function)

    @cached_property
    def narrowing(self) -> Narrowing:
        """What rows backward narrow."""
        return Narrowing(self.terms)

    @property
    def is_carried_forward(self) -> bool:
        """Whether affine forms cost less than rows backward from every neuron, by their count.

        Forms have two tensors of D + 1 columns each, and rows come with both signs.
        """
        inputs, graph = self.graph.input_shape.numel(), self.graph
        neurons = sum(graph.nodes[a].shape.numel() for a in graph.activation_nodes)
        return inputs <= MOST_FORWARD_INPUTS and inputs + 1 <= neurons

    def known(
        self, preacts: dict[int, Interval], cotangents: dict[int, Interval]
    ) -> dict[int, Interval]:
        """By term, intervals that are known from elsewhere.

        Args:
            preacts: Pre-activation interval by activation node, [B or 1, *shape].
            cotangents: Interval of g by activation node, [B, *shape]; meant where a slope is
                uncertain.
        """
        nodes = self.graph.nodes
        known = {nodes[a].parents[0]: bounds for a, bounds in preacts.items()}
        slopes = slope_intervals(self.graph, preacts)
        for a, bounds in cotangents.items():
            if a in self.at_nodes:
                uncertain = slopes[a].lower != slopes[a].upper
                known[self.at_nodes[a]] = Interval(
                    torch.where(uncertain, bounds.lower, -torch.inf),
                    torch.where(uncertain, bounds.upper, torch.inf),
                )
        return known

    def preacts(self, bounds: list[Interval]) -> dict[int, Interval]:
        """Pre-activation interval by activation node, of intervals of all terms."""
        nodes = self.graph.nodes
        return {a: bounds[nodes[a].parents[0]] for a in self.graph.activation_nodes}

    def cotangents(self, bounds: list[Interval]) -> dict[int, Interval]:
        """Interval of g by activation node, of intervals of all terms."""
        nodes = self.graph.activation_nodes
        return {a: bounds[self.at_nodes[a]] for a in nodes if a in self.at_nodes}
