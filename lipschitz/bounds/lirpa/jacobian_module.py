"""The Jacobian-augmented graph: a network and its backward pass as one ``nn.Module``.

Shi et al. 2022 (section 3.2) bound the Jacobian by treating the backward pass as more layers of
the network. Here that is an ordinary module: its forward runs the network on ``x``, then
multiplies the output directions ``v`` back through the adjoint of every affine map and the slope
of every activation. Output directions are rows of the batch, so all classes are one call.
"""

from __future__ import annotations

from torch import Tensor, nn

from lipschitz.bounds.lirpa.operators import (
    ActivationFunction,
    AdjointFunction,
    AffineFunction,
    SlopeProductFunction,
)
from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.graph import Graph


class JacobianModule(nn.Module):
    """``(x, v) -> J(x)^T v`` for x [B, *input_shape] and v [B, C]; returns [B, *input_shape]."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        graph = self.graph
        values = [x]
        for index, node in enumerate(graph.nodes[1:], start=1):
            inputs = [values[p] for p in node.parents]
            if node.affine is not None:
                values.append(AffineFunction.apply(graph, index, *inputs))
            else:
                own = isinstance(node.activation, PiecewiseLinear)
                values.append(
                    node.activation.forward(inputs[0])
                    if own
                    else ActivationFunction.apply(graph, index, inputs[0])
                )
        cotangents: list[Tensor | None] = [None] * len(graph.nodes)
        cotangents[-1] = v
        for index in range(len(graph.nodes) - 1, 0, -1):
            node, cotangent = graph.nodes[index], cotangents[index]
            if cotangent is None:
                continue
            for position, parent in enumerate(node.parents):
                if node.affine is not None:
                    new = AdjointFunction.apply(graph, index, position, cotangent)
                else:
                    new = SlopeProductFunction.apply(graph, index, cotangent, values[parent])
                old = cotangents[parent]
                cotangents[parent] = new if old is None else old + new
        return cotangents[0]
