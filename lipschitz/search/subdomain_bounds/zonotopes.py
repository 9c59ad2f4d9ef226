"""Pre-activations and gradients of many small regions as zonotopes: few symbols, one pass each way.

A value is written as ``centre + sum of coefficient * symbol``, every symbol in [-1, 1] (affine
arithmetic; for ReLU, Singh et al. 2018, "DeepZ"). The first D symbols are the inputs, moved along
the box; every neuron whose sign the region leaves open adds one. Going back from the output, the
cotangents are written in the same way, with a symbol for the slope of every open neuron. A small
region has few open neurons, so both passes cost about as many rows as it has of them, where rows
for every neuron of any region of a batch cost many times that. What the passes keep and interval
arithmetic does not is which symbol moves what: along stable layers nothing is lost at all.

Only ReLU and LeakyReLU. Rounding is carried along as a radius of its own, see
:mod:`lipschitz.rounding`.

Shapes: B regions, D inputs, S symbols, N neurons of all activations together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval, intersect
from lipschitz.bounds.native.plan import Plan
from lipschitz.rounding import guard
from lipschitz.search.subdomain_bounds.cheap import preact_ancestors
from lipschitz.search.subdomain_bounds.halfspaces import HalfSpaces, largest_values
from lipschitz.search.subdomains import NeuronLayout


@dataclass(frozen=True)
class Form:
    """Values of one node, or cotangents there, as zonotopes.

    Attributes:
        centre: [B, *shape].
        columns: Coefficients of the symbols, [B, S, *shape].
        rounding: How far rounding may have moved the value, [B, *shape].
        radius: Sum of the columns' magnitudes, or more, [B, *shape].
    """

    centre: Tensor
    columns: Tensor
    rounding: Tensor
    radius: Tensor

    @property
    def size(self) -> Tensor:
        """Largest magnitude of the value, [B, *shape]."""
        return self.centre.abs() + self.radius + self.rounding

    def flat(self) -> Form:
        """With one dimension for the value."""
        return Form(
            self.centre.flatten(1),
            self.columns.flatten(2),
            self.rounding.flatten(1),
            self.radius.flatten(1),
        )

    def shaped(self, shape: torch.Size) -> Form:
        """With a value of this shape."""
        batch, symbols = self.columns.shape[:2]
        return Form(
            self.centre.reshape(batch, *shape),
            self.columns.reshape(batch, symbols, *shape),
            self.rounding.reshape(batch, *shape),
            self.radius.reshape(batch, *shape),
        )

    def wider(self, symbols: int) -> Tensor:
        """The columns, with zeros for symbols that came later."""
        missing = symbols - self.columns.shape[1]
        if not missing:
            return self.columns
        batch, _, *shape = self.columns.shape
        return torch.cat([self.columns, self.columns.new_zeros(batch, missing, *shape)], 1)

    def times(self, slope: Tensor, own: Tensor, index: Tensor, shift: Tensor | None) -> Form:
        """``slope * value + shift`` with a symbol of its own for some numbers of a flat value.

        Args:
            slope: [B, n].
            own: How far the new symbols reach, [B, n]; 0 for numbers without one.
            index: The numbers with one, [B, k].
            shift: [B, n]; none if None.
        """
        batch, count = index.shape
        new = own.new_zeros(batch, count, own.shape[1])
        new.scatter_(2, index.unsqueeze(2), own.gather(1, index).unsqueeze(2))
        columns = torch.cat([self.columns * slope.unsqueeze(1), new], 1)
        centre = slope * self.centre
        return Form(
            centre if shift is None else centre + shift,
            columns,
            slope * self.rounding,
            slope * self.radius + own,
        )


@dataclass(frozen=True)
class Neurons:
    """Pre-activations of B regions.

    Attributes:
        lower, upper: Their intervals, the fixed signs included, [B, N].
        columns: Coefficients of the inputs, [B, D, N].
        spaces: What the fixed signs say about the inputs.
        empty: Regions shown to hold no input, [B].
    """

    lower: Tensor
    upper: Tensor
    columns: Tensor
    spaces: HalfSpaces
    empty: Tensor

    def double(self) -> Neurons:
        """The same in float64."""
        return Neurons(
            self.lower.double(),
            self.upper.double(),
            self.columns.double(),
            self.spaces.double(),
            self.empty,
        )


@dataclass(frozen=True)
class Gradients:
    """Gradients over B regions: ``centre + columns . symbols``, up to ``rounding``.

    Attributes:
        centre: [B, D].
        columns: One for the slope of every open neuron, [B, S, D]; zeros where there are fewer.
        neuron: Whose it is, [B, S]; any where the column is 0.
        rounding: [B, D].
    """

    centre: Tensor
    columns: Tensor
    neuron: Tensor
    rounding: Tensor


def slots(mask: Tensor) -> Tensor:
    """Indices [B, k] that hold all places where a mask [B, n] is set, and some more."""
    count = int(mask.sum(1).max()) if mask.numel() else 0
    return mask.to(torch.uint8).topk(count, dim=1).indices


class ZonotopePass:
    """Both passes for regions of one network.

    Args:
        plan: The network, of ReLU and LeakyReLU only.
        layout: Where the neurons are.
    """

    def __init__(self, plan: Plan, layout: NeuronLayout) -> None:
        self.plan, self.layout = plan, layout
        self.unit = guard(plan.graph.dtype)
        self._wanted = preact_ancestors(plan)

    def neurons(
        self, lower: Tensor, upper: Tensor, sign: Tensor, known: Interval | None = None
    ) -> Neurons:
        """Pre-activations over boxes in which the signs of some neurons are fixed.

        Args:
            lower, upper: The boxes, [B, *input_shape].
            sign: -1 or 1 where a neuron is fixed to one side of 0, else 0, [B, N].
            known: Intervals that hold in all of them, [1, N].
        """
        nodes, batch, inputs = self.plan.graph.nodes, len(lower), lower[0].numel()
        forms, bounds = {0: self._inputs(lower, upper)}, {0: Interval(lower, upper)}
        low, high = (lower.new_zeros(batch, self.layout.total) for _ in range(2))
        columns = lower.new_zeros(batch, inputs, self.layout.total)
        spaces = HalfSpaces.none(batch, inputs, lower)
        for index in range(1, len(nodes)):
            node = nodes[index]
            if index in self.layout.slices:
                part, parent = self.layout.slices[index], node.parents[0]
                form = forms[parent].flat()
                found = Interval(*(end.flatten(1) for end in bounds[parent]))
                if known is not None:
                    found = intersect(found, Interval(*(end[:, part] for end in known)))
                found, spaces = _narrowed(form, found, sign[:, part], spaces, inputs)
                low[:, part], high[:, part] = found
                columns[:, :, part] = form.columns[:, :inputs]
                steep = node.activation.negative_slope
                forms[index] = _activated(form, found, steep).shaped(node.shape)
                bounds[index] = Interval(
                    *(end.reshape(batch, *node.shape) for end in node.activation.interval(*found))
                )
            elif index in self._wanted:
                forms[index], bounds[index] = self._affine(
                    index, [forms[p] for p in node.parents], [bounds[p] for p in node.parents]
                )
        return Neurons(low, high, columns, spaces, (low > high).any(1))

    def _inputs(self, lower: Tensor, upper: Tensor) -> Form:
        centre = (lower + upper) / 2
        radius = torch.maximum(upper - centre, centre - lower)
        columns = torch.diag_embed(radius.flatten(1)).reshape(len(lower), -1, *lower.shape[1:])
        return Form(centre, columns, torch.zeros_like(centre), radius)

    def _affine(
        self, index: int, parents: list[Form], bounds: list[Interval]
    ) -> tuple[Form, Interval]:
        """The value of an affine node, as a zonotope and its interval."""
        affine, batch = self.plan.graph.nodes[index].affine, len(parents[0].centre)
        symbols = max(p.columns.shape[1] for p in parents)
        columns = affine.linear(*(p.wider(symbols).flatten(0, 1) for p in parents))
        columns = columns.reshape(batch, symbols, *columns.shape[1:])
        middles = [(b.lower + b.upper) / 2 for b in bounds]
        both = affine.forward(
            *(torch.cat([p.centre, m]) for p, m in zip(parents, middles, strict=True))
        )
        centre, middle = both.split(batch)
        moved, reach = [], []
        for p, (low, high) in zip(parents, bounds, strict=True):
            size = torch.maximum(p.size, torch.maximum(low.abs(), high.abs()))
            moved.append(p.rounding + self.unit * size)
            reach.append((high - low) / 2)
        both = self.plan.magnitudes[index].linear(
            *(torch.cat(pair) for pair in zip(moved, reach, strict=True))
        )
        rounding, reach = both.split(batch)
        if affine.bias is not None:
            rounding = rounding + self.unit * affine.bias.abs()
        form = Form(centre, columns, rounding, columns.abs().sum(1))
        around = form.radius + rounding
        return form, intersect(
            Interval(centre - around, centre + around),
            Interval(middle - reach - rounding, middle + reach + rounding),
        )

    def gradients(self, rows: Tensor, neurons: Neurons, sign: Tensor) -> Gradients:
        """Gradients of ``rows . f`` over the regions.

        Args:
            rows: Output directions, [B, C].
            neurons: The pre-activations.
            sign: The fixed signs, [B, N].
        """
        nodes, batch = self.plan.graph.nodes, len(rows)
        zero = torch.zeros_like(rows)
        pending = {len(nodes) - 1: Form(rows, rows.new_zeros(batch, 0, rows.shape[1]), zero, zero)}
        owners: list[Tensor] = []
        count = 0
        for index in range(len(nodes) - 1, 0, -1):
            form = pending.pop(index, None)
            if form is None:
                continue
            node = nodes[index]
            if node.affine is None:
                part = self.layout.slices[index]
                least, most = _slopes(
                    node.activation.negative_slope,
                    neurons.lower[:, part],
                    neurons.upper[:, part],
                    sign[:, part],
                )
                flat, half = form.flat(), (most - least) / 2
                own = half * flat.size
                chosen = slots(own > 0)
                flat = Form(flat.centre, flat.wider(count), flat.rounding, flat.radius)
                new = [flat.times((least + most) / 2, own, chosen, None).shaped(node.shape)]
                owners.append(chosen + part.start)
                count += chosen.shape[1]
            else:
                new = self._adjoint(index, form)
            for parent, form in zip(node.parents, new, strict=True):
                pending[parent] = _sum(pending[parent], form) if parent in pending else form
        inputs = nodes[0].shape.numel()
        if 0 not in pending:
            none = rows.new_zeros(batch, inputs)
            return Gradients(none, none[:, None, :][:, :0], none.long()[:, :0], none)
        form = pending[0].flat()
        own = torch.cat(owners, 1) if owners else rows.new_zeros(batch, 0, dtype=torch.long)
        return Gradients(form.centre, form.wider(count), own, form.rounding)

    def _adjoint(self, index: int, form: Form) -> list[Form]:
        """What an affine node hands back to each of its parents."""
        affine, batch = self.plan.graph.nodes[index].affine, len(form.centre)
        symbols = form.columns.shape[1]
        together = torch.cat([form.centre.unsqueeze(1), form.columns], 1).flatten(0, 1)
        moved = self.plan.magnitudes[index].adjoint(form.rounding + self.unit * form.size)
        new = []
        for part, rounding in zip(affine.adjoint(together), moved, strict=True):
            part = part.reshape(batch, 1 + symbols, *part.shape[1:])
            columns = part[:, 1:]
            new.append(Form(part[:, 0], columns, rounding, columns.abs().sum(1)))
        return new


def _sum(first: Form, second: Form) -> Form:
    symbols = max(first.columns.shape[1], second.columns.shape[1])
    columns = first.wider(symbols) + second.wider(symbols)
    return Form(
        first.centre + second.centre,
        columns,
        first.rounding + second.rounding,
        columns.abs().sum(1),
    )


def _narrowed(
    form: Form, bounds: Interval, sign: Tensor, spaces: HalfSpaces, inputs: int
) -> tuple[Interval, HalfSpaces]:
    """Intervals of a layer's pre-activations in the regions, and what its fixed signs say.

    Args:
        form: The pre-activations, flat.
        bounds: Their intervals over the boxes, [B, n].
        sign: The fixed signs of the layer, [B, n].
        spaces: What those of earlier layers say.
        inputs: D.
    """
    lower, upper = bounds
    crossing = (lower < 0) & (upper > 0)
    fixed, open_ = crossing & (sign != 0), crossing & (sign == 0)
    beyond = form.columns[:, inputs:].abs().sum(1) + form.rounding
    if bool(fixed.any()):
        index = slots(fixed)
        side = torch.where(fixed, sign.to(lower), 0.0).gather(1, index)
        at = index.unsqueeze(1).expand(-1, inputs, -1)
        matrix = form.columns[:, :inputs].gather(2, at).transpose(1, 2) * side.unsqueeze(2)
        constant = side * form.centre.gather(1, index) + side.abs() * beyond.gather(1, index)
        spaces = spaces.and_also(matrix, constant)
    if len(spaces) and bool(open_.any()):
        index = slots(open_)
        at = index.unsqueeze(1).expand(-1, inputs, -1)
        functions = form.columns[:, :inputs].gather(2, at).transpose(1, 2)
        most = largest_values(torch.cat([functions, -functions], 1), spaces)
        most = most + beyond.gather(1, index).repeat(1, 2)
        above, below = most.split(index.shape[1], 1)
        centre = form.centre.gather(1, index)
        upper = upper.scatter(1, index, torch.minimum(upper.gather(1, index), centre + above))
        lower = lower.scatter(1, index, torch.maximum(lower.gather(1, index), centre - below))
    lower = torch.where(sign > 0, lower.clamp(min=0), lower)
    upper = torch.where(sign < 0, upper.clamp(max=0), upper)
    return Interval(lower, upper), spaces


def _activated(form: Form, bounds: Interval, small: float) -> Form:
    """ReLU or LeakyReLU of a flat value: its two lines are parallel to the chord."""
    lower, upper = bounds
    active = lower >= 0
    open_ = ~(active | (upper <= 0))
    run = torch.where(open_, upper - lower, torch.ones_like(upper))
    chord = (upper - small * lower) / run
    slope = torch.where(open_, chord, torch.where(active, 1.0, small).to(upper))
    # Largest gap at the two ends: right for any slope, so a rounded chord stays above.
    gap = torch.maximum((small - slope) * lower, (1 - slope) * upper)
    half = torch.where(open_, gap / 2, 0.0)
    return form.times(slope, half, slots(open_), half)


def _slopes(small: float, lower: Tensor, upper: Tensor, sign: Tensor) -> Interval:
    """Intervals of the slopes; a fixed neuron has one, even if it is 0 all over the region."""
    active = (lower >= 0) & ((upper > 0) | (sign > 0))
    inactive = (upper <= 0) & ((lower < 0) | (sign < 0)) & ~active
    one = torch.ones_like(lower)
    return Interval(torch.where(active, one, small), torch.where(inactive, small * one, one))
