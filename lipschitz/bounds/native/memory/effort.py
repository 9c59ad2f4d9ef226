"""What rows will cost, before there are any: sizes of their windows, and the work of a pass.

A pass is walked through with windows of no numbers (:class:`Extent`), so that rows can be put into
chunks that fit the memory they will need, and not that of the network's widest node; and so that
neighbours share a chunk where that pays. Costs are in multiplications and only compared with each
other: wrong ones make a bound slower, never different but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lipschitz.bounds.native.memory.windows import Place, Window, hull, reached, read
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_lines import placement
from lipschitz.network.affine import AffineMap, Combination, Convolution, Linear, Reshape, Scale

# Multiplications in the time of handing one number through a step element by element: its line is
# looked up, multiplied, added. Measured on one core at about 1 ns, where convolutions do 40 to 50
# multiplications.
_ELEMENT = 50
# Multiplications in the time that a step of a pass takes, whatever its size. Measured on one core:
# with 2e6 the chunks were smaller, and a CNN's entries took a quarter longer. On a GPU a guess.
_CALL = {"cpu": 8e6, "cuda": 1e9}


@dataclass(frozen=True)
class Extent:
    """Where rows of a node are not zero: a :class:`~.windows.Window` without numbers."""

    shape: torch.Size
    layout: torch.Size
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def whole(shape: torch.Size) -> Extent:
        """All of a node."""
        return Extent(shape, shape, (0,) * (len(shape) - 1), tuple(shape[1:]))

    @staticmethod
    def at(shape: torch.Size, place: Place) -> Extent:
        """A part of a node."""
        return Extent(shape, shape, *place)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is cut off."""
        return self.sizes == tuple(self.layout[1:])

    @property
    def place(self) -> Place:
        """First positions and sizes."""
        return self.starts, self.sizes

    def numel(self) -> int:
        """Numbers of one row."""
        return math.prod((*self.layout[:1], *self.sizes))

    def around(self, other: Extent) -> Extent:
        """The extent of the sum of two rows."""
        if self.layout != other.layout:
            return Extent.whole(self.shape)
        starts, sizes = hull(self.place, other.place)
        return replace(self, starts=starts, sizes=sizes)


@dataclass(frozen=True)
class Effort:
    """What a pass costs.

    Attributes:
        peak: Numbers of the largest tensor of one row.
        per_row: Multiplications of one row.
        per_box: Multiplications in the time that lines of one box take, whatever the rows.
        per_pass: The same of everything else.
    """

    peak: int
    per_row: float
    per_box: float
    per_pass: float


class _Walk:
    """Extents and costs of a pass, gathered step by step."""

    def __init__(self, plan: Plan, start: int, extent: Extent) -> None:
        self.pending = {start: extent}
        self.peak, self.per_row, self.per_box, self.per_pass = extent.numel(), 0.0, 0.0, 0.0
        self.call = _CALL["cuda" if plan.graph.device.type == "cuda" else "cpu"]

    def step(
        self, affine: AffineMap | None, here: Extent, to: int, shape: torch.Size, back: bool
    ) -> None:
        """One step from an extent to a node of a shape."""
        self.per_pass += self.call
        if affine is None:
            new = here
            self.per_row += _ELEMENT * here.numel()
            self.per_box += _ELEMENT * here.numel()
        else:
            new, work = _step(affine, here, shape, back)
            self.per_row += work
            if isinstance(affine, Linear) and not back and not here.is_whole:
                # A part of the weight is copied.
                self.per_pass += _ELEMENT / 2 * here.numel() * new.numel()
        self.pending[to] = self.pending[to].around(new) if to in self.pending else new
        self.peak = max(self.peak, new.numel())

    def past(self, plan: Plan, end: int, here: Extent, *, forward: bool) -> None:
        """The step past a maximum's tree, to its entries or (``forward``) from these."""
        to, node = (end, plan.pools[end].of) if forward else (plan.pools[end].of, end)
        here = here if here.layout == here.shape else Extent.whole(here.shape)
        numbers = torch.empty(1, 1, *here.layout[:1], *here.sizes, device="meta")
        shape = plan.graph.nodes[node].shape
        place = placement(plan, end, Window(numbers, shape, shape, here.starts), forward=forward)
        new = Extent.at(plan.graph.nodes[to].shape, (place.starts, place.sizes))
        to = plan.onward.get(end, end) if forward else to
        self.per_pass += self.call
        self.per_row += 3 * _ELEMENT * max(here.numel(), new.numel())
        self.pending[to] = self.pending[to].around(new) if to in self.pending else new
        self.peak = max(self.peak, new.numel(), place.entries.numel())

    @property
    def effort(self) -> Effort:
        """What it came to."""
        return Effort(self.peak, self.per_row, self.per_box, self.per_pass)


def _step(affine: AffineMap, extent: Extent, shape: torch.Size, back: bool) -> tuple[Extent, float]:
    """Extent behind an affine map, or before it (``back``), and multiplications of one row."""
    count = extent.numel()
    if isinstance(affine, Combination):
        return extent, 0.0
    if isinstance(affine, Convolution) and extent.layout == extent.shape:
        if not extent.is_whole:
            place = (read if back else reached)(affine, extent.place)
            found = Extent.at(shape, place)
        else:
            found = Extent.whole(shape)
        smaller = extent if back else found
        positions = smaller.numel() // max(1, smaller.layout[0])
        return found, positions * affine.weight.numel() + _ELEMENT * (count + found.numel()) / 2
    if isinstance(affine, Scale):
        return extent, _ELEMENT * count / 2
    if isinstance(affine, Reshape) and (len(shape) == 1 or shape == extent.layout):
        return replace(extent, shape=shape), 0.0
    found = Extent.whole(shape)
    if isinstance(affine, Linear):
        rest = math.prod(extent.shape[:-1])
        reads = count if not back and rest == 1 else extent.shape.numel()
        return found, reads / max(1, rest) * found.numel()
    return found, _ELEMENT * (extent.shape.numel() + found.numel()) / 2


def value_effort(plan: Plan, start: int, extent: Extent, horizon: int | None = None) -> Effort:
    """Of :func:`lipschitz.bounds.native.forward.value_pass.value_upper_bound` from a node."""
    nodes, walk = plan.graph.nodes, _Walk(plan, start, extent)
    for index in range(start, horizon or 0, -1):
        if index in walk.pending:
            here = walk.pending.pop(index)
            if index in plan.pools:
                walk.past(plan, index, here, forward=False)
                continue
            for parent in nodes[index].parents:
                walk.step(nodes[index].affine, here, parent, nodes[parent].shape, back=True)
    walk.per_row += sum(_ELEMENT * extent.numel() for extent in walk.pending.values())
    return walk.effort


def cotangent_effort(plan: Plan, start: int, extent: Extent, horizon: int | None = None) -> Effort:
    """Of :func:`lipschitz.bounds.native.backward.cotangent_pass.cotangent_upper_bound`."""
    nodes, walk = plan.graph.nodes, _Walk(plan, start, extent)
    for index in range(start, len(nodes) if horizon is None else horizon):
        if index in walk.pending:
            here, passed = walk.pending.pop(index), set()
            for end in plan.maxima.get(index, ()):
                walk.past(plan, end, here, forward=True)
                passed |= plan.inside[end]
            for child, _ in plan.consumers[index]:
                if child in passed:
                    continue
                walk.step(nodes[child].affine, here, child, nodes[child].shape, back=False)
    return walk.effort


# The effort of a pass from a node, given where its rows are not zero and where the pass ends.
Estimate = Callable[[Plan, int, Extent, int | None], Effort]
