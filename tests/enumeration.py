"""Exact local Lipschitz constants of tiny MLPs, by trying every activation pattern.

Independent of the tool: numpy and one linear program per pattern, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog
from torch import nn


def _region_has_interior(rows: np.ndarray, offsets: np.ndarray, lower, upper) -> bool:
    """Whether ``rows x + offsets > 0`` somewhere in the box, by the largest slack.

    Most regions are decided without a linear program: by a row that is positive nowhere in the
    box, or by one of some random points.
    """
    lower, upper = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    middle, radius = (lower + upper) / 2, (upper - lower) / 2
    if (rows @ middle + np.abs(rows) @ radius + offsets <= 0).any():
        return False
    fractions = np.random.default_rng(0).uniform(-1, 1, size=(1000, len(lower)))
    slack = (middle + radius * fractions) @ rows.T + offsets
    if (slack > 1e-6 * np.linalg.norm(rows, axis=1)).all(1).any():
        return True
    norms = np.linalg.norm(rows, axis=1)
    constant = norms < 1e-12
    if (offsets[constant] <= 0).any():
        return False
    rows, offsets, norms = rows[~constant], offsets[~constant], norms[~constant]
    inputs = len(lower)
    found = linprog(
        [0.0] * inputs + [-1.0],
        A_ub=np.hstack([-rows, norms[:, None]]),
        b_ub=offsets,
        bounds=[*zip(lower, upper, strict=True), (None, 1.0)],
    )
    assert found.status == 0
    return -found.fun > 1e-9


def exact_constants(
    model: nn.Module,
    lower: np.ndarray,
    upper: np.ndarray,
    measure: Callable[[np.ndarray], np.ndarray] = lambda jacobian: np.abs(jacobian).sum(1),
) -> np.ndarray:
    """Largest l1 norm of every output's gradient over the box, [C].

    Args:
        model: Flatten, then Linear layers with ReLU or LeakyReLU between.
        lower, upper: The box, flat.
        measure: What is measured of a Jacobian [C, D] instead, [C].
    """
    linears = [m for m in model if isinstance(m, nn.Linear)]
    slopes = [
        getattr(m, "negative_slope", 0.0) for m in model if isinstance(m, (nn.ReLU, nn.LeakyReLU))
    ]
    weights = [m.weight.detach().double().numpy() for m in linears]
    biases = [
        np.zeros(len(w)) if m.bias is None else m.bias.detach().double().numpy()
        for w, m in zip(weights, linears, strict=True)
    ]
    best = np.zeros(len(weights[-1]))
    inputs = len(lower)

    def descend(layer: int, matrix: np.ndarray, offset: np.ndarray, rows, offsets) -> None:
        nonlocal best
        matrix, offset = weights[layer] @ matrix, weights[layer] @ offset + biases[layer]
        if layer == len(weights) - 1:
            best = np.maximum(best, measure(matrix))
            return
        patterns = [((), rows, offsets)]
        for row, constant in zip(matrix, offset, strict=True):  # what is empty stays so
            longer = (
                (
                    (*pattern, active),
                    np.vstack([above, sign * row]),
                    np.append(beside, sign * constant),
                )
                for pattern, above, beside in patterns
                for active, sign in ((0, -1.0), (1, 1.0))
            )
            patterns = [p for p in longer if _region_has_interior(p[1], p[2], lower, upper)]
        for pattern, above, beside in patterns:
            slope = np.where(np.array(pattern) == 1, 1.0, slopes[layer])
            descend(layer + 1, slope[:, None] * matrix, slope * offset, above, beside)

    descend(0, np.eye(inputs), np.zeros(inputs), np.zeros((0, inputs)), np.zeros(0))
    return best
