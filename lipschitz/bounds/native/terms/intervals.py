"""Intervals of the values of a network and its derivatives, widened against rounding.

Interval arithmetic (Moore 1966) through affine maps, unary functions and products. What is known
better from elsewhere, pre-activations by CROWN or cotangents by the chords of
:mod:`lipschitz.bounds.native.backward.norm_bounds`, is intersected on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval, intersect, narrowed, product_interval
from lipschitz.bounds.native.memory.budget import take
from lipschitz.network.derivative import Term, Terms
from lipschitz.relaxation import LineBounds
from lipschitz.rounding import guard


@dataclass(frozen=True)
class TermIntervals:
    """Intervals of every term.

    Attributes:
        bounds: [B or 1, *shape] each.
        rounding: How far rounding may have moved a value computed by a chain of affine maps, as in
            :class:`lipschitz.bounds.native.interval.ForwardIntervals`.
        lines: Lines of least area around unary terms, by term; those that have been computed, over
            these intervals or wider ones.
    """

    bounds: list[Interval]
    rounding: list[Tensor]
    lines: dict[int, LineBounds] = field(default_factory=dict)

    def take(self, boxes: slice) -> TermIntervals:
        """The same of some boxes."""
        return TermIntervals(
            [Interval(*(take(end, boxes) for end in i)) for i in self.bounds],
            [take(r, boxes) for r in self.rounding],
            {i: LineBounds(*(take(t, boxes) for t in line)) for i, line in self.lines.items()},
        )


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
    for index, term in enumerate(terms.terms[1:], start=1):
        found, margin = image(term, [bounds[p] for p in term.parents], constants.get(index))
        found = narrowed(term, found, bounds)
        bounds.append(intersect(found, known[index]) if index in known else found)
        rounding.append(added_up(terms, term, found, margin, rounding))
    return TermIntervals(bounds, rounding)


def image(
    term: Term, inputs: list[Interval], constant: Tensor | None
) -> tuple[Interval, Tensor | None]:
    """Interval of a term from those of its parents, and the margin that an affine map's contains.

    Args:
        term: The term.
        inputs: [B or 1, *shape] each.
        constant: Its value if it is a constant, [B, *shape].
    """
    if constant is not None:
        return Interval(constant, constant), None
    if term.function is not None:
        return Interval(*term.function.interval(*inputs[0])), None
    unit = guard(inputs[0].lower.dtype)
    if term.is_product:
        found = product_interval(*inputs)
        size = torch.maximum(found.lower.abs(), found.upper.abs())
        return Interval(found.lower - unit * size, found.upper + unit * size), None
    found = Interval(*term.affine.interval(*inputs))
    size = term.affine.magnitude().linear(*(torch.maximum(*_magnitudes(i)) for i in inputs))
    if term.affine.bias is not None:
        size = size + term.affine.bias.abs()
    margin = unit * size
    return Interval(found.lower - margin, found.upper + margin), margin


def _magnitudes(interval: Interval) -> tuple[Tensor, Tensor]:
    return interval.lower.abs(), interval.upper.abs()


def added_up(
    terms: Terms, term: Term, found: Interval, margin: Tensor | None, rounding: list[Tensor]
) -> Tensor:
    """What rounding may have done to a term's value since the last nonlinear terms.

    A chain of affine maps is one sum to a backward pass, so its margins add up.
    """
    if margin is None:
        return torch.zeros_like(found.lower)
    if any(terms.terms[p].affine is not None for p in term.parents):
        margin = margin + term.affine.magnitude().linear(*(rounding[p] for p in term.parents))
    return margin
