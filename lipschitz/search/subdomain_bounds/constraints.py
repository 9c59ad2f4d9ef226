"""The splits of subdomains as linear constraints on the input.

``z >= 0`` on a subdomain implies that every linear upper bound of z is at least 0, so each decided
neuron gives one row ``M x + c >= 0``. Where z is affine in the input the row is z itself. Rows are
relaxed by the rounding margin of their pre-activation and scaled to norm 1, and the box is moved
to ``[-1, 1]^D``. Where neurons are split at other points than 0, each gives two rows, for
``z >= l`` and ``z <= u``, if the subdomain's interval is narrower there than the whole box's.

Shapes: B subdomains, K constraints, D inputs.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lipschitz.bounds.native.forward.value_pass import value_upper_line
from lipschitz.bounds.native.interval import ForwardIntervals, Interval
from lipschitz.bounds.native.lines import activation_lines
from lipschitz.bounds.native.plan import Exactness, Plan, unit_rows
from lipschitz.search.splits import LARGEST_TABLE
from lipschitz.search.subdomains import NeuronLayout, Subdomains


class SplitConstraints:
    """Builds the constraints of the subdomains of one box.

    Args:
        plan: The graph.
        layout: Where the neurons are.
        lower, upper: The box, [1, *input_shape].
        root: Interval bounds over it.
        unstable: Neurons that the whole box leaves open, [N]; the others constrain nothing.
        whole: Pre-activation intervals over the whole box, two tensors [1, N]; None if all splits
            are at 0.
    """

    def __init__(
        self,
        plan: Plan,
        layout: NeuronLayout,
        lower: Tensor,
        upper: Tensor,
        root: ForwardIntervals,
        unstable: Tensor,
        whole: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.plan, self.layout = plan, layout
        self.centre, self.radius = (lower + upper).flatten() / 2, (upper - lower).flatten() / 2
        self.rounding = {i: root.rounding[plan.preact_node(i)].flatten() for i in layout.slices}
        self.unstable, self.whole = unstable, whole
        self.affine = {
            i
            for i in layout.slices
            if plan.value_exactness[plan.preact_node(i)] is not Exactness.LOOSE
        }

    @cached_property
    def _affine_rows(self) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Rows of the neurons that are affine in the input, the same for every subdomain."""
        return {i: self._constant_rows(i) for i in self.affine}

    def has_small_first_layer(self) -> bool:
        """Whether a table of all pairs of :meth:`first_layer` is worth its time and memory."""
        count = sum(int(self.unstable[self.layout.slices[i]].sum()) for i in self.affine)
        return count * count * len(self.centre) <= LARGEST_TABLE

    def _constant_rows(self, activation: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, coefficients [K, D] and constants [K] of the open neurons of a layer."""
        indices = self.unstable[self.layout.slices[activation]].nonzero()[:, 0]
        node = self.plan.preact_node(activation)
        if not len(indices):
            return indices, self.centre.new_zeros(0, len(self.centre)), self.centre.new_zeros(0)
        rows = unit_rows(indices, self.plan.graph.nodes[node].shape, self.centre)
        rows = rows[:, : len(indices)]
        at_input, constant = value_upper_line(self.plan, node, rows, {})
        at_input = at_input.flatten(2)[0]
        return indices, at_input * self.radius, constant[0] + at_input @ self.centre

    def first_layer(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Open neurons that are affine in the input.

        Returns:
            Their columns in [B, N] tensors, coefficients, values at the centre, and how far
            rounding may have moved these.
        """
        columns = [self._affine_rows[i][0] + self.layout.slices[i].start for i in self.affine]
        if not columns:
            none = torch.zeros(0, dtype=torch.long, device=self.centre.device)
            empty = self.centre.new_zeros(0)
            return none, self.centre.new_zeros(0, len(self.centre)), empty, empty
        return (
            torch.cat(columns),
            torch.cat([self._affine_rows[i][1] for i in self.affine]),
            torch.cat([self._affine_rows[i][2] for i in self.affine]),
            torch.cat([self.rounding[i][self._affine_rows[i][0]] for i in self.affine]),
        )

    def size(self) -> int:
        """Numbers in the constraints of one subdomain, at most."""
        return int(self.unstable.sum()) * len(self.centre) * (1 if self.whole is None else 2)

    def __call__(self, subdomains: Subdomains) -> tuple[Tensor, Tensor]:
        """Constraints ``M x + c >= 0`` over [-1, 1]^D: M [B, K, D] and c [B, K].

        Neurons that a subdomain leaves open have rows of zeros.
        """
        batch = len(subdomains)
        matrices, constants = [], []
        lines = {}
        for activation, part in self.layout.slices.items():
            lower, upper = subdomains.preact_lower[:, part], subdomains.preact_upper[:, part]
            for sign, offset in self._sides(part, lower, upper):
                if activation in self.affine:
                    indices, matrix, constant = self._affine_rows[activation]
                    sign = sign[:, indices]
                    matrix, constant = sign.unsqueeze(2) * matrix, sign * constant
                else:
                    indices = (sign != 0).any(0).nonzero()[:, 0]
                    sign = sign[:, indices]
                    matrix, constant = self._deep_rows(activation, indices, sign, lines)
                constant = constant + (sign != 0) * self.rounding[activation][indices]
                if offset is not None:
                    constant = constant + (sign * offset[:, indices])
                norm = matrix.norm(dim=2).clamp(min=torch.finfo(matrix.dtype).tiny)
                scale = torch.where(
                    norm > 1e-12 * (1 + constant.abs()), 1 / norm, torch.ones_like(norm)
                )
                matrices.append(matrix * scale.unsqueeze(2))
                constants.append(constant * scale)
            shape = (batch, *self.layout.shapes[activation])
            lines[activation] = activation_lines(
                self.plan.graph.nodes[activation].activation,
                Interval(lower.reshape(shape), upper.reshape(shape)),
                rounding=self.rounding[activation].reshape(1, *shape[1:]),
            )
        return torch.cat(matrices, dim=1), torch.cat(constants, dim=1)

    def _sides(
        self, part: slice, lower: Tensor, upper: Tensor
    ) -> list[tuple[Tensor, Tensor | None]]:
        """The constraints ``sign * (z + offset) >= 0`` of a layer, sign 0 for none, all [B, n]."""
        unstable = self.unstable[part]
        if self.whole is None:
            sign = (lower >= 0).to(lower) - ((upper <= 0) & (lower < 0)).to(lower)
            return [(sign * unstable, None)]
        least, most = (end[:, part] for end in self.whole)
        above, below = (lower > least).to(lower), (upper < most).to(lower)
        return [(above * unstable, -lower), (-below * unstable, -upper)]

    def _deep_rows(
        self, activation: int, indices: Tensor, sign: Tensor, lines: dict
    ) -> tuple[Tensor, Tensor]:
        node, batch, inputs = self.plan.preact_node(activation), len(sign), len(self.centre)
        if not len(indices):
            return sign.new_zeros(batch, 0, inputs), sign.new_zeros(batch, 0)
        rows = unit_rows(indices, self.plan.graph.nodes[node].shape, sign)[:, : len(indices)]
        rows = rows * sign.reshape(batch, len(indices), *[1] * (rows.dim() - 2))
        at_input, constant = value_upper_line(self.plan, node, rows, lines)
        at_input = at_input.flatten(2).expand(batch, -1, -1)
        return at_input * self.radius, constant + at_input @ self.centre
