"""One backward pass per subdomain from intervals that are already known: the cheap bound.

The norm is bounded as in :func:`lipschitz.bounds.native.backward.norm_bounds.norm_bounds`, but with
the cotangents' and entries' intervals given, so that only one row per subdomain goes back through
the Jacobian, and interval arithmetic tightens those intervals first, for about the cost of four
more rows. Children of a split need no more than that; the full CROWN bounds are left for subdomains
that reach the top of the pool.

Shapes: B subdomains, N neurons, D entries, as in :mod:`lipschitz.search.subdomains`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.backward.first_layer import FirstLayer
from lipschitz.bounds.native.interval import (
    ForwardIntervals,
    Interval,
    intersect,
    narrowed,
    product_interval,
)
from lipschitz.bounds.native.memory.windows import Window
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_bounds import (
    WindowFacts,
    comparison_coefficients,
    comparison_cotangents,
    entries_interval,
    routes_by_maximum,
    shaped,
)
from lipschitz.bounds.native.pool_lines import RoutingLines, relax_routing
from lipschitz.network.pooled import gathered
from lipschitz.norms import Measure
from lipschitz.search.subdomains import NeuronLayout, Subdomains


@dataclass(frozen=True)
class VectorBound:
    """Result of the pass.

    Attributes:
        upper_bound: Upper bound of the norm, [B].
        coefficient: How much it counts each neuron's h = g * s, [B, N].
        slope_range: Width of each neuron's slope interval, [B, N].
        entry_gap: Intercept of the chord of ``|J_i|`` or of its square, 0 where its sign is fixed
            or known, [B, D].
    """

    upper_bound: Tensor
    coefficient: Tensor
    slope_range: Tensor
    entry_gap: Tensor


def preact_ancestors(plan: Plan) -> set[int]:
    """Nodes that some pre-activation depends on, itself included."""
    wanted: set[int] = set()
    for activation in plan.activations:
        wanted.add(plan.preact_node(activation))
    for index in range(len(plan.graph.nodes) - 1, 0, -1):
        if index in wanted:
            wanted.update(plan.graph.nodes[index].parents)
    return wanted


def tighten_preacts(
    plan: Plan,
    layout: NeuronLayout,
    wanted: set[int],
    root: ForwardIntervals,
    subdomains: Subdomains,
) -> Subdomains:
    """Pre-activation intervals tightened by interval arithmetic from the earlier layers'.

    Args:
        plan: The graph.
        layout: Where the neurons are.
        wanted: :func:`preact_ancestors` of the plan.
        root: Interval bounds over the whole box; they hold in every subdomain.
        subdomains: What to tighten.
    """
    values: dict[int, Interval] = {0: root.bounds[0]}
    tight: dict[int, Interval] = {}
    varies: set[int] = set()
    for index, node in enumerate(plan.graph.nodes[1:], start=1):
        if node.affine is None:
            if index not in layout.slices:
                values[index] = root.bounds[index]
                continue
            own = Interval(
                layout.part(subdomains.preact_lower, index),
                layout.part(subdomains.preact_upper, index),
            )
            if node.parents[0] in varies:
                margin = root.rounding[node.parents[0]]
                lower, upper = values[node.parents[0]]
                own = intersect(own, Interval(lower - margin, upper + margin))
            tight[index] = own
            values[index] = Interval(*node.activation.interval(*own))
            varies.add(index)
        elif index in wanted and varies.intersection(node.parents):
            inputs = [Interval(*torch.broadcast_tensors(*values[p])) for p in node.parents]
            centre = node.affine.forward(*[(i.lower + i.upper) / 2 for i in inputs])
            radius = plan.magnitudes[index].linear(*[(i.upper - i.lower) / 2 for i in inputs])
            values[index] = narrowed(node, Interval(centre - radius, centre + radius), values)
            varies.add(index)
        else:
            values[index] = root.bounds[index]
    batch, like = len(subdomains), subdomains.preact_lower
    return subdomains.having(
        preact_lower=layout.join({i: b.lower for i, b in tight.items()}, batch, like),
        preact_upper=layout.join({i: b.upper for i, b in tight.items()}, batch, like),
    )


def tighten_cotangents(
    plan: Plan,
    layout: NeuronLayout,
    directions: Tensor,
    slopes: dict[int, Interval],
    subdomains: Subdomains,
    windows: dict[int, WindowFacts] | None = None,
) -> Subdomains:
    """Intervals of the cotangents and entries tightened by interval arithmetic from the output.

    Args:
        plan: The graph.
        layout: Where the neurons are.
        directions: Output direction of each subdomain, [B, C].
        slopes: Slope interval by activation node, [B, *shape].
        subdomains: What to tighten.
        windows: What the whole box says about the windows of every maximum.
    """
    nodes = plan.graph.nodes
    routes = routes_by_maximum(plan, slopes, windows)
    known: dict[int, Interval] = {len(nodes) - 1: Interval(directions, directions)}
    tight: dict[int, Interval] = {}
    for index in range(len(nodes) - 1, 0, -1):
        bounds = known.pop(index, None)
        if bounds is None:
            continue
        node, parents = nodes[index], nodes[index].parents
        if index in plan.pools:
            pool, parents = plan.pools[index], (plan.pools[index].of,)
            flat = Interval(*(end.flatten(1) for end in bounds))
            flat = intersect(flat, last_comparison(plan, index, layout, subdomains))
            for tree, part in shaped(plan, comparison_cotangents(pool, flat, slopes)).items():
                own = Interval(
                    layout.part(subdomains.cotangent_lower, tree),
                    layout.part(subdomains.cotangent_upper, tree),
                )
                tight[tree] = intersect(part, own)
            if index in plan.onward:
                flat = Interval(*(end.flatten(1) for end in tight[plan.onward[index]]))
            contributions = [entries_interval(plan, index, flat, routes[index])]
        elif node.affine is None:
            own = Interval(
                layout.part(subdomains.cotangent_lower, index),
                layout.part(subdomains.cotangent_upper, index),
            )
            tight[index] = intersect(bounds, own)
            contributions = [product_interval(tight[index], slopes[index])]
        elif bounds.lower is bounds.upper:
            contributions = [Interval(c, c) for c in node.affine.adjoint(bounds.lower)]
        else:
            centres = node.affine.adjoint((bounds.lower + bounds.upper) / 2)
            radii = plan.magnitudes[index].adjoint((bounds.upper - bounds.lower) / 2)
            contributions = [Interval(c - r, c + r) for c, r in zip(centres, radii, strict=True)]
        for parent, new in zip(parents, contributions, strict=True):
            old = known.get(parent)
            known[parent] = (
                new if old is None else Interval(old.lower + new.lower, old.upper + new.upper)
            )
    batch, like = len(subdomains), subdomains.cotangent_lower
    changes = {
        "cotangent_lower": layout.join({i: b.lower for i, b in tight.items()}, batch, like),
        "cotangent_upper": layout.join({i: b.upper for i, b in tight.items()}, batch, like),
    }
    if 0 in known:
        lower, upper = (end.flatten(1).expand(batch, -1) for end in known[0])
        changes["entry_lower"] = torch.maximum(subdomains.entry_lower, lower)
        changes["entry_upper"] = torch.minimum(subdomains.entry_upper, upper)
    return subdomains.having(**changes)


def own_cotangent(plan: Plan, end: int, layout: NeuronLayout, subdomains: Subdomains) -> Interval:
    """What subdomains keep of the cotangent behind a maximum, [B, W].

    That of the activation that alone reads it, or of its own last comparison.
    """
    if end in plan.onward:
        part = layout.slices[plan.onward[end]]
        return Interval(subdomains.cotangent_lower[:, part], subdomains.cotangent_upper[:, part])
    return last_comparison(plan, end, layout, subdomains)


def last_comparison(plan: Plan, end: int, layout: NeuronLayout, subdomains: Subdomains) -> Interval:
    """What subdomains keep of a maximum's own cotangent, that of its last comparison: [B, W]."""
    level, known = plan.pools[end].levels[-1], []
    part = layout.slices[level.activation]
    huge = torch.finfo(subdomains.cotangent_lower.dtype).max ** 0.5  # of windows of one entry
    for side, flat in ((-1, subdomains.cotangent_lower), (1, subdomains.cotangent_upper)):
        known.append(gathered(flat[:, part], level.pairs[:, 0], side * huge))
    return Interval(*known)


def upper_line(
    coefficient: Tensor, lower: Tensor, upper: Tensor, slope: Interval
) -> tuple[Tensor, Tensor]:
    """Line above ``coefficient * g * s``: its coefficient at g, and its constants summed, [B].

    A negative coefficient is turned positive by mirroring g, so that one chord of the convex
    ``max(s_lower g, s_upper g)`` serves both signs. The constant is the largest gap at the two
    ends, which is right for any slope of the line.

    Args:
        coefficient, lower, upper: Coefficient at h = g * s and interval of g, [B, n].
        slope: Interval of s, [B, n].
    """
    positive = coefficient >= 0
    low, high = torch.where(positive, lower, -upper), torch.where(positive, upper, -lower)
    at_low = torch.maximum(slope.lower * low, slope.upper * low)
    at_high = torch.maximum(slope.lower * high, slope.upper * high)
    tiny = torch.finfo(low.dtype).tiny
    chord = (at_high - at_low) / (high - low).clamp(min=tiny)
    line = torch.where(low >= 0, slope.upper, torch.where(high <= 0, slope.lower, chord))
    line = torch.where(slope.lower == slope.upper, slope.lower, line)
    # An interval of no width, or two bounds that rounding has crossed, may give any chord.
    line = torch.minimum(torch.maximum(line, slope.lower), slope.upper)
    gap = torch.maximum(at_low - line * low, at_high - line * high)
    return coefficient * line, (coefficient.abs() * gap).sum(1)


def vector_bound(
    plan: Plan,
    layout: NeuronLayout,
    directions: Tensor,
    slopes: dict[int, Interval],
    subdomains: Subdomains,
    measure: Measure | None = None,
    functional: Tensor | None = None,
    first: FirstLayer | None = None,
    windows: dict[int, WindowFacts] | None = None,
) -> VectorBound:
    """Upper bound of the norm from the intervals the subdomains hold; no interval is changed.

    Args:
        plan: The graph.
        layout: Where the neurons are.
        directions: Output direction of each subdomain, [B, C].
        slopes: Slope interval by activation node, [B, *shape].
        subdomains: The subdomains.
        measure: The norm, of a row, in Linf or L2; that of Linf if None.
        functional: Weights of the entries, [B, D]: bound ``weights . entries`` instead of the norm,
            without a margin for rounding.
        first: The first layer, for L2: where the distance from its centres is smaller than that
            from the intervals' centres, the square is bounded from there.
        windows: What the whole box says about the windows of every maximum.
    """
    routes = routes_by_maximum(plan, slopes, windows)
    graph, batch, last = plan.graph, len(subdomains), len(plan.graph.nodes) - 1
    measure = measure or Measure()
    entries = subdomains.entry_lower, subdomains.entry_upper
    if functional is None:
        chord, gap = measure.chord(*entries, subdomains.entry_sign)
    else:  # a functional is linear: no chords
        chord, gap = functional, torch.zeros_like(entries[0])
    total, extra, weight = gap.sum(1), torch.zeros_like(gap[:, 0]), None
    if first is not None:
        cotangents = {
            i: Interval(
                layout.part(subdomains.cotangent_lower, i),
                layout.part(subdomains.cotangent_upper, i),
            )
            for i in first.activations
        }
        centres, radii = first.cotangents(cotangents, slopes)
        ends = [measure.counted(end) for end in entries]
        centre = first.centre(centres, directions).clamp(*ends)
        distance, weight = first.square_distance(radii)
        nearer = distance < (ends[1] - ends[0]).square().sum(1) / 4
        chord = torch.where(nearer[:, None], 2 * centre, chord)
        total = torch.where(nearer, distance - centre.square().sum(1), total)
        extra = torch.where(nearer, distance, extra)
    pending = {0: chord.reshape(batch, *graph.input_shape)}
    coefficient: dict[int, Tensor] = {}
    for index in range(last + 1):
        incoming = pending.pop(index, None)
        if incoming is None:
            continue
        if index == last:
            total = total + (incoming * directions).sum(1)
        passed: set[int] = set()
        for end in plan.maxima.get(index, ()):
            lines = RoutingLines.of(own_cotangent(plan, end, layout, subdomains), routes[end])
            row = Window.whole(incoming.unsqueeze(1))
            routed = relax_routing(plan, end, row, lines)
            total, node = total + routed.constant[:, 0], routed.node
            new = routed.rows.full()[:, 0]
            pending[node] = pending[node] + new if node in pending else new
            counted = row.values.flatten(2)
            moved = comparison_coefficients(plan.pools[end], counted, routes[end].candidates)
            coefficient |= {tree: part[:, 0] for tree, part in moved.items()}
            if node != end:
                coefficient[node] = routed.counted.full()[:, 0].flatten(1)
            passed |= plan.inside[end]
        for child, slot in plan.consumers[index]:
            if child in passed:
                continue
            node = graph.nodes[child]
            if node.affine is None:
                part = layout.slices[child]
                flat = incoming.flatten(1)
                coefficient[child] = flat
                new, gained = upper_line(
                    flat,
                    subdomains.cotangent_lower[:, part],
                    subdomains.cotangent_upper[:, part],
                    Interval(*(end.flatten(1) for end in slopes[child])),
                )
                new, total = new.reshape(incoming.shape), total + gained
            else:
                new = node.affine.linear_from(slot, incoming)
            pending[child] = pending[child] + new if child in pending else new
    like = subdomains.cotangent_lower
    if weight is not None:  # narrower cotangents make the distance smaller
        sizes = [layout.shapes[i].numel() for i in first.activations]
        for activation, own in zip(first.activations, weight.split(sizes, dim=1), strict=True):
            coefficient[activation] = coefficient[activation].abs() + own
    for activation in layout.slices:
        zero = like.new_zeros(1, layout.shapes[activation].numel())
        coefficient.setdefault(activation, zero)
    ranges = {i: s.upper - s.lower for i, s in slopes.items()}
    if functional is None:
        total = measure.close(total, *entries, extra)
    return VectorBound(
        total,
        layout.join(coefficient, batch, like),
        layout.join(ranges, batch, like),
        gap.clamp(min=0).masked_fill(subdomains.entry_sign != 0, 0),
    )
