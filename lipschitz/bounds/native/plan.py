"""What every bound of one graph shares: consumers of each node, flat biases, exactness.

Interval arithmetic through a single affine map of independent coordinates is already the exact
range, so no linear bound can improve it; :class:`Exactness` follows that property through the
graph, and the engines spend rows only where it is lost.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from lipschitz.network.affine import Combination, Reshape, Scale
from lipschitz.network.graph import Graph, refuse_products
from lipschitz.network.pooled import Pooled


class Exactness(IntEnum):
    """What is known about the interval of a node's value, or of its cotangent."""

    CONSTANT = 0  # a point
    INDEPENDENT = 1  # coordinates reach every combination of the box
    EXACT = 2  # each coordinate reaches its ends, but not independently of the others
    LOOSE = 3

    def mixed(self) -> Exactness:
        """After an affine map that sums several coordinates."""
        return self if self is Exactness.CONSTANT else Exactness(min(self + 1, Exactness.LOOSE))

    def plus(self, other: Exactness) -> Exactness:
        """Of the sum of two values that may depend on each other."""
        if Exactness.CONSTANT in (self, other):
            return max(self, other)
        return Exactness.LOOSE


# Maps with one term per output coordinate.
_COORDINATEWISE = (Reshape, Scale)


class Plan:
    """A graph prepared for propagation.

    Attributes:
        graph: The network.
        consumers: For every node, its consumers as (node index, slot among that node's parents),
            leaving out nodes that do not reach the output.
        biases: For every affine node with a bias, the bias as one flat vector of the node's size.
        magnitudes: For every affine node, the map with the magnitudes of its coefficients.
        pools: For every node that is the maximum of windows, what it is the maximum of.
        tree: For every activation inside such a maximum, the maximum's node.
        inside: For every maximum, the nodes between it and its entries.
        maxima: For every node that has such entries, the maxima of them.
        onward: For every maximum that one activation alone reads, that activation.
        largest: Number of elements of the largest node.
        kept: Cache of what other modules compute from the graph alone, by keys of their own.

    Raises:
        InputError: The network has products of two values, which this propagation does not know.
    """

    def __init__(self, graph: Graph) -> None:
        refuse_products(graph, "this bound", "use method crown or joint on engine native")
        self.graph = graph
        last = len(graph.nodes) - 1
        live = {last}
        self.consumers: list[list[tuple[int, int]]] = [[] for _ in graph.nodes]
        for index in range(last, 0, -1):
            if index not in live:
                continue
            for slot, parent in enumerate(graph.nodes[index].parents):
                live.add(parent)
                self.consumers[parent].append((index, slot))
        # Activations in forward order; one that the output does not read bounds nothing.
        self.activations = [i for i in graph.activation_nodes if i in live]
        self.pools: dict[int, Pooled] = {
            i: node.pooled for i, node in enumerate(graph.nodes) if node.pooled and i in live
        }
        self.tree = {k.activation: i for i, pool in self.pools.items() for k in pool.levels}
        self.inside = {i: _between(graph, pool.of, i) for i, pool in self.pools.items()}
        self.maxima: dict[int, list[int]] = {}
        for index, pool in self.pools.items():
            self.maxima.setdefault(pool.of, []).append(index)
        self.onward = {
            i: self.consumers[i][0][0]
            for i in self.pools
            if [graph.nodes[child].activation is None for child, _ in self.consumers[i]] == [False]
        }
        self.biases: dict[int, Tensor] = {
            index: node.affine.bias.expand(1, *node.shape).reshape(-1)
            for index, node in enumerate(graph.nodes)
            if node.affine is not None and node.affine.bias is not None
        }
        self.magnitudes = {
            index: node.affine.magnitude()
            for index, node in enumerate(graph.nodes)
            if node.affine is not None
        }
        self.largest = max(node.shape.numel() for node in graph.nodes)
        self.value_exactness = self._value_exactness()
        self.kept: dict[object, object] = {}

    def preact_node(self, activation: int) -> int:
        """The node whose value is the pre-activation of an activation node."""
        return self.graph.nodes[activation].parents[0]

    def layer(self, activation: int) -> int:
        """Number of an activation node, or maximum, among activations that the output reads."""
        if activation in self.pools:
            activation = self.pools[activation].last
        return self.activations.index(activation) + 1

    def affine_exactness(self, index: int, exactness: Exactness) -> Exactness:
        """Exactness after the affine node ``index``, forward or adjoint, of one branch."""
        affine = self.graph.nodes[index].affine
        if isinstance(affine, (*_COORDINATEWISE, Combination)):
            return exactness
        return exactness.mixed()

    def _value_exactness(self) -> list[Exactness]:
        """Exactness of every node's interval bounds."""
        found = [Exactness.INDEPENDENT]
        for index, node in enumerate(self.graph.nodes[1:], start=1):
            if node.affine is None:
                found.append(Exactness.LOOSE)
                continue
            total = Exactness.CONSTANT
            for parent in node.parents:
                total = total.plus(self.affine_exactness(index, found[parent]))
            found.append(total)
        return found


def _between(graph: Graph, first: int, last: int) -> frozenset[int]:
    """Nodes on paths from one node to another, these two left out."""
    found, queue = set(), [last]
    while queue:
        parents = set(graph.nodes[queue.pop()].parents) - found - {first}
        found |= parents
        queue.extend(parents)
    return frozenset(found)


def unit_rows(indices: Tensor, shape: torch.Size, like: Tensor) -> Tensor:
    """Rows ``+e_k`` then ``-e_k`` for the flat coordinates ``indices`` ([K]): [1, 2K, *shape]."""
    count = len(indices)
    rows = torch.zeros(2 * count, shape.numel(), dtype=like.dtype, device=like.device)
    rows[torch.arange(count, device=like.device), indices] = 1
    rows[torch.arange(count, 2 * count, device=like.device), indices] = -1
    return rows.reshape(1, 2 * count, *shape)
