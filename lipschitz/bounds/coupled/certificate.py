"""Any multipliers made a proved bound of pre-activations, in float64.

Two things have to hold. What each neuron contributes is bounded by certified lines around its
activation (:mod:`lipschitz.bounds.coupled.elementwise`). And every p has to be large enough:

    diag(p) - W^T diag(lambda) W  is positive semidefinite
    if and only if all eigenvalues of  diag(lambda)^(1/2) W diag(p)^-1 W^T diag(lambda)^(1/2)
    are at most 1,

so p is multiplied by the largest eigenvalue t of that matrix, which is as large as the layer has
neurons with a square. An estimate of t is accepted if ``t I`` minus the matrix has a Cholesky
factorisation; otherwise eigenvalues are computed, with a margin for rounding, which is not proved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.coupled.descent import LayerMultipliers
from lipschitz.bounds.coupled.elementwise import Grid, Parts

# Steps of the power method and what is added to its estimate. Choices: only tightness, and how
# often eigenvalues are computed, depend on them.
_POWER_STEPS, _ABOVE = 20, 1.003
# Relative margins: for eigenvalues computed in float64, and for sums of the bound.
_EIGENVALUE_SLACK, _SUM_SLACK = 1e-9, 1e-10


def proved_bounds(
    layers: list[LayerMultipliers],
    matrices: list[Tensor],
    grids: list[Grid],
    parts: list[Parts],
    rows: Tensor,
) -> Tensor:
    """Upper bounds of ``c . zeta`` over the box, [R].

    Args:
        layers: Multipliers from the last layer to the first; their own matrices, which may be
            rounded, prove nothing.
        matrices: Of the same layers in units of the grids, float64, first layer first.
        grids: Of the same layers, first layer first; only their units count here.
        parts: Of the same layers, first layer first.
        rows: c W, in units of the last layer's values, float64 [R, N].
    """
    h, p = rows, torch.zeros_like(rows)
    total = torch.zeros_like(rows[:, 0])
    size = torch.zeros_like(total)
    behind = zip(layers, reversed(matrices), reversed(grids), reversed(parts), strict=True)
    for layer, matrix, grid, part in behind:
        slope, square = layer.slope.double(), layer.squares().double()
        found = part.upper_bounds(
            h / grid.value_unit,
            p / grid.value_unit**2,
            slope / grid.preact_unit,
            square / grid.preact_unit**2,
        )
        total, size = total + found, size + found.abs()
        p = _raised_majorant(layer, matrix)
        h = slope @ matrix
    ends = h.abs().sum(1) + p.sum(1)
    return total + ends + _SUM_SLACK * (size + ends)


def _raised_majorant(layer: LayerMultipliers, matrix: Tensor) -> Tensor:
    """A proved p for the lambda of a layer and its matrix [N, M] in float64, [R, M]."""
    matrix, square = matrix[layer.bent], layer.squares().double()[:, layer.bent]
    if not len(matrix):
        return torch.zeros_like(layer.weight.T, dtype=torch.float64)
    p = layer.majorant()[0].double()
    scaled = square.sqrt().unsqueeze(2) * matrix
    product = scaled @ (scaled / p.unsqueeze(1)).mT
    return p * _largest_eigenvalue((product + product.mT) / 2).unsqueeze(1)


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """No less than the largest eigenvalue of symmetric matrices [R, N, N]: [R]."""
    vector = matrix.sum(2, keepdim=True) + matrix.diagonal(dim1=1, dim2=2).unsqueeze(2)
    for _ in range(_POWER_STEPS):
        vector = vector / vector.norm(dim=1, keepdim=True).clamp(min=1e-300)
        vector = matrix @ vector
    bound = vector.norm(dim=1)[:, 0] * _ABOVE
    rest = -matrix
    rest.diagonal(dim1=1, dim2=2).add_(bound.unsqueeze(1))
    failed = (torch.linalg.cholesky_ex(rest)[1] != 0).nonzero()[:, 0]
    if len(failed):
        most = torch.linalg.eigvalsh(matrix[failed])[:, -1]
        margin = _EIGENVALUE_SLACK * matrix[failed].diagonal(dim1=1, dim2=2).sum(1)
        bound[failed] = most + margin
    return bound * (1 + _EIGENVALUE_SLACK)
