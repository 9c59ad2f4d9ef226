"""The pool keeps what it is given, through growth, reuse and selection."""

import torch

from lipschitz.search.pool import DomainPool
from lipschitz.search.subdomains import Subdomains, concatenate


def batch(bounds, row=0) -> Subdomains:
    upper = torch.tensor(bounds, dtype=torch.float64)
    wide = upper[:, None].expand(-1, 3).clone()
    index = torch.full((len(upper),), row)
    return Subdomains(index, upper, index - 1, *[wide.clone() for _ in range(7)], index)


def test_strongest_first_and_only_above_the_threshold():
    pool = DomainPool(batch([1.0, 5.0, 3.0, 4.0]))
    assert pool.read(pool.strongest(2, 0.0)).upper_bound.tolist() == [5.0, 4.0]
    assert pool.read(pool.strongest(9, 3.5)).upper_bound.tolist() == [5.0, 4.0]


def test_slots_are_reused_and_grow():
    pool = DomainPool(batch([1.0, 2.0]))
    for step in range(50):
        slots = pool.strongest(1, 0.0)
        parent = pool.read(slots)
        assert float(parent.preact_lower[0, 0]) == float(parent.upper_bound[0])
        pool.add(concatenate([batch([0.5 + step / 100], row=1), batch([0.6 + step / 100], row=2)]))
        pool.drop(slots)
        assert len(pool) == 3 + step
    assert pool.row_upper_bounds(3).tolist() == [-torch.inf, 0.5 + 0.49, 0.6 + 0.49]


def test_rows_and_weakest():
    pool = DomainPool(concatenate([batch([2.0, 9.0], row=0), batch([4.0], row=2)]))
    assert pool.row_upper_bounds(3).tolist() == [9.0, -torch.inf, 4.0]
    assert pool.read(pool.weakest(1)).upper_bound.tolist() == [2.0]
    assert pool.largest() == 9.0


def test_the_pool_does_not_share_memory_with_its_first_batch():
    first = batch([1.0])
    pool = DomainPool(first)
    first.upper_bound.fill_(7.0)
    assert pool.largest() == 1.0
