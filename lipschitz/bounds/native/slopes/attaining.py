"""The forward pass that attains a CROWN bound: derivatives of a bound without autograd.

The bound of a row is the largest value of a linear program over the lines. Its solution is a
forward pass: the corner of the box that the final coefficients ask for, then the line that each
coefficient's sign has chosen. By the envelope theorem the derivative of the bound by a quantity
that multiplies ``z`` is ``z`` there; by a lower slope, the coefficient's negative part times ``z``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lipschitz.bounds.native.lines import Lines
from lipschitz.bounds.native.memory.windows import Window, convolve_region, geometry
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.native.pool_lines import (
    MaximumLines,
    Placement,
    attained,
    own_shape,
    placement,
)
from lipschitz.network.affine import AffineMap, Combination, Convolution, Reshape, Scale
from lipschitz.network.pooled import gathered


def attaining_values(
    plan: Plan,
    record: dict[int, Window],
    lines: dict[int, Lines | MaximumLines],
    centre: Tensor,
    radius: Tensor,
) -> dict[int, Tensor]:
    """Relaxed values at which rows attain their upper bounds.

    Args:
        plan: The graph.
        record: What :func:`lipschitz.bounds.native.forward.value_pass.value_upper_bound` recorded.
        lines: The lines it used.
        centre, radius: The boxes, [B, *input_shape].

    Returns:
        Value of every node passed but the last, in the window of its record, [B, K, ...].
    """
    corner = record[0]
    values = {
        0: corner.having(
            corner.cut(centre.unsqueeze(1)) + corner.cut(radius.unsqueeze(1)) * corner.values.sign()
        )
    }
    last = max(record)
    for index in sorted(record)[1:]:
        if index == last:
            break
        node, target = plan.graph.nodes[index], record[index]
        if index in plan.pools and index in lines:
            place, entries = entries_at(plan, index, target, values[plan.pools[index].of])
            own = own_shape(target)
            found = attained(place, lines[index], own.flat(), entries)
            found = found.unflatten(2, own.values.shape[2:])
            if own is not target:
                found = target.cut(found)
            values[index] = target.having(found)
            continue
        inputs = [values[p] for p in node.parents]
        if node.affine is not None:
            found = _forward(node.affine, inputs, target)
        else:
            line = lines[index].cut_to(target)
            positive = target.values > 0
            slope = line.lower_slope + line.slope_gap * positive
            intercept = _per_row(line.intercept_gap) * positive.flatten(2)
            if line.lower_intercept is not None:
                intercept = intercept + _per_row(line.lower_intercept)
            found = _within(inputs[0], target) * slope
            found = found + intercept.reshape(*intercept.shape[:2], *target.values.shape[2:])
        values[index] = target.having(found)
    return {index: window.values for index, window in values.items()}


def entries_at(plan: Plan, end: int, target: Window, value: Window) -> tuple[Placement, Tensor]:
    """The entries that rows at a maximum read.

    Args:
        plan: The graph.
        end: The maximum's node.
        target: The rows there.
        value: Values of the entries' node in a window that holds them.

    Returns:
        How they meet the maxima, and they themselves, [B, K, m, n].
    """
    place = placement(plan, end, own_shape(target), forward=False)
    extent = place.extent()
    if value.layout != extent.layout:
        value = Window.whole(value.full())
    entries = gathered(_within(value, extent).flatten(2), place.entries)
    return place, entries


def _per_row(intercept: Tensor) -> Tensor:
    """Intercepts [B, N] or [B, K, N] as [B, 1 or K, N]."""
    return intercept if intercept.dim() == 3 else intercept.unsqueeze(1)


def _within(window: Window, target: Window) -> Tensor:
    """Values of a window inside a smaller one."""
    if window.layout != target.layout:
        assert window.is_whole
        return target.cut(window.full())
    values = window.values
    for dim, (start, size, begin) in enumerate(
        zip(target.starts, target.sizes, window.starts, strict=True), start=3
    ):
        values = values.narrow(dim, start - begin, size)
    return values


def _forward(affine: AffineMap, inputs: Sequence[Window], target: Window) -> Tensor:
    """The map, bias included, at the positions of ``target``; its inputs hold what that needs."""
    first = inputs[0]
    if isinstance(affine, Convolution):
        found = _convolve(affine, first, target)
    elif isinstance(affine, Reshape) and not first.is_whole:
        found = _within(first, target)
    elif isinstance(affine, Scale):
        factor = affine.factor.expand(1, *affine.output_shape).reshape(target.shape)
        found = _within(first, target) * target.cut(factor)
    elif isinstance(affine, Combination):
        found = sum(
            sign * _within(window, target)
            for sign, window in zip(affine.signs, inputs, strict=True)
        )
    else:
        assert all(window.is_whole for window in inputs)
        lead = [max(w.values.shape[i] for w in inputs) for i in (0, 1)]
        whole = [w.full().expand(*lead, *w.shape).flatten(0, 1) for w in inputs]
        output = affine.linear(*whole)
        found = target.cut(output.reshape(*lead, *target.shape))
    if affine.bias is not None:
        bias = affine.bias.expand(1, *affine.output_shape).reshape(affine.output_shape)
        found = found + target.cut(bias)
    return found


def _convolve(affine: Convolution, window: Window, target: Window) -> Tensor:
    first, last = [], []
    for (stride, padding, reach), start, size in zip(
        geometry(affine), target.starts, target.sizes, strict=True
    ):
        first.append(start * stride - padding)
        last.append((start + size - 1) * stride - padding + reach)
    values = window.values
    output = convolve_region(affine, values.flatten(0, 1), window, first, last)
    return output.reshape(*values.shape[:2], *output.shape[1:])
