"""Boxes with fixed signs, what of them can be cut, and their halves.

Shapes: B subdomains, D inputs, N neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.search.engines.linked_signs import LinkedSigns
from lipschitz.search.subdomains import Batch, concatenate

# Stands for a choice between the two kinds of splits that is still to be made.
UNDECIDED = 0


@dataclass(frozen=True)
class Regions(Batch):
    """B boxes with fixed signs. What is split is an input, or D plus the number of a neuron.

    ``choice`` is -1 for a leaf, ``UNDECIDED`` where it is ``edge`` or ``neuron`` and the search
    has still to say which.

    Attributes:
        lower, upper: Corners of the boxes, [B, D].
        sign: -1 or 1 where a neuron is fixed to one side of 0, else 0, [B, N] small integers.
        edge, neuron: The best split of each kind, -1 if there is none, [B].
        matter: How many slopes matter to the bound, [B].
        open_neurons: How many neurons are open, or were in the parent, [B].
        idle: How many cuts of edges, one after the other, have gained next to nothing, [B].
    """

    lower: Tensor
    upper: Tensor
    sign: Tensor
    edge: Tensor
    neuron: Tensor
    matter: Tensor
    open_neurons: Tensor
    idle: Tensor


def halves(parents: Regions, links: LinkedSigns) -> Regions:
    """Both closed halves of every subdomain; they still have their parents' bounds."""
    both = concatenate([parents, parents])
    count, inputs = len(parents), parents.lower.shape[1]
    at = torch.arange(count, device=parents.row.device)
    on_edge = parents.choice < inputs
    cut, edge = at[on_edge], parents.choice[on_edge]
    middle = ((parents.lower + parents.upper) / 2)[cut, edge]
    both.upper[cut, edge] = middle
    both.lower[cut + count, edge] = middle
    split, neuron = at[~on_edge], parents.choice[~on_edge] - inputs
    links.fix(both.sign, split, neuron, -1)
    links.fix(both.sign, split + count, neuron, 1)
    return both


def largest_edge(regions: Regions, weight: Tensor) -> Tensor:
    """The edge of the largest weight [B, D] with a number between its ends, -1 if none."""
    middle = (regions.lower + regions.upper) / 2
    divisible = (middle > regions.lower) & (middle < regions.upper)
    best, edge = weight.masked_fill(~divisible, 0).max(dim=1)
    return edge.masked_fill(~(best > 0), -1)


def widest_edge(regions: Regions) -> Tensor:
    """The longest edge that can be cut, -1 if there is none."""
    return largest_edge(regions, regions.upper - regions.lower)
