"""Lines for windows against sampled entries, and what the tree of comparisons makes of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import activation_lines
from lipschitz.bounds.native.memory.windows import Window, crop
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_bounds import (
    WindowFacts,
    candidates_of,
    comparison_coefficients,
    comparison_cotangents,
    comparison_intervals,
    entry_cotangents,
    interval_excess,
    maximum_lines,
    surviving,
)
from lipschitz.bounds.native.pool_lines import (
    Routes,
    RoutingLines,
    relax_maximum,
    relax_routing,
)
from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.tracing import build_graph

POOLS = [
    (nn.MaxPool1d(2), (2, 6)),
    (nn.MaxPool1d(3, 1, 1), (1, 6)),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (1, 5, 6)),
    (nn.MaxPool2d((2, 3), (1, 2), dilation=(2, 1)), (2, 5, 6)),
    (nn.AdaptiveMaxPool2d((2, 3)), (1, 5, 4)),
]


def pooled(pool: nn.Module, shape: tuple[int, ...]) -> tuple[Plan, int]:
    plan = Plan(build_graph(nn.Sequential(pool, nn.Flatten()).double().eval(), shape))
    (end,) = plan.pools
    return plan, end


def box(plan: Plan, end: int, seed: int, width: float) -> tuple[Interval, Tensor]:
    """A box of the entries' node, and points in it."""
    shape = plan.graph.nodes[plan.pools[end].of].shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator, dtype=torch.float64)

    lower = draw(1, *shape) * 2 - 1
    upper = lower + width * draw(1, *shape)
    share = draw(200, *shape)
    share[::2] = share[::2].round()
    return Interval(lower, upper), lower + share * (upper - lower)


def facts_of(plan: Plan, end: int, value: Interval) -> WindowFacts:
    pool = plan.pools[end]
    return WindowFacts.of(pool, value, torch.zeros_like(value.lower), interval_excess(pool, value))


cases = given(
    which=st.integers(0, len(POOLS) - 1),
    seed=st.integers(0, 10**6),
    width=st.sampled_from([0.05, 0.5, 2.0]),
)
some = settings(max_examples=25, deadline=None, derandomize=True)


@some
@cases
def test_lines_hold_the_maximum(which, seed, width):
    plan, end = pooled(*POOLS[which])
    value, points = box(plan, end, seed, width)
    facts, pool = facts_of(plan, end, value), plan.pools[end]
    candidates = candidates_of(pool, facts.excess)
    lines = maximum_lines(facts, candidates)
    entries = points.flatten(1)[:, pool.windows.clamp(min=0)]
    present = pool.windows >= 0
    true = entries.masked_fill(~present, -torch.inf).amax(2)
    # The largest entry is a candidate.
    assert torch.equal(true, entries.masked_fill(~candidates, -torch.inf).amax(2))
    for weights in (lines.lower, lines.upper):
        assert (weights >= 0).all()
        assert not weights.masked_fill(present, 0).any()
        assert (weights.sum(3) <= 1 + 1e-12).all()
    below = (lines.lower[:, 0] * entries).sum(2) - lines.margin[:, 0]
    above = (lines.upper[:, 0] * entries).sum(2) + (lines.gap + lines.margin)[:, 0]
    assert (below <= true).all()
    assert (true <= above).all()
    # Not above the constant line, whose height is the largest upper end.
    middle = ((facts.lower + facts.upper) / 2).masked_fill(~present, 0)
    height = (lines.upper[:, 0] * middle).sum(2) + lines.gap[:, 0]
    assert (height <= facts.upper.masked_fill(~present, -torch.inf).amax(2) + 1e-9).all()
    # Every pass through the lines is above the true sum.
    rows = torch.randn(1, 7, *plan.graph.nodes[end].shape, dtype=torch.float64)
    at_entries, constant = relax_maximum(plan, end, Window.whole(rows), lines)
    found = points.flatten(1) @ at_entries.full().flatten(2)[0].T + constant
    assert (true @ rows.flatten(2)[0].T <= found + 1e-9).all()


@some
@cases
def test_trees_intervals_hold_its_neurons(which, seed, width):
    plan, end = pooled(*POOLS[which])
    value, points = box(plan, end, seed, width)
    pool, graph = plan.pools[end], plan.graph
    facts, values = facts_of(plan, end, value), graph.values(points)
    found = comparison_intervals(pool, facts.excess)
    slopes = {}
    for activation, (lower, upper) in found.items():
        z = values[plan.preact_node(activation)]
        assert (lower - 1e-12 <= z).all()
        assert (z <= upper + 1e-12).all()
        slopes[activation] = Interval(*PiecewiseLinear().slope_interval(lower, upper))
    # What the tree decides is known of the entries too, and the other way round no less.
    alive, candidates = surviving(pool, slopes), candidates_of(pool, facts.excess)
    largest = points.flatten(1)[:, pool.windows.clamp(min=0)]
    winner = largest.masked_fill(pool.windows < 0, -torch.inf).argmax(2)
    assert alive.expand(len(points), -1, -1).gather(2, winner.unsqueeze(2)).all()
    assert candidates.expand(len(points), -1, -1).gather(2, winner.unsqueeze(2)).all()
    # Cotangents of the tree, by its own chain rule at every point.
    g = torch.randn(len(points), *graph.nodes[end].shape, dtype=torch.float64)
    bounds = Interval(*(e.flatten(1) for e in (g.amin(0, keepdim=True), g.amax(0, keepdim=True))))
    known = comparison_cotangents(pool, bounds, slopes)
    cotangents = {end: g}
    for index in range(end, pool.of, -1):
        if index not in cotangents:
            continue
        node = graph.nodes[index]
        if node.affine is not None:
            parts = node.affine.adjoint(cotangents[index])
        else:
            lower, upper = known[index]
            assert (lower - 1e-12 <= cotangents[index]).all()
            assert (cotangents[index] <= upper + 1e-12).all()
            parts = (cotangents[index] * (values[node.parents[0]] > 0),)
        for parent, part in zip(node.parents, parts, strict=True):
            cotangents[parent] = cotangents.get(parent, 0) + part
    sums = entry_cotangents(bounds, Routes(candidates))
    least, most = torch.zeros(2, 1, points[0].numel(), dtype=torch.float64)
    for w, window in enumerate(pool.windows.tolist()):
        for k, position in enumerate(window):
            if position >= 0:
                least[:, position] += sums.lower[:, w, k]
                most[:, position] += sums.upper[:, w, k]
    assert (least - 1e-12 <= cotangents[pool.of].flatten(1)).all()
    assert (cotangents[pool.of].flatten(1) <= most + 1e-12).all()


@some
@cases
def test_chords_hold_every_way_to_share_a_cotangent(which, seed, width):
    plan, end = pooled(*POOLS[which])
    value, _ = box(plan, end, seed, width)
    pool, torch_seed = plan.pools[end], torch.manual_seed(seed)
    assert torch_seed is not None
    candidates = candidates_of(pool, interval_excess(pool, value))
    count, size = candidates.shape[1:]
    lower = torch.randn(1, count, dtype=torch.float64)
    bounds = Interval(lower, lower + 2 * torch.rand_like(lower))
    slopes = torch.rand(2, 1, count, size, dtype=torch.float64).sort(0)[0]
    shape = plan.graph.nodes[pool.of].shape
    rows = torch.randn(1, 3, *shape, dtype=torch.float64)
    for routes in (Routes(candidates), Routes(candidates, *slopes)):
        routed = relax_routing(plan, end, Window.whole(rows), RoutingLines.of(bounds, routes))
        line, best = routed.rows.full().flatten(2)[0], None
        for share in (0.0, 0.3, 1.0):
            g = bounds.lower + share * (bounds.upper - bounds.lower)
            entries = rows.flatten(2)[0][:, pool.windows.clamp(min=0)]
            sums = torch.stack([entries * s for s in slopes[:, 0]] if routes.most is not None
                               else [entries])  # fmt: skip
            sums = (g.unsqueeze(2) * sums).masked_fill(~candidates, -torch.inf)
            true = sums.amax((0, 3)).sum(1)
            found = line @ g[0] + routed.constant[0]
            assert (true <= found + 1e-9).all()
            best = true if share != 0.3 else best
        assert routed.node == end
        torch.testing.assert_close(found, best)  # a chord meets the function at its ends


def test_two_entries_have_the_chord_of_relu():
    plan, end = pooled(nn.MaxPool1d(2), (1, 2))
    value = Interval(*torch.tensor([[[[0.0, -1.0]]], [[[1.0, 3.0]]]]).double())
    facts = facts_of(plan, end, value)
    lines = maximum_lines(facts, candidates_of(plan.pools[end], facts.excess))
    difference = Interval(*torch.tensor([[[-2.0]], [[3.0]]]).double())  # of the second and first
    chord = activation_lines(PiecewiseLinear(), difference)
    slope = float(chord.lower_slope + chord.slope_gap)
    assert lines.upper[0, 0, 0].tolist() == pytest.approx([1 - slope, slope])
    assert float(lines.gap) == pytest.approx(float(chord.intercept_gap))


@pytest.mark.parametrize(("pool", "shape"), POOLS)
def test_rows_in_a_window_are_the_same_rows(pool, shape):
    plan, end = pooled(pool, shape)
    value, _ = box(plan, end, 0, 1.0)
    facts = facts_of(plan, end, value)
    candidates = candidates_of(plan.pools[end], facts.excess)
    lines = maximum_lines(facts, candidates)
    rows = torch.zeros(1, 2, *plan.graph.nodes[end].shape, dtype=torch.float64)
    rows[0, 0].flatten()[1], rows[0, 1].flatten()[-1] = 2.0, -1.0
    for row in (0, 1):
        one = rows[:, row : row + 1]
        small = relax_maximum(plan, end, crop(one), lines)
        whole = relax_maximum(plan, end, Window.whole(one), lines)
        torch.testing.assert_close(small[0].full(), whole[0].full())
        torch.testing.assert_close(small[1], whole[1])
    of = torch.zeros(1, 1, *plan.graph.nodes[plan.pools[end].of].shape, dtype=torch.float64)
    of.flatten()[2] = -1.5
    bounds = torch.randn(2, 1, len(plan.pools[end].windows), dtype=torch.float64).sort(0)[0]
    routing = RoutingLines.of(Interval(*bounds), Routes(candidates))
    small, whole = (relax_routing(plan, end, w, routing) for w in (crop(of), Window.whole(of)))
    torch.testing.assert_close(small.rows.full(), whole.rows.full())
    torch.testing.assert_close(small.constant, whole.constant)


def test_a_comparison_counts_by_how_far_its_blocks_are_apart():
    plan, end = pooled(nn.MaxPool1d(4), (1, 4))
    pool = plan.pools[end]
    counts = torch.tensor([[[1.0, 4.0, -2.0, 3.0]]]).double()
    everything = torch.ones(1, 1, 4, dtype=torch.bool)
    pairs, halves = comparison_coefficients(pool, counts, everything).values()
    assert pairs.flatten().tolist() == [3.0, 5.0]
    assert halves.flatten().tolist() == [6.0]
    alone = torch.tensor([[[True, False, False, True]]])
    pairs, halves = comparison_coefficients(pool, counts, alone).values()
    assert pairs.flatten().tolist() == [0.0, 0.0]
    assert halves.flatten().tolist() == [2.0]
