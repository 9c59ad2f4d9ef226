"""Bounds of gradients over many small boxes of few inputs, where activations are curved.

Affine forms carried forward bound every value, cotangent and entry. Then rows go back through
planes: two for every entry, in those boxes where forms leave a sign open that the norm depends on,
and one for the norm, a second time with the planes that suit the corner where the first bound is
attained. Forms take most of the time, so the second pass costs little and saves boxes. Weights are
not optimised: both factors' intervals shrink with the box, and time is better spent on another
bisection.

Shapes: B boxes, D inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.terms.forward import Form, forward_forms, norm_upper_bound
from lipschitz.bounds.native.terms.gradient import GradientTerms
from lipschitz.bounds.native.terms.intervals import TermIntervals
from lipschitz.bounds.native.terms.linear import LinearBounds, PlaneSearch
from lipschitz.bounds.native.terms.relaxations import Relaxations
from lipschitz.norms import Measure

# Tensors of one column for every input, as large as the widest term's, that one chunk keeps alive.
# Measured on controllers of 64 to 256 neurons a layer: with this, chunks of boxes are between as
# fast as they get and a tenth slower. It costs memory or speed only.
_COPIES = 8
# Numbers of one such tensor in the first chunk where time is limited. A choice: below it a chunk
# takes about as long as a single box, some tens of milliseconds on one core.
_FIRST = 2 * 10**5
# Two passes. Measured on eight networks of 2 to 12 inputs: up to a fifth fewer boxes, in the same
# seconds or less; two passes for the entries as well take longer.
_TWO_PASSES = PlaneSearch(steps=0, corners=True)
# How much the width of the forms counts beside their slopes, see :meth:`BoxBounds.influence`.
# Measured on the same networks: with 0 up to a third more boxes, with 1 on one of them eight times
# as many.
_SHARE_OF_GAP = 0.1


@dataclass(frozen=True)
class BoxBounds:
    """What is known of the gradients over B boxes.

    Attributes:
        preacts: Pre-activation interval by activation node, [B, *shape].
        norm: The bounds of the norm, or of a functional, and of the entries.
        form: Affine forms around the gradients; None if they were not carried forward.
    """

    preacts: dict[int, Interval]
    norm: NormBounds
    form: Form | None = None

    def influence(self, share: Tensor) -> Tensor | None:
        """How much of the entries' variation is due to each input, [B, D]; None if unknown.

        The slopes of the forms say how much entries change along an input. What lies between the
        forms is not told apart; a part of it is shared out by the edges, so that nothing is
        forgotten where slopes say little.

        Args:
            share: Edges of the boxes, compared with those of the whole box, [B, D].
        """
        if self.form is None:
            return None
        middle, gap = self.form.middle.flatten(2), self.form.gap.flatten(2)
        between = gap.abs().sum((1, 2)) / share.sum(1).clamp(min=torch.finfo(gap.dtype).tiny)
        found = middle[:, 1:].abs().sum(2) + _SHARE_OF_GAP * between.unsqueeze(1) * share
        return found if bool(torch.isfinite(found).all()) else None


class CurvedBoxes:
    """Bounds gradients over boxes, each with a row of its own.

    Args:
        source: The terms of the gradients, with few inputs.
        measure: The norm, of each row.
        budget: Bytes for one chunk of boxes or rows.
    """

    def __init__(self, source: GradientTerms, measure: Measure, budget: int) -> None:
        self.source, self.measure, self.budget = source, measure, budget

    @property
    def _numbers(self) -> int:
        """Of the widest term's columns, of one box."""
        terms = self.source.terms.terms
        return (1 + terms[0].shape.numel()) * max(term.shape.numel() for term in terms)

    @property
    def at_first(self) -> int:
        """How many boxes can be bounded without knowing how long that takes."""
        return max(1, _FIRST // self._numbers)

    @property
    def at_once(self) -> int:
        """How many boxes make a chunk."""
        itemsize = self.source.graph.dtype.itemsize
        return max(1, self.budget // (_COPIES * self._numbers * itemsize))

    def __call__(
        self,
        rows: Tensor,
        lower: Tensor,
        upper: Tensor,
        clock: Clock,
        weights: Tensor | None = None,
    ) -> BoxBounds:
        """Bounds over all boxes.

        Args:
            rows: Output directions, [B, C].
            lower, upper: Boxes, [B, *input_shape].
            clock: When to stop; rows not reached leave the bounds of the forms.
            weights: If given, ``weights . J(x)^T row`` is bounded instead of the norm,
                [B, *input_shape].
        """
        source, gradient = self.source, self.source.gradient
        constants = {source.row: rows}
        intervals, forms = forward_forms(
            source.terms, lower, upper, constants, {}, kept=(gradient,)
        )
        form, shape = forms[gradient], lower.shape
        entries = Interval(*(end.expand(shape) for end in intervals.bounds[gradient]))
        linear = self._linear(intervals, constants, lower, upper)
        arguments = (_TWO_PASSES, clock)
        if weights is None:
            bound = norm_upper_bound(form, entries, self.measure)
            entries = self._narrowed(entries, intervals, rows, lower, upper, clock)
            bound = torch.fmin(bound, self.measure.upper_bound(*entries))
            if (
                self.measure.norm != "1" and shape[1:].numel() > 1
            ):  # else it is an entry's magnitude
                found = linear.norms(gradient, entries, self.measure, *arguments)
                bound = torch.fmin(bound, found)
        else:
            bound = linear.upper_bounds(gradient, weights.unsqueeze(1), *arguments)[:, 0]
        bounds = intervals.bounds
        norm = NormBounds(bound, entries, source.cotangents(bounds), {})
        return BoxBounds(source.preacts(bounds), norm, form)

    def _linear(
        self, intervals: TermIntervals, constants: dict[int, Tensor], lower: Tensor, upper: Tensor
    ) -> LinearBounds:
        relaxations = Relaxations(self.source.terms, intervals)
        return LinearBounds(relaxations, constants, lower, upper, self.budget)

    def _narrowed(
        self,
        entries: Interval,
        intervals: TermIntervals,
        rows: Tensor,
        lower: Tensor,
        upper: Tensor,
        clock: Clock,
    ) -> Interval:
        """Entries by rows of their own, where the norm has none or is not linear in them."""
        is_bent = torch.ones_like(rows[:, 0], dtype=torch.bool)
        if self.measure.norm == "inf" and entries.lower[0].numel() > 1:
            open_ = (entries.lower < 0) & (entries.upper > 0)
            is_bent = self.measure.counted(open_.flatten(1).to(rows)).any(1)
        boxes = is_bent.nonzero()[:, 0]
        if not len(boxes):
            return entries
        linear = self._linear(
            intervals.take(boxes), {self.source.row: rows[boxes]}, lower[boxes], upper[boxes]
        )
        known = Interval(*(end[boxes] for end in entries))
        found = linear.numbers(self.source.gradient, known, clock=clock)
        return Interval(
            *(end.index_copy(0, boxes, new) for end, new in zip(entries, found, strict=True))
        )
