"""A primal-dual interior-point method for the programs, batched.

The program is  max <O, Y>  subject to  <E_i, Y> <= 1 (equal for the constant),  <C_k, Y> >= 0,
Y positive semidefinite. Its dual is

    min  sum_i d_i   subject to   Z = diag(d) - O - sum_k c_k C_k  positive semidefinite,
                                  d_i >= 0 except at the constant,  c_k >= 0.

The method is the HKM direction (Helmberg, Rendl, Vanderbei, Wolkowicz 1996; Monteiro 1997) with
Mehrotra's predictor and corrector. It starts from a strictly feasible dual point and never leaves
the dual cone, so it can be stopped after any step with multipliers whose bound is certified
(:mod:`lipschitz.sdp.certificate`); the primal iterate only steers. Each C_k is a product of two
affine forms and the first has one variable, so the Schur complement costs a few matrix products.

Shapes: B programs, N variables, K products, G <= N groups of variables that share a multiplier.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.sdp.constraints import Multipliers, Operator
from lipschitz.sdp.program import Program

_FRACTION_TO_BOUNDARY = 0.95
_BACKTRACKING = 0.8
_SMALLEST_STEP = 1e-3
_SHARE_OF_COLD = 0.3  # less of it saves fewer steps, or costs some (measured 0.03 to 0.3)
_FIRST_PRODUCT = 1.0  # first multipliers of products, times N: their sum is then near the optimum's


@dataclass(frozen=True)
class Start:
    """Where to begin instead of the cold start.

    Attributes:
        known: Programs that it has something for, [B].
        multipliers: With moments; negative where a variable or product is new.
    """

    known: Tensor
    multipliers: Multipliers


@dataclass(frozen=True)
class SolveOptions:
    """When to stop.

    Attributes:
        tolerance: Gap between dual and primal value, relative to ``scale``.
        iterations: At most so many.
        deadline: ``time.monotonic()`` to stop at.
        stop_below: A program whose dual value falls below this is done, [B]; None for none.
    """

    tolerance: float = 1e-4
    iterations: int = 40
    deadline: float | None = None
    stop_below: Tensor | None = None


def _step_length(matrix: Tensor, change: Tensor, start: Tensor) -> Tensor:
    """Largest tried step that keeps ``matrix + step change`` positive definite, [B].

    Args:
        matrix, change: [B, N, N].
        start: Step to begin with, [B].
    """
    step, accepted = start.nan_to_num(0.0), torch.zeros_like(start, dtype=torch.bool)
    while True:
        left = (~accepted).nonzero()[:, 0]
        trial = matrix[left] + step[left, None, None] * change[left]
        info = torch.linalg.cholesky_ex(trial)[1]
        accepted[left] = info == 0
        left = left[info != 0]
        step[left] *= _BACKTRACKING
        step[left[step[left] < _SMALLEST_STEP]] = 0
        accepted |= step == 0
        if bool(accepted.all()):
            return step


def _linear_step(value: Tensor, change: Tensor, where: Tensor) -> Tensor:
    """Largest step in [0, inf] that keeps ``value + step change`` at least 0, [B]."""
    falling = where & (change < 0)
    ratio = torch.where(falling, -value / torch.where(falling, change, -1.0), torch.inf)
    return ratio.amin(1) if ratio.shape[1] else value.new_full((len(value),), torch.inf)


def solve(
    program: Program,
    scale: Tensor,
    options: SolveOptions | None = None,
    watch: Callable[[Tensor], None] | None = None,
    start: Start | None = None,
) -> Multipliers:
    """Multipliers whose bound is close to the program's optimum.

    Args:
        program: B programs.
        scale: A positive number near each optimum, such as a linear bound, [B].
        options: When to stop.
        watch: Called once per iteration with the dual values so far, [B].
        start: Solutions of related programs.

    Returns:
        The multipliers reached, of the program as it is (not divided by ``scale``).
    """
    options = options or SolveOptions()
    solver = Solver(program, scale, start)
    running = torch.arange(len(program), device=scale.device)
    found_u, found_y = solver.multipliers.clone(), solver.primal.clone()
    values = solver.value.clone()
    for _ in range(options.iterations):
        if options.deadline is not None and time.monotonic() > options.deadline:
            break
        solver.step()
        better = solver.value <= values[running]
        now = running[better]
        found_u[now], found_y[now] = solver.multipliers[better], solver.primal[better]
        values[now] = solver.value[better]
        if watch is not None:
            watch(values * scale)
        done = (solver.gap <= options.tolerance) | solver.stuck
        if options.stop_below is not None:
            done |= solver.value * scale[running] < options.stop_below[running]
        if bool(done.any()):
            running = running[~done]
            if not len(running):
                break
            solver = solver.take(~done)
    groups = solver.operator.groups
    found_u = found_u * scale.unsqueeze(1)
    return Multipliers(found_u[:, :groups], found_u[:, groups:], found_y)


class Solver:
    """The iterates of B programs, whose objective is divided by a number near the optimum.

    Args:
        program: The programs.
        scale: That number, [B].
        start: Solutions of related programs.

    Attributes:
        gap: Between dual and primal value after the latest step, relative to ``scale``, [B].
        stuck: Whether rounding has ended the steps, [B].
    """

    def __init__(self, program: Program, scale: Tensor, start: Start | None = None) -> None:
        objective = program.objective / scale[:, None, None]
        self.operator = operator = Operator(program, objective)
        self.program, self.scale = program, scale
        product = _FIRST_PRODUCT / operator.size * operator.present.to(objective)
        base = -objective - operator.products(product)
        # Strict diagonal dominance makes the first Z positive definite.
        rest = base.abs().sum(2) - base.diagonal(dim1=1, dim2=2).abs()
        needed = (rest - base.diagonal(dim1=1, dim2=2)).clamp(min=0) + 0.1 / operator.size
        if program.ball:
            diagonal = needed.new_zeros(len(program), operator.groups)
            places = operator.group.expand_as(needed)
            diagonal = diagonal.scatter_reduce_(1, places, needed, "amax")
        else:
            diagonal = needed
        self.multipliers = torch.cat([diagonal, product], 1)
        self.right = torch.cat([torch.ones_like(diagonal), torch.zeros_like(product)], 1)
        self.active = torch.cat([torch.ones_like(diagonal, dtype=torch.bool), operator.present], 1)
        self.inequality = self.active.clone()
        self.inequality[:, 0] = False
        self.slack = self.inequality.to(objective)
        eye = torch.eye(operator.size, dtype=objective.dtype, device=objective.device)
        self.primal = eye.expand_as(objective).clone()
        self.stuck = torch.zeros(len(program), dtype=torch.bool, device=objective.device)
        self.gap = objective.new_full((len(program),), torch.inf)
        if start is not None:
            self._begin(start)

    def _begin(self, start: Start) -> None:
        """Mix the cold start with a solution, where the mixture is inside the dual cone."""
        given, cold, like = start.multipliers, self.multipliers, self.primal
        warm = torch.cat([given.diagonal, given.product], 1).to(like) / self.scale.unsqueeze(1)
        warm = torch.where((warm >= 0) & self.active, warm, cold)
        warm = torch.lerp(warm, cold, _SHARE_OF_COLD)
        primal = torch.lerp(given.moments.to(like), like, _SHARE_OF_COLD)
        groups = self.operator.groups
        room = torch.full_like(self.slack, _SHARE_OF_COLD)
        room[:, :groups] = (1 - self.operator.by_group(primal.diagonal(dim1=1, dim2=2))).clamp(
            min=_SHARE_OF_COLD
        )
        dual = self.operator.adjoint(warm) - self.operator.objective
        inside = torch.linalg.cholesky_ex(dual)[1] == 0
        inside &= torch.linalg.cholesky_ex(primal)[1] == 0
        use = (start.known & inside).unsqueeze(1)
        self.multipliers = torch.where(use, warm, cold)
        self.slack = torch.where(use & self.inequality, room, self.slack)
        self.primal = torch.where(use.unsqueeze(2), primal, like)

    @property
    def value(self) -> Tensor:
        """Dual value over ``scale``, [B]."""
        return (self.multipliers * self.right).sum(1)

    @property
    def point(self) -> Multipliers:
        """The iterate, for the programs as they are."""
        groups = self.operator.groups
        multipliers = self.multipliers * self.scale.unsqueeze(1)
        return Multipliers(multipliers[:, :groups], multipliers[:, groups:], self.primal)

    def take(self, which: Tensor) -> Solver:
        """The same with only some of the programs."""
        other = object.__new__(Solver)
        other.program, other.scale = self.program.take(which), self.scale[which]
        other.operator = Operator(other.program, self.operator.objective[which])
        for name in ("multipliers", "right", "active", "inequality", "slack", "primal"):
            setattr(other, name, getattr(self, name)[which])
        other.stuck, other.gap = self.stuck[which], self.gap[which]
        return other

    def step(self) -> None:
        """One predictor-corrector step of every program."""
        op, u, slack = self.operator, self.multipliers, self.slack
        dual = op.adjoint(u) - op.objective
        root, info = torch.linalg.cholesky_ex(dual)
        inverse = torch.cholesky_inverse(root)
        safe_u = torch.where(self.inequality, u, 1.0)
        count = self.inequality.sum(1) + op.size
        mu = self._complementarity(dual, u, slack) / count
        ratio = torch.where(self.inequality, slack / safe_u, 0.0)
        matrix = op.schur(self.primal, inverse)
        matrix = torch.where(
            self.active.unsqueeze(1) & self.active.unsqueeze(2), matrix, torch.zeros_like(matrix)
        )
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        regular = 500 * torch.finfo(mu.dtype).eps
        diagonal.add_(torch.where(self.active, ratio, 1.0) + regular * diagonal)
        factor, factor_info = torch.linalg.cholesky_ex(matrix)
        centre = op.forward(inverse) + torch.where(self.inequality, 1 / safe_u, 0.0)

        def direction(
            target: Tensor, second_order: tuple[Tensor, Tensor] | None
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            right = target.unsqueeze(1) * centre - self.right
            if second_order is not None:
                right = right - op.forward(second_order[0]) - second_order[1]
            du = torch.cholesky_solve((right * self.active).unsqueeze(2), factor).squeeze(2)
            du = du * self.active
            dz = op.adjoint(du)
            product = self.primal @ dz @ inverse
            dx = target[:, None, None] * inverse - self.primal - (product + product.mT) / 2
            ds = torch.where(
                self.inequality, target.unsqueeze(1) / safe_u - slack - ratio * du, 0.0
            )
            if second_order is not None:
                dx, ds = dx - second_order[0], ds - second_order[1]
            return du, dz, dx, ds

        def steps(
            du: Tensor, dz: Tensor, dx: Tensor, ds: Tensor, fraction: float
        ) -> tuple[Tensor, Tensor]:
            one = torch.ones_like(mu)
            primal = torch.minimum(one, fraction * _linear_step(slack, ds, self.inequality))
            multiplier = torch.minimum(one, fraction * _linear_step(u, du, self.inequality))
            return (
                _step_length(self.primal, dx, primal),
                _step_length(dual, dz, multiplier),
            )

        du, dz, dx, ds = direction(torch.zeros_like(mu), None)
        primal_step, dual_step = steps(du, dz, dx, ds, 1.0)
        ahead = self._complementarity(
            dual + dual_step[:, None, None] * dz,
            u + dual_step.unsqueeze(1) * du,
            slack + primal_step.unsqueeze(1) * ds,
            self.primal + primal_step[:, None, None] * dx,
        )
        centring = ((ahead / count / mu).clamp(min=0) ** 2).clamp(1e-4, 0.8)
        product = dx @ dz @ inverse
        second_order = (
            (product + product.mT) / 2,
            torch.where(self.inequality, du * ds / safe_u, 0.0),
        )
        du, dz, dx, ds = direction(centring * mu, second_order)
        primal_step, dual_step = steps(du, dz, dx, ds, _FRACTION_TO_BOUNDARY)
        failed = (info != 0) | (factor_info != 0) | ~torch.isfinite(du).all(1)
        failed |= ~torch.isfinite(dx).flatten(1).all(1)
        primal_step = torch.where(failed, 0.0, _FRACTION_TO_BOUNDARY * primal_step)
        dual_step = torch.where(failed, 0.0, _FRACTION_TO_BOUNDARY * dual_step)
        clean = (~failed)[:, None, None]
        self.primal = self.primal + primal_step[:, None, None] * torch.where(clean, dx, 0.0)
        self.slack = slack + primal_step.unsqueeze(1) * torch.where(clean[:, 0], ds, 0.0)
        self.multipliers = u + dual_step.unsqueeze(1) * torch.where(clean[:, 0], du, 0.0)
        self.gap = self._complementarity(
            op.adjoint(self.multipliers) - op.objective, self.multipliers, self.slack
        )
        self.stuck = failed | ((primal_step == 0) & (dual_step == 0))

    def _complementarity(
        self, dual: Tensor, u: Tensor, slack: Tensor, primal: Tensor | None = None
    ) -> Tensor:
        """``<Y, Z> + sum of multiplier times slack``: the gap, if the primal is feasible, [B]."""
        primal = self.primal if primal is None else primal
        return (primal * dual).sum((1, 2)) + (u * slack * self.inequality).sum(1)
