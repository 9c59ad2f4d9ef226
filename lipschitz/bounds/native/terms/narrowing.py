"""Intervals of all values and derivatives, narrowed by rows backward from what needs them.

Interval arithmetic through a network with products multiplies its excess at every one of them, and
through its Jacobian once more. So what a nonlinear term reads is bounded by linear bounds to the
input before the term is (Zhang et al. 2018 do it for pre-activations): values first, then
cotangents, each within the intervals of all before it.

Rows cost most, so they are asked for where numbers are fewest: what is only repeated or put in
another order for a product is bounded before that. Numbers that no bound depends on get none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.interval import Interval, check_domains, intersect, narrowed
from lipschitz.bounds.native.plan import Exactness
from lipschitz.bounds.native.terms.intervals import TermIntervals, added_up, image
from lipschitz.bounds.native.terms.linear import ONE_PASS, LinearBounds, PlaneSearch
from lipschitz.bounds.native.terms.relaxations import Relaxations
from lipschitz.network.affine import AffineMap, Combination, Reshape, Scale
from lipschitz.network.affine.layout import Expand, Permute, Sum
from lipschitz.network.derivative import Adjoint, Step, Term, Terms

STAGE = "linear bounds of values and cotangents"
# Maps each of whose numbers is one of their input's, times a factor; and those whose adjoint is.
_COPIES = (Reshape, Permute, Scale, Expand)
_COPIES_BACK = (Reshape, Permute, Scale, Sum)


class Narrowing:
    """What is to be narrowed in one graph.

    Args:
        terms: The graph.

    Attributes:
        value_rows: Rows backward from values of the network, of one box.
        cotangent_rows: The same from its derivatives.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms, self.readers = terms, _readers(terms)
        sizes = {index: 2 * terms.terms[index].shape.numel() for index in self.readers}
        self.value_rows = sum(n for i, n in sizes.items() if i <= terms.output)
        self.cotangent_rows = sum(sizes.values()) - self.value_rows
        self._pace = 0.0  # most seconds for one number of work so far

    def intervals(
        self,
        lower: Tensor,
        upper: Tensor,
        constants: dict[int, Tensor],
        known: dict[int, Interval],
        budget: int,
        search: PlaneSearch = ONE_PASS,
        clock: Clock = UNLIMITED,
    ) -> TermIntervals:
        """Intervals of every term over boxes.

        Args:
            lower, upper: Boxes, [B or 1, *input_shape].
            constants: Values of the constant terms, [B, *shape].
            known: Intervals that hold besides, by term.
            budget: Bytes for rows.
            search: How the weights and slopes of rows are optimised.
            clock: When to stop; what was not reached is as loose as interval arithmetic.

        Raises:
            InputError: A function's argument may reach where the function is not defined.
        """
        terms = self.terms
        found = TermIntervals([Interval(lower, upper)], [torch.zeros_like(lower)])
        linear = LinearBounds(Relaxations(terms, found), constants, lower, upper, budget)
        for index, term in enumerate(terms.terms[1:], start=1):
            inputs = [found.bounds[p] for p in term.parents]
            if index <= terms.output and term.function is not None:
                check_domains(terms.graph, {index: inputs[0]})
            bounds, margin = image(term, inputs, constants.get(index))
            found.rounding.append(added_up(terms, term, bounds, margin, found.rounding))
            bounds = narrowed(term, bounds, found.bounds)
            bounds = intersect(bounds, known[index]) if index in known else bounds
            found.bounds.append(bounds)
            if index not in self.readers:
                continue
            work = index * bounds.lower.numel()  # of a row the length of its way back
            if not clock.allows(self._pace * work):
                clock.miss(STAGE)
                continue
            mask, begin = _needed(terms, index, self.readers[index], found.bounds), clock.now()
            found.bounds[index] = linear.numbers(index, bounds, search, clock, STAGE, mask)
            self._pace = max(self._pace, (clock.now() - begin) / work)
        return found


def _readers(terms: Terms) -> dict[int, list[tuple[int, list[int]]]]:
    """Terms to be narrowed, each with the nonlinear terms that read it, and the copies between.

    Left out are those whose intervals are exact: images of intervals by affine maps of independent
    numbers, and by functions. A slope that jumps reads what its activation reads.
    """
    exactness = _exactness(terms)
    found: dict[int, list[tuple[int, list[int]]]] = {}
    for reader, term in enumerate(terms.terms):
        if not term.is_product and (term.function is None or isinstance(term.function, Step)):
            continue
        for parent in term.parents:
            copies, source = [], parent
            while _copies(terms.terms[source]) and _is_smaller(terms, source):
                copies.append(source)
                (source,) = terms.terms[source].parents
            is_image = terms.terms[source].function is not None
            if exactness[source] is Exactness.LOOSE and not is_image:
                found.setdefault(source, []).append((reader, copies))
    return found


def _is_smaller(terms: Terms, index: int) -> bool:
    """Whether what a term is made of has no more numbers than the term, and some dimension."""
    term = terms.terms[index]
    shape = terms.terms[term.parents[0]].shape
    return len(shape) > 0 and shape.numel() <= term.shape.numel()


def _copies(term: Term) -> bool:
    if term.affine is None or len(term.parents) != 1:
        return False
    affine = term.affine
    if isinstance(affine, Adjoint):
        return isinstance(affine.affine, _COPIES_BACK)
    return isinstance(affine, _COPIES)


def _exactness(terms: Terms) -> list[Exactness]:
    """What interval arithmetic makes of every term, as far as affine maps alone decide it."""
    found = [Exactness.INDEPENDENT]
    for term in terms.terms[1:]:
        inputs = [found[p] for p in term.parents]
        if all(e is Exactness.CONSTANT for e in inputs):
            found.append(Exactness.CONSTANT)
        elif term.affine is None:
            found.append(Exactness.LOOSE)
        else:
            total = Exactness.CONSTANT
            for exactness in inputs:
                total = total.plus(exactness if _keeps(term.affine) else exactness.mixed())
            found.append(total)
    return found


def _keeps(affine: AffineMap) -> bool:
    """Whether a map has one term per number of each input, so that exact intervals stay exact."""
    if isinstance(affine, Adjoint):
        affine = affine.affine
    return isinstance(affine, (Reshape, Scale, Combination))


def _needed(
    terms: Terms,
    source: int,
    readers: list[tuple[int, list[int]]],
    bounds: list[Interval],
) -> Tensor:
    """Which numbers of a term some reader's relaxation depends on, [B or 1, *shape]."""
    needed = torch.zeros_like(bounds[source].lower, dtype=torch.bool)
    for reader, copies in readers:
        term = terms.terms[reader]
        if term.is_product:
            parent = copies[0] if copies else source
            mask = _other_varies(term, parent, bounds)
        else:
            interval = bounds[source]
            for copy in reversed(copies):
                interval = Interval(*terms.terms[copy].affine.interval(interval))
            mask = term.function.is_open(*interval) | term.function.is_undefined(*interval)
        if mask is None:
            return torch.ones_like(needed)
        for copy in copies:
            weights = mask.to(bounds[source].lower)
            mask = terms.terms[copy].affine.magnitude().adjoint(weights)[0] > 0
        needed = needed | mask
    return needed


def _other_varies(term: Term, parent: int, bounds: list[Interval]) -> Tensor | None:
    """Where the other factor of a product is no point; None if it is not known yet.

    The product of a number and a value is linear in the value, whatever interval that has.
    """
    first, second = term.parents
    other = second if parent == first else first
    if other >= len(bounds):
        return None
    return bounds[other].lower < bounds[other].upper
