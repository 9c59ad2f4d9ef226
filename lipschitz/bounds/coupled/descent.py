"""Good multipliers for the bounds of pre-activations, by descent in closed form.

For a row c of the last matrix the dual bound is, going back through the layers with ``h = c W`` and
``p = 0`` first,

    sum over layers and neurons of max [h eta + p eta^2 - g zeta - lambda zeta^2]
        + |h_0|_1 + |p_0|_1

with new ``h = g W`` and any new p for which ``diag(p) - W^T diag(lambda) W`` is positive
semidefinite; the last two terms are those of the box. It is convex. A step moves g and lambda along
the gradient (Adam, Kingma and Ba 2015). The cheapest p for given lambda is itself a semidefinite
program, the dual of

    max  sum_j lambda_j |w_j V|^2    over V whose i-th row has the norm omega_i,

where ``omega_i^2`` is what a unit of ``p_i`` costs: 1 at the box, else eta^2 where the maximum over
the neuron's interval is attained. V goes one round of its fixed point, ``V_i`` along
``(W^T diag(lambda) W V)_i``, with every step (Wang, Chang and Kolter 2017, the mixing method), and
the length of that vector over omega is p. Where V is not yet at its best p is too small;
:mod:`lipschitz.bounds.coupled.certificate` makes up for that.

Shapes: R rows, N neurons of a layer, M values before it, K columns of V.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipschitz.bounds.coupled.elementwise import Grid

# Columns of V. A choice: only tightness depends on it.
RANK = 4
# First steps of g and of log lambda, in units in which values and bounds are about 1, and how they
# shrink over the second half. Measured on MLPs of 3 to 7 layers.
_PACE_OF_SLOPES, _PACE_OF_SQUARES, _LAST_SHARE = 0.08, 0.15, 0.08
_MOMENTUM, _SQUARES = 0.8, 0.95
# Logarithm of the first lambda's share of the bend, and of the smallest lambda.
_FIRST, _LEAST = 0.1, -18.0
# Least unit of a neuron's g, as a share of the layer's mean.
_LEAST_UNIT = 1e-4
# Weight of the latest maximum in the moving average of omega^2.
_LATEST = 0.1


class _Adam:
    def __init__(self, parameter: Tensor, pace: float) -> None:
        self.parameter, self.pace, self.steps = parameter, pace, 0
        self.first, self.second = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def descend(self, gradient: Tensor) -> None:
        self.steps += 1
        self.first.lerp_(gradient, 1 - _MOMENTUM)
        self.second.lerp_(gradient.square(), 1 - _SQUARES)
        mean = self.first / (1 - _MOMENTUM**self.steps)
        size = (self.second / (1 - _SQUARES**self.steps)).sqrt().clamp(min=1e-12)
        self.parameter.addcdiv_(mean, size, value=-self.pace)


@dataclass
class LayerMultipliers:
    """What a layer is passed on with, in the units of its grid.

    Attributes:
        matrix: [N, M], from units of the values before to units of the pre-activation.
        bent: Neurons that have a square, [N'] indices.
        slope_unit: What g is measured in, [N]: its first size on average over the rows.
        slope_share: g in that unit, [R, N].
        log_square: Logarithms of lambda, [R, N'].
        directions: V, [M, R K].
        weight: omega, [M, R].
    """

    matrix: Tensor
    bent: Tensor
    slope_unit: Tensor
    slope_share: Tensor
    log_square: Tensor
    directions: Tensor
    weight: Tensor
    bent_matrix: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.bent_matrix = self.matrix[self.bent]

    @property
    def slope(self) -> Tensor:
        """g, [R, N]."""
        return self.slope_share * self.slope_unit

    def squares(self) -> Tensor:
        """Lambda, [R, N]."""
        return torch.zeros_like(self.slope_share).index_copy_(1, self.bent, self.log_square.exp())

    def majorant(self) -> tuple[Tensor, Tensor]:
        """Round of the fixed point: p, [R, M], and what a unit of every lambda costs, [R, N']."""
        rows = len(self.slope_share)
        along = (self.bent_matrix @ self.directions).unflatten(1, (rows, RANK))
        cost = along.square().sum(2).T
        weighted = (self.log_square.exp().T.unsqueeze(2) * along).flatten(1)
        back = (self.bent_matrix.T @ weighted).unflatten(1, (rows, RANK))
        length = back.norm(dim=2).clamp(min=1e-12)
        self.directions = (back * (self.weight / length).unsqueeze(2)).flatten(1)
        return (length / self.weight).T, cost


class Descent:
    """Multipliers of R rows, from the last layer before the rows to the first.

    Args:
        grids: Of all layers before the rows, in order.
        matrices: Of the same layers, in units of the grids, [N, M].
        rows: c W, the rows in units of the last layer's values, [R, N].
        generator: For the first V.
    """

    def __init__(
        self, grids: list[Grid], matrices: list[Tensor], rows: Tensor, generator: torch.Generator
    ) -> None:
        self.grids, self.rows = grids, rows
        self.layers: list[LayerMultipliers] = []
        h = rows
        for grid, matrix in zip(reversed(grids), reversed(matrices), strict=True):
            bent = grid.is_bent.nonzero()[:, 0]
            first = h * _chord(grid)
            unit = first.abs().mean(0)
            unit = unit + _LEAST_UNIT * unit.mean()
            size = (len(matrix[0]), len(rows) * RANK)
            noise = torch.randn(size, generator=generator, dtype=torch.float32).to(rows)
            self.layers.append(
                LayerMultipliers(
                    matrix,
                    bent,
                    unit,
                    first / unit,
                    (_FIRST * h.abs()[:, bent]).clamp(min=1e-6).log(),
                    noise * size[0] ** -0.5,
                    torch.ones_like(h[:, :1]).T.expand(size[0], -1).clone(),
                )
            )
            h = first @ matrix
        self.adams = [
            (_Adam(layer.slope_share, _PACE_OF_SLOPES), _Adam(layer.log_square, _PACE_OF_SQUARES))
            for layer in self.layers
        ]

    def go_on(self, steps: int) -> None:
        """So many steps."""
        shrink = _LAST_SHARE ** (2 / max(steps, 1))
        for step in range(steps):
            gradients = self._gradients()
            for layer, pair, (slope, square) in zip(
                self.layers, self.adams, gradients, strict=True
            ):
                pair[0].descend(slope * layer.slope_unit)
                pair[1].descend(square)
                layer.log_square.clamp_(min=_LEAST)
                if 2 * step >= steps:
                    for adam in pair:
                        adam.pace *= shrink

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        """By the slopes and the logarithms of the squares of every layer."""
        h, p = self.rows, torch.zeros_like(self.rows)
        found: list[list[Tensor]] = []
        for number, layer in enumerate(self.layers):
            square = layer.squares()
            coefficients = torch.stack([h, p, layer.slope, square], 2).transpose(0, 1)
            _, at = self.grids[len(self.layers) - 1 - number].largest(coefficients.contiguous())
            eta, eta_square, zeta, zeta_square = (part.T for part in at.unbind(1))
            if number:
                behind = self.layers[number - 1]
                found[-1][0] = found[-1][0] + eta @ behind.matrix.T
                weight = behind.weight.square().lerp(eta_square.T, _LATEST)
                behind.weight = weight.sqrt().clamp(min=1e-3)
            p, cost = layer.majorant()
            by_square = layer.log_square.exp() * (zeta_square[:, layer.bent] + cost)
            found.append([zeta, by_square])
            h = layer.slope @ layer.matrix
        found[-1][0] = found[-1][0] + h.sign() @ self.layers[-1].matrix.T
        return [(slope, square) for slope, square in found]


def _chord(grid: Grid) -> Tensor:
    """Slope of the chord over every neuron's interval, [N]."""
    eta, zeta = grid.numbers[:, 0], -grid.numbers[:, 2]
    low, high = zeta.argmin(1, keepdim=True), zeta.argmax(1, keepdim=True)
    rise = eta.gather(1, high) - eta.gather(1, low)
    run = zeta.gather(1, high) - zeta.gather(1, low)
    return (rise / run.clamp(min=1e-6))[:, 0]
