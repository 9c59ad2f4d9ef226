"""Interval bound propagation through the network and back through its Jacobian.

Interval arithmetic (Moore 1966; "IBP" in Gowal et al. 2018) is the loosest of the bounds here and
the cheapest: two passes. The tighter engines use it to find the neurons that need no better
bound, and its magnitudes to guard against rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lipschitz.errors import InputError
from lipschitz.network.derivative import Term
from lipschitz.network.graph import Graph, Node
from lipschitz.rounding import guard


class Interval(NamedTuple):
    """A box ``lower <= value <= upper``, two tensors of the same shape."""

    lower: Tensor
    upper: Tensor


def intersect(first: Interval, second: Interval) -> Interval:
    """The values in both intervals."""
    return Interval(
        torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper)
    )


class ForwardIntervals(NamedTuple):
    """Interval bounds of every node of a graph.

    Attributes:
        bounds: One interval per node, each tensor [B, *shape].
        rounding: One tensor per node: how far rounding may have moved a value computed there
            from the last activations' values (see :mod:`lipschitz.rounding`), [B, *shape]; zeros
            at the input, at activations and at products.
    """

    bounds: list[Interval]
    rounding: list[Tensor]


def forward_intervals(
    graph: Graph,
    lower: Tensor,
    upper: Tensor,
    preacts: dict[int, Interval] | None = None,
    last: int | None = None,
) -> ForwardIntervals:
    """Interval bounds of every node over boxes [B, *input_shape], widened against rounding.

    Args:
        graph: The network.
        lower, upper: The boxes.
        preacts: Intervals that are known of pre-activations, by activation node, [B, *shape].
        last: Only up to this node.
    """
    bounds, rounding = [Interval(lower, upper)], [torch.zeros_like(lower)]
    unit = guard(graph.dtype)
    known, stop = preacts or {}, None if last is None else last + 1
    for index, node in enumerate(graph.nodes[1:stop], start=1):
        inputs = [bounds[p] for p in node.parents]
        if node.is_product:
            found = product_interval(*inputs)
            margin = unit * torch.maximum(found.lower.abs(), found.upper.abs())
            found = Interval(found.lower - margin, found.upper + margin)
            bounds.append(narrowed(node, found, bounds))
            rounding.append(torch.zeros_like(found.lower))
            continue
        if node.affine is None:
            if index in known:
                inputs = [intersect(inputs[0], known[index])]
            bounds.append(Interval(*node.activation.interval(*inputs[0])))
            rounding.append(torch.zeros_like(bounds[-1].lower))
            continue
        node_lower, node_upper = node.affine.interval(*inputs)
        magnitudes = [torch.maximum(i.lower.abs(), i.upper.abs()) for i in inputs]
        terms = node.affine.magnitude().linear(*magnitudes)
        if node.affine.bias is not None:
            terms = terms + node.affine.bias.abs()
        margin = unit * terms
        found = Interval(node_lower - margin, node_upper + margin)
        bounds.append(narrowed(node, found, bounds))
        # A chain of affine maps is one sum to a backward pass, so its margins add up.
        if any(graph.nodes[p].affine is not None for p in node.parents):
            margin = margin + node.affine.magnitude().linear(*(rounding[p] for p in node.parents))
        rounding.append(margin)
    return ForwardIntervals(bounds, rounding)


def narrowed(value: Node | Term, found: Interval, bounds: list[Interval]) -> Interval:
    """An interval of a value, cut to what is known besides of it.

    Args:
        value: The node or term.
        found: Its interval, [B or 1, *shape].
        bounds: Of all before it.
    """
    return found if value.range is None else Interval(*value.range.narrowed(*found, bounds))


def slope_intervals(graph: Graph, preacts: dict[int, Interval]) -> dict[int, Interval]:
    """Slope interval of every activation node from its pre-activation interval.

    Args:
        graph: The network.
        preacts: Pre-activation interval by activation node, [B, *shape].

    Returns:
        Slope interval by activation node, [B, *shape].

    Raises:
        InputError: A pre-activation reaches where its activation is not defined, or steep without
            bound.
    """
    check_domains(graph, preacts)
    return {
        index: Interval(*graph.nodes[index].activation.slope_interval(*preact))
        for index, preact in preacts.items()
    }


def check_domains(graph: Graph, preacts: dict[int, Interval]) -> None:
    """Refuse boxes on which an activation's argument may reach where it is not defined.

    Args:
        graph: The network.
        preacts: Pre-activation interval by activation node, [B, *shape].

    Raises:
        InputError: Naming the node, the function and the interval.
    """
    for index, (lower, upper) in preacts.items():
        node = graph.nodes[index]
        if not node.activation.needs:
            continue
        bad = node.activation.is_undefined(lower, upper)
        if bool(bad.any()):
            least, most = lower[bad].min(), upper[bad].max()
            raise InputError(
                f"the argument of {node.name!r}, {node.activation}, may be anything from "
                f"{float(least):.6g} to {float(most):.6g} on this box: it must stay "
                f"{node.activation.needs}; give a smaller box, or a network that keeps it there"
            )


def product_interval(factor: Interval, slope: Interval) -> Interval:
    """Interval of ``factor * slope`` for two independent intervals."""
    corners = [f * s for f in factor for s in slope]
    return Interval(
        torch.minimum(torch.minimum(*corners[:2]), torch.minimum(*corners[2:])),
        torch.maximum(torch.maximum(*corners[:2]), torch.maximum(*corners[2:])),
    )


def jacobian_interval(graph: Graph, rows: Tensor, slopes: dict[int, Interval]) -> Interval:
    """Interval bounds of ``J(x)^T rows`` given slope intervals.

    Args:
        graph: The network, without products of two values.
        rows: Output directions [R, C].
        slopes: Slope interval by activation node, [R or 1, *shape].

    Returns:
        Interval [R, *input_shape].
    """
    cotangents: list[Interval | None] = [None] * len(graph.nodes)
    cotangents[-1] = Interval(rows, rows)
    for index in range(len(graph.nodes) - 1, 0, -1):
        node, bounds = graph.nodes[index], cotangents[index]
        if bounds is None:
            continue
        if node.affine is None:
            contributions = [product_interval(bounds, slopes[index])]
        else:
            centres = node.affine.adjoint((bounds.lower + bounds.upper) / 2)
            radii = node.affine.magnitude().adjoint((bounds.upper - bounds.lower) / 2)
            contributions = [Interval(c - r, c + r) for c, r in zip(centres, radii, strict=True)]
        for parent, new in zip(node.parents, contributions, strict=True):
            old = cotangents[parent]
            cotangents[parent] = (
                new if old is None else Interval(old.lower + new.lower, old.upper + new.upper)
            )
        cotangents[index] = None
    if cotangents[0] is None:
        zero = torch.zeros(rows.shape[0], *graph.input_shape, dtype=rows.dtype, device=rows.device)
        return Interval(zero, zero)
    return cotangents[0]
