"""Operator norms of a Jacobian: what is measured, and what bounds it from intervals of entries.

A network's change is measured in the same norm at its input and its output: Linf, L1 or L2. For
one output (or margin) the operator norm is the *dual* norm of its gradient: the l1 norm for Linf,
the largest entry for L1, the l2 norm for L2. For several outputs together it is that of the
matrix: the largest row sum of magnitudes, the largest column sum, the largest singular value. All
of these grow with the magnitudes of the entries, so the largest magnitudes give an upper bound.

Trusted: singular values as LAPACK computes them in float64, raised by a margin for rounding.

Shapes: R rows, D inputs; leading dimensions are batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.relaxation import absolute_value_chord
from lipschitz.rounding import guard, raise_upper_bound
from lipschitz.words import Asked

# Largest matrix, in numbers, whose singular values are computed. A choice: larger ones go through
# the eigenvalues of their product with themselves, which is faster and has a larger margin.
_LARGEST_SVD = 2**14


@dataclass(frozen=True)
class Norm:
    """One norm of inputs and outputs.

    Attributes:
        of_rows: Dual norm of gradients, [..., D] -> [...].
        of_matrices: Operator norm of Jacobians, [..., R, D] -> [...].
    """

    of_rows: Callable[[Tensor], Tensor]
    of_matrices: Callable[[Tensor], Tensor]


def _finite(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Which matrices are finite, [...], and these with 0 for the others, on which LAPACK raises."""
    finite = matrices.isfinite().all(-1).all(-1)
    return finite, torch.where(finite[..., None, None], matrices, 0.0)


def _singular_value(matrices: Tensor) -> Tensor:
    """The largest, [..., R, D] -> [...]; not a number of a matrix with what overflowed."""
    finite, matrices = _finite(matrices)
    return torch.where(finite, torch.linalg.matrix_norm(matrices, ord=2), torch.nan)


NORMS: dict[str, Norm] = {
    "inf": Norm(lambda g: g.abs().sum(-1), lambda j: j.abs().sum(-1).amax(-1)),
    "1": Norm(lambda g: g.abs().amax(-1), lambda j: j.abs().sum(-2).amax(-1)),
    "2": Norm(lambda g: torch.linalg.vector_norm(g, dim=-1), _singular_value),
}


def spectral_norm_bound(matrices: Tensor) -> Tensor:
    """Upper bound of the largest singular value of matrices [..., R, D]: [...], in float64.

    That of a large matrix is the square root of the largest eigenvalue of its smaller product with
    itself, whose rounding error is at most R D units in the last place of its trace.
    """
    matrices = matrices.double()
    long, short = max(matrices.shape[-2:]), min(matrices.shape[-2:])
    if long * short <= _LARGEST_SVD:
        return _singular_value(matrices) * (1 + guard(torch.float64) * long)
    finite, matrices = _finite(matrices)
    size = matrices.abs().amax((-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
    matrices = matrices / size[..., None, None]
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mT
    largest = torch.linalg.eigvalsh(matrices @ matrices.mT)[..., -1].clamp(min=0).sqrt()
    found = largest * size * (1 + guard(torch.float64) * long * short)
    return torch.where(finite, found, torch.nan)


def upper_magnitude(lower: Tensor, upper: Tensor) -> Tensor:
    """Largest magnitude in intervals, same shape."""
    return torch.maximum(lower.abs(), upper.abs())


def _interval_operator_norm(norm: str, lower: Tensor, upper: Tensor) -> Tensor:
    """Upper bound of the operator norm of every matrix [R, D] in an interval: a number."""
    largest = upper_magnitude(lower, upper)
    if norm != "2":
        return raise_upper_bound(NORMS[norm].of_matrices(largest))
    lower, upper = lower.double(), upper.double()
    centre = (lower + upper) / 2
    # Rounding may leave ends of the interval outside centre +- radius, by far less than the margin
    # that is added to the bound.
    radius = torch.maximum(upper - centre, centre - lower)
    around = spectral_norm_bound(centre) + spectral_norm_bound(radius)
    bound = torch.minimum(spectral_norm_bound(largest), around)
    return raise_upper_bound(bound.to(largest))


@dataclass(frozen=True)
class Measure:
    """What is measured of a Jacobian ``J`` [R, D] whose rows are the output directions.

    Attributes:
        norm: A key of :data:`NORMS`.
        joint: The operator norm of all rows together; else the dual norm of every row.
        free: 1 for the inputs that count and 0 for the others, flat [D]; None if all count.
    """

    norm: str = "inf"
    joint: bool = False
    free: Tensor | None = None

    @property
    def asked(self) -> Asked:
        """The same without the network's numbers."""
        return Asked(self.norm, self.joint, self.free is not None)

    @property
    def each(self) -> Measure:
        """The same of every row by itself."""
        return replace(self, joint=False)

    def in_norm(self, norm: str) -> Measure:
        """The same in another norm."""
        return replace(self, norm=norm)

    def counted(self, gradients: Tensor) -> Tensor:
        """Gradients [..., D] with 0 for inputs that do not count."""
        return gradients if self.free is None else gradients * self.free.to(gradients)

    def of_rows(self, gradients: Tensor) -> Tensor:
        """Dual norm of gradients [..., D]: [...]."""
        return NORMS[self.norm].of_rows(self.counted(gradients))

    def __call__(self, jacobians: Tensor) -> Tensor:
        """The norms of Jacobians [B, R, D]: [B, R], or [B, 1] of all rows together."""
        if self.joint:
            return NORMS[self.norm].of_matrices(self.counted(jacobians)).unsqueeze(-1)
        return self.of_rows(jacobians)

    def upper_bound(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Upper bound from intervals of the entries, rounding guard included.

        Args:
            lower, upper: [R, *input_shape].

        Returns:
            [R], or [1] of all rows together.
        """
        lower, upper = self.counted(lower.flatten(1)), self.counted(upper.flatten(1))
        if self.joint:
            return _interval_operator_norm(self.norm, lower, upper).reshape(1)
        return raise_upper_bound(NORMS[self.norm].of_rows(upper_magnitude(lower, upper)))

    def at_least(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Smallest norm that intervals of the entries allow, or less.

        Args:
            lower, upper: [B, R, D].

        Returns:
            [B, R], or [B, 1] of all rows together.
        """
        if self.joint and self.norm == "2":
            lower, upper = self.counted(lower), self.counted(upper)
            spread = torch.linalg.matrix_norm((upper - lower) / 2)
            return (_singular_value((lower + upper) / 2) - spread).clamp(min=0).unsqueeze(-1)
        return self(torch.maximum(lower, -upper).clamp(min=0))

    @property
    def is_curved(self) -> bool:
        """Whether the norm of a row bends within an interval of one sign."""
        return self.norm == "2"

    def chord(
        self, lower: Tensor, upper: Tensor, sign: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Line above what an entry adds to a row's norm (Linf) or to its square (L2).

        Args:
            lower, upper: Intervals of the entries, [B, D].
            sign: -1 or 1 where the entry is counted only with that sign, as ``-J_i`` or ``J_i``
                for Linf, as the square of its part of that sign for L2; else 0, [B, D].

        Returns:
            Slope and intercept, [B, D].
        """
        slope, intercept = _CHORDS[self.norm](lower, upper, sign)
        return self.counted(slope), self.counted(intercept)

    def close(
        self, total: Tensor, lower: Tensor, upper: Tensor, extra: Tensor | float = 0.0
    ) -> Tensor:
        """The bound of a row's norm that the summed lines of :meth:`chord` amount to.

        Args:
            total: Bound of ``sum of slope * J_i + intercept``, [B], or any of the norm's square.
            lower, upper: The intervals of the entries, [B, D].
            extra: Magnitude of terms in ``total`` that do not come from these, [B].

        Returns:
            [B], rounding guard included, never above what the intervals alone give for L2.
        """
        if self.norm == "inf":
            return raise_upper_bound(total.clamp(min=0))  # fixed signs may make it negative
        # Large terms may cancel in the sum, so the margin is measured by their magnitude.
        simple = self.upper_bound(lower, upper)
        total = total.clamp(min=0) + 4 * guard(total.dtype) * (simple.square() + extra)
        return torch.minimum(raise_upper_bound(total.sqrt()), simple)


def _absolute_chord(lower: Tensor, upper: Tensor, sign: Tensor | None) -> tuple[Tensor, Tensor]:
    slope, intercept = absolute_value_chord(lower, upper)
    if sign is None:
        return slope, intercept
    fixed = sign != 0
    return torch.where(fixed, sign, slope), intercept.masked_fill(fixed, 0)


def _square_chord(lower: Tensor, upper: Tensor, sign: Tensor | None) -> tuple[Tensor, Tensor]:
    """Chord of the square; with a sign, of the square of that part of the entry.

    ``g^2`` is the larger of ``max(g, 0)^2`` and ``max(-g, 0)^2``, so counting an entry once with
    either covers it, whatever its sign.
    """
    ends = [(lower, upper)]
    if sign is not None:
        ends += [(lower.clamp(min=0), upper.clamp(min=0)), (lower.clamp(max=0), upper.clamp(max=0))]
    tiny = torch.finfo(lower.dtype).tiny
    run = (upper - lower).clamp(min=tiny)
    slopes, intercepts = [], []
    for low, high in ends:
        # (high^2 - low^2) / run; the ratio is 1 unless a part was cut off.
        ratio = torch.where(upper > lower, (high - low) / run, (low == lower).to(low)).clamp(0, 1)
        slope = (low + high) * ratio
        slopes.append(slope)
        # The largest gap at the two ends is right for any slope, the parts being convex.
        intercepts.append(torch.maximum(low * low - slope * lower, high * high - slope * upper))
    if sign is None:
        return slopes[0], intercepts[0]
    which = (sign == 0, sign > 0)
    slope = torch.where(which[0], slopes[0], torch.where(which[1], slopes[1], slopes[2]))
    intercept = torch.where(
        which[0], intercepts[0], torch.where(which[1], intercepts[1], intercepts[2])
    )
    return slope, intercept


_CHORDS = {"inf": _absolute_chord, "2": _square_chord}
