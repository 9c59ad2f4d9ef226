"""Certified robust radii from local Lipschitz constants of margins.

If the margin ``m_c = f_y - f_c`` is positive at x and no gradient of it has a dual norm above
``L_c(eps)`` within ``eps`` of x, then no input nearer than ``m_c / L_c(eps)``, nor than eps, is
classified as c (Hein and Andriushchenko 2017; Weng et al. 2018). So every eps certifies

    radius(eps) = min(eps, min over c of m_c / L_c(eps)),

whose first part grows with eps and whose second falls; bisection looks for where they meet. Every
radius it passes is certified by itself, by a bound over a box at least as large, so the answer is
sound whatever the order of the bounds.

``L_c(eps)`` is bounded over the *box* of radius eps, for L1 and L2 balls too, which the box
contains. Margins are scaled to 1, so that one maximum over classes is all that is asked for and
branch and bound works on the class that limits the radius. The margin at x is a lower bound that
allows for rounding (:func:`margins_at`); the box is rounded outward.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lipschitz.arguments import Ends, Numbers, check_dtype, fitted_clip, point_of
from lipschitz.bounds.native.interval import forward_intervals
from lipschitz.bounds.options import MethodOptions
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.checks import check_number, shown, whole_number
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.network.input_shape import input_shape_of
from lipschitz.prepared import Prepared
from lipschitz.problem import LocalProblem, make_problem
from lipschitz.result import plain_fields
from lipschitz.rounding import guard
from lipschitz.search.options import BranchOptions
from lipschitz.words import INTERRUPTED, norm_name

# Radii are lowered by this share, which covers the rounding of a division and a comparison.
_MARGIN = 4 * guard(torch.float64)


@dataclass(frozen=True)
class CertifiedRadius:
    """Outcome for one example.

    Attributes:
        radius: No input within this distance of the example (in the norm's sense, inside ``clip``)
            is given another class than ``label``; 0 if the example itself is.
        margin: Smallest ``f_label - f_c`` at the example, at least; negative if misclassified.
        nearest: The class c that limits the radius, or that wins at the example.
        label: The class that is certified.
        evaluations: Boxes whose constant was bounded.
        norm: Norm of the ball.
        method, engine: What bounded the constants.
        seconds: Wall-clock time.
    """

    radius: float
    margin: float
    nearest: int
    label: int
    evaluations: int
    norm: str
    method: str
    engine: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same as values that JSON can hold."""
        return plain_fields(self)


@dataclass(frozen=True)
class CertifyOptions:
    """How hard to look for the radius.

    Attributes:
        precision: Relative width of the bracket at which bisection stops.
        most: Largest number of boxes.
        largest: Radii beyond it are of no interest, in the units of the input.

    Raises:
        InputError: Numbers that make no sense.
    """

    precision: float = 1e-2
    most: int = 16
    largest: float = 1e3

    def __post_init__(self) -> None:
        check_number("precision", self.precision, zero=True)
        whole_number("most", self.most, least=1)
        check_number("largest", self.largest)


def margins_at(problem: LocalProblem) -> Tensor:
    """What each row of a problem is at least worth at its centre, ``rows . f(x)``, [R] in float64.

    By interval arithmetic in float64, less the rounding guard of the problem's own precision for
    the terms that the outputs are summed from.

    Raises:
        InputError: The outputs are not finite.
    """
    graph, centre, rows = problem.graph, problem.centre[None], problem.rows.double()
    lower, upper = forward_intervals(graph.double, centre.double(), centre.double()).bounds[-1]
    margins = (rows.clamp(min=0) * lower + rows.clamp(max=0) * upper).sum(1)
    if not bool(torch.isfinite(margins).all()):
        raise InputError("the outputs at the example are not finite numbers: check the input")
    last = len(graph.nodes) - 1
    if graph.nodes[last].affine is None:  # an activation: the guard of its input is taken
        last = graph.nodes[last].parents[0]
    rounding = forward_intervals(graph, centre, centre).rounding[last]
    return margins - (rows.abs() * rounding.double()).sum(1)


def _scaled(problem: LocalProblem, margins: Tensor) -> LocalProblem:
    """The problem with every row divided by its margin, never by more."""
    factor = (1 / margins).to(problem.rows) * (1 + guard(problem.rows.dtype))
    return replace(problem, rows=problem.rows * factor[:, None])


def _around(problem: LocalProblem, eps: float, clip: tuple[Tensor, Tensor] | None) -> LocalProblem:
    """The problem on the box of radius eps, rounded outward, cut to ``clip``."""
    centre = problem.centre
    infinity = torch.full_like(centre, torch.inf)
    lower = torch.nextafter((centre.double() - eps).to(centre), -infinity)
    upper = torch.nextafter((centre.double() + eps).to(centre), infinity)
    if clip is not None:
        lower, upper = torch.maximum(lower, clip[0]), torch.minimum(upper, clip[1])
    return replace(problem, lower=lower, upper=upper)


def certify_example(
    prepared: Prepared,
    x: Numbers,
    label: int,
    *,
    norm: str | float = "inf",
    classes: int | Sequence[int] | None = None,
    clip: Ends | None = None,
    options: CertifyOptions | None = None,
    seed: int = 0,
) -> CertifiedRadius:
    """Certified radius of one example, on a network made ready before.

    Args:
        prepared: The network, its method and engine.
        x: The example, [*input_shape].
        label: The class it should have.
        norm: ``inf``, ``1`` or ``2``: the ball that is certified.
        classes: Other classes to certify against, or one of them; all if None.
        clip: Smallest and largest value of an input; inputs outside are of no interest.
        options: How hard to look.
        seed: Of the points that a search samples.

    Raises:
        InputError: Anything wrong with the example or the label, or a norm the method has not.
    """
    begin = time.perf_counter()
    options, norm = options or CertifyOptions(), norm_name(norm)
    if not isinstance(options, CertifyOptions):
        raise InputError(f"options {shown(options)}: expected CertifyOptions(...)")
    if prepared.method == "sampling":
        raise InputError("a radius needs upper bounds, and method sampling has none: use another")
    label = whole_number("label", label)
    problem = make_problem(
        prepared.graph,
        point_of("x", x),
        0.0,
        clip=clip,
        classes=classes,
        margin_of=label,
        norm=norm,
    )
    names = [int(name.split("-")[1]) for name in problem.row_names]
    margins = margins_at(problem)
    worst = int(margins.argmin())
    evaluations, radius, nearest = 0, 0.0, names[worst]
    if margins[worst] > 0:
        ends = fitted_clip(clip, problem.centre)
        problem = _scaled(problem, margins)
        slopes = problem.graph.gradients(
            problem.centre.expand(len(names), *problem.centre.shape), problem.rows
        )
        steepest = float(problem.measure.of_rows(slopes.flatten(1)).max())
        # The gradient at x is one of those in every box: no radius can be larger than this.
        outside = min(options.largest, 1.001 / steepest if steepest > 0 else options.largest)
        eps = outside
        while evaluations < options.most and outside > radius * (1 + options.precision):
            bounds = _bounds(prepared, _around(problem, eps, ends), seed)
            evaluations += 1
            steepest, row = (float(v) for v in bounds.max(dim=0))
            reached = 1 / steepest if steepest > 0 else float("inf")
            if min(eps, reached) * (1 - _MARGIN) > radius:
                radius = min(eps, reached) * (1 - _MARGIN)
            if reached <= eps:
                outside, nearest = eps, names[int(row)]
            elif eps == outside:
                break  # certified up to the largest radius asked for
            # Next, the geometric mean of the certified radius and the least one that failed.
            eps = (radius * outside) ** 0.5 if radius > 0 else outside / 2
    return CertifiedRadius(
        radius,
        float(margins[worst]),
        nearest,
        label,
        evaluations,
        norm,
        prepared.method,
        prepared.engine,
        time.perf_counter() - begin,
    )


def _bounds(prepared: Prepared, problem: LocalProblem, seed: int) -> Tensor:
    """Upper bounds of the rows' constants, [R]."""
    if prepared.branching is None:
        return prepared.upper_bounds(problem).double()
    result = prepared.bound(problem, sampling=Sampling(seed=seed))
    if result.status == INTERRUPTED:
        raise KeyboardInterrupt
    return torch.tensor(result.class_upper_bounds, dtype=torch.float64)


def certified_radius(
    model: nn.Module | Graph,
    x: Numbers,
    label: int,
    *,
    norm: str | float = "inf",
    method: str = "alpha",
    engine: str | None = None,
    branching: BranchOptions | None = None,
    classes: int | Sequence[int] | None = None,
    clip: Ends | None = None,
    dtype: torch.dtype | None = None,
    options: CertifyOptions | None = None,
    seed: int = 0,
) -> CertifiedRadius:
    """Certified robust radius of one example.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipschitz import certified_radius
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> found = certified_radius(model, torch.tensor([1.0, 0.0]), label=0)
        >>> round(found.radius, 4), round(found.margin, 4)  # the margin is x_0 - x_1
        (0.5, 1.0)

    Args:
        model: A network in eval mode mapping [B, *input_shape] to [B, C], or its graph.
        x: The example, [*input_shape] or [1, *input_shape], a tensor, an array or a list; a batch
            is refused.
        label: The class it should have.
        norm: ``inf``, ``1`` or ``2``: the ball that is certified.
        method, engine: What bounds the constants, as in :func:`lipschitz.local_lipschitz`.
        branching: Bound them by branch and bound, with these options per box.
        classes: Other classes to certify against, or one of them; all if None.
        clip: Smallest and largest value of an input; inputs outside are of no interest.
        dtype: Precision to compute in; the model's own if None.
        options: How hard to look.
        seed: Of the points that a search samples.

    Returns:
        The radius, 0 for a misclassified example, and the margin at the example.

    Raises:
        InputError: A ValueError: something that the caller can mend, said in one line.
        NotImplementedError: A layer that is not supported, by name.
    """
    check_dtype(dtype)
    whole_number("label", label)
    prepared = Prepared(
        model,
        input_shape_of(model, point_of("x", x)),
        method=method,
        engine=engine,
        options=MethodOptions(seed=seed),
        dtype=dtype,
        branching=branching,
        norm=norm,
    )
    return certify_example(
        prepared, x, label, norm=norm, classes=classes, clip=clip, options=options, seed=seed
    )
