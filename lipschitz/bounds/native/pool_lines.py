"""Lines around the maximum of a window, and around the cotangents that it hands back.

**Values.** With weights w and v that are not negative and sum to 1,

    sum_i w_i x_i  <=  max_j x_j  <=  sum_i v_i x_i + max_j sum_i v_i U_ji,

where ``U_ji`` is an upper bound of ``x_j - x_i`` and j goes over the candidates, the entries that
can be the largest. For two entries the best v is the chord of ``relu(x_1 - x_2)``.

**Cotangents.** The maximum's cotangent g goes to entry i as ``g s_i``, with s not negative and of
sum 1. For coefficients ``c_i`` of the entries' cotangents,

    max over s of sum_i c_i g s_i  =  g max_i c_i  if g >= 0,  g min_i c_i  else,

a convex function of g alone, of which the chord over the interval of g is the least line above. No
slope ``s_i`` is relaxed by itself, so nothing is lost that the intervals of g do not lose. Where
one activation alone reads the maximum, both are passed at once: with slopes r_i at the entries that
have won, ``c_i r_i`` takes the place of ``c_i``.

Shapes: B boxes, K rows, W windows of n entries; m of the windows inside a window of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import inner
from lipschitz.bounds.native.memory.budget import take
from lipschitz.bounds.native.memory.windows import Window
from lipschitz.bounds.native.plan import Plan
from lipschitz.network.pooled import gathered
from lipschitz.relaxation import chord_slope

# Places of rows that are remembered. A choice: they hold few numbers beside the rows.
_MOST_PLACES = 512


@dataclass(frozen=True)
class Placement:
    """Which windows meet which entries inside two windows of rows.

    Attributes:
        whole: Whether these are all windows.
        pools: Which they are, [m].
        entries: Position of each one's entries inside the entries' window, [m, n]; -1 for none.
        back: For every position there, where it is in ``entries`` flattened, [P, meetings]; -1.
        shape: Of the node on the other side.
        starts, sizes: The window there.
    """

    whole: bool
    pools: Tensor
    entries: Tensor
    back: Tensor
    shape: torch.Size
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def window(self, values: Tensor) -> Window:
        """Rows [B, K, N] of the node on the other side."""
        inside = (*self.shape[:1], *self.sizes)
        values = values.reshape(*values.shape[:2], *inside)
        return Window(values, self.shape, self.shape, self.starts)

    def extent(self) -> Window:
        """The window there, without numbers."""
        return self.window(self.back.new_empty(1, 1, len(self.back)))

    def of(self, tensor: Tensor, dim: int) -> Tensor:
        """A tensor's part of these windows, which lie along ``dim``."""
        return tensor if self.whole else tensor.index_select(dim, self.pools)

    def spread(self, entries: Tensor) -> Tensor:
        """What windows give their entries, [..., m, n], summed where these are: [..., P]."""
        return gathered(entries.flatten(-2), self.back).sum(-1)


def _meetings(entries: Tensor, count: int) -> Tensor:
    """For every position below ``count``, where it is in ``entries`` flattened."""
    flat = entries.flatten()
    order = flat.argsort(stable=True)
    at = flat[order]
    order, at = order[at >= 0], at[at >= 0]
    first = torch.searchsorted(at, torch.arange(count, device=at.device))
    rank = torch.arange(len(at), device=at.device) - first[at]
    most = int(rank.max()) + 1 if len(rank) else 1
    back = torch.full((count, most), -1, dtype=torch.long, device=at.device)
    back[at, rank] = order
    return back


def _place(mask: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest window, over all channels, that holds the true entries of [*shape]."""
    starts, sizes = [], []
    for dim in range(1, mask.dim()):
        hit = mask.movedim(dim, 0).flatten(1).any(1).nonzero()[:, 0]
        low, high = (int(hit[0]), int(hit[-1])) if len(hit) else (0, 0)
        starts.append(low)
        sizes.append(high - low + 1)
    return tuple(starts), tuple(sizes)


def placement(plan: Plan, end: int, window: Window, *, forward: bool) -> Placement:
    """Where the rows of a maximum, or of its entries (``forward``), go.

    Args:
        plan: The graph.
        end: The maximum's node.
        window: The rows, cut in the shape of their node.
        forward: From the entries to the maximum.
    """
    key = ("placement", end, forward, window.starts, window.sizes)
    if key not in plan.kept:
        kept = [k for k in plan.kept if isinstance(k, tuple) and k[0] == "placement"]
        if len(kept) > _MOST_PLACES:
            for old in kept:
                del plan.kept[old]
        plan.kept[key] = _placement(plan, end, window, forward)
    return plan.kept[key]


def _placement(plan: Plan, end: int, window: Window, forward: bool) -> Placement:
    pool = plan.pools[end]
    device = pool.windows.device
    inputs, outputs = plan.graph.nodes[pool.of].shape, plan.graph.nodes[end].shape
    numbers = {s: torch.arange(s.numel(), device=device) for s in (inputs, outputs)}
    target = outputs if forward else inputs
    here = window.cut(numbers[inputs if forward else outputs].reshape(window.shape)).flatten()
    if forward:
        local = numbers[inputs].new_full((inputs.numel(),), -1)
        local[here] = numbers[inputs][: len(here)]
        entries = gathered(local, pool.windows, -1)
        starts, sizes = _place((entries >= 0).any(1).reshape(outputs))
        other = Window.whole(numbers[outputs].reshape(1, 1, *outputs))
        pools = _cut(other, starts, sizes)
        entries, count = entries[pools], len(here)
    else:
        pools, entries = here, pool.windows[here]
        mask = torch.zeros(inputs.numel(), dtype=torch.bool, device=device)
        mask[entries[entries >= 0]] = True
        starts, sizes = _place(mask.reshape(inputs))
        chosen = _cut(Window.whole(numbers[inputs].reshape(1, 1, *inputs)), starts, sizes)
        local = numbers[inputs].new_full((inputs.numel(),), -1)
        local[chosen] = numbers[inputs][: len(chosen)]
        entries, count = gathered(local, entries, -1), len(chosen)
    whole = len(pools) == outputs.numel()
    return Placement(whole, pools, entries, _meetings(entries, count), target, starts, sizes)


def _cut(window: Window, starts: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    values = window.values
    for dim, (start, size) in enumerate(zip(starts, sizes, strict=True), start=3):
        values = values.narrow(dim, start, size)
    return values.flatten()


def own_shape(window: Window) -> Window:
    """The rows cut in the shape of their node, and not in that of one it flattens."""
    return window if window.layout == window.shape else Window.whole(window.full())


@dataclass(frozen=True)
class MaximumLines:
    """Lines around the maxima of windows.

    Attributes:
        lower: Weights of the entries below, [B or 1, 1 or K, W, n].
        upper: Weights of the entries above.
        gap: Constant above, [B or 1, 1 or K, W].
        margin: Distance of both lines from where they would be without rounding, [1 or B, 1, W].
        is_cut: Whether only the windows inside a window of rows are left.
    """

    lower: Tensor
    upper: Tensor
    gap: Tensor
    margin: Tensor
    is_cut: bool = False

    @property
    def intercept_gap(self) -> Tensor:
        """As :class:`~.lines.Lines` has it: its leading dimension is that of the boxes."""
        return self.gap

    def take(self, boxes: slice) -> MaximumLines:
        """The lines of some boxes."""
        parts = (take(t, boxes) for t in (self.lower, self.upper, self.gap, self.margin))
        return MaximumLines(*parts, self.is_cut)

    def at(self, place: Placement) -> MaximumLines:
        """The lines of the windows of a placement."""
        if self.is_cut:
            return self
        parts = (place.of(t, 2) for t in (self.lower, self.upper, self.gap, self.margin))
        return MaximumLines(*parts, True)


def relax_maximum(
    plan: Plan, end: int, window: Window, lines: MaximumLines
) -> tuple[Window, Tensor]:
    """Replace ``coefficients . maxima`` by the upper line: at the entries, and constants [B, K]."""
    window = own_shape(window)
    place = placement(plan, end, window, forward=False)
    lines, flat = lines.at(place), window.flat()
    positive = flat.clamp(min=0)
    gap, margin = (lines.gap + 2 * lines.margin), lines.margin
    if gap.shape[1] == 1:
        constant = inner(positive, gap.squeeze(1)) - inner(flat, margin.squeeze(1))
    else:
        constant = (positive * gap).sum(2) - (flat * margin).sum(2)
    shares = flat.unsqueeze(3) * lines.lower
    shares = torch.addcmul(shares, positive.unsqueeze(3), lines.upper - lines.lower)
    return place.window(place.spread(shares)), constant


def attained(place: Placement, lines: MaximumLines, rows: Tensor, entries: Tensor) -> Tensor:
    """Values of the lines that rows [B, K, m] have chosen, at entries [B, K, m, n]: [B, K, m]."""
    lines, above = lines.at(place), rows > 0
    weights = torch.where(above.unsqueeze(3), lines.upper, lines.lower)
    constant = torch.where(above, lines.gap + lines.margin, -lines.margin)
    return (weights * entries).sum(3) + constant


@dataclass(frozen=True)
class Routes:
    """Where the cotangent behind a maximum can go, and times what.

    Where one activation alone reads the maximum, it is the cotangent behind that activation, and an
    entry that is the largest has the activation's slope at its own value.

    Attributes:
        candidates: Entries that can be the largest, [B or 1, W, n].
        least, most: Interval of the slope at each of them, [B or 1, W, n]; None without activation.
    """

    candidates: Tensor
    least: Tensor | None = None
    most: Tensor | None = None

    def take(self, boxes: slice) -> Routes:
        """Those of some boxes."""
        return self._each(lambda tensor: take(tensor, boxes))

    def at(self, place: Placement) -> Routes:
        """Those of the windows of a placement."""
        return self._each(lambda tensor: place.of(tensor, 1))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Routes:
        parts = (self.candidates, self.least, self.most)
        return Routes(*(None if part is None else function(part) for part in parts))

    def extremes(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Most and least that a cotangent of 1 adds to entries with coefficients [B, K, W, n]."""
        above = below = coefficients
        if self.least is not None:
            ends = [coefficients * slope.unsqueeze(1) for slope in (self.least, self.most)]
            above, below = torch.maximum(*ends), torch.minimum(*ends)
        others = ~self.candidates.unsqueeze(1)
        above = above.masked_fill(others, -torch.inf).amax(3)
        return above, below.masked_fill(others, torch.inf).amin(3)


@dataclass(frozen=True)
class RoutingLines:
    """Chords of what the cotangent behind a maximum adds up to at its entries.

    Attributes:
        routes: Where it can go.
        share: Part of the way from the least coefficient to the largest, [B, W].
        gap: Constant per difference of the two, [B, W].
    """

    routes: Routes
    share: Tensor
    gap: Tensor

    @staticmethod
    def of(cotangent: Interval, routes: Routes) -> RoutingLines:
        """The lines for cotangents [B, W]."""
        lower, upper = cotangent
        share = chord_slope(upper, upper - lower).clamp(0, 1)
        share = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, share))
        # Largest gap at the two ends: right for any share.
        gap = torch.maximum((1 - share) * upper, -share * lower).clamp(min=0)
        return RoutingLines(routes, share, gap)

    def take(self, boxes: slice) -> RoutingLines:
        """The lines of some boxes."""
        return RoutingLines(self.routes.take(boxes), take(self.share, boxes), take(self.gap, boxes))


@dataclass(frozen=True)
class Routed:
    """Rows that went from a maximum's entries past it.

    Attributes:
        node: Where they are now: the maximum, or the activation that alone reads it.
        rows: Their coefficients there.
        constant: [B, K].
        counted: How much the bound counts that node's cotangent at most, [B, K, ...] as ``rows``.
    """

    node: int
    rows: Window
    constant: Tensor
    counted: Window


def relax_routing(plan: Plan, end: int, window: Window, lines: RoutingLines) -> Routed:
    """Replace ``coefficients . entries' cotangents`` by the chord."""
    window = own_shape(window)
    place = placement(plan, end, window, forward=True)
    coefficients = gathered(window.flat(), place.entries)
    largest, least = lines.routes.at(place).extremes(coefficients)
    share, gap = (place.of(part, 1) for part in (lines.share, lines.gap))
    spread = largest - least
    new = torch.addcmul(least, spread, share.unsqueeze(1))
    counted = torch.maximum(largest.abs(), least.abs())
    node = plan.onward.get(end, end)
    return Routed(node, place.window(new), inner(spread, gap), place.window(counted))
