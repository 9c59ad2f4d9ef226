"""What one neuron can contribute: a function of one number, bounded over an interval.

With the deviations ``zeta`` of a neuron's pre-activation and ``eta`` of its value from those at the
centre, what has to be bounded over the interval of ``zeta`` is

    h eta + p eta^2 - g zeta - lambda zeta^2,

where h and p come from the layer behind and g and lambda are what is passed on to the layer before.
On a grid that is a product of a small matrix for each neuron with the four numbers of each row; a
certified bound takes lines around the activation on parts of the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.coupled.chain import Layer
from lipschitz.bounds.native.interval import Interval

# Parts of the interval on which a curved activation has lines of its own. A choice: more cost time,
# fewer tightness.
_PARTS = 16
# A neuron that bends by less than this share of what the layer's most bent one does is passed on by
# a line alone. A choice: it saves the squares of neurons that are almost stable.
_STRAIGHT = 0.01
# Least unit of a neuron, as a share of the layer's largest. Rounding of values that do not move at
# all would be large in a smaller unit.
_LEAST_UNIT = 1e-6
# What rounding in float64 may take from a sum, relative to its terms; not proved.
_SLACK = 1e-11


@dataclass(frozen=True)
class Grid:
    """``(eta, eta^2, -zeta, -zeta^2)`` at K places of every neuron's interval.

    Attributes:
        numbers: [N, 4, K], in units in which zeta and eta are at most 1.
        preact_unit: Largest zeta of every neuron, [N].
        value_unit: Largest eta, [N].
        is_bent: Neurons that are not straight over their interval, [N].
    """

    numbers: Tensor
    preact_unit: Tensor
    value_unit: Tensor
    is_bent: Tensor

    def largest(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The largest ``h eta + p eta^2 - g zeta - lambda zeta^2``, and where it is.

        Args:
            coefficients: h, p, g and lambda of every row, [N, R, 4].

        Returns:
            The largest values, [N, R], and the four numbers there, [N, 4, R].
        """
        found, place = torch.bmm(coefficients, self.numbers).max(2)
        return found, self.numbers.gather(2, place.unsqueeze(1).expand(-1, 4, -1))


def grid_of(layer: Layer, preact: Interval, places: int, dtype: torch.dtype) -> Grid:
    """Places evenly over the interval, its breakpoints, and the centre.

    Args:
        layer: The layer.
        preact: Interval of its pre-activations, [N].
        places: How many.
        dtype: Of the result; units stay in float64.
    """
    lower, upper = preact
    steps = torch.linspace(0, 1, places, dtype=lower.dtype, device=lower.device)
    z = torch.lerp(lower, upper, steps.unsqueeze(1))
    kinks = [lower.clamp(min=kink).minimum(upper) for kink in layer.activation.breakpoints]
    z = torch.cat([z, *(kink.unsqueeze(0) for kink in [*kinks, layer.centre])])
    zeta = z - layer.centre
    eta = layer.values(z) - layer.values(layer.centre)
    units = [_unit(zeta), _unit(eta)]
    zeta, eta = zeta / units[0], eta / units[1]
    chord = (eta[places - 1] - eta[0]) / (zeta[places - 1] - zeta[0]).clamp(min=1e-300)
    ends = (eta - chord * zeta).aminmax(dim=0)
    bend = (ends.max - ends.min) * units[1]
    numbers = torch.stack([eta, eta**2, -zeta, -(zeta**2)]).permute(2, 0, 1)
    return Grid(numbers.to(dtype).contiguous(), *units, bend > _STRAIGHT * bend.max())


def _unit(deviation: Tensor) -> Tensor:
    """The largest magnitude of deviations [K, N], no less than a share of the layer's largest."""
    unit = deviation.abs().amax(0)
    least = _LEAST_UNIT * unit.max()
    return torch.where(least > 0, torch.maximum(unit, least), torch.ones_like(unit))


@dataclass(frozen=True)
class Parts:
    """Certified lines around ``eta`` as functions of ``zeta``, on S parts of each interval, [S, N].

    Attributes:
        start, end: The part.
        slope, intercept: Of the line below and of the one above, each [2, S, N].
        centre: Magnitude of the pre-activation at the centre, [N].
    """

    start: Tensor
    end: Tensor
    slope: Tensor
    intercept: Tensor
    centre: Tensor

    def upper_bounds(self, h: Tensor, p: Tensor, g: Tensor, square: Tensor) -> Tensor:
        """Certified sums over all neurons of the largest values, each row's [R].

        Args:
            h, p, g, square: Coefficients, [R, N]; p and square not negative.
        """
        is_above = (h >= 0).unsqueeze(1)
        chosen = [torch.where(is_above, f[1], f[0]) for f in (self.slope, self.intercept)]
        best = torch.full_like(h, -torch.inf)
        h, p, g, square = (c.unsqueeze(1) for c in (h, p, g, square))
        for slope, intercept in zip(self.slope, self.intercept, strict=True):
            curve = p * slope**2 - square
            tilt = h * chosen[0] + 2 * p * slope * intercept - g
            level = h * chosen[1] + p * intercept**2
            top = torch.where(curve < 0, -tilt / (2 * curve), self.start)
            top = torch.minimum(torch.maximum(top, self.start), self.end)
            for z in (self.start, self.end, top):
                best = torch.maximum(best, ((curve * z + tilt) * z + level).amax(1))
        reach = torch.maximum(self.start.abs().amax(0), self.end.abs().amax(0))
        height = (self.slope.abs() * reach + self.intercept.abs()).amax((0, 1))
        terms = h.abs() * height + p * height**2 + square * reach**2
        terms = terms + g.abs() * (reach + self.centre)
        return best.sum(1) + _SLACK * terms.squeeze(1).sum(1)


def parts_of(layer: Layer, preact: Interval) -> Parts:
    """Parts between breakpoints, and evenly where the activation is curved.

    Args:
        layer: The layer, in float64.
        preact: Interval of its pre-activations, [N].
    """
    lower, upper = preact
    lower, upper = torch.minimum(lower, layer.centre), torch.maximum(upper, layer.centre)
    kind, ends = layer.activation, [lower, upper]
    ends += [lower.clamp(min=kink).minimum(upper) for kink in kind.breakpoints]
    if any(kind.curvatures):
        steps = torch.linspace(0, 1, _PARTS + 1, dtype=lower.dtype, device=lower.device)[1:-1]
        ends += [torch.lerp(lower, upper, step) for step in steps]
    cuts = torch.stack(ends).sort(dim=0).values
    start, end = cuts[:-1], cuts[1:]
    lines = kind.lines(start.unflatten(1, layer.shape), end.unflatten(1, layer.shape))
    below, above, low, high = (
        part.flatten(1)
        for part in (
            lines.lower_slope,
            lines.upper_slope,
            lines.lower_intercept,
            lines.upper_intercept,
        )
    )
    value = layer.values(layer.centre)
    slope, intercept = torch.stack([below, above]), torch.stack([low, high])
    intercept = intercept + slope * layer.centre - value
    return Parts(start - layer.centre, end - layer.centre, slope, intercept, layer.centre.abs())
