"""Branch and bound on the norm of Hessians, by cutting the input box.

The norm from Linf to L1 is the largest ``||H t||_1`` over sign vectors t, and that from L1 to Linf
the largest over unit vectors: so a subdomain of :class:`DirectionSearch` is a row, such a direction
and a part of the box, and directions that matter nowhere are soon closed. For L2, and for Linf
where sign vectors are too many, a subdomain of :class:`MatrixSearch` is a row and a part of the
box, and the norm of the matrix is bounded.

Shapes: B boxes, D inputs, R rows, V directions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.curvature import HessianProducts
from lipschitz.bounds.native.hessian_matrices import matrix_bound
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.true_curvature import TrueCurvature
from lipschitz.norms import Measure
from lipschitz.search.engines.inputs import Boxes, halves, whole_boxes
from lipschitz.search.interface import Report

# Numbers of the first chunk of a round, whose time nobody knows. A choice: some milliseconds on one
# core.
_FIRST = 2 * 10**6


class HessianSearch:
    """What both searches share: boxes, their halves, and their centres as witnesses.

    Args:
        true: The problem, and Hessians at points.
        first: Upper bounds of the first subdomains over the whole box, [S].
        clock: When to stop; what is not reached keeps the bound of its parent.
    """

    def __init__(self, true: TrueCurvature, first: Tensor, clock: Clock = UNLIMITED) -> None:
        self.true, self.problem, self.terms = true, true.problem, true.terms
        self.clock = clock.without_notes()
        boxes = whole_boxes(self.problem, first)
        self.first = boxes.having(choice=self._widest(boxes))

    @property
    def measure(self) -> Measure:
        """The norm of ``H t``."""
        return self.true.measure

    def root(self) -> Boxes:
        """The whole box for every row, or every row and direction."""
        return self.first

    def children(self, parents: Boxes) -> Boxes:
        """Both closed halves of every box, bounded."""
        both = halves(parents)
        both = both.having(choice=self._widest(both))
        bound, choice = both.upper_bound.clone(), both.choice.clone()
        for part in self._chunks(len(both)):
            found, weight = self._bounded(both.take(part))
            found = torch.fmin(found.to(bound), bound[part])
            bound[part] = found
            choice[part] = self._chosen(both.take(part), weight)
        return both.having(upper_bound=bound, choice=choice)

    def refine(self, subdomains: Boxes, threshold: float = 0.0) -> Report:
        """The centres as candidates for witnesses; boxes are as tight as they get."""
        return Report(subdomains, self._centres(subdomains), subdomains.row)

    def settle(self, leaves: Boxes) -> Report:
        """Leaves are too small to divide."""
        return Report(leaves.take(slice(0, 0)), self._centres(leaves), leaves.row, 0, leaves)

    def _chunks(self, count: int) -> Iterator[slice]:
        """Boxes, of ``count``, in parts that fit in memory and in time."""
        first = _FIRST // (self.terms.forward_cost() * self._columns)
        most = max(1, self.terms.at_once(forward=True) // self._columns)
        return self.clock.growing(count, first, most)

    @property
    def _columns(self) -> int:
        """How many products of a Hessian with a direction a box takes."""
        return 1

    def _bounded(self, boxes: Boxes) -> tuple[Tensor, Tensor]:
        """Upper bounds [B], and how much the entries vary with each input [B, D]."""
        raise NotImplementedError

    def _centres(self, boxes: Boxes) -> Tensor:
        return self._shaped((boxes.lower + boxes.upper) / 2)

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.problem.graph.input_shape)

    def _box(self, boxes: Boxes) -> Interval:
        return Interval(self._shaped(boxes.lower), self._shaped(boxes.upper))

    def _widest(self, boxes: Boxes) -> Tensor:
        """The input whose edge is longest compared with that of the whole box."""
        whole = (self.problem.upper - self.problem.lower).flatten()
        tiny = torch.finfo(whole.dtype).tiny
        return self._chosen(boxes, (1 / whole.clamp(min=tiny)).expand_as(boxes.lower))

    @staticmethod
    def _chosen(boxes: Boxes, weight: Tensor) -> Tensor:
        """The input of the largest weight times edge that can be divided, -1 if there is none."""
        middle = (boxes.lower + boxes.upper) / 2
        divisible = (middle > boxes.lower) & (middle < boxes.upper)
        score = (boxes.upper - boxes.lower) * weight.clamp(min=torch.finfo(weight.dtype).tiny)
        best, choice = score.masked_fill(~divisible, -1).max(dim=1)
        return choice.masked_fill(best < 0, -1)


class DirectionSearch(HessianSearch):
    """The largest norm of ``H_r(x) t`` over rows, some directions and the box.

    Args:
        true: The problem, and Hessians at points.
        directions: [V, *input_shape].
        first: Upper bounds over the whole box, [R, V].
        clock: When to stop.
    """

    def __init__(
        self, true: TrueCurvature, directions: Tensor, first: Tensor, clock: Clock = UNLIMITED
    ) -> None:
        self.directions = directions
        super().__init__(true, first.flatten(), clock)

    def _of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the problem and directions of a search's rows."""
        many = len(self.directions)
        return rows // many, self.directions[rows % many]

    def _bounded(self, boxes: Boxes) -> tuple[Tensor, Tensor]:
        row, direction = self._of(boxes.row)
        found = self.terms.over(self._box(boxes), self.problem.rows[row], direction)
        entries = found.entries
        if self.measure.norm == "1":
            entries = found.linear_entries()
        weight = _influence(found, boxes)
        return found.norm(self.measure, entries), weight

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True norms, as :class:`TrueCurvature` certifies them."""
        return self.true.certified(points, *self._of(rows))

    def row_bounds(self, found: Tensor) -> Tensor:
        """The largest of a row's directions, [R], from bounds of the search's rows."""
        return found.reshape(-1, len(self.directions)).amax(1)


class MatrixSearch(HessianSearch):
    """The largest norm of the matrices ``H_r(x)`` over rows and the box."""

    def _bounded(self, boxes: Boxes) -> tuple[Tensor, Tensor]:
        rows = self.problem.rows[boxes.row]
        return matrix_bound(self.terms, self.measure.norm, self._box(boxes), rows)

    @property
    def _columns(self) -> int:
        """One for every input."""
        return self.problem.centre.numel()

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True norms, as :class:`TrueCurvature` certifies them."""
        return self.true.certified(points, rows)

    def row_bounds(self, found: Tensor) -> Tensor:
        """The same, [R]."""
        return found


def _influence(found: HessianProducts, boxes: Boxes) -> Tensor:
    """How much the entries of ``H v`` vary with each input, per unit, [B, D]."""
    columns = found.form.middle[:, 1:].flatten(2).abs().sum(2)
    width = (found.box.upper - found.box.lower).flatten(1)
    return torch.where(width > 0, columns / width.clamp(min=torch.finfo(width.dtype).tiny), 0.0)
