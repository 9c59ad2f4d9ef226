"""The semidefinite program of the Jacobian's norm, as data.

Write the norm of ``J(x)^T r`` as ``max over u of u . J^T r``, with ``u`` in ``[-1, 1]^D`` for the
l1 norm and in the unit ball for the l2 norm. Going back through the network, an activation whose
slope is only known to lie in ``[s_lower, s_upper]`` gives

    h = s_lower g + (s_upper - s_lower) t,    t = theta g,    theta in [0, 1],

so ``t`` lies between 0 and ``g``: with ``r = g - t``, ``t r >= 0``. All other steps are affine, so
every ``g``, and the Jacobian itself, is affine in the ``t`` of the layers behind, and the norm is a
quadratic form in ``y = (1, u, t)``. Each variable is scaled to ``[-1, 1]`` by the interval that
bound propagation knows for it. What holds for the true ``y`` and is quadratic in it:

    y_0^2 = 1,  y_i^2 <= 1          (for the l2 norm: sum of u_i^2 <= 1)
    t (g - t) >= 0                           for every uncertain slope whose g is not a constant
    (1 - u_i)(J_i - J_lower) >= 0,  (1 + u_i)(J_upper - J_i) >= 0      for every entry of open sign

An entry of known sign, or whose sign a split has fixed, has no variable but counts with that sign.
The last line, McCormick products, makes the program at least as tight on ``|J_i|`` as the chord
that linear bounds use; they are left out for the l2 norm and for very many entries. Replacing
``y y^T`` by any positive semidefinite matrix that keeps to these lines relaxes the maximum to a
semidefinite program, whose dual bounds it for *any* multipliers (:mod:`lipschitz.sdp.certificate`).
For one hidden layer and without the McCormick products this
is the relaxation of Raghunathan et al. 2018; the recursion through several layers is the "dual"
view of Chen et al. 2020 and GeoLIP, with intervals of this box instead of global ones.

Shapes: B programs (class x subdomain), N variables with the constant at 0, K products. Programs of
different sizes share a batch; a variable that a program does not use appears in nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipschitz.graph import Graph
from lipschitz.native.interval import Interval

# McCormick products of more entries than this cost more than they tighten.
_MOST_PRODUCTS = 256

# Kinds of products: between 0 and g, and the two McCormick products of an entry.
_OF_A_NEURON, _BELOW, _ABOVE = range(3)
FAMILIES = 3


@dataclass(frozen=True)
class Program:
    """Maximise ``<objective, Y>`` over the moment matrices Y that the constraints allow.

    Attributes:
        objective: Symmetric, [B, N, N].
        ball: Whether the variables of ``u`` are in the unit ball rather than the unit box, so
            that they share one multiplier.
        entry: The entry of the Jacobian that each variable of ``u`` belongs to, -1 if unused,
            [B, U]; these variables follow the constant.
        family: Which of the FAMILIES kinds each product is of, [B, K].
        variable, scale, shift: The first factor of a product is ``scale y_variable + shift``,
            each [B, K].
        factor: Coefficients of its second factor, [B, K, N]; zero for a product that is not there.
        t_scale, t_shift: ``t = t_scale y + t_shift`` of every other variable, [B, V].
        cotangent: Coefficients of the ``g`` that each ``t`` belongs to, [B, V, N].
        neuron: The neuron of each ``t`` among all neurons of the layout, -1 if unused, [B, V].
    """

    objective: Tensor
    ball: bool
    entry: Tensor
    family: Tensor
    variable: Tensor
    scale: Tensor
    shift: Tensor
    factor: Tensor
    t_scale: Tensor
    t_shift: Tensor
    cotangent: Tensor
    neuron: Tensor

    def __len__(self) -> int:
        return len(self.objective)

    @property
    def size(self) -> int:
        """N, the number of variables with the constant."""
        return self.objective.shape[1]

    @property
    def inputs(self) -> int:
        """U, the number of variables of ``u``."""
        return self.entry.shape[1]

    @property
    def products(self) -> int:
        """K, the number of product constraints."""
        return self.factor.shape[1]

    def take(self, which: Tensor) -> Program:
        """Some of the programs, by index or mask."""
        return self._changed(lambda value: value[which])

    def to(self, dtype: torch.dtype) -> Program:
        """The same numbers in another precision."""
        return self._changed(lambda v: v.to(dtype) if v.is_floating_point() else v)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Program:
        values = (getattr(self, f.name) for f in fields(self))
        return Program(*(change(v) if isinstance(v, Tensor) else v for v in values))


@dataclass(frozen=True)
class Facts:
    """What bound propagation knows, over B boxes.

    Attributes:
        rows: Output directions, [B, C].
        slopes: Slope interval by activation node, [B or 1, *shape].
        cotangents: Interval of g by activation node, [B or 1, *shape]; meant where the slope is
            uncertain.
        entries: Interval of the Jacobian's entries, [B, *input_shape].
        entry_sign: Sign with which an entry is counted where a split has fixed it, else 0,
            [B, *input_shape]; None if there are no such splits.
        counted: 1 for the inputs that the norm counts, 0 for the others, flat [D]; None if it
            counts all.
    """

    rows: Tensor
    slopes: dict[int, Interval]
    cotangents: dict[int, Interval]
    entries: Interval
    entry_sign: Tensor | None = None
    counted: Tensor | None = None


class _Expressions:
    """Affine expressions in the variables, carried back through the graph."""

    def __init__(self, graph: Graph, facts: Facts, norm: str) -> None:
        self.graph, self.facts, self.norm = graph, facts, norm
        self.batch = len(facts.rows)
        self.device = facts.rows.device
        self.activations = sorted(facts.cotangents, reverse=True)
        self.offset: dict[int, int] = {}
        start = 0
        for index in graph.activation_nodes:
            self.offset[index] = start
            start += graph.nodes[index].shape.numel()
        self.open_slopes = {a: self._open_slopes(a) for a in self.activations}
        self.sign = self._signs()
        self.open_entries = self.sign == 0
        if facts.counted is not None:
            self.open_entries &= facts.counted.bool()
        self.inputs = int(self.open_entries.sum(1).max())
        counts = [int(mask.sum(1).max()) for mask in self.open_slopes.values()]
        starts = [1 + self.inputs + sum(counts[:k]) for k in range(len(counts))]
        self.start = dict(zip(self.activations, starts, strict=True))
        self.count = dict(zip(self.activations, counts, strict=True))
        self.size = 1 + self.inputs + sum(counts)

    def _flat(self, interval: Interval) -> tuple[Tensor, Tensor]:
        lower, upper = (end.double().flatten(1).expand(self.batch, -1) for end in interval)
        return torch.minimum(lower, upper), torch.maximum(lower, upper)

    def _open_slopes(self, activation: int) -> Tensor:
        slope_lower, slope_upper = self._flat(self.facts.slopes[activation])
        lower, upper = self._flat(self.facts.cotangents[activation])
        return (slope_lower < slope_upper) & ~((lower == 0) & (upper == 0))

    def _signs(self) -> Tensor:
        """Sign with which each entry is counted, 0 where ``u`` is a variable, [B, D]."""
        lower, upper = self._flat(self.facts.entries)
        if self.norm == "2":  # the sign of an entry does not tell its share of the ball
            return torch.zeros_like(lower)
        sign = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, -1.0, 0.0)).double()
        if self.facts.entry_sign is not None:
            given = self.facts.entry_sign.flatten(1).double()
            sign = torch.where(given != 0, given, sign)
        return sign if self.facts.counted is None else sign * self.facts.counted.to(sign)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, dtype=torch.float64, device=self.device)

    def places(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Batch index, coordinate and slot of everything a mask [B, n] selects."""
        batch, coordinate = mask.nonzero(as_tuple=True)
        return batch, coordinate, (mask.cumsum(1) - 1)[batch, coordinate]


def build_program(graph: Graph, facts: Facts, norm: str = "inf") -> Program:
    """The program of B boxes, in float64.

    Args:
        graph: The network, in float64.
        facts: Certified intervals over the boxes.
        norm: ``inf`` (l1 norm of gradients) or ``2`` (l2 norm).
    """
    build = _Expressions(graph, facts, norm)
    size, count = build.size, build.size - 1 - build.inputs
    t_scale, t_shift = build.zeros(count), build.zeros(count)
    cotangent = build.zeros(count, size)
    neuron = torch.full((build.batch, count), -1, dtype=torch.long, device=build.device)
    expressions = build.zeros(size, facts.rows.shape[1])
    expressions[:, 0] = facts.rows.double()
    pending = {len(graph.nodes) - 1: expressions}
    varying: list[int] = []  # first slots of activations whose g is not a constant
    for index in range(len(graph.nodes) - 1, 0, -1):
        expression = pending.pop(index, None)
        if expression is None:
            continue
        node = graph.nodes[index]
        if node.affine is not None:
            found = node.affine.adjoint(expression.flatten(0, 1))
            new = [f.reshape(build.batch, size, *f.shape[1:]) for f in found]
        else:
            g = expression.flatten(2)
            slope_lower, slope_upper = build._flat(facts.slopes[index])
            h = g * slope_lower.unsqueeze(1)
            if build.count.get(index):
                batch, place, slot = build.places(build.open_slopes[index])
                lower, upper = build._flat(facts.cotangents[index])
                lower, upper = lower.clamp(max=0)[batch, place], upper.clamp(min=0)[batch, place]
                slot = slot + build.start[index] - 1 - build.inputs
                t_scale[batch, slot] = (upper - lower) / 2
                t_shift[batch, slot] = (upper + lower) / 2
                cotangent[batch, slot] = g.transpose(1, 2)[batch, place]
                neuron[batch, slot] = build.offset[index] + place
                gap = (slope_upper - slope_lower)[batch, place]
                h[batch, slot + 1 + build.inputs, place] += gap * t_scale[batch, slot]
                h[batch, 0, place] += gap * t_shift[batch, slot]
                if bool((g[:, 1:] != 0).any()):
                    varying.append(index)
            new = [h.reshape(expression.shape)]
        for parent, contribution in zip(node.parents, new, strict=True):
            pending[parent] = pending[parent] + contribution if parent in pending else contribution
    jacobian = pending[0].flatten(2) if 0 in pending else build.zeros(size, build.sign.shape[1])
    parts = [_between_zero_and_g(build, a, t_scale, t_shift, cotangent) for a in varying]
    if norm == "inf" and 0 < 2 * build.inputs <= _MOST_PRODUCTS:
        parts += _sign_products(build, jacobian)
    family, variable, scale, shift, factor = (
        (torch.cat(p, 1) for p in zip(*parts, strict=True))
        if parts
        else (
            build.zeros(0).long(),
            build.zeros(0).long(),
            build.zeros(0),
            build.zeros(0),
            build.zeros(0, size),
        )
    )
    entry = torch.full((build.batch, build.inputs), -1, dtype=torch.long, device=build.device)
    batch, place, slot = build.places(build.open_entries)
    entry[batch, slot] = place
    return Program(
        _objective(build, jacobian),
        norm == "2",
        entry,
        family,
        variable,
        scale,
        shift,
        factor,
        t_scale,
        t_shift,
        cotangent,
        neuron,
    )


def _objective(build: _Expressions, jacobian: Tensor) -> Tensor:
    """``u . J`` as a symmetric form, [B, N, N]; ``jacobian`` is [B, N, D]."""
    objective = build.zeros(build.size, build.size)
    linear = (jacobian * build.sign.unsqueeze(1)).sum(2)
    objective[:, 0] += linear / 2
    objective[:, :, 0] += linear / 2
    batch, entry, slot = build.places(build.open_entries)
    rows = jacobian.transpose(1, 2)[batch, entry] / 2
    objective[batch, 1 + slot] += rows
    objective[batch, :, 1 + slot] += rows
    return objective


def _between_zero_and_g(
    build: _Expressions, activation: int, t_scale: Tensor, t_shift: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``t (g - t) >= 0`` of one activation's open slopes, scaled to numbers near 1."""
    begin = build.start[activation]
    part = slice(begin - 1 - build.inputs, begin - 1 - build.inputs + build.count[activation])
    scale, shift, g = t_scale[:, part], t_shift[:, part], cotangent[:, part]
    variable = torch.arange(begin, begin + scale.shape[1], device=build.device)
    rest = g.clone()
    rest[:, torch.arange(scale.shape[1], device=build.device), variable] -= scale
    rest[:, :, 0] -= shift
    unit = _inverse(2 * scale)
    rest = rest * unit.unsqueeze(2) * (scale > 0).unsqueeze(2)
    variable = variable.expand(build.batch, -1)
    family = torch.full_like(variable, _OF_A_NEURON)
    return family, variable, scale * unit, shift * unit, rest


def _sign_products(
    build: _Expressions, jacobian: Tensor
) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """``(1 - u)(J - J_lower) >= 0`` and ``(1 + u)(J_upper - J) >= 0`` for entries of open sign."""
    batch, entry, slot = build.places(build.open_entries)
    lower, upper = build._flat(build.facts.entries)
    unit = _inverse((upper - lower)[batch, entry])
    rows = jacobian.transpose(1, 2)[batch, entry]
    found = []
    variable = torch.arange(1, 1 + build.inputs, device=build.device).expand(build.batch, -1)
    for side, end, kind in ((-1.0, lower, _BELOW), (1.0, upper, _ABOVE)):
        factor, ones = build.zeros(build.inputs, build.size), build.zeros(build.inputs)
        distance = -side * rows
        distance[:, 0] += side * end[batch, entry]
        factor[batch, slot] = distance * unit.unsqueeze(1)
        ones[batch, slot] = 1.0
        found.append((torch.full_like(variable, kind), variable, side * ones, ones, factor))
    return found


def _inverse(width: Tensor) -> Tensor:
    """``1 / width``, 1 where that would overflow."""
    usable = width > 1e-150
    return torch.where(usable, 1 / torch.where(usable, width, 1.0), 1.0)
