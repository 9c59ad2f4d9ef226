"""CROWN's backward pass through the network: from rows at a node to lines in the input.

It starts from rows of coefficients at one node, replaces every activation by the line that its
coefficient's sign asks for, and ends in an upper bound of ``coefficients . value`` over the box
(Zhang et al. 2018). A lower bound is minus the upper bound of the negated row.

Shapes: coefficients are [B, K, *shape] with B boxes and K rows each; B is 1 as long as nothing that
differs between the boxes has been met.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.lines import Lines, inner, relax
from lipschitz.bounds.native.memory.windows import Window, adjoint, as_window
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_lines import MaximumLines, relax_maximum


def box_maximum(coefficients: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Largest ``coefficients . x`` over boxes: coefficients [B, K, *s], boxes [B, *s]; [B, K]."""
    rows = coefficients.flatten(2)
    return inner(rows, centre.flatten(1)) + inner(rows.abs(), radius.flatten(1))


def interval_maximum(rows: Window, interval: Interval) -> Tensor:
    """Largest ``coefficients . value`` over intervals [B, *shape] of a node's values; [B, K]."""
    lower, upper = (rows.cut(end) for end in interval)
    return box_maximum(rows.values, (lower + upper) / 2, (upper - lower) / 2)


def value_upper_line(
    plan: Plan,
    start: int,
    coefficients: Tensor | Window,
    lines: dict[int, Lines | MaximumLines],
    record: dict[int, Window] | None = None,
) -> tuple[Tensor, Tensor]:
    """Affine function of the input above ``coefficients . value of a node``.

    Args:
        plan: The graph.
        start: The node.
        coefficients: [B or 1, K, *shape of the node], or a window of them.
        lines: Lines of every activation before the node, and of maxima; a maximum without lines
            is passed through its tree.
        record: If given, receives the coefficients at every node passed.

    Returns:
        Coefficients of the input [B or 1, K, *input_shape], constant [B or 1, K].
    """
    at_input, constant = _upper_line(plan, start, coefficients, lines, record)
    return at_input.full(), constant


def _upper_line(
    plan: Plan,
    start: int,
    coefficients: Tensor | Window,
    lines: dict[int, Lines | MaximumLines],
    record: dict[int, Window] | None,
    horizon: int = 0,
    within: Sequence[Interval] = (),
) -> tuple[Window | None, Tensor]:
    """:func:`value_upper_line`, with the input's coefficients in a window.

    Up to node ``horizon`` values are only known ``within`` intervals; the window may be None there.
    """
    first = as_window(coefficients)
    pending = {start: first}
    constant = first.values.new_zeros(first.values.shape[:2])
    for index in range(start, 0, -1):
        rows = pending.pop(index, None)
        if rows is None:
            continue
        if record is not None:
            record[index] = rows
        if index <= horizon:
            constant = constant + interval_maximum(rows, within[index])
            continue
        node, parents = plan.graph.nodes[index], plan.graph.nodes[index].parents
        if index in plan.pools and index in lines:  # past the tree, to the entries at once
            new, gained = relax_maximum(plan, index, rows, lines[index])
            constant, contributions = constant + gained, (new,)
            parents = (plan.pools[index].of,)
        elif node.affine is None:
            new, gained = relax(rows, lines[index])
            constant, contributions = constant + gained, (new,)
        else:
            if index in plan.biases:
                constant = constant + rows.flat() @ rows.cut_flat(plan.biases[index][None])[0]
            contributions = adjoint(node.affine, rows)
        for parent, new in zip(parents, contributions, strict=True):
            pending[parent] = pending[parent] + new if parent in pending else new
    # Every node that is not the input has parents, so without a horizon the input is reached.
    if record is not None and 0 in pending:
        record[0] = pending[0]
    return pending.get(0), constant


def value_upper_bound(
    plan: Plan,
    start: int,
    coefficients: Tensor | Window,
    lines: dict[int, Lines | MaximumLines],
    centre: Tensor,
    radius: Tensor,
    record: dict[int, Window] | None = None,
    horizon: int = 0,
    within: Sequence[Interval] = (),
) -> Tensor:
    """Upper bound of ``coefficients . value of a node`` over boxes.

    Args:
        plan: The graph.
        start: The node.
        coefficients: [B or 1, K, *shape of the node], or a window of them.
        lines: Lines of every activation before the node, and of maxima; a maximum without lines
            is passed through its tree.
        centre, radius: The boxes, [B, *input_shape].
        record: If given, receives the coefficients at every node passed.
        horizon: Last node at which rows end, with the intervals of its values; the input if 0.
        within: Intervals of the nodes up to the horizon, [B or 1, *shape].

    Returns:
        [B, K].
    """
    at_input, constant = _upper_line(plan, start, coefficients, lines, record, horizon, within)
    if at_input is None:
        return constant
    box = at_input.cut(centre), at_input.cut(radius)
    return constant + box_maximum(at_input.values, *box)
