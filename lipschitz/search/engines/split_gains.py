"""Which of two kinds of splits gains more, as measured so far in the same search.

Both are tried on subdomains of all sorts now and then. Only speed depends on the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Share of the subdomains that get the other kind, so that it stays known what it gains; and what
# of the older measurements is kept from round to round. Choices.
_TRIED, _KEPT = 0.05, 0.99


class SplitGains:
    """Average gains of two kinds of splits of subdomains of alike size.

    Args:
        sizes: Sizes are told apart up to this one.
        device: Where sizes are.
    """

    def __init__(self, sizes: int, device: torch.device) -> None:
        self.sizes = sizes
        # One gain each to begin with: the first kind, unless the second is known to be better.
        self._sums = torch.ones(2, sizes, dtype=torch.float64, device=device)
        self._counts = torch.ones_like(self._sums)
        self._generator = torch.Generator().manual_seed(0)

    def prefers_second(self, size: Tensor) -> Tensor:
        """Whether to take the second kind, for subdomains of these sizes [B]: [B]."""
        means = self._sums / self._counts
        chance = torch.rand(len(size), generator=self._generator).to(size.device)
        return (means[1] > means[0])[self._cut(size)] ^ (chance < _TRIED)

    def note(self, is_second: Tensor, size: Tensor, gain: Tensor) -> None:
        """Take note of what splits have gained.

        Args:
            is_second: Of which kind they were, [B].
            size: Of the subdomains, [B].
            gain: [B].
        """
        at = is_second.long() * self.sizes + self._cut(size)
        for kept, new in ((self._sums, gain.double()), (self._counts, torch.ones_like(gain))):
            kept.mul_(_KEPT)
            kept.view(-1).index_add_(0, at, new.double())

    def _cut(self, size: Tensor) -> Tensor:
        return size.clamp(0, self.sizes - 1)
