"""LipBaB: branching on activation patterns, with interval bounds of the Jacobian.

Method card
    Needs: ReLU or LeakyReLU; any graph, but small: the number of regions grows exponentially with
        the unstable neurons.
    Returns: upper bounds per row that fall with time, a lower bound with a witness, and ``exact``
        when no region is left that could hold more.
    Idea: a region of the box is described by half-spaces, the signs of neurons fixed so far, first
        layers first, so that each is linear in the input. Its bound is interval arithmetic on the
        Jacobian with the slopes of the fixed neurons known. The region of the largest bound is cut
        by one more neuron; halves that no input satisfies (a linear program) are dropped. Where
        all signs are fixed the bound is the norm of the gradient there.
    Sound: yes. Exact: yes, given time, for networks in general position.
    Reference: Bhowmick, D'Souza and Raghavan, ICANN 2021 (arXiv 2105.05495); written from the
        paper. Here regions are bounded in batches, one search serves all outputs, and half-spaces
        are tested in a batch before any of them costs a linear program.

Trusted and not trusted: a region is dropped as empty only by multipliers that prove it
(:func:`lipschitz.bounds.feasibility.batched.farkas`) or by intervals that miss each other by more
than rounding. A solver's answer is only a proposal.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from lipschitz.bounds.baselines.needs import require_relu
from lipschitz.bounds.baselines.regions import Region, RegionBounds
from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.feasibility.batched import search_feasible
from lipschitz.bounds.feasibility.by_program import check_leaf
from lipschitz.bounds.outcome import Outcome, better, nothing_found
from lipschitz.bounds.true_gradients import (
    GradientNorms,
    Sampling,
    gradients_at,
    sample_gradients,
)
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound
from lipschitz.words import BOUND, DOMAIN_LIMIT, INTERRUPTED, TIMEOUT

# Regions bounded in one round and regions kept, each at most so many and in so many bytes. Choices:
# only speed, and when the search gives up, depend on them.
_BATCH, _BATCH_BYTES = 128, 2**28
_MAX_REGIONS, _POOL_BYTES = 200_000, 2**31
# Relative gap up to which a region counts as done, little more than rounding. A choice.
_TOLERANCE = 1e-9
# Most of the time left that the first lower bound may take. A choice.
_SHARE_OF_SAMPLING = 0.2


def without_empty(regions: list[Region], clock: Clock = UNLIMITED) -> tuple[list[Region], int]:
    """The regions not proved empty, as far as there is time, and how many programs that took."""
    most = max((len(r.constant) for r in regions), default=0)
    if not most:
        return regions, 0
    like = regions[0].matrix
    matrix = like.new_zeros(len(regions), most, like.shape[1])
    constant = like.new_ones(len(regions), most)
    for i, region in enumerate(regions):
        matrix[i, : len(region.constant)] = region.matrix
        constant[i, : len(region.constant)] = region.constant
    tested = search_feasible(matrix, constant)
    left, programs = [], 0
    for region, empty, found in zip(
        regions, tested.empty.tolist(), tested.found.tolist(), strict=True
    ):
        if not empty and not found and not clock.is_over:
            programs += 1
            empty = check_leaf(region.matrix, region.constant, clock.left).empty
        if not empty:
            left.append(region)
    return left, programs


@torch.no_grad()
def _gradients_at(problem: LocalProblem, point: Tensor) -> GradientNorms:
    """True gradients at a point of [-1, 1]^D."""
    centre, radius = (problem.lower + problem.upper) / 2, (problem.upper - problem.lower) / 2
    x = centre + radius * point.reshape(centre.shape).to(centre)
    x = x.clamp(problem.lower, problem.upper)[None]
    return gradients_at(problem, x)


def _limits(search: RegionBounds) -> tuple[int, int]:
    """Regions per batch and regions kept, as many as memory has room for."""
    size, rows = search.problem.lower.numel(), len(search.problem.rows)
    work = max(size * max(search.sizes, default=1), rows * search.plan.largest)
    kept = 2 * sum(search.sizes) + 20 * size  # two ends per neuron, some twenty half-spaces
    return (
        max(1, min(_BATCH, _BATCH_BYTES // (32 * work))),
        max(1, min(_MAX_REGIONS, _POOL_BYTES // (8 * kept))),
    )


def lipbab_bounds(problem: LocalProblem, *, timeout: float = 60.0, seed: int = 0) -> Outcome:
    """Bounds of the rows' norms over the box by branching on activation patterns, per row.

    Ctrl-C, once the whole box is bounded, ends the search like the time limit.

    Args:
        problem: What to bound.
        timeout: Seconds.
        seed: Seed of the points sampled for the first lower bound.

    Returns:
        Upper bounds [R], true gradients with witnesses, and ``bound``, ``timeout``,
        ``domain_limit`` or ``interrupted``.

    Raises:
        InputError: Another activation than ReLU or LeakyReLU.
    """
    require_relu(problem.graph, "lipbab")
    clock, needed = Clock.of(timeout), 0.0
    search = RegionBounds(problem.to(torch.float64), clock.part(0.5))
    batch_size, max_regions = _limits(search)
    found, closed = nothing_found(problem), torch.zeros_like(search.root.row_bounds)
    # Largest bound first; the number breaks ties, since regions cannot be compared.
    heap, number, domains, checked, status = [(-search.root.bound, 0, search.root)], 0, 1, 0, BOUND
    taken: list[Region] = []  # by the round under way; their bounds count until it is over
    try:
        sampling = clock.part(_SHARE_OF_SAMPLING)
        found = sample_gradients(problem, Sampling(seed=seed), clock=sampling)
        while heap:
            target = float(found.norms.max()) * (1 + _TOLERANCE)
            if -heap[0][0] <= target:
                break
            left = clock.left
            if len(heap) > max_regions or left <= 0 or needed / batch_size > left:
                status = DOMAIN_LIMIT if len(heap) > max_regions else TIMEOUT
                break
            if needed > left:  # fewer regions rather than a round that is not done in time
                batch_size = max(1, int(batch_size * left / needed))
            begin = clock.now()
            parents = []
            for _ in range(min(batch_size, len(heap))):
                region = heap[0][2]
                taken.append(region)  # before it leaves the heap: Ctrl-C may come in between
                heapq.heappop(heap)
                if bool(region.open_neurons.any()):
                    parents.append(region)
                    continue
                verdict = check_leaf(region.matrix, region.constant, clock.left)
                checked += 1
                if not verdict.empty:
                    closed = torch.maximum(closed, region.row_bounds)
                if verdict.point is not None:
                    found = better(found, _gradients_at(problem, verdict.point))
            children = search.bounded(search.children(parents))
            domains += len(children)
            target = float(found.norms.max()) * (1 + _TOLERANCE)
            for region in children:
                if region.bound <= target:
                    closed = torch.maximum(closed, region.row_bounds)
            children, programs = without_empty([r for r in children if r.bound > target], clock)
            checked += programs
            for region in children:
                number += 1
                heapq.heappush(heap, (-region.bound, number, region))
            taken = []
            needed = clock.now() - begin
    except KeyboardInterrupt:
        status = INTERRUPTED
    for region in [*taken, *(entry[2] for entry in heap)]:
        closed = torch.maximum(closed, region.row_bounds)
    upper, before = (
        raise_upper_bound(u.to(problem.rows)) for u in (closed, search.root.row_bounds)
    )
    if status == BOUND and clock.missed and float(upper.max()) > float(found.norms.max()):
        status = TIMEOUT
    return Outcome(upper, found, before, status, domains, checked, not_reached=clock.not_reached)
