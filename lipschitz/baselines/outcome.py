"""What a method returns that finds more than upper bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.lower_bound import GradientNorms
from lipschitz.problem import BOUND


@dataclass(frozen=True)
class Outcome:
    """Bounds of every row of a problem, and how they came about.

    Attributes:
        class_upper_bounds: Certified upper bound per row, [R]; infinity from a method that
            certifies none.
        found: True gradients that the method found, or None if it does not look for any.
        root_upper_bounds: What they were before any search, [R]; the same if None.
        status: ``bound``, ``timeout``, ``domain_limit`` or ``lower_bound_only``; whether the
            bounds meet is for the caller to see.
        domains: Subproblems bounded.
        leaves_checked: Activation regions checked by a linear program.
    """

    class_upper_bounds: Tensor
    found: GradientNorms | None = None
    root_upper_bounds: Tensor | None = None
    status: str = BOUND
    domains: int = 0
    leaves_checked: int = 0


def better(first: GradientNorms, second: GradientNorms) -> GradientNorms:
    """The larger norm of each row with its witness."""
    wins = second.norms > first.norms
    shape = (-1, *[1] * (first.witnesses.dim() - 1))
    return GradientNorms(
        torch.where(wins, second.norms, first.norms),
        torch.where(wins.reshape(shape), second.witnesses, first.witnesses),
    )
