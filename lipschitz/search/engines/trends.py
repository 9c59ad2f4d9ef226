"""Inputs along which a functional of the gradient only rises, or only falls, over a box.

The slope of ``v . J(x)^T r`` is ``H_r(x) v``, of which affine forms give intervals. Where an entry
has one sign the largest value is on a side of the box, so that input need not be cut any more; and
if that side lies inside the whole box, values beyond it are larger still, so the box holds no
largest value at all and is dropped. In Linf the norm is such a functional on boxes where the
gradient's entries keep their signs, and nowhere below it: ``|J|_1 >= v . J`` for signs v.

The test of a box takes about as long as its bound and succeeds on small boxes only. So few are
tested at first, those of the largest bounds, and more as long as that pays.

Shapes: B boxes, D inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipschitz.bounds.native.curvature import HessianTerms, check_curvature
from lipschitz.bounds.native.interval import Interval
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.norms import Measure

# Boxes tested at first, and the share of them for which the test must pay to go on with more.
# Choices: with other numbers searches are somewhat slower or faster.
_FIRST, _PAYING_SHARE = 4, 0.25
# Rounds without a test after one in which a single box was tested in vain; twice as many each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 1, 16


def hessian_terms(graph: Graph, budget: int) -> HessianTerms | None:
    """The terms of a network's Hessians; None if it has none that say anything."""
    try:
        check_curvature(graph)
    except InputError:
        return None
    return HessianTerms(graph, budget)


class Trends:
    """Tests boxes for inputs along which the largest value is on a side.

    Args:
        terms: Of the network's Hessians.
        whole: The whole box's ends, [D] each.
        measure: The norm, of each row; only that of Linf is tested.
        weights: Instead of the norm, the functional ``weights . J(x)^T r`` of every row, [Q, D].
    """

    def __init__(
        self,
        terms: HessianTerms,
        whole: tuple[Tensor, Tensor],
        measure: Measure,
        weights: Tensor | None = None,
    ) -> None:
        self.terms, self.whole, self.measure, self.weights = terms, whole, measure, weights

    def sides(
        self, rows: Tensor, directions: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The part of every box that holds its largest value, and whether it holds none at all.

        Args:
            rows: Row of the problem, or functional, of every box, [B] integers.
            directions: Its output direction, [B, C].
            lower, upper: Boxes, [B, D].

        Returns:
            Lower and upper ends, [B, D], and a mask [B] of the boxes to drop. A box about which
            nothing is known comes back as it is.
        """
        count = len(rows)
        keep = lower.clone(), upper.clone(), torch.zeros_like(rows, dtype=torch.bool)
        for part in self.terms.chunks(count, forward=True):
            ends = lower[part], upper[part]
            rises, falls = self._trends(rows[part], directions[part], *ends)
            keep[2][part] = (
                (rises & (ends[1] < self.whole[1])) | (falls & (ends[0] > self.whole[0]))
            ).any(1)
            keep[0][part] = torch.where(rises, ends[1], ends[0])
            keep[1][part] = torch.where(falls, ends[0], ends[1])
        return keep

    def _trends(
        self, rows: Tensor, directions: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inputs along which the value rises or falls, of those with a length: masks [B, D]."""
        graph = self.terms.graph
        shape = (len(rows), *graph.input_shape)
        if self.weights is None:
            centres = ((lower + upper) / 2).reshape(shape)
            signs = torch.where(graph.gradients(centres, directions).flatten(1) >= 0, 1.0, -1.0)
            weights = self.measure.counted(signs.to(lower))
        else:
            weights = self.weights[rows]
        box = Interval(lower.reshape(shape), upper.reshape(shape))
        found = self.terms.over(box, directions, weights.reshape(shape))
        holds = torch.ones_like(rows, dtype=torch.bool).unsqueeze(1)
        if self.weights is None:
            entries = found.intervals.bounds[self.terms.first.gradient]
            below, above = (end.flatten(1) for end in entries)
            holds = (((weights >= 0) | (above <= 0)) & ((weights <= 0) | (below >= 0))).all(
                1, keepdim=True
            )
        long = holds & (upper > lower)
        least, most = (end.flatten(1) for end in found.entries)
        return long & (least > 0), long & (most < 0)


class Effort:
    """How many boxes of a round are tested, by how often the test has paid."""

    def __init__(self) -> None:
        self.count, self._pause, self._waiting = _FIRST, _FIRST_PAUSE, 0

    def run(self, available: int, test: Callable[[int], int]) -> None:
        """Test some boxes, or none in this round.

        Args:
            available: How many there are.
            test: Given how many to test, says for how many it paid.
        """
        if self._waiting:
            self._waiting -= 1
            return
        count = min(self.count, available)
        if test(count) >= _PAYING_SHARE * count:
            self.count, self._pause = 2 * self.count, _FIRST_PAUSE
        elif self.count > 1:
            self.count //= 2
        else:
            self._waiting, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
