"""Sums over paths of one sign: what rounding may do to an entry, and signs that need no margin.

An entry of ``J(x)^T r`` is a sum over all paths from the output to an input of products of weights
and slopes. With every slope at its largest, the paths of positive and of negative product sum to
``P`` and ``N``, and the entry lies in ``[-N, P]`` (an interval bound in the sense of Moore 1966,
with the paths' signs kept). ``P + N`` is the magnitude of all terms summed, which is what
:mod:`lipschitz.rounding` measures its margin by. And where ``N`` is 0 no path can make the entry
negative: that sign is proved by the network's structure, so it holds without any margin.

Known intervals of a cotangent ``g`` cut ``P`` and ``N`` on the way: if ``g`` is certainly above 0,
margin included, nothing negative passes a slope that is not negative. The magnitude is not cut.

Trusted: that torch's sums of terms of one sign have that sign, and are 0 only if every term is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.network.affine import (
    AffineMap,
    Combination,
    Convolution,
    Linear,
    Positive,
    Reshape,
    Scale,
    TransposedConvolution,
    Weighted,
)
from lipschitz.network.affine.layout import Centre, Differences, Expand, Permute, Sum
from lipschitz.network.graph import Graph
from lipschitz.network.pooling import Selection
from lipschitz.rounding import guard


class SignedSums(NamedTuple):
    """``-negative <= value <= positive``, none of the three tensors below 0, all of one shape.

    Attributes:
        positive, negative: Sums of the paths of either sign, cut to what is known.
        magnitude: Sum of all terms' magnitudes, not cut.
    """

    positive: Tensor
    negative: Tensor
    magnitude: Tensor

    def each(self, function: Callable[[Tensor], Tensor]) -> SignedSums:
        """The function, linear with coefficients that are never negative, of each sum."""
        return SignedSums(*(function(part) for part in self))

    def plus(self, other: SignedSums) -> SignedSums:
        """Of the sum of two values."""
        return SignedSums(*(a + b for a, b in zip(self, other, strict=True)))

    def negated(self) -> SignedSums:
        """Of the value's negative."""
        return SignedSums(self.negative, self.positive, self.magnitude)

    def through(self, slope: Interval) -> SignedSums:
        """Of the value times a slope in an interval."""
        rising, falling = slope.upper.clamp(min=0), slope.lower.clamp(max=0).neg()
        return SignedSums(
            torch.maximum(self.positive * rising, self.negative * falling),
            torch.maximum(self.negative * rising, self.positive * falling),
            self.magnitude * torch.maximum(rising, falling),
        )

    def along(self, weights: Tensor) -> SignedSums:
        """The sums of ``weights . value``: weights [V, D], values [B, D]; [B, V]."""
        plus, minus = weights.clamp(min=0).T, weights.clamp(max=0).neg().T
        return self.each(lambda t: t @ plus).plus(self.negated().each(lambda t: t @ minus))

    def dot(self, weights: Tensor) -> SignedSums:
        """The sums of each value's own ``weights . value``: both [B, D]; [B]."""
        plus, minus = weights.clamp(min=0), weights.clamp(max=0).neg()
        own = self.each(lambda t: (t * plus).sum(1))
        return own.plus(self.negated().each(lambda t: (t * minus).sum(1)))

    def margin(self) -> Tensor:
        """How far rounding may have moved the value."""
        return guard(self.magnitude.dtype) * self.magnitude

    def cut(self, bounds: Interval, where: Tensor) -> SignedSums:
        """The sums cut to known bounds without margin, where these are known."""
        above = (bounds.upper + self.margin()).clamp(min=0)
        below = (self.margin() - bounds.lower).clamp(min=0)
        return SignedSums(
            torch.where(where, torch.minimum(self.positive, above), self.positive),
            torch.where(where, torch.minimum(self.negative, below), self.negative),
            self.magnitude,
        )

    def enclose(self, bounds: Interval) -> Interval:
        """Bounds of the value widened against rounding, cut to the signs that are certain."""
        more = 1 + guard(self.magnitude.dtype)
        return Interval(
            torch.maximum(bounds.lower - self.margin(), -(self.negative * more)) + 0.0,  # no -0.
            torch.minimum(bounds.upper + self.margin(), self.positive * more) + 0.0,
        )


# The adjoint of an affine map, applied to sums; one result per input of the map.
_Adjoint = Callable[[SignedSums], Sequence[SignedSums]]


def _by_coefficients(name: str) -> Callable[[AffineMap], _Adjoint]:
    """Rule of a map with one tensor of coefficients: one adjoint for each sign of them."""

    def rule(affine: AffineMap) -> _Adjoint:
        parts = []
        for sign in (1, -1):
            part = copy.copy(affine)
            setattr(part, name, (sign * getattr(affine, name)).clamp(min=0))
            parts.append(part)
        plus, minus = parts

        def adjoint(sums: SignedSums) -> list[SignedSums]:
            own = sums.each(lambda t: plus.adjoint(t)[0])
            return [own.plus(sums.negated().each(lambda t: minus.adjoint(t)[0]))]

        return adjoint

    return rule


def _never_negative(affine: AffineMap) -> _Adjoint:
    def adjoint(sums: SignedSums) -> list[SignedSums]:
        by_part = [affine.adjoint(part) for part in sums]
        return [SignedSums(*parts) for parts in zip(*by_part, strict=True)]

    return adjoint


def _combination(affine: Combination) -> _Adjoint:
    return lambda sums: [sums if sign > 0 else sums.negated() for sign in affine.signs]


def _selection(affine: Selection | Centre | Differences) -> _Adjoint:
    plus, minus = affine.of_sign(1), affine.of_sign(-1)

    def adjoint(sums: SignedSums) -> list[SignedSums]:
        own = sums.each(lambda t: plus.adjoint(t)[0])
        return [own.plus(sums.negated().each(lambda t: minus.adjoint(t)[0]))]

    return adjoint


_RULES: dict[type[AffineMap], Callable[..., _Adjoint]] = {
    Linear: _by_coefficients("weight"),
    Convolution: _by_coefficients("weight"),
    TransposedConvolution: _by_coefficients("weight"),
    Weighted: _by_coefficients("weight"),
    Scale: _by_coefficients("factor"),
    Positive: _never_negative,
    Reshape: _never_negative,
    Combination: _combination,
    Selection: _selection,
    **dict.fromkeys((Centre, Differences), _selection),
    **dict.fromkeys((Expand, Permute, Sum), _never_negative),
}


class PathSums:
    """Path sums of one graph.

    Args:
        graph: The network.

    Raises:
        NotImplementedError: An affine map without a rule here, by name.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._adjoints: dict[int, _Adjoint] = {}
        for index, node in enumerate(graph.nodes):
            if node.affine is not None:
                if type(node.affine) not in _RULES:
                    raise NotImplementedError(
                        f"{node.name}: signs of paths through {type(node.affine).__name__}"
                    )
                self._adjoints[index] = _RULES[type(node.affine)](node.affine)

    def __call__(
        self,
        rows: Tensor,
        slopes: dict[int, Interval],
        cotangents: dict[int, Interval] | None = None,
    ) -> SignedSums:
        """The sums of every entry of the Jacobian.

        Args:
            rows: Output directions, [B, C].
            slopes: Slope interval by activation node, [B or 1, *shape].
            cotangents: Interval of g by activation node, [B, *shape]; used where the slope is
                uncertain.

        Returns:
            Sums [B, *input_shape].
        """
        nodes, cotangents = self.graph.nodes, cotangents or {}
        last = len(nodes) - 1
        known = {last: SignedSums(rows.clamp(min=0), rows.clamp(max=0).neg(), rows.abs())}
        for index in range(last, 0, -1):
            sums = known.pop(index, None)
            if sums is None:
                continue
            if nodes[index].affine is None:
                slope = slopes[index]
                if index in cotangents:
                    sums = sums.cut(cotangents[index], slope.lower != slope.upper)
                found = [sums.through(slope)]
            else:
                found = self._adjoints[index](sums)
            for parent, new in zip(nodes[index].parents, found, strict=True):
                known[parent] = known[parent].plus(new) if parent in known else new
        if 0 not in known:  # the output does not depend on the input
            zero = rows.new_zeros(len(rows), *self.graph.input_shape)
            return SignedSums(zero, zero, zero)
        return known[0]
