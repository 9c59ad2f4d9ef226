"""Regions of the box by activation pattern, and their interval bounds, for LipBaB.

Shapes: B regions, R rows, N neurons of all layers, M of one layer, D inputs, K half-spaces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.forward.preactivations import preactivation_bounds
from lipschitz.bounds.native.forward.value_pass import value_upper_line
from lipschitz.bounds.native.interval import (
    Interval,
    forward_intervals,
    intersect,
    jacobian_interval,
    slope_intervals,
)
from lipschitz.bounds.native.lines import Lines
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.problem import LocalProblem
from lipschitz.rounding import guard


@dataclass(frozen=True)
class Region:
    """The part of the box, scaled to [-1, 1]^D, where ``matrix u + constant >= 0``.

    Attributes:
        lower, upper: Bounds of all pre-activations, [N].
        matrix, constant: Its half-spaces, of norm 1, [K, D] and [K].
        row_bounds: Upper bound of every row's norm in it, [R].
    """

    lower: Tensor
    upper: Tensor
    matrix: Tensor
    constant: Tensor
    row_bounds: Tensor

    @property
    def bound(self) -> float:
        """The largest of its rows' bounds."""
        return float(self.row_bounds.max())

    @property
    def open_neurons(self) -> Tensor:
        """Neurons whose sign is not fixed, [N]."""
        return (self.lower < 0) & (self.upper > 0)


class RegionBounds:
    """Bounds regions of one problem, in batches."""

    def __init__(self, problem: LocalProblem, clock: Clock = UNLIMITED) -> None:
        self.problem, self.graph, self.plan = problem, problem.graph, Plan(problem.graph)
        self.box = Interval(problem.lower[None], problem.upper[None])
        intervals = forward_intervals(self.graph, *self.box)
        budget = default_memory_budget(self.graph.device)
        crown = preactivation_bounds(self.plan, *self.box, intervals, budget=budget, clock=clock)
        preact = self.plan.preact_node
        self.rounding = intervals.rounding
        self.sizes = [self.graph.nodes[a].shape.numel() for a in self.plan.activations]
        root = {a: intersect(intervals.bounds[preact(a)], crown[a]) for a in self.plan.activations}
        lower, upper = self._joined(root)
        size = problem.lower.numel()
        empty = problem.lower.new_zeros(0, size)
        infinite = torch.full_like(problem.rows[:, 0], torch.inf)
        region = Region(lower[0], upper[0], empty, empty[:, 0], infinite)
        self.root = self.bounded([region])[0]

    def _joined(self, preacts: dict[int, Interval]) -> Interval:
        if not preacts:
            none = self.box.lower.new_zeros(1, 0)
            return Interval(none, none)
        ends = zip(*(preacts[a] for a in self.plan.activations), strict=True)
        return Interval(*(torch.cat([e.flatten(1) for e in end], dim=1) for end in ends))

    def _split(self, regions: list[Region]) -> dict[int, Interval]:
        """Pre-activation intervals by activation node, [B, *shape]."""
        ends = []
        for name in ("lower", "upper"):
            stacked = torch.stack([getattr(region, name) for region in regions])
            ends.append(stacked.split(self.sizes, dim=1))
        return {
            a: Interval(*(e.reshape(len(regions), *self.graph.nodes[a].shape) for e in pair))
            for a, *pair in zip(self.plan.activations, *ends, strict=True)
        }

    @torch.no_grad()
    def bounded(self, regions: list[Region]) -> list[Region]:
        """Regions with tightened intervals and bounds; those proved empty are left out."""
        if not regions:
            return []
        known = self._split(regions)
        preacts = self._propagated(known)
        lower, upper = self._joined(preacts)
        slopes = slope_intervals(self.graph, preacts)
        rows, count = self.problem.rows, len(self.problem.rows)
        entries = jacobian_interval(
            self.graph,
            rows.repeat(len(regions), 1),
            {a: Interval(*(e.repeat_interleave(count, 0) for e in s)) for a, s in slopes.items()},
        )
        bounds = self.problem.measure.upper_bound(*entries).reshape(len(regions), count)
        alive = (lower <= upper).all(1).tolist() if self.sizes else [True] * len(regions)
        return [
            replace(
                region,
                lower=lower[i],
                upper=upper[i],
                row_bounds=torch.minimum(region.row_bounds, bounds[i]),
            )
            for i, region in enumerate(regions)
            if alive[i]
        ]

    def _propagated(self, known: dict[int, Interval]) -> dict[int, Interval]:
        """Interval arithmetic forward, cut to the known bounds at every activation."""
        bounds: list[Interval] = [self.box]
        preacts: dict[int, Interval] = {}
        for index, node in enumerate(self.graph.nodes[1:], start=1):
            inputs = [bounds[p] for p in node.parents]
            if node.affine is not None:
                lower, upper = node.affine.interval(*inputs)
                margin = self.rounding[index]
                bounds.append(Interval(lower - margin, upper + margin))
                continue
            preact = inputs[0]
            if index in known:
                preact = preacts[index] = intersect(preact, known[index])
            bounds.append(Interval(*node.activation.interval(*preact)))
        return preacts

    @torch.no_grad()
    def children(self, parents: list[Region]) -> list[Region]:
        """Each region cut in two at one neuron of its first layer that is not fixed, unbounded.

        A region whose layer turns out to be fixed, now that it is linear in the input, comes back
        alone.
        """
        groups: dict[int, list[Region]] = {}
        ends = torch.tensor(self.sizes).cumsum(0)
        for region in parents:
            first = int(region.open_neurons.nonzero()[0])
            groups.setdefault(int((ends <= first).sum()), []).append(region)
        return [child for layer, group in groups.items() for child in self._cut(layer, group)]

    def _cut(self, layer: int, regions: list[Region]) -> list[Region]:
        matrix, constant = self._linear(layer, regions)
        start = sum(self.sizes[:layer])
        part = slice(start, start + self.sizes[layer])
        node = self.plan.preact_node(self.plan.activations[layer])
        reach = matrix.abs().sum(2)
        margin = self.rounding[node].flatten(1) + guard(matrix.dtype) * (reach + constant.abs())
        lower = torch.stack([r.lower for r in regions])
        upper = torch.stack([r.upper for r in regions])
        lower[:, part] = torch.maximum(lower[:, part], constant - reach - margin)
        upper[:, part] = torch.minimum(upper[:, part], constant + reach + margin)
        # Cut near the middle: both halves then exclude most.
        ratio = torch.minimum(-lower[:, part], upper[:, part])
        ratio = ratio / (upper[:, part] - lower[:, part]).clamp(min=1e-300)
        best, choice = ratio.max(dim=1)
        children = []
        for i, region in enumerate(regions):
            region = replace(region, lower=lower[i], upper=upper[i])
            if best[i] <= 0:
                children.append(region)
                continue
            k = int(choice[i])
            length = matrix[i, k].norm() + constant[i, k].abs()
            normal, offset = matrix[i, k] / length, constant[i, k] / length
            for sign, end in ((-1, upper), (1, lower)):
                cut = end[i].clone()
                cut[start + k] = 0
                children.append(
                    replace(
                        region,
                        **{"upper" if sign < 0 else "lower": cut},
                        matrix=torch.cat([region.matrix, sign * normal[None]]),
                        constant=torch.cat([region.constant, sign * offset[None]]),
                    )
                )
        return children

    def _linear(self, layer: int, regions: list[Region]) -> tuple[Tensor, Tensor]:
        """Pre-activations of a layer as ``matrix u + constant`` ([B, M, D], [B, M]).

        All earlier layers are fixed, so both lines around each of their neurons coincide.
        """
        activation = self.plan.activations[layer]
        node, shape = self.plan.preact_node(activation), self.graph.nodes[activation].shape
        lines = {}
        for a, preact in self._split(regions).items():
            slope = self.graph.nodes[a].activation.slope_interval(*preact)[0].unsqueeze(1)
            zero = torch.zeros_like(slope)
            lines[a] = Lines(slope, zero, None, zero.flatten(1))
        size = shape.numel()
        unit = torch.eye(size, dtype=self.graph.dtype, device=self.graph.device)
        matrix, constant = value_upper_line(self.plan, node, unit.reshape(1, size, *shape), lines)
        lower, upper = self.problem.lower.flatten(), self.problem.upper.flatten()
        matrix = matrix.flatten(2).expand(len(regions), size, len(lower))
        constant = constant + matrix @ ((lower + upper) / 2)
        return matrix * ((upper - lower) / 2), constant.expand(len(regions), size)
