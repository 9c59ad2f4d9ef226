"""Neurons whose pre-activations are the same function, or its negative: one sign says both.

``max(a, b)`` written with ReLU has a neuron for ``a - b`` and one for ``b - a``, and lattices
repeat them many times. Where two of them are split, rounding leaves a sliver around ``a = b`` in
which both might be positive, and the bound of that sliver may be above the truth for ever. So their
signs are fixed together, and neurons that are 0 everywhere, such as ``a - a``, are told apart from
those that may be anything. Only what is the same to the last bit counts: rows of weights, and their
products and sums where these are exact.

Shapes: N neurons of all activations together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.network.graph import Graph
from lipschitz.search.subdomains import NeuronLayout

# Largest matrix of a layer, in numbers, in which equal rows are looked for. A choice.
_LARGEST = 4_000_000
# Multiples of 2 to the power of minus this many, as large as its inverse at most: sums of thousands
# of products of two of them are exact in float64.
_BITS = 10


class LinkedSigns:
    """Which signs follow from which.

    Args:
        graph: The network, in float64.
        layout: Where the neurons are.

    Attributes:
        group: Neurons with the same number have the same sign, or opposite ones, [N].
        side: Whether it is the same (1) or the opposite (-1) of the group's, [N].
        is_zero: Neurons whose pre-activation is 0 everywhere, [N].
    """

    def __init__(self, graph: Graph, layout: NeuronLayout) -> None:
        self.group = torch.arange(layout.total, device=graph.device)
        self.side = torch.ones(layout.total, dtype=torch.int8, device=graph.device)
        self.is_zero = torch.zeros(layout.total, dtype=torch.bool, device=graph.device)
        merged: dict[int, Tensor] = {}  # from an activation's values to different ones
        for index, part in layout.slices.items():
            rows = _rows(graph, graph.nodes[index].parents[0], merged)
            if rows is None:
                continue
            lead = (rows != 0).to(torch.uint8).argmax(1, keepdim=True)
            side = torch.where(rows.gather(1, lead) < 0, -1.0, 1.0).to(rows)
            # Adding 0 turns -0 into 0.
            _, group = torch.unique(rows * side + 0.0, dim=0, return_inverse=True)
            self.group[part], self.side[part] = group + part.start, side[:, 0].to(torch.int8)
            self.is_zero[part] = (rows == 0).all(1)
            values = group * 2 + (side[:, 0] < 0)
            different = torch.nn.functional.one_hot(values).to(rows)
            merged[index] = different * (~self.is_zero[part]).to(rows).unsqueeze(1)

    def fix(self, sign: Tensor, regions: Tensor, neuron: Tensor, value: int) -> None:
        """Fix neurons, each in one region, and all that are linked to them.

        Args:
            sign: The signs, changed in place, [B, N].
            regions, neuron: Which, [K] each.
            value: 1 or -1.
        """
        linked = self.group == self.group[neuron].unsqueeze(1)
        new = value * self.side[neuron].unsqueeze(1) * self.side
        sign[regions] = torch.where(linked, new, sign[regions])


def _rows(graph: Graph, node: int, merged: dict[int, Tensor]) -> Tensor | None:
    """Coefficients and bias of every number of a node's value, [n, m + 1], None if it is too large.

    They are meant in terms of the value of any earlier node, as long as all are exact: rows that
    are equal are the same function then. The farther back, the more are found to be.
    """
    size = graph.nodes[node].shape.numel()
    if not 0 < size * size <= _LARGEST:
        return None
    rows = torch.eye(size, dtype=graph.dtype, device=graph.device)
    bias = rows.new_zeros(size)
    while graph.nodes[node].affine is not None and len(graph.nodes[node].parents) == 1:
        affine, parent, here = (
            graph.nodes[node].affine,
            graph.nodes[node].parents[0],
            graph.nodes[node].shape,
        )
        if max(here.numel(), size) * graph.nodes[parent].shape.numel() > _LARGEST:
            break
        if affine.bias is not None and (bool(bias.any()) or not _is_choice(rows)):
            break
        unit = torch.eye(here.numel(), dtype=graph.dtype, device=graph.device).reshape(-1, *here)
        matrix = affine.adjoint(unit)[0].flatten(1)
        exact = _is_choice(rows) or (_is_choice(matrix) and _is_choice(matrix.T))
        if not (exact or (_is_short(rows) and _is_short(matrix))):
            break
        if affine.bias is not None:
            bias = rows @ affine.bias.expand(1, *here).reshape(-1)
        rows, node = rows @ matrix, parent
    if node in merged and (_is_short(rows) or _is_choice(rows)):
        rows = rows @ merged[node]
    found = torch.cat([rows, bias.unsqueeze(1)], 1)
    return found if bool(found.isfinite().all()) else None


def _is_choice(rows: Tensor) -> bool:
    """Whether every row holds at most one number that is not 0, and that is 1 or -1."""
    return bool(((rows != 0).sum(1) <= 1).all() and ((rows == 0) | (rows.abs() == 1)).all())


def _is_short(rows: Tensor) -> bool:
    """Whether sums of products of such numbers are exact."""
    scaled = rows * 2.0**_BITS
    return bool((scaled == scaled.round()).all() and (rows.abs() <= 2.0**_BITS).all())
