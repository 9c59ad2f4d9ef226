"""Matrix products of values, whose planes go backward as matrix products too.

Written out, a product of matrices repeats the entries of both factors, multiplies and sums: n^3
numbers for n^2. With both planes of every product in equal parts, the coefficient on one factor is
that of the product times the middle of the other factor's interval, whatever its sign. So a row of
coefficients goes back through all three steps by one contraction with each factor's middles, and
nothing of size n^3 is formed for it.

Shapes: coefficients are [B, K, *shape] with B boxes and K rows each; all shapes of a contraction
have the same number of dimensions, with size 1 where an entry is repeated or summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.network.affine.layout import Expand, Sum
from lipschitz.network.derivative import Adjoint, Step, Terms


@dataclass(frozen=True)
class Contraction:
    """A product of two terms with what repeats its factors and what sums it.

    Attributes:
        product: The product.
        sources: What its factors repeat, or the factors themselves.
        shape: Of the product.
        factor: Of the sum.
    """

    product: int
    sources: tuple[int, int]
    shape: torch.Size
    factor: float


def contractions_of(terms: Terms) -> dict[int, Contraction]:
    """By the term that sums, every contraction of a graph."""
    readers: list[list[int]] = [[] for _ in terms.terms]
    for index, term in enumerate(terms.terms):
        for parent in term.parents:
            readers[parent].append(index)
    found: dict[int, Contraction] = {}
    for index, term in enumerate(terms.terms):
        if not term.is_product or len(readers[index]) != 1:
            continue
        if isinstance(terms.terms[term.parents[0]].function, Step):
            continue  # its planes are chords, whose weights are not one half
        (total,) = readers[index]
        factor = _sums(terms, total)
        if factor is not None:
            sources = tuple(_source(terms, parent) for parent in term.parents)
            found[total] = Contraction(index, sources, term.shape, factor)
    return found


def _sums(terms: Terms, index: int) -> float | None:
    """The factor of a term that sums over dimensions and keeps them; None if it does not."""
    affine = terms.terms[index].affine
    if isinstance(affine, Sum):
        return affine.factor
    if isinstance(affine, Adjoint) and isinstance(affine.affine, Expand):
        return 1.0
    return None


def _source(terms: Terms, index: int) -> int:
    """What a term repeats, or itself."""
    affine = terms.terms[index].affine
    repeats = isinstance(affine, Expand) or (
        isinstance(affine, Adjoint) and isinstance(affine.affine, Sum) and affine.affine.factor == 1
    )
    return terms.terms[index].parents[0] if repeats else index


def contracted(first: Tensor, second: Tensor, shape: torch.Size, full: torch.Size) -> Tensor:
    """Products of two values, summed over all dimensions that a result does not have.

    Args:
        first: [B, K, *...] or [B, 1, *...].
        second: [B or 1, 1, *...].
        shape: Of the result, without the first two dimensions.
        full: Of the products.

    Returns:
        [B, K, *shape].
    """
    letters = [*range(2, 2 + len(full))]
    operands: list[object] = []
    seen: set[int] = set()
    for value in (first, second):
        kept = [d for d in range(value.dim()) if value.shape[d] > 1]
        operands += [value.reshape([value.shape[d] for d in kept]), kept]
        seen |= set(kept)
    asked = [0, 1, *(d for d in letters if shape[d - 2] > 1)]
    result = [d for d in asked if d in seen]
    found = torch.einsum(*operands, result)
    # Dimensions of neither value: the same product again, kept or summed.
    times = 1
    for d in letters:
        if d not in seen and d not in asked:
            times *= full[d - 2]
    if times != 1:
        found = found * times
    lead = [max(first.shape[d], second.shape[d]) for d in (0, 1)]
    sizes = [*lead, *shape]
    view = [size if d in seen else 1 for d, size in enumerate(sizes)]
    return found.reshape(view).expand(sizes)
