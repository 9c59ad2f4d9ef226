"""Is a leaf's activation region empty? One linear program, and a witness if it is not.

On a leaf the bound has no gap left: wherever the leaf's signs hold, the gradient's norm is the
bound. What is open is whether they hold anywhere. The program asks for the point of the box with
the largest slack in all sign constraints.

Trusted and not trusted: "empty" is believed only if the solver's own multipliers prove it by
:func:`lipschitz.bounds.feasibility.batched.farkas` in float64; a point is believed only if the
network's true gradient there has the leaf's norm. Everything else, time-outs and degenerate regions
included, is "undecided" and leaves the leaf's upper bound in force.

Shapes: K constraints, D inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from lipschitz.bounds.feasibility.batched import farkas


@dataclass(frozen=True)
class LeafVerdict:
    """Outcome of the check.

    Attributes:
        empty: Proved to contain no input.
        point: The point of largest slack in [-1, 1]^D, [D]; None if there is none or the solver
            failed.
    """

    empty: bool
    point: Tensor | None


def check_leaf(matrix: Tensor, constant: Tensor, seconds: float = math.inf) -> LeafVerdict:
    """Check whether ``matrix x + constant >= 0`` has a solution in [-1, 1]^D.

    Args:
        matrix: Constraint rows, [K, D].
        constant: [K].
        seconds: Time for the solver; a check that it ends is no verdict.
    """
    matrix, constant = matrix.double().cpu(), constant.double().cpu()
    used = (matrix != 0).any(1) | (constant < 0)
    matrix, constant = matrix[used], constant[used]
    inputs = matrix.shape[1]
    if not bool(torch.isfinite(matrix).all() and torch.isfinite(constant).all()):
        return LeafVerdict(False, None)
    if not len(matrix):
        return LeafVerdict(False, torch.zeros(inputs, dtype=torch.float64))
    objective = np.zeros(inputs + 1)
    objective[-1] = -1
    solution = linprog(
        objective,
        A_ub=np.hstack([-matrix.numpy(), np.ones((len(matrix), 1))]),
        b_ub=constant.numpy(),
        bounds=[(-1, 1)] * inputs + [(None, 1)],
        method="highs",
        options={"time_limit": seconds} if math.isfinite(seconds) else {},
    )
    if solution.status != 0:
        return LeafVerdict(False, None)
    multipliers = torch.from_numpy(np.maximum(-solution.ineqlin.marginals, 0))
    empty = bool(farkas(matrix[None], constant[None], multipliers[None])[0])
    point = torch.from_numpy(solution.x[:inputs].copy()).clamp(-1, 1)
    return LeafVerdict(empty, None if empty else point)
