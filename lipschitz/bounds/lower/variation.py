"""Good points changed at random: what gets across the many small regions of few inputs.

An evolution strategy in the words of Beyer and Schwefel 2002: a parent is moved by normal numbers
of a scale drawn anew for each, in some of its inputs, or moves along the line through another one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.lower.elites import Elites
from lipschitz.bounds.lower.norms_at import inside
from lipschitz.problem import LocalProblem

# Inputs up to which random changes gain much. A choice.
FEW_INPUTS = 64
# Smallest scale of a change, as a share of the box's radius; the largest is 1. And the share of
# changes along the line through another point. Choices.
_SMALLEST, _ALONG = 1e-4, 0.4


def vary(
    problem: LocalProblem, elites: Elites, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points near good ones, [count, *input_shape], and their rows [count].

    Args:
        problem: The problem.
        elites: What to begin from, one at least.
        count: How many.
        generator: Of random numbers.
    """
    shape, like = problem.centre.shape, problem.centre
    single = (count, *[1] * len(shape))

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator).to(like)

    first, second = (elites.draw(count, generator) for _ in range(2))
    parent = elites.points[first]
    chosen = uniform(count, *shape) < uniform(*single)
    normal = torch.randn(count, *shape, generator=generator).to(like)
    moved = _SMALLEST ** uniform(*single) * (problem.upper - problem.lower) / 2 * normal
    along = (elites.points[second] - parent) * (2 * uniform(*single) - 0.5)
    change = torch.where(uniform(*single) < _ALONG, along, moved)
    return inside(problem, parent + torch.where(chosen, change, 0.0)), elites.rows[first]
