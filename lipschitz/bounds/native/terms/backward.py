"""Linear bounds backward through a network's derivatives and the network itself, to the input.

From rows of coefficients at any term, every product is replaced by a plane and every unary function
by a line, as the signs of its coefficients ask; what reaches the pre-activations through the slopes
goes on through the network. A lower bound is minus the upper bound of the negated rows.

Shapes: coefficients are [B, K, *shape] with B boxes and K rows each.
"""

from __future__ import annotations

from torch import Tensor

from lipschitz.bounds.native.terms.relaxations import Relaxations, Shares, margin, summed
from lipschitz.network.derivative import Term


def upper_bound(
    relaxations: Relaxations,
    start: int,
    coefficients: Tensor,
    constants: dict[int, Tensor],
    box: tuple[Tensor, Tensor],
    shares: Shares | None = None,
    record: dict[int, Tensor] | None = None,
) -> Tensor:
    """Upper bound of ``coefficients . value of a term`` over boxes, margin for rounding included.

    Differentiable in the shares.

    Args:
        relaxations: How nonlinear terms are replaced.
        start: The term.
        coefficients: [B, K, *shape of the term].
        constants: Values of the constant terms, [B, *shape].
        box: Centre and radius of the boxes, [B or 1, *input_shape].
        shares: Free weights of planes and slopes of lines, of every row; where missing, a weight
            of one half and the lines of least area.
        record: If given, receives the coefficients at every product and at the input, by term.

    Returns:
        [B, K].
    """
    terms, shares = relaxations.terms.terms, shares or {}
    is_fixed = not shares and record is None  # then weights are the same for every row
    pending: dict[int, Tensor] = {start: coefficients}
    constant = coefficients.new_zeros(coefficients.shape[:2])
    magnitude = constant

    def gained(value: Tensor, size: Tensor) -> None:
        nonlocal constant, magnitude
        constant, magnitude = constant + value, magnitude + size.detach()

    for index in range(start, 0, -1):
        rows = pending.pop(index, None)
        if rows is None:
            continue
        term, parents = terms[index], terms[index].parents
        contraction = relaxations.contractions.get(index)
        if contraction is not None and is_fixed:
            parents = contraction.sources
            *contributions, value, size = relaxations.contraction(index, rows)
            gained(value, size)
        elif term.is_constant:
            value = rows * constants[index].unsqueeze(1)
            gained(summed(value), summed(value.abs()))
            contributions = []
        elif term.is_product:
            if record is not None:
                record[index] = rows
            *contributions, value, size = relaxations.product(index, rows, shares)
            gained(value, size)
        elif term.function is not None:
            new, value, size = relaxations.unary(index, rows, shares)
            gained(value, size)
            contributions = [new]
        else:
            if term.affine.bias is not None:
                value = rows * term.affine.bias
                gained(summed(value), summed(value.abs()))
            contributions = _adjoint(term, rows)
        for parent, new in zip(parents, contributions, strict=True):
            pending[parent] = pending[parent] + new if parent in pending else new
    if 0 in pending:
        if record is not None:
            record[0] = pending[0]
        centre, radius = (t.unsqueeze(1) for t in box)
        at_centre, around = pending[0] * centre, pending[0].abs() * radius
        gained(summed(at_centre + around), summed(at_centre.abs() + around))
    return constant + margin(magnitude)


def _adjoint(term: Term, rows: Tensor) -> list[Tensor]:
    found = term.affine.adjoint(rows.flatten(0, 1))
    return [f.reshape(*rows.shape[:2], *f.shape[1:]) for f in found]
