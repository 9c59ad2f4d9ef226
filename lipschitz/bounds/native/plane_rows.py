"""Entries of the Jacobian and other linear functionals of it, by planes, as far as time allows.

``w . J(x)^T r`` has a row of its own in the pass of :mod:`lipschitz.bounds.native.joint`, whose
start is w at the gradient. An entry takes two rows, one for either end. With many inputs that is
many rows, so what is done with each depends on the work counted beforehand: weights and slopes
optimised by some steps, or two passes (:mod:`lipschitz.bounds.native.terms.corners`), or a single
one, or nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.joint import JointBound
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import unit_rows
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.native.terms.gradient import has_curves
from lipschitz.bounds.native.terms.linear import ONE_PASS, STAGE, PlaneSearch
from lipschitz.network.affine import AffineMap, Linear
from lipschitz.network.derivative import Adjoint, Terms
from lipschitz.problem import LocalProblem
from lipschitz.rounding import rounded_up

# Work is counted in multiplications of one pass; 10^10 of them took about 4 seconds on one core,
# for networks of 300 to 16,000 neurons. These limits are choices: with them planes take about as
# long as the rest on convolutional networks on images.
_LARGEST_WORK = 10**11
_LARGEST_WORK_OF_STEPS = 3 * 10**10
# Without optimised slopes the rest takes a second or two on such networks.
_LARGEST_QUICK_WORK = 10**10
# What a step of the optimisation and a second pass cost, in passes; measured on three networks.
_PASSES_OF_A_STEP = 3
_PASSES_OF_TWO = 2.5
# Measured on sigmoid networks of 200 neurons: more steps, and steps for the cotangents' intervals
# too, narrow entries by up to a tenth for twice the seconds.
_SEARCH = PlaneSearch(steps=40, patience=10, cotangent_steps=15)
# Fewer steps than that gain less than the second pass does.
_FEWEST_STEPS = 5
# Multiplications that a number costs which is no sum: lines, planes, memory. Measured roughly.
_WORK_OF_A_NUMBER = 10
# Inputs whose entries are asked for at once, so that their rows take little memory. A choice.
_INPUTS_AT_ONCE = 256


class ProblemPlanes:
    """Bounds linear functionals of the Jacobian of one problem.

    Args:
        problem: What to bound; its network has curved activations or products (:meth:`of` asks).
        root: Its bounds by chords, of which planes use the pre-activations and cotangents.
        optimize: Optimise weights and slopes where that is affordable.
        memory_budget: Bytes for the rows of one chunk; a part of what is free if None.
        clock: When to stop.
    """

    @torch.no_grad()
    def __init__(
        self,
        problem: LocalProblem,
        root: RootBounds,
        *,
        optimize: bool = True,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> None:
        self.problem, self.optimize = problem, optimize
        lower, upper = problem.lower[None], problem.upper[None]
        self._search = _SEARCH if optimize else ONE_PASS
        self._dtype = torch.float64 if root.joint else problem.rows.dtype
        self.joint = root.joint or JointBound(
            problem.graph,
            problem.rows,
            lower,
            upper,
            root.preacts,
            root.norm.cotangents,
            self._search,
            memory_budget or default_memory_budget(problem.graph.device),
            clock=clock,
        )
        self._work = work_of_a_pass(self.joint.terms)

    @staticmethod
    def of(
        problem: LocalProblem,
        root: RootBounds,
        *,
        optimize: bool = True,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> ProblemPlanes | None:
        """The planes of a problem; None where they say nothing more or no time is left.

        Args:
            problem, root, optimize, memory_budget, clock: As above.
        """
        if root.joint is None and not has_curves(problem.graph):
            return None
        if clock.is_over:
            clock.miss(STAGE)
            return None
        options = {"memory_budget": memory_budget, "clock": clock}
        return ProblemPlanes(problem, root, optimize=optimize, **options)

    @torch.no_grad()
    def upper_bounds(self, coefficients: Tensor, rows: int | None = None) -> Tensor:
        """Upper bounds of ``coefficients . J(x)^T row``, margin for rounding included.

        Args:
            coefficients: [R, K, *input_shape].
            rows: How many are asked for in all, if these are a part of them.

        Returns:
            [R, K]; infinity where the work would be too much or the time did not suffice.
        """
        total = rows or coefficients.shape[0] * coefficients.shape[1]
        work = total * self._work
        steps = min(self._search.steps, int(_LARGEST_WORK_OF_STEPS // (_PASSES_OF_A_STEP * work)))
        if steps >= _FEWEST_STEPS:
            return self._bounds(coefficients, replace(self._search, steps=steps))
        largest = _LARGEST_WORK if self.optimize else _LARGEST_QUICK_WORK
        if work > largest:
            return torch.full_like(coefficients.flatten(2)[..., 0], torch.inf)
        twice = PlaneSearch(steps=0, corners=work * _PASSES_OF_TWO <= largest)
        return self._bounds(coefficients, twice)

    def _bounds(self, coefficients: Tensor, search: PlaneSearch) -> Tensor:
        """The same in the precision of the planes, rounded upward."""
        found = self.joint.upper_bounds(coefficients.to(self._dtype), search)
        return rounded_up(found, coefficients.dtype)

    def entries(self) -> Interval:
        """Interval of every entry, [R, *input_shape]."""
        like = self.problem.centre
        shape = (len(self.problem.rows), like.numel())
        lower, upper = (like.new_full(shape, end) for end in (-torch.inf, torch.inf))
        for inputs in torch.arange(shape[1], device=like.device).split(_INPUTS_AT_ONCE):
            rows = unit_rows(inputs, like.shape, like).expand(shape[0], -1, *like.shape)
            above, below = self.upper_bounds(rows, rows=2 * lower.numel()).chunk(2, dim=1)
            lower[:, inputs], upper[:, inputs] = -below, above
        return Interval(*(end.reshape(shape[0], *like.shape) for end in (lower, upper)))

    def along(self, vectors: Tensor) -> Interval:
        """Interval of ``(J(x)^T row) . v`` for every row and vector [V, *input_shape]: [R, V]."""
        both = torch.cat([vectors, -vectors]).expand(len(self.problem.rows), -1, *vectors.shape[1:])
        above, below = self.upper_bounds(both).chunk(2, dim=1)
        return Interval(-below, above)


def work_of_a_pass(terms: Terms) -> int:
    """Multiplications of one row that goes backward through all terms, counted."""
    work = 0
    for term in terms.terms[1:]:
        work += _WORK_OF_A_NUMBER * term.shape.numel()
        if term.affine is not None:
            work += _multiplications(term.affine)
    return work


def _multiplications(affine: AffineMap) -> int:
    if isinstance(affine, Adjoint):
        return _multiplications(affine.affine)
    weight = getattr(affine, "weight", None)
    if weight is None:
        return 0
    if isinstance(affine, Linear):
        return weight.numel() * affine.output_shape.numel() // weight.shape[0]
    # Every number of a convolution's output is a sum over one of the kernel's slices.
    return weight.numel() * affine.output_shape.numel() // max(1, affine.output_shape[0])
