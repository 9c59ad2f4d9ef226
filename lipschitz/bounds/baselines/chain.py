"""A network as a chain of dense matrices, for the methods of global and local L2 constants.

Shapes: D inputs, N_k neurons of layer k, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lipschitz.bounds.baselines.needs import require_relu
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph


@dataclass(frozen=True)
class Layer:
    """``act(weight x + bias)``.

    Attributes:
        weight: [N_k, N_{k-1}].
        bias: [N_k].
        negative_slope: Of its neurons.
    """

    weight: np.ndarray
    bias: np.ndarray
    negative_slope: float


@torch.no_grad()
def dense_chain(graph: Graph, method: str, largest: int) -> tuple[list[Layer], np.ndarray]:
    """The layers, and the matrix [C, N_L] of what follows the last activation; float64.

    Affine maps that follow each other are one matrix.

    Args:
        graph: The network.
        method: Name for messages.
        largest: Inputs and neurons, together, that the method is meant for.

    Raises:
        InputError: Another activation than ReLU or LeakyReLU, branches, or too large a network.
    """
    require_relu(graph, method)
    sizes = [graph.nodes[i].shape.numel() for i in graph.activation_nodes]
    total = graph.input_shape.numel() + sum(sizes)
    if total > largest:
        raise InputError(
            f"{method}: the network has {total} inputs and neurons, its matrices are meant for at "
            f"most {largest}: use crown or global"
        )
    double = graph.to("cpu", torch.float64)

    def identity(shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        unit = torch.eye(shape.numel(), dtype=torch.float64)
        return unit.reshape(-1, *shape), torch.zeros(1, *shape, dtype=torch.float64)

    layers: list[Layer] = []
    basis, offset = identity(double.input_shape)
    for index, node in enumerate(double.nodes[1:], start=1):
        if node.parents != (index - 1,):
            raise InputError(
                f"{method}: {node.name!r} joins branches, and the method is one for a chain of "
                "layers: use crown or global"
            )
        if node.affine is not None:
            basis, offset = node.affine.linear(basis), node.affine.forward(offset)
            continue
        weight, bias = basis.flatten(1).T.numpy(), offset.flatten().numpy()
        layers.append(Layer(weight, bias, node.activation.negative_slope))
        basis, offset = identity(node.shape)
    return layers, basis.flatten(1).T.numpy()
