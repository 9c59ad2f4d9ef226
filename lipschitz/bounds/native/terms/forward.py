"""Affine forms forward through a network and its derivatives: D + 1 columns instead of N rows.

Every term lies between two affine functions of the input, a middle and a gap on both sides of it.
With few inputs that is many times cheaper a box than a backward pass from every neuron. The gap of
a sum is the sum of the gaps, so errors do not cancel as they do backward, and deep networks on wide
boxes are bounded less tightly; both are used, and the better counts.

Of a product ``v g`` the forms of both factors are known, so the quadratic part that no plane can
follow is bounded together: with ``v = v_0 + a.u``, ``g = g_0 + b.u``,

    (a.u) (b.u) = (((a + b).u)^2 - ((a - b).u)^2) / 4,

for ``u`` in [-1, 1]^D at least ``-|a - b|_1^2 / 4`` and at most ``|a + b|_1^2 / 4``; with both
scaled to the same length that is never more than the plane's ``|a|_1 |b|_1``, and half of it in
range where a and b are parallel (as zonotopes multiply: Laurel et al. 2023).

Shapes: B boxes, D inputs; columns [B, 1 + D, *shape], the constant first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval, intersect, narrowed, product_interval
from lipschitz.bounds.native.terms.intervals import TermIntervals, added_up, image
from lipschitz.network.derivative import Step, Term, Terms
from lipschitz.norms import Measure
from lipschitz.relaxation import LineBounds, slope_product_lines
from lipschitz.rounding import guard


class Form(NamedTuple):
    """``|value(x) - middle(x)| <= gap(x)`` on a box, whose points are u in [-1, 1]^D.

    Attributes:
        middle: Columns, [B, 1 + D, *shape].
        gap: Columns, or the constant alone where it does not depend on x, [B, 1 or 1 + D, *shape].
    """

    middle: Tensor
    gap: Tensor

    def size(self) -> Tensor:
        """Magnitude of all columns, [B, *shape]."""
        return self.middle.abs().sum(1) + self.gap.abs().sum(1)

    def widened(self, margin: Tensor) -> Form:
        """With a larger gap, margin [B, *shape]."""
        gap = self.gap.clone()
        gap[:, 0] += margin
        return Form(self.middle, gap)

    def interval(self) -> Interval:
        """The values it allows on the box, [B, *shape]; with a margin for rounding."""
        gap = _as_wide(self.gap, self.middle)
        above, below = self.middle + gap, self.middle - gap
        margin = guard(gap.dtype) * self.size()
        return Interval(
            below[:, 0] - below[:, 1:].abs().sum(1) - margin,
            above[:, 0] + above[:, 1:].abs().sum(1) + margin,
        )


def forward_forms(
    terms: Terms,
    lower: Tensor,
    upper: Tensor,
    constants: dict[int, Tensor],
    known: dict[int, Interval],
    kept: tuple[int, ...] = (),
) -> tuple[TermIntervals, dict[int, Form]]:
    """Intervals of every term by affine forms and interval arithmetic, whichever is narrower.

    Args:
        terms: The graph.
        lower, upper: Boxes, [B or 1, *input_shape].
        constants: Values of the constant terms, [B, *shape].
        known: Intervals that hold besides, by term.
        kept: Terms whose forms are asked for.

    Returns:
        The intervals, and the forms of the terms in ``kept``.
    """
    forms = {0: _input_form(lower, upper)}
    lines: dict[int, LineBounds] = {}
    bounds, rounding = [Interval(lower, upper)], [torch.zeros_like(lower)]
    last_use = {p: i for i, term in enumerate(terms.terms) for p in term.parents}
    for index, term in enumerate(terms.terms[1:], start=1):
        inputs = [bounds[p] for p in term.parents]
        found, margin = image(term, inputs, constants.get(index))
        if term.function is not None:
            lines[index] = term.function.lines(*inputs[0])
        forms[index] = form = _form(
            terms,
            index,
            [forms[p] for p in term.parents],
            inputs,
            lines.get(index),
            constants.get(index),
        )
        found = narrowed(term, _within(found, form), bounds)
        bounds.append(intersect(found, known[index]) if index in known else found)
        rounding.append(added_up(terms, term, found, margin, rounding))
        for done in {*term.parents, index}:
            if last_use.get(done, index) <= index and done not in kept:
                del forms[done]
    return TermIntervals(bounds, rounding, lines), {i: forms[i] for i in kept}


def _within(found: Interval, form: Form) -> Interval:
    """The part of an interval that a form allows; of one that overflowed, everything."""
    lower, upper = form.interval()
    return Interval(torch.fmax(found.lower, lower), torch.fmin(found.upper, upper))


def norm_upper_bound(form: Form, entries: Interval, measure: Measure) -> Tensor:
    """Upper bound of the norm of every row's gradient, from its form.

    By the chord of ``|J_i|`` or ``J_i^2`` the norm is below an affine function of the input (Shi et
    al. 2022, section 3.3).

    Args:
        form: Of the gradients, B rows.
        entries: Their intervals, [B, *input_shape].
        measure: The norm, of each row.

    Returns:
        [B], rounding guard included.
    """
    lower, upper = (end.flatten(1) for end in entries)
    simple = measure.upper_bound(lower, upper)
    if measure.norm == "1":
        return simple
    slope, intercept = (t.unsqueeze(1) for t in measure.chord(lower, upper))
    middle, gap = form.middle.flatten(2), _as_wide(form.gap, form.middle).flatten(2)
    columns = (slope * middle + slope.abs() * gap).sum(2)
    total = columns[:, 0] + columns[:, 1:].abs().sum(1) + intercept.sum((1, 2))
    size = (slope.abs() * (middle.abs() + gap.abs())).sum((1, 2)) + intercept.abs().sum((1, 2))
    total = total + guard(total.dtype) * size
    return torch.fmin(measure.close(total, lower, upper, size), simple)


def _input_form(lower: Tensor, upper: Tensor) -> Form:
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    count = centre[0].numel()
    unit = torch.eye(count, dtype=lower.dtype, device=lower.device).reshape(count, *lower.shape[1:])
    middle = torch.cat([centre.unsqueeze(1), unit * radius.unsqueeze(1)], dim=1)
    # The ends may be rounded away from centre +- radius.
    return Form(middle, guard(lower.dtype) * (centre.abs() + radius).unsqueeze(1))


def _form(
    terms: Terms,
    index: int,
    forms: list[Form],
    inputs: list[Interval],
    lines: LineBounds | None,
    constant: Tensor | None,
) -> Form:
    term = terms.terms[index]
    if constant is not None:
        columns = constant.new_zeros(len(constant), 1 + terms.terms[0].shape.numel(), *term.shape)
        columns[:, 0] = constant
        return Form(columns, torch.zeros_like(columns[:, :1]))
    if term.is_product:
        return _product(term, terms, *forms, *inputs)
    return _affine(term, forms) if lines is None else _between(forms[0], lines)


def _affine(term: Term, forms: list[Form]) -> Form:
    """Image by an affine map: of the middle itself, of the gap by its magnitudes."""
    batch = max(len(f.middle) for f in forms)
    wide = max(f.gap.shape[1] for f in forms)
    unit = guard(forms[0].middle.dtype)
    middles, gaps = [], []
    for form in forms:
        middle = form.middle.expand(batch, *form.middle.shape[1:])
        gap = form.widened(unit * form.size()).gap
        if gap.shape[1] < wide:
            gap = _as_wide(gap, form.middle)
        middles.append(middle.flatten(0, 1))
        gaps.append(gap.expand(batch, *gap.shape[1:]).flatten(0, 1))
    middle = term.affine.linear(*middles).unflatten(0, (batch, -1))
    gap = term.affine.magnitude().linear(*gaps).unflatten(0, (batch, -1))
    if term.affine.bias is not None:
        middle, gap = middle.clone(), gap.clone()
        middle[:, 0] += term.affine.bias
        gap[:, 0] += unit * term.affine.bias.abs()
    return Form(middle, gap)


def _between(form: Form, lines: LineBounds) -> Form:
    """Image by a function between two lines of its argument."""
    below, above = lines.lower_slope.unsqueeze(1), lines.upper_slope.unsqueeze(1)
    mean, half = (above + below) / 2, (above - below) / 2
    if not bool(half.any()):  # parallel lines leave the gap as narrow as it was
        middle, gap = mean * form.middle, mean.abs() * form.gap
    else:
        wide = _as_wide(form.gap, form.middle)
        middle = mean * form.middle + (above.abs() - below.abs()) / 2 * wide
        gap = half * form.middle + (above.abs() + below.abs()) / 2 * wide
    middle, gap = middle.clone(), gap.clone()
    middle[:, 0] += (lines.upper_intercept + lines.lower_intercept) / 2
    gap[:, 0] += (lines.upper_intercept - lines.lower_intercept) / 2
    steepest = torch.maximum(below.abs(), above.abs()).squeeze(1)
    size = steepest * form.size() + lines.lower_intercept.abs() + lines.upper_intercept.abs()
    return Form(middle, gap).widened(guard(middle.dtype) * size)


def _product(
    term: Term, terms: Terms, v: Form, g: Form, v_range: Interval, g_range: Interval
) -> Form:
    """The form of a product: by the chord in g alone, or by both factors' forms."""
    chord = _between(g, slope_product_lines(*torch.broadcast_tensors(*g_range, *v_range)))
    if isinstance(terms.terms[term.parents[0]].function, Step):
        return chord
    joint = _taylor(v, g, v_range, g_range)
    better = (chord.gap.abs().sum(1) < joint.gap.abs().sum(1)).unsqueeze(1)
    if not bool(better.any()):
        return joint
    gaps = (_as_wide(form.gap, form.middle) for form in (chord, joint))
    return Form(torch.where(better, chord.middle, joint.middle), torch.where(better, *gaps))


def _taylor(v: Form, g: Form, v_range: Interval, g_range: Interval) -> Form:
    """``v_0 g + g_0 v - v_0 g_0 + (v - v_0) (g - g_0)``, the last factor pair in an interval."""
    v_middle, g_middle = torch.broadcast_tensors(v.middle, g.middle)
    v_zero, g_zero = v_middle[:, :1], g_middle[:, :1]
    middle = v_zero * g_middle + g_zero * v_middle
    middle[:, :1] -= v_zero * g_zero
    if v.gap.shape[1] == g.gap.shape[1]:
        gap = v_zero.abs() * g.gap + g_zero.abs() * v.gap
    else:
        v_gap, g_gap = _as_wide(v.gap, v.middle), _as_wide(g.gap, g.middle)
        gap = v_zero.abs() * g_gap + g_zero.abs() * v_gap
    a, b = v_middle[:, 1:], g_middle[:, 1:]
    a_size, b_size = a.abs().sum(1), b.abs().sum(1)
    tiny = torch.finfo(a.dtype).tiny
    # Roots first: of a factor that is a number, the quotient overflows.
    scale = (b_size.clamp(min=tiny).sqrt() / a_size.clamp(min=tiny).sqrt()).unsqueeze(1)
    least = -(scale * a - b / scale).abs().sum(1).square() / 4
    most = (scale * a + b / scale).abs().sum(1).square() / 4
    v_error, g_error = (f.gap[:, 0] + f.gap[:, 1:].abs().sum(1) for f in (v, g))
    error = v_error * (b_size + g_error) + a_size * g_error
    # The ranges, if they are narrower, bound the same product.
    corners = product_interval(
        Interval(*(end - v_zero[:, 0] for end in v_range)),
        Interval(*(end - g_zero[:, 0] for end in g_range)),
    )
    least = torch.maximum(least - error, corners.lower)
    most = torch.minimum(most + error, corners.upper)
    middle[:, 0] += (most + least) / 2
    gap = gap.expand_as(middle[:, : gap.shape[1]]).clone()
    gap[:, 0] += (most - least) / 2
    size = v_middle.abs().sum(1) * g_middle.abs().sum(1) + v_error.abs() * g_error.abs()
    return Form(middle, gap).widened(guard(middle.dtype) * size)


def _as_wide(gap: Tensor, middle: Tensor) -> Tensor:
    """The gap with a column for every input."""
    if gap.shape[1] == middle.shape[1]:
        return gap
    wide = gap.new_zeros(len(gap), *middle.shape[1:])
    wide[:, :1] = gap
    return wide
