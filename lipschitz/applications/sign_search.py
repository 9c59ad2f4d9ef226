"""Is a functional of the Jacobian ever above 0 on a box? Branch and bound for one question.

Unlike the search for the largest norm (``lipschitz/search/loop.py``) this one stops at the first
positive value, or when no subdomain can hold one. A part of the box that can be neither split nor
refuted leaves the question open; it is never dropped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.clock import Clock
from lipschitz.search.engines.functionals import FunctionalBisection, FunctionalSearch
from lipschitz.search.interface import Report
from lipschitz.search.pool import DomainPool
from lipschitz.search.subdomains import Batch


@dataclass(frozen=True)
class SignLimits:
    """When to give up.

    Attributes:
        timeout: Seconds per question. The bounds and gradients that come before the search share
            the time of all questions of a box.
        batch_size: Subdomains split per round.
        max_domains: Subdomains bounded.
    """

    timeout: float = 10.0
    batch_size: int = 128
    max_domains: int = 200_000


@dataclass(frozen=True)
class SignAnswer:
    """What is known in the end.

    Attributes:
        upper_bound: Certified upper bound of the functional.
        witness: A point where it is positive, [*input_shape], or None.
        domains: Subdomains bounded.
    """

    upper_bound: float
    witness: Tensor | None
    domains: int


@torch.no_grad()
def is_ever_positive(
    search: FunctionalSearch | FunctionalBisection, query: int, limits: SignLimits | None = None
) -> SignAnswer:
    """Decide one of a search's functionals.

    Args:
        search: The bounds and splits.
        query: Which functional.
        limits: When to give up.
    """
    limits = limits or SignLimits()
    begin = time.perf_counter()
    search.end_with(Clock.of(limits.timeout))
    first = search.root().take(slice(query, query + 1))
    pool = DomainPool(first.take(first.upper_bound > 0))
    count, closed, domains = limits.batch_size, 0.0, 0
    needed, done = 0.0, 1  # seconds of the last round, and how many subdomains it split
    witness: Tensor | None = None

    def look(report: Report) -> Batch:
        """Note witnesses and what can be searched no further; returns what is left."""
        nonlocal closed, witness
        if report.closed is not None and len(report.closed):
            closed = max(closed, float(report.closed.upper_bound.max()))
        if len(report.points):
            values = search.witness_norms(report.points, report.point_rows)
            best = int(values.argmax())
            if float(values[best]) > 0:
                witness = report.points[best].clone()
        open_ = report.subdomains
        return open_.take(open_.upper_bound > 0)

    while witness is None and pool.largest() > 0:
        now = time.perf_counter() - begin
        left = limits.timeout - now
        size = min(count, len(pool))
        expected = needed * max(1.0, size / done)
        if left <= 0 or (size == 1 and expected > left) or domains >= limits.max_domains:
            break
        if expected > left:  # fewer subdomains rather than a round that is not done in time
            size = max(1, int(size * left / expected))
        slots = pool.strongest(size, 0.0)
        parents = look(search.refine(pool.read(slots)))
        is_leaf = parents.choice < 0
        if bool(is_leaf.any()):
            pool.add(look(search.settle(parents.take(is_leaf))))
            parents = parents.take(~is_leaf)
        if len(parents):
            children = search.children(parents)
            domains += len(children)
            pool.add(children.take(children.upper_bound > 0))
        pool.drop(slots)
        needed, done = time.perf_counter() - begin - now, len(slots)
        if needed > 0.1 * limits.timeout:
            count = max(1, done // 2)
    most = max(pool.largest(), closed)  # at least 0, where a negative bound was not looked for
    return SignAnswer(min(float(first.upper_bound), most), witness, domains)
