"""CROWN's pass through the Jacobian: from rows at a node's cotangent to the output directions.

It replaces every slope product by the line that its coefficient's sign asks for and ends in an
upper bound of ``coefficients . cotangent`` (Shi et al. 2022, section 3). A lower bound is minus the
upper bound of the negated row.

Shapes: coefficients are [B, K, *shape] with B boxes (class x subdomain) and K rows each; B is 1 as
long as nothing that differs between the boxes has been met.
"""

from __future__ import annotations

from torch import Tensor

from lipschitz.bounds.native.forward.value_pass import interval_maximum
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import Lines, inner, relax
from lipschitz.bounds.native.memory.windows import Window, as_window, linear_from
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_bounds import comparison_coefficients
from lipschitz.bounds.native.pool_lines import RoutingLines, relax_routing


def cotangent_upper_bound(
    plan: Plan,
    start: int,
    coefficients: Tensor | Window,
    lines: dict[int, Lines | RoutingLines],
    rows: Tensor,
    record: dict[int, Tensor] | None = None,
    horizon: int | None = None,
    within: dict[int, Interval] | None = None,
) -> Tensor:
    """Upper bound of ``coefficients . cotangent of a node``; at node 0 that is the Jacobian.

    Args:
        plan: The graph.
        start: The node.
        coefficients: [B or 1, K, *shape of the node], or a window of them.
        lines: Lines of the slope products of every activation after the node, and of maxima; a
            maximum without lines is passed through its tree.
        rows: Output directions, [B, C].
        record: If given, receives each activation's coefficients at ``h = g * s``.
        horizon: First node at which rows end, with the interval of its cotangent; the last if None.
        within: Intervals of the cotangents from the horizon on, by node, [B, *shape].

    Returns:
        [B, K].
    """
    first = as_window(coefficients)
    pending = {start: first}
    constant = rows.new_zeros(rows.shape[0], first.values.shape[1])
    last = len(plan.graph.nodes) - 1
    for index in range(start, last + 1):
        incoming = pending.pop(index, None)
        if incoming is None:
            continue
        if horizon is not None and horizon <= index < last:
            constant = constant + interval_maximum(incoming, within[index])
            continue
        if index == last:
            constant = constant + inner(incoming.full(), rows)
        passed: set[int] = set()
        for end in plan.maxima.get(index, ()):  # past the tree, to the maximum at once
            if end not in lines:
                continue
            if record is not None:
                pool, full = plan.pools[end], incoming.full().flatten(2)
                moved = comparison_coefficients(pool, full, lines[end].routes.candidates)
                for tree, part in moved.items():
                    record[tree] = part.unflatten(2, plan.graph.nodes[tree].shape)
            routed = relax_routing(plan, end, incoming, lines[end])
            constant, node = constant + routed.constant, routed.node
            pending[node] = pending[node] + routed.rows if node in pending else routed.rows
            if record is not None and node != end:
                record[node] = routed.counted.full()
            passed |= plan.inside[end]
        for child, slot in plan.consumers[index]:
            if child in passed:
                continue
            node = plan.graph.nodes[child]
            if node.affine is None:
                if record is not None:
                    record[child] = incoming.full()
                new, gained = relax(incoming, lines[child])
                constant = constant + gained
            else:
                new = linear_from(node.affine, slot, incoming)
            pending[child] = pending[child] + new if child in pending else new
    return constant
