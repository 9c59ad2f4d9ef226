"""Intervals of the values of a network and its derivatives, widened against rounding.

Interval arithmetic (Moore 1966) through affine maps, unary functions and products. What is known
better from elsewhere, pre-activations by CROWN or cotangents by the chords of
:mod:`lipschitz.bounds.native.backward.norm_bounds`, is intersected on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval, intersect, product_interval
from lipschitz.network.derivative import Terms
from lipschitz.rounding import guard


@dataclass(frozen=True)
class TermIntervals:
    """Intervals of every term.

    Attributes:
        bounds: [B or 1, *shape] each.
        rounding: How far rounding may have moved a value computed by a chain of affine maps, as in
            :class:`lipschitz.bounds.native.interval.ForwardIntervals`.
    """

    bounds: list[Interval]
    rounding: list[Tensor]


def term_intervals(
    terms: Terms,
    lower: Tensor,
    upper: Tensor,
    constants: dict[int, Tensor],
    known: dict[int, Interval],
) -> TermIntervals:
    """Intervals of every term over boxes.

    Args:
        terms: The graph.
        lower, upper: Boxes, [B or 1, *input_shape].
        constants: Values of the constant terms, [B, *shape].
        known: Intervals that hold besides, by term.
    """
    bounds, rounding = [Interval(lower, upper)], [torch.zeros_like(lower)]
    unit = guard(lower.dtype)
    for index, term in enumerate(terms.terms[1:], start=1):
        inputs = [bounds[p] for p in term.parents]
        margin = None
        if term.is_constant:
            found = Interval(constants[index], constants[index])
        elif term.is_product:
            found = product_interval(*inputs)
            size = torch.maximum(found.lower.abs(), found.upper.abs())
            found = Interval(found.lower - unit * size, found.upper + unit * size)
        elif term.function is not None:
            found = Interval(*term.function.interval(*inputs[0]))
        else:
            found = Interval(*term.affine.interval(*inputs))
            sizes = [torch.maximum(i.lower.abs(), i.upper.abs()) for i in inputs]
            magnitude = term.affine.magnitude()
            size = magnitude.linear(*sizes)
            if term.affine.bias is not None:
                size = size + term.affine.bias.abs()
            margin = unit * size
            found = Interval(found.lower - margin, found.upper + margin)
            if any(terms.terms[p].affine is not None for p in term.parents):
                margin = margin + magnitude.linear(*(rounding[p] for p in term.parents))
        bounds.append(intersect(found, known[index]) if index in known else found)
        rounding.append(torch.zeros_like(found.lower) if margin is None else margin)
    return TermIntervals(bounds, rounding)
