"""Regions without inner points, found in exact arithmetic.

Where lattices or maxima compare the same values twice, the signs of some regions can hold on a
hyperplane only: ``z >= 0`` and ``z <= 0`` for a function that two neurons have there, perhaps in
different layers. With rounding in the way no such region can be shown to be empty, and its bound
may be above the truth. If all weights are multiples of one power of two and not too many bits long,
as the weights of lattices are, sums and products in float64 are exact; then equal rows are equal
functions. A region within a hyperplane holds no gradient that a region beside it does not have.

Shapes: N neurons of all activations together, D inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

import torch
from torch import Tensor

from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.graph import Graph
from lipschitz.search.subdomains import NeuronLayout

# Largest matrix of a layer, in numbers. A choice.
_LARGEST = 4_000_000
# Numbers below 2 to this power are whole numbers exactly, and so are their sums below it.
_EXACT_BITS = 52
# Weights are looked at as multiples of 2 to the power of minus this many, or fewer.
_MOST_BITS = 60
# How many rows more than inputs are looked at near a point, and how near they are. Choices.
_MORE_ROWS, _NEAR = 4, 1e-6

# What :meth:`ExactRows.look` answers besides the number of a neuron.
HOLLOW, SOLID = -1, -2


class ExactRows:
    """Follows the signs of a region through the network without rounding.

    Args:
        graph: The network, in float64, of ReLU only for any answer.
        layout: Where the neurons are.

    Attributes:
        is_usable: Whether all rows of all regions are exact.
    """

    def __init__(self, graph: Graph, layout: NeuronLayout) -> None:
        self.graph, self.layout = graph, layout
        self._wanted = {graph.nodes[index].parents[0] for index in layout.slices}
        for index in range(len(graph.nodes) - 1, 0, -1):
            if index in self._wanted:
                self._wanted.update(graph.nodes[index].parents)
        self._maps: dict[int, list[Tensor]] = {}
        self.is_usable = self._prepare()

    def _prepare(self) -> bool:
        """Matrices of all affine maps, as far as no row can need more bits than there are."""
        inputs = self.graph.input_shape.numel()
        start = torch.ones(inputs, dtype=self.graph.dtype, device=self.graph.device)
        size, bits = {0: start}, {0: 0}  # of rows: largest magnitudes, bits behind the point
        for index, node in enumerate(self.graph.nodes[1:], start=1):
            if node.affine is None:
                kind = node.activation
                if not isinstance(kind, PiecewiseLinear) or kind.negative_slope != 0:
                    return False
            if index not in self._wanted:
                continue
            if node.affine is None:
                size[index], bits[index] = size[node.parents[0]], bits[node.parents[0]]
                continue
            count = node.shape.numel()
            widest = max(self.graph.nodes[p].shape.numel() for p in node.parents)
            if count * max(count, widest) > _LARGEST:
                return False
            unit = torch.eye(count, dtype=start.dtype, device=start.device)
            maps = [m.flatten(1) for m in node.affine.adjoint(unit.reshape(-1, *node.shape))]
            bias = node.affine.bias
            bias = (
                torch.zeros_like(unit[0])
                if bias is None
                else bias.expand(1, *node.shape).reshape(-1)
            )
            here = [_bits_of(bias)]
            here += [_bits_of(m) + bits[p] for m, p in zip(maps, node.parents, strict=True)]
            total = sum(m.abs() @ size[p] for m, p in zip(maps, node.parents, strict=True))
            size[index], bits[index] = total + bias.abs(), max(here)
            if float(size[index].max()) * 2.0 ** bits[index] >= 2.0**_EXACT_BITS:
                return False
            self._maps[index] = [*maps, bias]
        return True

    def look(self, sign: Tensor, lower: Tensor, upper: Tensor) -> int:
        """Whether a region has inner points.

        Args:
            sign: Its fixed signs, [N].
            lower, upper: Its pre-activation intervals, [N].

        Returns:
            ``HOLLOW`` if it lies in a hyperplane, ``SOLID`` if no two neurons say so, else the
            first neuron whose sign would have to be known.
        """
        return self._follow(sign, lower, upper)[0]

    def is_hollow_at(self, sign: Tensor, lower: Tensor, upper: Tensor, point: Tensor) -> bool:
        """Whether constraints that meet near a point leave the region without inner points.

        If ``a_k . x + c_k >= 0`` for all k, and a sum of these with weights that are not negative
        is ``0 . x + c`` with ``c <= 0``, each of them is an equality. Weights come from at most
        D + 1 rows, in fractions.

        Args:
            sign, lower, upper: As :meth:`look` takes them.
            point: A point of the region, or near it, [D].
        """
        answer, spaces = self._follow(sign, lower, upper)
        if answer != SOLID or not len(spaces):
            return answer == HOLLOW
        size = spaces[:, :-1].norm(dim=1)
        distance = (spaces[:, :-1] @ point + spaces[:, -1]).abs() / size
        near = distance.argsort()[: len(point) + _MORE_ROWS]
        near = near[distance[near] <= _NEAR * (1 + point.abs().max())]
        rows = [[Fraction(v) for v in row] for row in spaces[near].tolist()]
        counts = range(2, len(point) + 2)
        return any(_is_contradiction(some) for n in counts for some in combinations(rows, n))

    def _follow(self, sign: Tensor, lower: Tensor, upper: Tensor) -> tuple[int, Tensor]:
        """What :meth:`look` says, and different rows that are at least 0 in the region."""
        inputs = self.graph.input_shape.numel()
        unit = torch.eye(inputs, dtype=lower.dtype, device=lower.device)
        rows = {0: torch.cat([unit, torch.zeros_like(unit[:, :1])], 1)}
        known: dict[bytes, int] = {}
        spaces = [rows[0][:0]]
        stable = torch.where(lower >= 0, 1, torch.where(upper <= 0, -1, 0))
        signs = torch.where(sign != 0, sign.long(), stable)
        for index, node in enumerate(self.graph.nodes[1:], start=1):
            if index in self._maps:
                *maps, bias = self._maps[index]
                found = sum(m @ rows[p] for m, p in zip(maps, node.parents, strict=True))
                found[:, -1] += bias
                rows[index] = found
            elif index in self.layout.slices:
                part = self.layout.slices[index]
                here = rows[node.parents[0]]
                chosen = _signs_of(here, signs[part].tolist(), known)
                if isinstance(chosen, int):
                    return (HOLLOW if chosen < 0 else part.start + chosen), spaces[0]
                side = torch.tensor(chosen).to(here).unsqueeze(1)
                rows[index] = here * (side > 0).to(here)
                spaces.append((here * side)[(here[:, :-1] != 0).any(1)])
        return SOLID, torch.unique(torch.cat(spaces), dim=0)


def _is_contradiction(rows: Sequence[Sequence[Fraction]]) -> bool:
    """Whether a positive sum of rows [n, D + 1] leaves no variable and nothing above 0."""
    weights = _null_vector([row[:-1] for row in rows])
    if weights is None:
        return False
    if all(w <= 0 for w in weights):
        weights = [-w for w in weights]
    total = sum(w * row[-1] for w, row in zip(weights, rows, strict=True))
    return all(w >= 0 for w in weights) and total <= 0


def _null_vector(rows: Sequence[Sequence[Fraction]]) -> list[Fraction] | None:
    """Weights, not all 0, with which rows [n, D] sum to 0; None if they are independent."""
    count = len(rows)
    work = [[*row, *(Fraction(int(i == k)) for i in range(count))] for k, row in enumerate(rows)]
    done, variables = 0, len(rows[0])
    for column in range(variables):
        pivot = next((k for k in range(done, count) if work[k][column]), None)
        if pivot is None:
            continue
        work[done], work[pivot] = work[pivot], work[done]
        for k in range(done + 1, count):
            if work[k][column]:
                share = work[k][column] / work[done][column]
                work[k] = [a - share * b for a, b in zip(work[k], work[done], strict=True)]
        done += 1
    return work[done][variables:] if done < count else None


def _signs_of(rows: Tensor, signs: list[int], known: dict[bytes, int]) -> list[int] | int:
    """The signs of a layer's neurons, -1 if two contradict each other, or one that is not known.

    Args:
        rows: Their functions of the inputs, [n, D + 1].
        signs: -1 or 1 where the sign is known, else 0; filled in.
        known: Signs of functions that earlier neurons have; added to.
    """
    size = rows[:, :-1].abs().amax(1)
    # By a power of two, so exactly; rows of equal direction and size then have equal bits.
    scaled = torch.ldexp(rows, -torch.frexp(size).exponent.unsqueeze(1))
    lead = (rows[:, :-1] != 0).to(torch.uint8).argmax(1, keepdim=True)
    sides = torch.where(rows.gather(1, lead) < 0, -1, 1)
    keys = [row.tobytes() for row in (scaled * sides + 0.0).cpu().numpy()]
    constants, sides = rows[:, -1].tolist(), sides[:, 0].tolist()
    is_constant = (size == 0).tolist()
    for k, sign in enumerate(signs):
        if is_constant[k]:
            signs[k] = 1 if constants[k] > 0 else -1
        elif sign and known.setdefault(keys[k], sign * sides[k]) != sign * sides[k]:
            return -1
    for k, sign in enumerate(signs):
        if not sign:
            if keys[k] not in known:
                return k
            signs[k] = known[keys[k]] * sides[k]
    return signs


def _bits_of(numbers: Tensor) -> int:
    """How many bits behind the point numbers have; very many if more than is looked for."""
    for bits in range(_MOST_BITS + 1):
        scaled = numbers * 2.0**bits
        if bool((scaled == scaled.round()).all()):
            return bits
    return 10 * _MOST_BITS
