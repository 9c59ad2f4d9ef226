"""Bounds of a whole problem, before any branching."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.interval import Interval


@dataclass(frozen=True)
class RootBounds:
    """Bounds of a whole problem, before any branching.

    Attributes:
        class_upper_bounds: Upper bound per row of the problem, [R]; [1] of all rows together.
        preacts: Pre-activation interval by activation node, [1, *shape].
        rounding: Widening against rounding that these intervals contain, by activation node,
            [1, *shape].
        norm: The bounds of the Jacobian, B = R.
    """

    class_upper_bounds: Tensor
    preacts: dict[int, Interval]
    norm: NormBounds
    rounding: dict[int, Tensor] = field(default_factory=dict)
