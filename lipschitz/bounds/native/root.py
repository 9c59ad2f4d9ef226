"""Bounds of a whole problem, before any branching."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from lipschitz.bounds.native.backward.norm_bounds import NormBounds
from lipschitz.bounds.native.interval import Interval

if TYPE_CHECKING:
    from lipschitz.bounds.native.joint import JointBound


@dataclass(frozen=True)
class RootBounds:
    """Bounds of a whole problem, before any branching.

    Attributes:
        class_upper_bounds: Upper bound per row of the problem, [R]; [1] of all rows together.
        preacts: Pre-activation interval by activation node, [1, *shape].
        rounding: Widening against rounding that these intervals contain, by activation node,
            [1, *shape].
        norm: The bounds of the Jacobian, B = R.
        joint: What bounds further functionals of the Jacobian, in float64, where the network has
            products of two values; else None.
    """

    class_upper_bounds: Tensor
    preacts: dict[int, Interval]
    norm: NormBounds
    rounding: dict[int, Tensor] = field(default_factory=dict)
    joint: JointBound | None = None
