"""Bounds of many subdomains of one problem in one batch, for branch and bound.

A subdomain is a row of the problem and pre-activation intervals: those of its parent, one of them
cut at 0 by a split. The input box is the problem's own. Splits need no other bookkeeping: a
neuron whose interval ends at 0 has one slope, and its activation is a line.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.backward.norm_bounds import NormBounds, norm_bounds
from lipschitz.bounds.native.forward.preactivations import preactivation_rows
from lipschitz.bounds.native.interval import Interval, intersect, slope_intervals
from lipschitz.bounds.native.lines import Lines, activation_lines
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Exactness, Plan
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.native.rows import needed_indices, place
from lipschitz.problem import LocalProblem
from lipschitz.search.subdomain_bounds.maxima import SubdomainMaxima
from lipschitz.search.subdomain_bounds.multipliers import SplitTightening


@dataclass(frozen=True)
class DomainBounds:
    """Bounds of B subdomains.

    Attributes:
        upper_bound: Upper bound of the norm on each, [B]; minus infinity where it is empty.
        preacts: Refreshed pre-activation interval by activation node, [B, *shape].
        norm: Intervals of the cotangents and of the entries, and the coefficients of the bound.
        empty: Subdomains whose intervals cross by more than rounding explains, [B].
    """

    upper_bound: Tensor
    preacts: dict[int, Interval]
    norm: NormBounds
    empty: Tensor


class DomainBounder:
    """Bounds subdomains of one problem.

    Args:
        problem: The problem.
        root: Its root bounds, for the rounding margins.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        multiplier_steps: Steps with which refreshing uses the splits themselves to tighten
            pre-activations (:mod:`lipschitz.search.subdomain_bounds.multipliers`); 0 leaves them
            out.
        clock: When to stop; intervals not reached then stay as they are.
    """

    def __init__(
        self,
        problem: LocalProblem,
        root: RootBounds,
        *,
        memory_budget: int | None = None,
        multiplier_steps: int = 0,
        clock: Clock = UNLIMITED,
    ) -> None:
        self.problem, self.clock = problem, clock.without_notes()
        self.plan = Plan(problem.graph)
        self.budget = memory_budget or default_memory_budget(problem.graph.device)
        self.rounding = root.rounding
        self.lower, self.upper = problem.lower[None], problem.upper[None]
        self.maxima = SubdomainMaxima(self.plan, root.windows)
        self.by_splits: SplitTightening | None = None
        if multiplier_steps:
            self.by_splits = SplitTightening(
                self.plan,
                self.lower,
                self.upper,
                self.rounding,
                steps=multiplier_steps,
                budget=self.budget,
                maxima=self.maxima,
            )

    @torch.no_grad()
    def __call__(
        self, rows: Tensor, preacts: dict[int, Interval], *, refresh: bool = True
    ) -> DomainBounds:
        """Bound a batch of subdomains.

        Args:
            rows: Row of the problem of each subdomain, [B] integers.
            preacts: Pre-activation interval by activation node, [B, *shape], splits included.
            refresh: Recompute pre-activations; they are intersected with the given ones.

        Returns:
            The bounds; pre-activations are never looser than the given ones.
        """
        if refresh:
            preacts = self.refreshed(preacts)
        empty = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for lower, upper in preacts.values():
            # Both ends are widened by the margin already, so a true value never falls between.
            empty |= (lower > upper).flatten(1).any(1)
        directions = self.problem.rows[rows]
        norm = norm_bounds(
            self.plan,
            directions,
            slope_intervals(self.problem.graph, preacts),
            budget=self.budget,
            tighten=True,
            measure=self.problem.measure,
            clock=self.clock,
            windows=self.maxima.windows,
        )
        upper_bound = norm.upper_bound.masked_fill(empty, -torch.inf)
        return DomainBounds(upper_bound, preacts, norm, empty)

    def refreshed(self, preacts: dict[int, Interval]) -> dict[int, Interval]:
        """Pre-activation intervals after CROWN with the given ones as what is already known.

        Args:
            preacts: Interval by activation node, [B, *shape].

        Returns:
            Intervals of the same shapes, never looser.
        """
        tightened: dict[int, Interval] = {}
        lines: dict[int, Lines] = {}
        for activation in self.plan.activations:
            bounds = preacts[activation]
            node = self.plan.preact_node(activation)
            if self.plan.value_exactness[node] is Exactness.LOOSE:
                mask = self.plan.graph.nodes[activation].activation.is_open(*bounds)
                indices = needed_indices(mask)
                if len(indices):
                    rows = preactivation_rows(
                        self.plan,
                        activation,
                        indices,
                        lines,
                        self.lower,
                        self.upper,
                        self.budget,
                        self.clock,
                    )
                    margin = self.rounding[activation].flatten(1)[:, indices]
                    bounds = intersect(bounds, place(bounds, rows + margin, indices, mask))
            tightened[activation] = bounds
            lines[activation] = activation_lines(
                self.plan.graph.nodes[activation].activation,
                bounds,
                rounding=self.rounding[activation],
            )
            self.maxima.add_lines(activation, tightened, lines)
        return tightened if self.by_splits is None else self.by_splits(tightened, self.clock)
