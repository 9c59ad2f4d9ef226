"""Bounds of a whole problem, before any branching."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.pool_bounds import WindowFacts
from lipschitz.bounds.native.terms.linear import PlaneSearch
from lipschitz.network.derivative import Terms


class FunctionalBounds(Protocol):
    """What bounds linear functionals of the Jacobian besides its norm.

    Attributes:
        terms: Values of the network and its derivatives.
    """

    terms: Terms

    def upper_bounds(self, coefficients: Tensor, search: PlaneSearch | None = None) -> Tensor:
        """Upper bounds of ``coefficients . J(x)^T r``, [B, K, *input_shape] to [B, K]."""
        ...


@dataclass(frozen=True)
class RootBounds:
    """Bounds of a whole problem, before any branching.

    Attributes:
        class_upper_bounds: Upper bound per row of the problem, [R]; [1] of all rows together.
        preacts: Pre-activation interval by activation node, [1, *shape].
        rounding: Widening against rounding that these intervals contain, by activation node,
            [1, *shape].
        norm: The bounds of the Jacobian, B = R.
        windows: What is known of the windows of every maximum, B = 1.
        joint: What bounds further functionals of the Jacobian, in float64, where the network has
            products of two values; else None.
    """

    class_upper_bounds: Tensor
    preacts: dict[int, Interval]
    norm: NormBounds
    rounding: dict[int, Tensor] = field(default_factory=dict)
    windows: dict[int, WindowFacts] = field(default_factory=dict)
    joint: FunctionalBounds | None = None
