"""The network as a graph of affine maps, unary functions and products, with its backward pass.

:func:`build_graph` traces a PyTorch module with ``torch.fx`` and refuses, by name, whatever cannot
be written with these. The graph's Jacobian is compared with autograd's on the original module
before anything is bounded, so a wrong rule cannot pass silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lipschitz.errors import InputError
from lipschitz.network.activations import Activation
from lipschitz.network.affine import AffineMap
from lipschitz.network.pooled import Pooled
from lipschitz.network.ranges import LogShares, Rising, Within

# Another way to the interval of a node's value.
Range = Rising | Within | LogShares
SlopeFunction = Callable[["Node", Tensor], Tensor]


@dataclass(frozen=True)
class Closed:
    """That a node's derivative has a closed form in its own value, see :mod:`derivative`.

    Attributes:
        kind: Of the node's value: "softmax" over the last dimension, or "norm", the product of
            values and one over the root of their mean square over the last dimension.
        of: The nodes that the form goes back to.
    """

    kind: str
    of: tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One step of the network: the input, or exactly one of affine, activation and product.

    Attributes:
        name: The traced name, for messages.
        parents: Indices of the nodes it reads; empty for the input.
        shape: Shape of its value without the batch dimension.
        affine: The map, if this is an affine node.
        activation: The activation, if this is an activation node (it has one parent, whose value
            is the pre-activation and has the same shape).
        is_product: Whether it is the product of its two parents, element by element; all three
            have the same shape.
        range: Another way to its interval.
        closed: Another way to its derivative.
        pooled: The maximum that it is, at the last node of a tree of comparisons.
    """

    name: str
    parents: tuple[int, ...]
    shape: torch.Size
    affine: AffineMap | None = None
    activation: Activation | None = None
    is_product: bool = False
    range: Range | None = None
    closed: Closed | None = None
    pooled: Pooled | None = None

    def renumbered(self, place: Callable[[int], int]) -> Node:
        """The same node where others have other indices, which ``place`` gives."""
        known, closed = self.range, self.closed
        if known is not None:
            known = replace(known, parents=tuple(place(p) for p in known.parents))
        if closed is not None:
            closed = replace(closed, of=tuple(place(p) for p in closed.of))
        parents = tuple(place(p) for p in self.parents)
        pooled = None if self.pooled is None else self.pooled.renumbered(place)
        return replace(self, parents=parents, range=known, closed=closed, pooled=pooled)


class Graph:
    """A feed-forward network in topological order; node 0 is the input, the last the output.

    The output has shape ``[B, C]``.
    """

    def __init__(self, nodes: Sequence[Node], device: torch.device, dtype: torch.dtype) -> None:
        self.nodes = tuple(nodes)
        self.device = device
        self.dtype = dtype

    @property
    def input_shape(self) -> torch.Size:
        """Shape of one input, without the batch dimension."""
        return self.nodes[0].shape

    @property
    def num_outputs(self) -> int:
        """C, the number of outputs."""
        return self.nodes[-1].shape[0]

    @property
    def activation_nodes(self) -> list[int]:
        """Indices of the activation nodes, in forward order."""
        return [i for i, node in enumerate(self.nodes) if node.activation is not None]

    @property
    def product_nodes(self) -> list[int]:
        """Indices of the products of two values, in forward order."""
        return [i for i, node in enumerate(self.nodes) if node.is_product]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Graph:
        """The same graph with its weights on ``device`` in ``dtype``."""
        nodes = [
            replace(
                n,
                affine=None if n.affine is None else n.affine.to(device, dtype),
                activation=None if n.activation is None else n.activation.to(device, dtype),
                pooled=None if n.pooled is None else n.pooled.to(device),
            )
            for n in self.nodes
        ]
        return Graph(nodes, torch.device(device), dtype)

    @cached_property
    def double(self) -> Graph:
        """The same graph in float64."""
        return self if self.dtype == torch.float64 else self.to(self.device, torch.float64)

    @cached_property
    def single(self) -> Graph:
        """The same graph in float32."""
        return self if self.dtype == torch.float32 else self.to(self.device, torch.float32)

    def values(self, x: Tensor) -> list[Tensor]:
        """Value of every node at ``x`` ([B, *input_shape]); the last is the output [B, C]."""
        values = [x]
        for node in self.nodes[1:]:
            inputs = [values[p] for p in node.parents]
            if node.affine is not None:
                values.append(node.affine.forward(*inputs))
            elif node.is_product:
                values.append(inputs[0] * inputs[1])
            else:
                values.append(node.activation.forward(inputs[0]))
        return values

    def pull_back(
        self, values: Sequence[Tensor], rows: Tensor, slope: SlopeFunction | None = None
    ) -> Tensor:
        """Gradient of ``rows . f(x)``, by the chain rule through the graph.

        Args:
            values: Value of every node, as :meth:`values` returns them, batch B; or of fewer
                points, each for as many consecutive rows, if ``slope`` repeats its slopes so.
            rows: Output directions, [B, C].
            slope: Slope of an activation node given its pre-activation; its true slope if None.

        Returns:
            ``J(x)^T rows``, [B, *input_shape].
        """
        cotangents: list[Tensor | None] = [None] * len(self.nodes)
        cotangents[-1] = rows
        for index in range(len(self.nodes) - 1, 0, -1):
            node, cotangent = self.nodes[index], cotangents[index]
            if cotangent is None:
                continue
            if node.affine is not None:
                contributions = node.affine.adjoint(cotangent)
            elif node.is_product:
                first, second = (values[p] for p in node.parents)
                contributions = (
                    cotangent * _repeated(second, cotangent),
                    cotangent * _repeated(first, cotangent),
                )
            else:
                preact = values[node.parents[0]]
                s = node.activation.slope(preact) if slope is None else slope(node, preact)
                contributions = (cotangent * s,)
            for parent, contribution in zip(node.parents, contributions, strict=True):
                previous = cotangents[parent]
                cotangents[parent] = contribution if previous is None else previous + contribution
            cotangents[index] = None
        if cotangents[0] is None:
            return torch.zeros(rows.shape[0], *self.input_shape, dtype=rows.dtype).to(rows.device)
        return cotangents[0]

    def gradients(self, x: Tensor, rows: Tensor) -> Tensor:
        """``J(x)^T rows`` at every point: x [B, *input_shape], rows [B, C]."""
        return self.pull_back(self.values(x), rows)


def _repeated(value: Tensor, rows: Tensor) -> Tensor:
    """A value of every row, [B, *shape], from one of every point."""
    return value if len(value) == len(rows) else value.repeat_interleave(len(rows) // len(value), 0)


def refuse_products(graph: Graph, who: str, advice: str) -> None:
    """Refuse a network that multiplies two values which both depend on its input.

    Args:
        graph: The network.
        who: What does not bound such a network.
        advice: What does.

    Raises:
        InputError: Naming the first product.
    """
    products = graph.product_nodes
    if products:
        raise InputError(
            f"{who} does not bound products of two values that both depend on the input, and "
            f"{graph.nodes[products[0]].name!r} is one (attention, gates and normalisation have "
            f"them): {advice}"
        )
