"""The semidefinite program of the Jacobian's norm, as data.

Write the norm of ``J(x)^T r`` as ``max over u of u . J^T r``, with ``u`` in ``[-1, 1]^D`` for the
l1 norm and in the unit ball for the l2 norm. Going back through the network, an activation whose
slope is only known to lie in ``[s_lower, s_upper]`` gives

    h = s_lower g + (s_upper - s_lower) t,    t = theta g,    theta in [0, 1],

so ``t`` lies between 0 and ``g``: ``t (g - t) >= 0``. All other steps are affine, so every ``g``,
and the Jacobian itself, is affine in the ``t`` of the layers behind, and the norm is a quadratic
form in ``(1, u, t)``. What holds for the true variables and is quadratic in them:

    1^2 = 1,  u_i^2 <= 1          (for the l2 norm: sum of u_i^2 <= 1)
    (t - centre)^2 <= radius^2            centre +- radius: the hull of 0 and of g's interval
    t (g - t) >= 0
    (1 - u_i)(J_i - J_lower) >= 0,  (1 + u_i)(J_upper - J_i) >= 0      for every entry of open sign

An entry of known sign, or whose sign a split has fixed, has no variable but counts with that sign.
The last line, McCormick products, makes the program at least as tight on ``|J_i|`` as the chord
that linear bounds use; it is left out for the l2 norm. Relaxed to a semidefinite program, the
numbers 1, u and t become vectors and their products inner products. The program's dual bounds the
norm for *any* multipliers (:mod:`lipschitz.bounds.sdp.certificate`);
:mod:`lipschitz.bounds.sdp.sweeps` finds good ones. For one hidden layer and without the McCormick
products this is the relaxation of Raghunathan et al. 2018; the recursion through several layers is
the "dual" view of Chen et al. 2020 and GeoLIP, with intervals of this box instead of global ones.

Shapes: B programs (class x subdomain), D entries, M neurons whose slope is open in some program of
the batch. A neuron or entry that a program does not use has radius 0 or no variable there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.bounds.native.interval import Interval
from lipschitz.network.graph import Graph


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


@dataclass(frozen=True)
class Program:
    """Maximise the norm over all that the constraints allow.

    Attributes:
        graph: The network.
        rows: Output directions, [B, C].
        ball: Whether u is in the unit ball rather than in the unit box.
        sign: Sign with which an entry counts that has no variable, else 0, [B, D].
        is_free: Whether an entry has a variable, [B, D].
        entry_lower, entry_upper: Interval of the entries, [B, D].
        slope_lower: Lower end of the slopes by activation node, [B or 1, *shape].
        places: Which neurons of an activation node are open in some program: indices [m]. Their
            parts [B, m], in this order, make up the tensors [B, M].
        neuron: Number of the M neurons among all neurons of the network, [M].
        gap: ``s_upper - s_lower``, [B, M]; 0 where the slope is not open.
        centre, radius: The box of t, [B, M]; 0 where the slope is not open.
    """

    graph: Graph
    rows: Tensor
    ball: bool
    sign: Tensor
    is_free: Tensor
    entry_lower: Tensor
    entry_upper: Tensor
    slope_lower: dict[int, Tensor]
    places: dict[int, Tensor]
    neuron: Tensor
    gap: Tensor
    centre: Tensor
    radius: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_open(self) -> Tensor:
        """Whether a neuron has a variable, [B, M]."""
        return self.radius > 0

    @property
    def sizes(self) -> Tensor:
        """N, the number of variables of each program with the constant, [B]."""
        return 1 + self.is_free.sum(1) + self.is_open.sum(1)

    @property
    def slices(self) -> dict[int, slice]:
        """Where each activation node's neurons are among the M."""
        found, start = {}, 0
        for activation, places in self.places.items():
            found[activation] = slice(start, start + len(places))
            start += len(places)
        return found

    def take(self, which: Tensor) -> Program:
        """Some of the programs, by index or mask."""
        names = ("rows", "sign", "is_free", "entry_lower", "entry_upper", "gap", "centre", "radius")
        slopes = {i: s if len(s) == 1 else s[which] for i, s in self.slope_lower.items()}
        return replace(
            self, slope_lower=slopes, **{name: getattr(self, name)[which] for name in names}
        )

    def to(self, dtype: torch.dtype) -> Program:
        """The same numbers, and the network, in another precision."""
        names = ("rows", "sign", "entry_lower", "entry_upper", "gap", "centre", "radius")
        return replace(
            self,
            graph=self.graph.single if dtype == torch.float32 else self.graph.double,
            slope_lower={i: s.to(dtype) for i, s in self.slope_lower.items()},
            **{name: getattr(self, name).to(dtype) for name in names},
        )

    def pull_back(self, start: Tensor, between: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """R rows of the Jacobian for given t, going back through the network.

        Args:
            start: What stands for the output directions, [B, R, C].
            between: The t of some of the M neurons given their g, each [B, R, m].

        Returns:
            J, [B, R, D].
        """
        batch, count = start.shape[:2]
        slices = self.slices
        pending = {len(self.graph.nodes) - 1: start.flatten(0, 1)}
        for index in range(len(self.graph.nodes) - 1, 0, -1):
            cotangent = pending.pop(index, None)
            if cotangent is None:
                continue
            node = self.graph.nodes[index]
            if node.affine is not None:
                new = node.affine.adjoint(cotangent)
            else:
                g = cotangent.reshape(batch, count, *node.shape)
                h = (g * self.slope_lower[index].unsqueeze(1)).flatten(2)
                if index in slices:
                    part, places = slices[index], self.places[index]
                    t = between(part, g.flatten(2).index_select(2, places))
                    h.index_add_(2, places, t * self.gap[:, part].unsqueeze(1))
                new = (h.reshape(cotangent.shape),)
            for parent, value in zip(node.parents, new, strict=True):
                pending[parent] = pending[parent] + value if parent in pending else value
        if 0 not in pending:
            return start.new_zeros(batch, count, self.sign.shape[1])
        return pending[0].reshape(batch, count, -1)

    def push_forward(self, start: Tensor, weighted: Callable[[slice, Tensor], Tensor]) -> None:
        """The adjoint of :meth:`pull_back`: how much each t counts, going forward.

        Args:
            start: How much each entry of the R rows counts, [B, R, D].
            weighted: Given how much the h of some of the M neurons counts, what a product
                constraint adds to how much their g does, each [B, R, m].
        """
        batch, count = start.shape[:2]
        slices = self.slices
        values = [start.reshape(batch * count, *self.graph.input_shape)]
        for index, node in enumerate(self.graph.nodes[1:], 1):
            inputs = [values[parent] for parent in node.parents]
            if node.affine is not None:
                values.append(node.affine.linear(*inputs))
                continue
            h = inputs[0].reshape(batch, count, *node.shape)
            g = (h * self.slope_lower[index].unsqueeze(1)).flatten(2)
            if index in slices:
                part, places = slices[index], self.places[index]
                g.index_add_(2, places, weighted(part, h.flatten(2).index_select(2, places)))
            values.append(g.reshape(inputs[0].shape))


def build_program(graph: Graph, facts: Facts, norm: str = "inf") -> Program:
    """The program of B boxes, in float64.

    Args:
        graph: The network, in float64.
        facts: Certified intervals over the boxes.
        norm: ``inf`` (l1 norm of gradients) or ``2`` (l2 norm).
    """
    batch = len(facts.rows)
    sign, is_free = _signs(facts, norm)
    places: dict[int, Tensor] = {}
    parts: list[tuple[Tensor, ...]] = []
    for node, (first, slope, cotangent) in _open_activations(graph, facts).items():
        slope_lower, slope_upper = (end.expand(batch, -1) for end in slope)
        lower, upper = (end.expand(batch, -1) for end in cotangent)
        is_open = (slope_lower < slope_upper) & ~((lower == 0) & (upper == 0))
        places[node] = is_open.any(0).nonzero()[:, 0]
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
        gap = slope_upper - slope_lower
        found = (part * is_open for part in (gap, (lower + upper) / 2, (upper - lower) / 2))
        parts.append((first + places[node], *(p.index_select(1, places[node]) for p in found)))
    none = facts.rows.new_zeros(batch, 0, dtype=torch.float64)
    parts.append((none[0].long(), none, none, none))
    neuron, gap, centre, radius = (torch.cat(p, -1) for p in zip(*parts, strict=True))
    entry_lower, entry_upper = (end.expand(batch, -1) for end in _flat(facts.entries))
    return Program(
        graph,
        facts.rows.double(),
        norm == "2",
        sign,
        is_free,
        entry_lower,
        entry_upper,
        {i: slope.lower.double() for i, slope in facts.slopes.items()},
        places,
        neuron,
        gap,
        centre,
        radius,
    )


def _flat(interval: Interval) -> tuple[Tensor, Tensor]:
    lower, upper = (end.double().flatten(1) for end in interval)
    return torch.minimum(lower, upper), torch.maximum(lower, upper)


def _open_activations(
    graph: Graph, facts: Facts
) -> dict[int, tuple[int, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """First neuron, slope and cotangent intervals of the activations that have a cotangent."""
    found, first = {}, 0
    for node in graph.activation_nodes:
        if node in facts.cotangents:
            found[node] = (first, _flat(facts.slopes[node]), _flat(facts.cotangents[node]))
        first += graph.nodes[node].shape.numel()
    return found


def _signs(facts: Facts, norm: str) -> tuple[Tensor, Tensor]:
    """Sign with which each entry counts, and whether it has a variable, each [B, D]."""
    lower, upper = (end.expand(len(facts.rows), -1) for end in _flat(facts.entries))
    if norm == "2":  # the sign of an entry does not tell its share of the ball
        sign, is_free = torch.zeros_like(lower), torch.ones_like(lower, dtype=torch.bool)
    else:
        sign = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, -1.0, 0.0)).double()
        if facts.entry_sign is not None:
            given = facts.entry_sign.flatten(1).double()
            sign = torch.where(given != 0, given, sign)
        is_free = sign == 0
    if facts.counted is not None:
        sign, is_free = sign * facts.counted.to(sign), is_free & facts.counted.bool()
    return sign, is_free
