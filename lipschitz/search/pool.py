"""The open subdomains of a search, kept as tensors.

Subdomains live in slots of preallocated tensors; a freed slot is used again. Nothing is moved to
take the strongest ones or to add children, so a round costs one pass over the upper bounds and
copies of the subdomains it touches.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from lipschitz.search.subdomains import Batch

# Fields that are read over all slots, free ones included, and their values in a free slot.
_OF_FREE_SLOTS = {"upper_bound": -torch.inf, "row": 0}


class DomainPool:
    """Open subdomains.

    A reader always sees an upper bound for every open part of the box: children are stored before
    their parents' slots are freed, so a search that is interrupted at any point stays certified.

    Args:
        first: The subdomains to begin with.
    """

    def __init__(self, first: Batch) -> None:
        self._slots = first.take(torch.arange(len(first), device=first.row.device))
        self.upper_bounds.fill_(-torch.inf)
        self._free = torch.arange(len(first), device=first.row.device)
        self.add(first)

    @property
    def upper_bounds(self) -> Tensor:
        """One number per slot, minus infinity for a free one."""
        return self._slots.upper_bound

    def __len__(self) -> int:
        return len(self._slots) - len(self._free)

    def largest(self) -> float:
        """Largest upper bound of an open subdomain; minus infinity if there is none."""
        return float(self.upper_bounds.max()) if len(self._slots) else float("-inf")

    def strongest(self, count: int, threshold: float) -> Tensor:
        """Slots of the ``count`` largest upper bounds above ``threshold``, largest first."""
        bounds, slots = self.upper_bounds.topk(min(count, len(self)))
        return slots[bounds > threshold]

    def read(self, slots: Tensor) -> Batch:
        """Copies of the subdomains in these slots."""
        return self._slots.take(slots)

    def add(self, new: Batch) -> None:
        """Store subdomains in free slots."""
        if len(new) > len(self._free):
            self._grow(len(new) - len(self._free))
        slots, self._free = self._free[: len(new)], self._free[len(new) :]
        for f in fields(self._slots):
            if f.name != "upper_bound":
                getattr(self._slots, f.name)[slots] = getattr(new, f.name)
        self.upper_bounds[slots] = new.upper_bound

    def drop(self, slots: Tensor) -> None:
        """Free these slots."""
        self.upper_bounds[slots] = -torch.inf
        self._free = torch.cat([self._free, slots])

    def weakest(self, count: int) -> Tensor:
        """Slots of the ``count`` smallest upper bounds of open subdomains."""
        bounds = self.upper_bounds.masked_fill(torch.isneginf(self.upper_bounds), torch.inf)
        return bounds.topk(count, largest=False).indices

    def row_upper_bounds(self, num_rows: int) -> Tensor:
        """Largest upper bound of every row's open subdomains, [R]."""
        bounds = self.upper_bounds.new_full((num_rows,), -torch.inf)
        return bounds.scatter_reduce(0, self._slots.row, self.upper_bounds, "amax")

    def _grow(self, missing: int) -> None:
        old = len(self._slots)
        extra = max(missing, old)

        def longer(name: str) -> Tensor:
            tensor = getattr(self._slots, name)
            grown = tensor.new_empty(old + extra, *tensor.shape[1:])
            grown[:old] = tensor
            # Other fields of free slots are never read. Writing them would cost seconds in a large
            # pool, since only then does the system hand out the memory.
            if name in _OF_FREE_SLOTS:
                grown[old:] = _OF_FREE_SLOTS[name]
            return grown

        self._slots = type(self._slots)(*(longer(f.name) for f in fields(self._slots)))
        self._free = torch.cat(
            [self._free, torch.arange(old, old + extra, device=self._free.device)]
        )
