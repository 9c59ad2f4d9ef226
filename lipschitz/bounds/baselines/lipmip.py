"""LipMIP: the local Lipschitz constant as a mixed-integer linear program.

Method card
    Needs: ReLU or LeakyReLU, a small network: at most 400 neurons unstable on the box.
    Returns: upper bounds per row (the solver's dual bound), a lower bound with a witness, and
        ``exact`` where they meet; at the time limit or Ctrl-C the bounds reached by then.
    Idea: one binary per unstable neuron says which slope it has. Its value, and the product of its
        slope with the cotangent that arrives there, are linear in that binary given bounds of both
        ("big M"), and so is the magnitude of a Jacobian entry with a binary for its sign. Bounds
        come from this package's optimised linear bounds, and so does the first upper bound.
    Sound: yes, up to the solver's tolerances. Exact: yes, for networks in general position (a
        product of slopes at kinks may exceed every gradient).
    Reference: Jordan and Dimakis, NeurIPS 2020, section 5 and appendix D; written from the paper.

Trusted and not trusted: HiGHS works in floating point with feasibility tolerance 1e-6 (variables
and constraints are scaled to 1 for that). Its dual bound is raised by ``_MARGIN``, a margin and
not a proof. Its solutions are only proposals: a witness counts by the true gradient there. Any
status but "optimal" and "time limit" leaves the bound in hand.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipschitz.bounds.baselines.expressions import (
    Expression,
    backward_expression,
    forward_expressions,
    input_expression,
)
from lipschitz.bounds.baselines.mixed_integer import (
    Program,
    gated_product,
    scale_of,
    sum_of_magnitudes,
    widened,
)
from lipschitz.bounds.baselines.needs import require_relu
from lipschitz.bounds.clock import Clock
from lipschitz.bounds.feasibility.by_program import check_leaf
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.root import RootBounds
from lipschitz.bounds.outcome import Outcome, better, nothing_found
from lipschitz.bounds.true_gradients import (
    GradientNorms,
    Sampling,
    gradients_at,
    sample_gradients,
)
from lipschitz.errors import InputError
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound
from lipschitz.words import BOUND, INTERRUPTED, TIMEOUT

# Unstable neurons beyond which the method is refused. A choice: in docs/measured.md (widths 32 to
# 128, eps 0.2, six seconds) the solver no longer improves on the linear bounds.
LARGEST = 400
# Relative margin on upper bounds, for the solver's tolerances: not a proof.
_MARGIN = 1e-6
# Most of the time left that the first lower bound may take. A choice.
_SHARE_OF_SAMPLING = 0.2


class _Forward:
    """The part of the program that all rows share: values and binaries of the neurons."""

    def __init__(self, problem: LocalProblem, root: RootBounds) -> None:
        self.graph, self.root = problem.graph, root
        self.program = Program()
        self.binary: dict[int, Expression] = {}
        self.open: dict[int, Tensor] = {
            index: unstable_slopes(problem, root, index) for index in root.preacts
        }
        centre, radius = (problem.lower + problem.upper) / 2, (problem.upper - problem.lower) / 2
        one = torch.ones_like(centre).flatten()
        self.program.variables(-one, one, one, False)
        start = input_expression(centre, radius)
        forward_expressions(problem.graph, start, self._activate)

    def stable_slope(self, index: int) -> Tensor:
        """Slope of the stable neurons of an activation node, flat [N]."""
        activation = self.graph.nodes[index].activation
        return activation.slope_interval(*self.root.preacts[index])[0].flatten()

    def _activate(self, index: int, preact: Expression) -> Expression:
        value = preact * self.stable_slope(index)
        chosen = self.open[index]
        if not len(chosen):
            return value
        small = self.graph.nodes[index].activation.negative_slope
        lower, upper = (e[chosen] for e in widened(*self.root.preacts[index]))
        scale = scale_of(lower, upper)
        z = preact.take(chosen)
        s = self.program.binaries(lower)
        positive = self.program.variables(
            torch.zeros_like(upper), (upper / scale).clamp(min=0), scale, False
        )
        # positive = max(z, 0), and s = 1 where z > 0, s = 0 where z < 0.
        self.program.not_positive((z - positive) * (1 / scale))
        self.program.not_positive((positive - s * upper) * (1 / scale))
        self.program.not_positive((positive - z + (s * -1).plus(1.0) * lower) * (1 / scale))
        self.binary[index] = s
        return value.put(chosen, z * small + positive * (1 - small))

    def objective_of(self, program: Program, row: int, rows: Tensor) -> Expression:
        """``||J(x)^T r||_1`` for one row, with its products and signs added to the program."""

        def multiply(index: int, cotangent: Expression) -> Expression:
            product = cotangent * self.stable_slope(index)
            chosen = self.open[index]
            if not len(chosen):
                return product
            small = self.graph.nodes[index].activation.negative_slope
            bounds = self.root.norm.cotangents[index]
            lower, upper = (e[chosen] for e in widened(bounds.lower[row], bounds.upper[row]))
            g, s = cotangent.take(chosen), self.binary[index]
            constant = ~(g.coefficients != 0).any(0)
            if bool(constant.all()):
                gated = s * g.constant
            else:
                gated = gated_product(program, g, s, lower, upper)
            return product.put(chosen, g * small + gated * (1 - small))

        entries = backward_expression(self.graph, rows[row : row + 1], multiply)
        bounds = self.root.norm.entries
        lower, upper = widened(bounds.lower[row], bounds.upper[row])
        return sum_of_magnitudes(program, entries, lower, upper)


def unstable_slopes(problem: LocalProblem, root: RootBounds, index: int) -> Tensor:
    """Flat indices of an activation node's neurons whose slope is not certain, [K]."""
    activation = problem.graph.nodes[index].activation
    lower, upper = activation.slope_interval(*root.preacts[index])
    return (lower != upper).flatten().nonzero()[:, 0]


@torch.no_grad()
def lipmip_bounds(problem: LocalProblem, *, timeout: float = 60.0, seed: int = 0) -> Outcome:
    """Bounds of ``max ||J(x)^T r||_1`` over the box by mixed-integer programming, per row.

    Rows that cannot be the largest, by their linear bound, are left at that bound. Ctrl-C, once the
    linear bounds are known, ends the search like the time limit; the row under way keeps its own.

    Args:
        problem: What to bound.
        timeout: Seconds for all rows together.
        seed: Seed of the points sampled for the first lower bound.

    Returns:
        Upper bounds [R], true gradients with witnesses, ``bound``, ``timeout`` or
        ``interrupted``.

    Raises:
        InputError: Another activation than ReLU, or too many neurons unstable on the box.
    """
    require_relu(problem.graph, "lipmip")
    clock = Clock.of(timeout)
    exact = _in_float64(problem)
    root = native_alpha(exact, clock=clock.part(0.5))
    count = sum(len(unstable_slopes(exact, root, i)) for i in root.preacts)
    if count > LARGEST and not clock.missed:  # else more time might have settled some of them
        raise InputError(
            f"lipmip: {count} neurons are unstable on this box, its mixed-integer program is "
            f"meant for at most {LARGEST}: use crown, alpha or --bab, or a smaller eps"
        )
    root_bounds = root.class_upper_bounds
    upper, found = root_bounds.clone(), nothing_found(problem)
    status, solved = BOUND, 0
    queue = upper.argsort(descending=True).tolist()
    try:
        sampling = clock.part(_SHARE_OF_SAMPLING)
        found = sample_gradients(problem, Sampling(seed=seed), clock=sampling)
        forward = None
        for position, row in enumerate(queue):
            left = [r for r in queue[position:] if upper[r] > found.norms.max()]
            if not left:
                break
            if clock.is_over or count > LARGEST:
                clock.miss(f"mixed-integer programs of {len(left)} output{'s' * (len(left) > 1)}")
                break
            forward = forward or _Forward(exact, root)
            program = Program(forward.program)
            objective = forward.objective_of(program, row, exact.rows)
            solution = program.maximise(objective, clock.left / len(left))
            solved += 1
            upper[row] = min(float(upper[row]), solution.upper_bound * (1 + _MARGIN))
            if solution.at_limit:
                clock.miss("the optimum of mixed-integer programs")
            if solution.values is not None:
                found = better(found, _witnesses(problem, forward, solution.values))
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == BOUND and clock.missed:
        status = TIMEOUT
    upper, before = (raise_upper_bound(u.to(problem.rows)) for u in (upper, root_bounds))
    return Outcome(upper, found, before, status, domains=solved, not_reached=clock.not_reached)


def _in_float64(problem: LocalProblem) -> LocalProblem:
    """The problem on the CPU in float64, where the solver works."""
    names = ("centre", "lower", "upper", "rows")
    moved = {name: getattr(problem, name).double().cpu() for name in names}
    return replace(problem, graph=problem.graph.to("cpu", torch.float64), **moved)


def _witnesses(problem: LocalProblem, forward: _Forward, values: Tensor) -> GradientNorms:
    """True gradients at a solution, and well inside the activation region it proposes.

    A solution lies on a boundary of its region as often as not.
    """
    size = problem.lower.numel()
    slopes = {i: forward.stable_slope(i) for i in forward.root.preacts}
    constraints = []
    for index, binary in forward.binary.items():
        is_on = (binary.padded(len(values)).T @ values) > 0.5
        small = forward.graph.nodes[index].activation.negative_slope
        slope = torch.where(is_on, 1.0, small).to(slopes[index])
        slopes[index] = slopes[index].index_copy(0, forward.open[index], slope)

    def activate(index: int, preact: Expression) -> Expression:
        chosen = preact.take(forward.open[index])
        sign = torch.where(slopes[index][forward.open[index]] == 1, 1.0, -1.0)
        constraints.append(chosen * sign)
        return preact * slopes[index]

    centre, radius = (problem.lower + problem.upper) / 2, (problem.upper - problem.lower) / 2
    start = input_expression(centre.double().cpu(), radius.double().cpu())
    forward_expressions(forward.graph, start, activate)
    proposals = [values[:size].clamp(-1, 1)]
    matrix = torch.cat([c.padded(size).T for c in constraints]) if constraints else values[None, :0]
    if matrix.numel():
        constant = torch.cat([c.constant[0] for c in constraints])
        length = matrix.abs().sum(1) + constant.abs()
        length = torch.where(length > 0, length, torch.ones_like(length))
        inside = check_leaf(matrix / length[:, None], constant / length).point
        proposals += [] if inside is None else [inside]
    units = torch.stack(proposals).reshape(-1, *problem.centre.shape).to(problem.lower)
    return gradients_at(problem, (centre + radius * units).clamp(problem.lower, problem.upper))
