"""Subdomain bounds by auto_LiRPA, for the paper's own branch and bound.

Shi et al. 2022 (section 3.4) bound every subdomain by the whole linear bound propagation of the
Jacobian-augmented graph, with pre-activation intervals cut by the splits. Leaves, their regions and
witnesses are handled as in the native search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.root import RootBounds
from lipschitz.problem import LocalProblem
from lipschitz.search.engines.neurons import NeuronSearch
from lipschitz.search.heuristics import Chooser, SplitFacts
from lipschitz.search.interface import Report
from lipschitz.search.subdomains import Subdomains

if TYPE_CHECKING:
    from lipschitz.bounds.lirpa.bounds import LirpaEngine


class LirpaSearch(NeuronSearch):
    """What branch and bound asks of engine A, for one problem.

    Args:
        problem: The problem.
        engine: The network's bounds.
        root: Root bounds, as ``engine`` found them.
        choose: Picks the neuron to split; one that never picks an entry's sign, which this engine
            has no bound for.
        clock: When to stop.
    """

    def __init__(
        self,
        problem: LocalProblem,
        engine: LirpaEngine,
        root: RootBounds,
        choose: Chooser,
        clock: Clock = UNLIMITED,
    ) -> None:
        from lipschitz.bounds.lirpa.bounds import OutOfTimeError  # its package is optional

        self.engine, self.out_of_time = engine, OutOfTimeError
        super().__init__(problem, root, choose, refresh_every=0, clock=clock)

    def evaluate(self, subdomains: Subdomains) -> Subdomains:
        """CROWN bounds of the Jacobian with the subdomains' own pre-activation intervals."""
        preacts = self._preacts(subdomains)
        directions = self.problem.rows[subdomains.row]
        try:
            norm = self.engine.norm_bounds(self.problem, directions, preacts, self.clock)
        except self.out_of_time:  # keep the parents' bounds, and do not split again
            return subdomains.having(choice=torch.full_like(subdomains.choice, -1))
        batch, like, join = len(subdomains), subdomains.preact_lower, self.layout.join
        zeros = {i: like.new_zeros(1, *shape) for i, shape in self.layout.shapes.items()}
        lower = join({i: b.lower for i, b in norm.cotangents.items()}, batch, like)
        upper = join({i: b.upper for i, b in norm.cotangents.items()}, batch, like)
        slopes = self.slopes(subdomains)
        ranges = {i: s.upper - s.lower for i, s in slopes.items()}
        is_open = self.layout.is_open(subdomains.preact_lower, subdomains.preact_upper)
        choice = self.choose(
            SplitFacts(
                join(zeros | norm.coefficients, batch, like),
                lower,
                upper,
                join(ranges, batch, like),
                is_open,
                torch.zeros_like(subdomains.entry_lower),
            )
        )
        entries = [end.flatten(1) for end in norm.entries]
        # A bound that is not a number improves nothing.
        bound = torch.where(norm.upper_bound.isnan(), subdomains.upper_bound, norm.upper_bound)
        return subdomains.having(
            upper_bound=torch.minimum(bound, subdomains.upper_bound),
            cotangent_lower=lower,
            cotangent_upper=upper,
            entry_lower=torch.maximum(subdomains.entry_lower, entries[0]),
            entry_upper=torch.minimum(subdomains.entry_upper, entries[1]),
            choice=choice,
        )

    def refine(self, subdomains: Subdomains, threshold: float = 0.0) -> Report:
        """Nothing: every subdomain has had the whole bound already."""
        nothing = subdomains.row[:0]
        return Report(subdomains, self._inputs(subdomains.entry_lower[:0]), nothing)
