"""True gradients of a network in a box, attacked in float64; nothing of the library is used.

A gradient counts only where it exists: every point is moved a little at random, away from kinks,
and what is reported is the smaller of the norms with ReLU slopes 0 and 1 wherever the input of a
ReLU is 0 but for rounding. So each value is a lower bound of the largest norm in the box.

Searched are random points and corners, for one or two inputs a grid, and from the best so far, by
turns until the time is over:

- ascent of the norm of a rounded off network, whose kinks are sharpened step by step;
- moves: some inputs anew, small steps of all, corners, and steps over the nearest kinks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.others.evaluator import Network

# Points stay this share of the radius inside, and are moved by it at random: the bounds' box is of
# float32 numbers, and a corner or the centre may lie on a kink.
_INSIDE, _MOVED = 1e-5, 1e-6
_POOL = 24  # best points kept
_STARTS = 16  # points climbed at once
_PROPOSALS = 64
_STEPS = 30
# Of a climb, drawn between, on a logarithmic scale: the first width of kinks in deviations of their
# inputs over the box, what is left of it at the end, and the first step in radii. Chosen by trying
# on networks of ReLUs: of few inputs the best regions are small, and sharper kinks find them.
_RANGES = ((1.0, 40.0), (0.003, 0.2), (0.05, 0.6))
_RANGES_OF_FEW = ((0.1, 5.0), (0.01, 0.5), (0.02, 0.6))
_FEW_INPUTS = 100
_REMEMBERED = 6  # climbs that led highest
_PATIENCE = 3  # rounds of the same best before the pool is begun anew
_BATCHES_ANEW = 4  # of points at random
_AGAIN = 0.25  # share of new pools that hold the best of all before
_ROWS = 4  # outputs that are climbed, those of the largest gradients
# Up to so many inputs batches are this many times as large: there calls cost more than points.
_BATCHES = ((_FEW_INPUTS, 4.0), (1000, 1.0), (math.inf, 0.5))


@dataclass
class Found:
    """The largest norm so far and how it grew.

    Attributes:
        value: The norm, 0 before any.
        point: Where, [*input_shape], or None.
        course: Pairs of seconds and norms.
    """

    value: float = 0.0
    point: Tensor | None = None
    course: list[tuple[float, float]] = field(default_factory=list)


class Attack:
    """The search for large gradients.

    Args:
        network: In float64.
        centre: Of the box, [*input_shape].
        radius: Of every input, [*input_shape].
        norm: Of inputs and outputs: ``inf`` (the largest l1 norm of a row of the Jacobian) or
            ``2`` (its largest singular value).
        seed: Of all random numbers.
    """

    def __init__(
        self,
        network: Network,
        centre: np.ndarray,
        radius: np.ndarray,
        norm: str = "inf",
        seed: int = 0,
    ) -> None:
        self.network, self.norm = network, norm
        self.centre = torch.tensor(centre).double()
        self.radius = torch.tensor(radius).double() * (1 - _INSIDE)
        self.shape = self.centre.shape
        self.inputs = self.centre.numel()
        self.random = torch.Generator().manual_seed(seed)
        self.found = Found()
        self.points = torch.empty(0, *self.shape, dtype=torch.float64)
        self.values = torch.empty(0, dtype=torch.float64)
        self.rows = torch.empty(0, dtype=torch.long)
        self.best_rows = torch.zeros(1, dtype=torch.long)
        self.climbs: list[tuple[float, list[float]]] = []
        # The best points, norms and rows of pools that were given up.
        self.past: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scale = next(scale for most, scale in _BATCHES if self.inputs <= most)

    def run(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> Found:
        """Search for that long.

        Args:
            seconds: Wall-clock; a batch that has begun is ended.
            clock: Tells the time.
        """
        begin = clock()

        def over() -> bool:
            return clock() - begin >= seconds

        self._clock = lambda: clock() - begin
        for batch in self._first_points():
            self._look(batch)
            if over():
                return self.found
        widths, idle = self._deviations(), 0
        while not over():
            before = float(self.values[0])
            for _ in self._climb(widths):
                if over():
                    return self.found
            for _ in self._moves():
                if over():
                    return self.found
            idle = 0 if float(self.values[0]) > before * (1 + 1e-6) else idle + 1
            if idle == _PATIENCE:
                idle = 0
                self._begin_anew()
        return self.found

    def norms(self, x: Tensor, slope: float = 0.0) -> Tensor:
        """Norms of the true gradients at points [B, ...]: [B, C], in norm 2 of all rows [B, 1]."""
        jacobian = self._jacobian(x, slope)
        if self.norm == "2":
            return torch.linalg.matrix_norm(jacobian, 2)[:, None]
        return jacobian.abs().sum(-1)

    # --- looking at points ----------------------------------------------------------------------

    def _jacobian(self, x: Tensor, slope: float) -> Tensor:
        x = x.detach().requires_grad_()
        outputs, _ = self.network.outputs(x, slope=slope)
        rows = []
        for row in range(outputs.shape[1]):
            last = row + 1 == outputs.shape[1]
            (gradient,) = torch.autograd.grad(outputs[:, row].sum(), x, retain_graph=not last)
            rows.append(gradient.detach().flatten(1))
        return torch.stack(rows, 1)

    def _row_norms(self, x: Tensor, rows: Tensor, widths: list[Tensor] | None) -> Tensor:
        """Norms of one row each [B], to be differentiated where ``x`` asks for it."""
        outputs, _ = self.network.outputs(x, widths)
        chosen = outputs.gather(1, rows[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, x, create_graph=widths is not None)
        flat = gradient.flatten(1)
        return flat.norm(dim=1) if self.norm == "2" else flat.abs().sum(1)

    def _off_kinks(self, x: Tensor) -> Tensor:
        """Points of the box beside those given, where gradients exist."""
        noise = self._uniform(x.shape) * _MOVED
        limit = 1 - _MOVED
        unit = ((x - self.centre) / self.radius.clamp(min=1e-300)).clamp(-limit, limit)
        return self.centre + (unit + noise) * self.radius

    def _look(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """True norms at points, all rows or one each; the pool and the best are kept.

        Returns:
            [B].
        """
        x = self._off_kinks(x)
        if rows is None or self.norm == "2":
            norms = self.norms(x)
            values, rows = norms.max(1)
            if self.norm != "2":
                order = norms.amax(0).argsort(descending=True)
                self.best_rows = torch.cat([rows[values.argmax()][None], order])[: _ROWS + 1]
        else:
            values = self._row_norms(x.detach().requires_grad_(), rows, None).detach()
        values = torch.where(values.isfinite(), values, torch.zeros_like(values))
        best = int(values.argmax())
        if float(values[best]) > self.found.value:
            sure = min(float(self.norms(x[best : best + 1], s).max()) for s in (0.0, 1.0))
            if sure > self.found.value:
                self.found.value, self.found.point = sure, x[best].clone()
                self.found.course.append((self._clock(), sure))
            if sure < float(values[best]) * (1 - 1e-9):
                values[best] = sure
        self._keep(x, values, rows)
        return values

    def _keep(self, x: Tensor, values: Tensor, rows: Tensor) -> None:
        """The best points of different norms: one norm is most often one linear piece."""
        together = torch.cat([self.values, values])
        kept: list[int] = []
        last = math.inf
        for place in together.argsort(descending=True, stable=True).tolist():
            value = float(together[place])
            if value < last * (1 - 1e-9):
                kept.append(place)
                last = value
            if len(kept) == _POOL:
                break
        self.points = torch.cat([self.points, x])[kept]
        self.rows, self.values = torch.cat([self.rows, rows])[kept], together[kept]

    # --- where to look --------------------------------------------------------------------------

    def _uniform(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Numbers from -1 to 1."""
        return 2 * torch.rand(shape, generator=self.random, dtype=torch.float64) - 1

    def _within(self, unit: Tensor) -> Tensor:
        return self.centre + unit.clamp(-1, 1) * self.radius

    def _clamp(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.centre - self.radius), self.centre + self.radius)

    def _begin_anew(self) -> None:
        """Give the pool up: most often for points at random, at times for the best of all pools."""
        self.past.append((self.points[:4], self.values[:4], self.rows[:4]))
        self.past = sorted(self.past, key=lambda pool: -float(pool[1][0]))[:_POOL]
        together = [torch.cat(parts) for parts in zip(*self.past, strict=True)]
        self.points, self.values, self.rows = (part[:0] for part in together)
        if float(torch.rand(1, generator=self.random)) < _AGAIN:
            points, values, rows = together
            self._keep(points, values, rows)
        else:
            for _ in range(_BATCHES_ANEW):
                self._look(self._within(self._mixed(int(_PROPOSALS * self.scale))))

    def _mixed(self, count: int) -> Tensor:
        """Points at random, from -1 to 1, with a share of their inputs at the ends."""
        unit = self._uniform((count, *self.shape))
        share = torch.rand(count, *[1] * len(self.shape), generator=self.random)
        at_end = torch.rand(unit.shape, generator=self.random) < share
        return torch.where(at_end, unit.sign(), unit)

    def _first_points(self) -> Iterator[Tensor]:
        yield self.centre[None]
        count = int(_PROPOSALS * self.scale / 4)
        for _ in range(4):
            unit = self._uniform((count, *self.shape))
            yield self._within(unit)
            yield self._within(unit.sign())
        if self.inputs <= 2:
            yield from self._grid()

    def _grid(self) -> Iterator[Tensor]:
        side = 20_000 if self.inputs == 1 else 150
        line = torch.linspace(-1, 1, side, dtype=torch.float64)
        grid = torch.cartesian_prod(*[line] * self.inputs).reshape(-1, *self.shape)
        for part in grid.split(1000):
            yield self._within(part)

    def _deviations(self) -> list[Tensor]:
        """Of the inputs of every place of a kink, over random points of the box."""
        with torch.no_grad():
            _, inputs = self.network.outputs(self._within(self._uniform((32, *self.shape))))
        found = []
        for z in inputs:
            finite = torch.where(z.isfinite(), z, torch.zeros_like(z))
            found.append(finite.std(0).clamp(min=1e-12))
        return found

    def _starts(self, count: int) -> tuple[Tensor, Tensor]:
        """Points to begin at, half of them of the pool, and the rows that are looked at."""
        old = torch.randint(len(self.points), (count // 2,), generator=self.random)
        new = self._within(self._mixed(count - len(old)))
        new[: len(new) // 2] = self.centre
        some = torch.randint(len(self.best_rows), (len(new),), generator=self.random)
        return torch.cat([self.points[old], new]), torch.cat([self.rows[old], self.best_rows[some]])

    def _how_to_climb(self) -> list[float]:
        """Widths and step as :data:`_RANGES` has them: anew, or near those of a good climb."""
        ranges = _RANGES_OF_FEW if self.inputs <= _FEW_INPUTS else _RANGES
        drawn = torch.rand(len(ranges), generator=self.random).tolist()
        if self.climbs and float(torch.rand(1, generator=self.random)) < 0.6:
            known = self.climbs[int(torch.randint(len(self.climbs), (1,), generator=self.random))]
            return [k * 1.5 ** (2 * d - 1) for k, d in zip(known[1], drawn, strict=True)]
        return [low * (high / low) ** d for (low, high), d in zip(ranges, drawn, strict=True)]

    def _climb(self, deviations: list[Tensor]) -> Iterator[None]:
        """Ascent of the rounded off norm by steps of signs, kinks sharpened on the way."""
        x, rows = self._starts(int(_STARTS * self.scale))
        how = self._how_to_climb()
        first, left, length = how
        if float(torch.rand(1, generator=self.random)) < 0.7:
            deviations = [d.mean() for d in deviations]
        most = 0.0
        for step in range(_STEPS):
            done = step / (_STEPS - 1)
            widths = [d * first * left**done for d in deviations]
            x = x.detach().requires_grad_()
            norms = self._row_norms(x, rows, widths)
            if not norms.requires_grad:  # the gradient does not depend on the point
                return
            (slope,) = torch.autograd.grad(norms.sum(), x, allow_unused=True)
            if slope is None:
                return
            moved = x + (1 - 0.95 * done) * length * self.radius * slope.sign()
            x = self._clamp(moved).detach()
            if step % 2 or step + 1 == _STEPS:
                most = max(most, float(self._look(x, rows).max()))
            yield
        most = max(most, float(self._look(x).max()))
        self.climbs = sorted([*self.climbs, (most, how)], reverse=True)[:_REMEMBERED]

    def _moves(self) -> Iterator[None]:
        """Moves from the best points; what is better takes part in the next moves."""
        count = int(_PROPOSALS * self.scale)
        for turn in range(12):
            chosen = torch.randint(min(len(self.points), 8), (count,), generator=self.random)
            x, rows = self.points[chosen], self.rows[chosen]
            kind = turn % 4
            if kind == 0:
                x = self._some_anew(x, corners=False)
            elif kind == 1:
                x = self._some_anew(x, corners=True)
            elif kind == 2:
                size = 10.0 ** (-4 * torch.rand(count, generator=self.random, dtype=torch.float64))
                step = self._uniform(x.shape) * size.reshape(-1, *[1] * len(self.shape))
                x = self._clamp(x + step * self.radius)
            else:
                x = self._over_kinks(x)
            self._look(x, rows)
            yield
        self._look(self.points[:8])

    def _some_anew(self, x: Tensor, corners: bool) -> Tensor:
        """A few inputs of every point drawn anew, or put to their ends."""
        share = torch.rand(len(x), 1, generator=self.random, dtype=torch.float64)
        most = math.log(self.inputs)
        few = torch.exp(share * most) / self.inputs
        drawn = torch.rand(len(x), self.inputs, generator=self.random, dtype=torch.float64) < few
        unit = self._uniform((len(x), *self.shape))
        new = self._within(unit.sign() if corners else unit)
        return torch.where(drawn.reshape(x.shape), new, x)

    def _over_kinks(self, x: Tensor) -> Tensor:
        """Every point moved over one of the kinks that are nearest to it."""
        x = x.detach().requires_grad_()
        _, inputs = self.network.outputs(x)
        places = [z for z in inputs if z.requires_grad]
        if not places:
            return self._clamp(x.detach() + self._uniform(x.shape) * 0.01 * self.radius)
        place = int(torch.randint(len(places), (1,), generator=self.random))
        z = places[place].reshape(len(x), -1)
        size = z.detach().abs()
        near = torch.where((size > 0) & size.isfinite(), size, torch.inf)
        several = near.topk(min(8, near.shape[1]), largest=False).indices
        pick = torch.randint(several.shape[1], (len(x), 1), generator=self.random)
        unit = several.gather(1, pick)
        picked = z.gather(1, unit)
        (slope,) = torch.autograd.grad(picked.sum(), x)
        # The shortest step in the largest coordinate: along the signs, in shares of the radius.
        direction = slope.sign() * self.radius
        rate = (slope * direction).flatten(1).sum(1, keepdim=True).clamp(min=1e-300)
        over = 1 + torch.rand(len(x), 1, generator=self.random, dtype=torch.float64)
        share = (-picked.detach() / rate * over).clamp(-2, 2)
        step = share.reshape(-1, *[1] * len(self.shape)) * direction
        return self._clamp(x.detach() + step)
