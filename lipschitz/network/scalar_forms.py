"""Products and quotients that are one activation of the table, recognised when they are recorded.

Exporters, and people, write ``x * sigmoid(x)`` for SiLU, ``x / 2 * (1 + erf(x / sqrt(2)))`` for
GELU, ``x * x * x`` for a power. As products of two values these have far looser bounds than the
functions of one value that they are. A value that is computed from one other value entry by entry
has a *form*: a sum of terms ``coefficient * z^power * gate(p(z))`` with at most one gate, p a
polynomial. Forms are computed from the recorded nodes, and compared with those of the table.

Constants need only agree to a few units in the last place of the network's precision: 1.4142135 is
the root of 2 in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.network.activations import (
    Activation,
    Exponential,
    Logarithm,
    PiecewiseLinear,
    Power,
    Square,
)
from lipschitz.network.activations.gated import GELU, Mish, SiLU, TanhGELU
from lipschitz.network.activations.piecewise import Hardswish, Hardtanh
from lipschitz.network.activations.smooth import Erf, Sigmoid, Softplus, Tanh
from lipschitz.network.affine import Combination, Scale
from lipschitz.network.graph import Node

# Coefficients by ascending power.
Polynomial = tuple[float, ...]
# What a gate is, its own constants, and the polynomial that it is of.
Gate = tuple[str, tuple[float, ...], Polynomial]
# Coefficients by power and gate.
Form = dict[tuple[int, "Gate | None"], float]

_CUBIC = 0.044715
# Powers above are left as products.
_HIGHEST = 8
# Steps back from a product that are looked at.
_DEPTH = 12
# Units in the last place by which written constants may be off.
_UNITS = 8


@dataclass(frozen=True)
class Fold:
    """``scale * function(factor * z + shift) + offset`` of node ``root``'s value z."""

    root: int
    function: Activation
    factor: float
    scale: float = 1.0
    shift: float = 0.0
    offset: float = 0.0


class Forms:
    """Forms of recorded nodes.

    Args:
        nodes: As they are recorded.
        dtype: Of their values.
    """

    def __init__(self, nodes: Sequence[Node], dtype: torch.dtype) -> None:
        self.nodes = nodes
        self.tolerance = _UNITS * torch.finfo(dtype).eps

    def product(self, first: int, second: int) -> Fold | None:
        """The one function that the product of two nodes is, or None."""
        root = self._common(first, second)
        if root is None:
            return None
        forms = self._form(first, root, 0), self._form(second, root, 0)
        if forms[0] is None or forms[1] is None:
            return None
        found = _times(*forms)
        return None if found is None else self._gated(root, found)

    def function(self, parent: int, function: Activation) -> Fold | None:
        """The one function that a function of a node is, or None."""
        if function == Power(-1.0):
            return self._reciprocal(parent)
        if isinstance(function, Logarithm):
            root, terms = self._one_plus_exp(parent)
            if terms is None:
                return None
            share, factor, shift = terms
            return Fold(root, Softplus(threshold=80.0), factor, 1.0, shift, math.log(share))
        if function in (Power(0.5), Power(-0.5)):
            return self._root(parent, function.exponent)
        return None

    def _reciprocal(self, parent: int) -> Fold | None:
        node = self.nodes[parent]
        before = node.activation
        if isinstance(before, Power) and before.factor == 1:
            changed = replace(before, exponent=-before.exponent)
            return Fold(node.parents[0], changed, 1.0)
        root, terms = self._one_plus_exp(parent)
        if terms is None:
            return None
        share, factor, shift = terms
        return Fold(root, Sigmoid(), -factor, 1 / share, -shift)

    def _root(self, parent: int, exponent: float) -> Fold | None:
        """A root of something that is never negative, plus a number above 0 or nothing."""
        shift, index, node = 0.0, parent, self.nodes[parent]
        if isinstance(node.affine, Scale) and _number(node.affine.factor) == 1:
            added = _number(node.affine.bias)
            if added is not None and added > 0 and self._is_positive(node.parents[0], 0):
                shift, index = added, node.parents[0]
        if not self._is_positive(index, 0):
            return None
        return Fold(index, Power(exponent, shift=shift, positive=True), 1.0)

    def _is_positive(self, index: int, depth: int) -> bool:
        """Whether a node is never below 0, by what it is computed with."""
        node = self.nodes[index]
        if depth > _DEPTH or not node.parents:
            return False
        if node.activation is not None:
            return node.activation.value_range[0] >= 0
        if node.affine is None:
            return node.parents[0] == node.parents[1]
        affine = node.affine
        if isinstance(affine, Scale):
            signs = bool((affine.factor >= 0).all())
        else:
            signs = affine.magnitude() is affine or set(getattr(affine, "signs", (-1,))) == {1}
        if not signs or (affine.bias is not None and bool((affine.bias < 0).any())):
            return False
        return all(self._is_positive(parent, depth + 1) for parent in node.parents)

    # -- forms -------------------------------------------------------------------------------------

    def _common(self, first: int, second: int) -> int | None:
        """The last node that both are computed from entry by entry."""
        both = self._sources(first) & self._sources(second)
        return max(both) if both else None

    def _sources(self, index: int) -> set[int]:
        found, rest = {index}, [(index, 0)]
        while rest:
            current, depth = rest.pop()
            if depth >= _DEPTH:
                continue
            for parent in self._parents(current):
                if parent not in found:
                    found.add(parent)
                    rest.append((parent, depth + 1))
        return found

    def _parents(self, index: int) -> tuple[int, ...]:
        """The nodes that one is computed from entry by entry, in a way that forms can follow."""
        node = self.nodes[index]
        if isinstance(node.affine, Scale):
            uniform = _number(node.affine.factor) is not None
            return node.parents if uniform and _number(node.affine.bias) is not None else ()
        if node.is_product or isinstance(node.affine, Combination):
            return node.parents
        return node.parents if node.activation is not None else ()

    def _form(self, index: int, root: int, depth: int) -> Form | None:
        if index == root:
            return {(1, None): 1.0}
        parents = self._parents(index)
        if depth > _DEPTH or not parents:
            return None
        forms = [self._form(parent, root, depth + 1) for parent in parents]
        if any(form is None for form in forms):
            return None
        node = self.nodes[index]
        if isinstance(node.affine, Scale):
            factor, shift = _number(node.affine.factor), _number(node.affine.bias)
            return _sum([(factor, forms[0]), (1.0, {(0, None): shift})])
        if isinstance(node.affine, Combination):
            return _sum(list(zip(node.affine.signs, forms, strict=True)))
        if node.is_product:
            return _times(*forms)
        return self._applied(node.activation, forms[0])

    def _applied(self, function: Activation, form: Form) -> Form | None:
        """The form of a function of a form."""
        inner = polynomial(form)
        if inner is None:
            gates = list(form)
            softplus = len(form) == 1 and gates[0][0] == 0 and form[gates[0]] == 1
            if softplus and isinstance(function, Tanh) and gates[0][1][0] == "softplus":
                return {(0, ("tanh of softplus", (), gates[0][1][2])): 1.0}
            return None
        if isinstance(function, Square):
            return _times(form, form)
        if isinstance(function, Power):
            order = function.exponent
            plain = function.factor == 1 and function.shift == 0 and not function.positive
            if not plain or order != round(order) or not 1 <= order <= _HIGHEST:
                return None
            found: Form | None = form
            for _ in range(int(order) - 1):
                found = None if found is None else _times(found, form)
            return found
        gate = _gate(function)
        return None if gate is None else {(0, (*gate, inner)): 1.0}

    def _one_plus_exp(self, index: int) -> tuple[int, tuple[float, float, float] | None]:
        """``share * (1 + exp(factor * z + shift))``, and the node of z."""
        source = self._last_before_exp(index)
        form = None if source is None else self._form(index, source, 0)
        if form is None:
            return index, None
        share = form.get((0, None), 0.0)
        gates = [key for key in form if key[1] is not None]
        if not share > 0 or len(form) != 2 or len(gates) != 1:
            return source, None
        (power, gate), size = gates[0], form[gates[0]]
        if power or gate[0] != "exp" or len(gate[2]) != 2 or not size > 0:
            return source, None
        shift, factor = gate[2]
        return source, (share, factor, shift + math.log(size / share))

    def _last_before_exp(self, index: int) -> int | None:
        """The node that an exponential on the way back from here is of."""
        for _ in range(_DEPTH):
            node = self.nodes[index]
            if isinstance(node.activation, Exponential):
                return node.parents[0]
            if not isinstance(node.affine, Scale):
                return None
            index = node.parents[0]
        return None

    # -- comparisons -------------------------------------------------------------------------------

    def _gated(self, root: int, form: Form) -> Fold | None:
        gates = {gate for _, gate in form if gate is not None}
        if not gates:
            powers = [power for power, _ in form]
            if len(powers) != 1 or not 2 <= powers[0] <= _HIGHEST:
                return None
            function = Square() if powers[0] == 2 else Power(float(powers[0]))
            return Fold(root, function, 1.0, form[(powers[0], None)])
        if len(gates) != 1:
            return None
        (gate,) = gates
        plain = _coefficients(form, None)
        gated = _coefficients(form, gate)
        kind, constants, inner = gate
        if kind == "clip":
            return self._hard_swish(root, constants, inner, plain, gated)
        if len(inner) == 2:
            return self._of_line(root, kind, inner, plain, gated)
        if len(inner) == 4:
            return self._of_cubic(root, kind, inner, plain, gated)
        return None

    def _of_line(
        self, root: int, kind: str, inner: Polynomial, plain: Polynomial, gated: Polynomial
    ) -> Fold | None:
        rest = None  # what must be added to the gate's part, over the gate's factor
        if kind == "erf":
            line, function, times, rest = _scaled(inner, math.sqrt(2)), GELU(), 2.0, 1.0
        elif kind == "tanh":
            # p (1 + tanh p) = SiLU(2 p)
            line, function, times, rest = _scaled(inner, 2.0), SiLU(), 2.0, 1.0
        elif kind == "sigmoid":
            line, function, times = inner, SiLU(), 1.0
        elif kind == "tanh of softplus":
            line, function, times = inner, Mish(), 1.0
        else:
            return None
        scale = self._ratio(gated, line)
        if scale is None:
            return None
        if rest is None:
            fits = not plain
        else:
            other = self._ratio(plain, line)
            fits = other is not None and self._equal(other, scale * rest)
        return Fold(root, function, line[1], times * scale, line[0]) if fits else None

    def _of_cubic(
        self, root: int, kind: str, inner: Polynomial, plain: Polynomial, gated: Polynomial
    ) -> Fold | None:
        """GELU by tanh, of a multiple of z."""
        unit = math.sqrt(2 / math.pi) * {"tanh": 1.0, "sigmoid": 2.0}.get(kind, math.nan)
        factor = inner[1] / unit
        cubic = self._equal(inner[3], unit * _CUBIC * factor**3)
        if not cubic or inner[0] or inner[2]:
            return None
        scale = self._ratio(gated, (0.0, factor))
        if scale is None:
            return None
        if kind == "sigmoid":
            return None if plain else Fold(root, TanhGELU(), factor, scale)
        other = self._ratio(plain, (0.0, factor))
        if other is None or not self._equal(other, scale):
            return None
        return Fold(root, TanhGELU(), factor, 2 * scale)

    def _hard_swish(
        self,
        root: int,
        constants: tuple[float, ...],
        inner: Polynomial,
        plain: Polynomial,
        gated: Polynomial,
    ) -> Fold | None:
        """``q * (p cut to [0, width])`` with ``q = 6 p / width - 3``."""
        least, most = constants
        if least != 0 or not math.isfinite(most) or len(inner) != 2 or plain:
            return None
        line = (6 * inner[0] / most - 3, 6 * inner[1] / most)
        line = tuple(0.0 if abs(c) < 6 * self.tolerance else c for c in line)
        scale = self._ratio(gated, line)
        if scale is None:
            return None
        return Fold(root, Hardswish(), line[1], scale * most, line[0])

    def _equal(self, first: float, second: float) -> bool:
        return abs(first - second) <= self.tolerance * max(abs(first), abs(second))

    def _ratio(self, polynomial: Polynomial, line: Polynomial) -> float | None:
        """The number that times a line gives the polynomial, or None."""
        if len(polynomial) != len(line):
            return None
        ratio = polynomial[-1] / line[-1]
        size = max(map(abs, polynomial))
        pairs = zip(polynomial, line, strict=True)
        fits = all(abs(a - ratio * b) <= self.tolerance * size for a, b in pairs)
        return ratio if fits else None


def _gate(function: Activation) -> tuple[str, tuple[float, ...]] | None:
    """The name and constants of a function that may be a gate."""
    names = {Sigmoid: "sigmoid", Tanh: "tanh", Erf: "erf", Exponential: "exp"}
    if type(function) in names:
        return names[type(function)], ()
    if isinstance(function, Softplus) and function.beta == 1 and not function.mirrored:
        return "softplus", ()
    if isinstance(function, Hardtanh):
        return "clip", (function.least, function.most)
    if isinstance(function, PiecewiseLinear) and function == PiecewiseLinear():
        return "clip", (0.0, math.inf)
    return None


def _number(value: Tensor | None) -> float | None:
    """The number that all entries of a constant are, 0 for none; None if they differ."""
    if value is None:
        return 0.0
    first = value.flatten()[:1]
    if not len(first) or not bool((value == first).all()):
        return None
    return float(first)


def _sum(parts: list[tuple[float, Form]]) -> Form:
    total: Form = {}
    for factor, form in parts:
        for key, coefficient in form.items():
            total[key] = total.get(key, 0.0) + factor * coefficient
    return {key: coefficient for key, coefficient in total.items() if coefficient}


def _times(first: Form, second: Form) -> Form | None:
    total: Form = {}
    for (power, gate), coefficient in first.items():
        for (other_power, other), factor in second.items():
            if gate is not None and other is not None:
                return None
            key = power + other_power, other if gate is None else gate
            if key[0] > _HIGHEST:
                return None
            total[key] = total.get(key, 0.0) + coefficient * factor
    return {key: coefficient for key, coefficient in total.items() if coefficient}


def polynomial(form: Form) -> Polynomial | None:
    """The coefficients of a form without gates."""
    if any(gate is not None for _, gate in form):
        return None
    return _coefficients(form, None)


def _coefficients(form: Form, gate: Gate | None) -> Polynomial:
    powers = {power: value for (power, own), value in form.items() if own == gate}
    return tuple(powers.get(i, 0.0) for i in range(max(powers, default=-1) + 1))


def _scaled(line: Polynomial, factor: float) -> Polynomial:
    return tuple(factor * coefficient for coefficient in line)
