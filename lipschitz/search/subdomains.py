"""A batch of subdomains as a structure of arrays, and where each neuron sits in it.

A subdomain is a row of the problem together with everything known on one part of the box: which
intervals the pre-activations, the cotangents at the activations and the Jacobian's entries keep
to, and which signs were fixed by splits. The neurons of all activation nodes are laid side by
side, so that a split, a score or a pool slot is one index into one tensor.

Shapes: B subdomains, N neurons of all activations together, D entries of the input. The
variables a search may split on are numbered 0 .. N-1 (neurons) and N .. N+D-1 (entries).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from lipschitz.network.graph import Graph

AnyBatch = TypeVar("AnyBatch", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """What every search keeps of B subdomains.

    Attributes:
        row: Row of the problem, [B] integers.
        upper_bound: Upper bound of the norm there, [B]; minus infinity if nothing is there.
        choice: Variable to split next, -1 for a leaf, [B] integers.
    """

    row: Tensor
    upper_bound: Tensor
    choice: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def take(self: AnyBatch, which: Tensor | slice) -> AnyBatch:
        """Some of them, by index or mask."""
        return type(self)(*(getattr(self, f.name)[which] for f in fields(self)))

    def having(self: AnyBatch, **changes: Tensor) -> AnyBatch:
        """The same with some fields replaced."""
        return replace(self, **changes)


def concatenate(parts: Sequence[AnyBatch]) -> AnyBatch:
    """All parts in one batch."""
    if len(parts) == 1:
        return parts[0]
    kind = type(parts[0])
    return kind(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(kind)))


@dataclass(frozen=True)
class Subdomains(Batch):
    """B subdomains of a search that splits neurons and entries.

    Attributes:
        preact_lower, preact_upper: Pre-activation intervals, splits included, [B, N].
        cotangent_lower, cotangent_upper: Intervals of g, the cotangent that meets the
            activation's slope, [B, N].
        entry_lower, entry_upper: Intervals of the Jacobian's entries, [B, D].
        entry_sign: Sign with which the bound counts an entry: -1 or 1 once fixed by a split, else
            0, [B, D].
        stale: Neuron splits since the intervals were last recomputed, [B] integers.
    """

    preact_lower: Tensor
    preact_upper: Tensor
    cotangent_lower: Tensor
    cotangent_upper: Tensor
    entry_lower: Tensor
    entry_upper: Tensor
    entry_sign: Tensor
    stale: Tensor


class NeuronLayout:
    """Where the neurons of each activation node are in the flat [B, N] tensors, and their kinds.

    Args:
        graph: The network.
        activations: Its activation nodes, in forward order.
    """

    def __init__(self, graph: Graph, activations: Sequence[int]) -> None:
        self.shapes = {i: graph.nodes[i].shape for i in activations}
        self.kinds = {i: graph.nodes[i].activation for i in activations}
        self.splits_at_zero = all(kind.splits_at_zero for kind in self.kinds.values())
        self.slices: dict[int, slice] = {}
        start = 0
        for index, shape in self.shapes.items():
            self.slices[index] = slice(start, start + shape.numel())
            start += shape.numel()
        self.total = start

    def is_open(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Neurons that a split of their pre-activation interval helps, [B, N]."""
        if self.splits_at_zero:
            return (lower < 0) & (upper > 0)
        return self._each("is_open", lower, upper)

    def split_points(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where each open neuron is split, [B, N]."""
        if self.splits_at_zero:
            return torch.zeros_like(lower)
        return self._each("split_points", lower, upper)

    def _each(self, method: str, lower: Tensor, upper: Tensor) -> Tensor:
        """What every activation says about its neurons, side by side, [B, N]."""
        found = {
            i: getattr(kind, method)(self.part(lower, i), self.part(upper, i))
            for i, kind in self.kinds.items()
        }
        return torch.cat([found[i].flatten(1) for i in self.slices], dim=1)

    def part(self, flat: Tensor, activation: int) -> Tensor:
        """One activation's neurons, [B, *shape], a view of ``flat`` [B, N]."""
        return flat[:, self.slices[activation]].reshape(-1, *self.shapes[activation])

    def join(self, parts: dict[int, Tensor], batch: int, like: Tensor) -> Tensor:
        """Tensors [B or 1, *shape] by activation node, side by side: [B, N]."""
        if not self.slices:
            return like.new_zeros(batch, 0)
        return torch.cat([parts[i].flatten(1).expand(batch, -1) for i in self.slices], dim=1)
