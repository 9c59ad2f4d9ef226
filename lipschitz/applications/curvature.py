"""Library calls for second derivatives: entries of the Hessian, and how fast gradients change.

Certified intervals of every ``d^2 f_c(x) / d x_i d x_j`` over a box, of the products ``H v``, and
bounds of the gradient's Lipschitz constant, which says how far a linearisation can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lipschitz.applications.jacobian import direction_vectors, prepare_problem
from lipschitz.applications.jacobian_intervals import checked
from lipschitz.arguments import Ends, Numbers
from lipschitz.bounds.native.curvature import HessianTerms, check_curvature
from lipschitz.bounds.native.hessian_root import RootProducts, first_order, is_affine
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.checks import check_flag, check_number
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem
from lipschitz.result import LipschitzResult, plain_fields
from lipschitz.search.curvature import CurvatureOptions, bound_curvature
from lipschitz.search.interface import Progress
from lipschitz.words import norm_name


@dataclass(frozen=True)
class HessianBounds:
    """Certified intervals: ``lower <= value <= upper`` at every point of the box.

    Attributes:
        lower, upper: [R, *input_shape, *input_shape] for entries, [R, V, *input_shape] for the
            products of the Hessian with V directions.
        row_names: One short name per output direction, such as ``"3"``.
    """

    lower: Tensor
    upper: Tensor
    row_names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as values that JSON can hold: tensors and tuples as lists."""
        return plain_fields(self)


def hessian_bounds(
    model: nn.Module | Graph,
    x: Numbers | None = None,
    eps: Numbers | str | None = None,
    *,
    box: Ends | None = None,
    classes: int | Sequence[int] | None = None,
    rows: Numbers | None = None,
    directions: Numbers | None = None,
    dtype: torch.dtype | None = None,
    clip: Ends | None = None,
    optimize: bool = True,
) -> HessianBounds:
    """Certified interval of every entry of the Hessian over a box, of every chosen output.

    The box is ``x +- eps`` or the given ``box``. Networks with activations made of straight pieces,
    such as ReLU, are refused: their Hessian is zero wherever it exists. Where a second derivative
    jumps (softsign and ELU at 0) the intervals hold the values on both sides.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipschitz import hessian_bounds
        >>> class Product(nn.Module):  # x y
        ...     def forward(self, x):
        ...         a, b = x[:, :1], x[:, 1:]
        ...         return ((a + b).square() - (a - b).square()) / 4
        >>> point = torch.tensor([0.5, 0.5])
        >>> bounds = hessian_bounds(Product().eval(), point, eps=0.1)
        >>> (bounds.upper.round(decimals=3) + 0.0).tolist()
        [[[0.0, 1.0], [1.0, 0.0]]]
        >>> float((bounds.upper - bounds.lower).max()) < 1e-4
        True
        >>> along = hessian_bounds(Product().eval(), point, eps=0.1, directions=[1.0, 2.0])
        >>> along.upper.round(decimals=3).tolist()  # of H v
        [[[2.0, 1.0]]]

    Numbers may come as tensors, numpy arrays, lists or plain numbers; a batch of points is refused.

    Args:
        model, x, eps, box, classes, dtype, clip: As in :func:`lipschitz.jacobian_bounds`.
        rows: Instead of ``classes``: output directions, [R, C]; bounded is the Hessian of
            ``row . f``.
        directions: One direction v [*input_shape], or many [V, *input_shape]: bounded are the
            products ``H v`` instead, one linear bound for each.
        optimize: Optimise slopes and planes, where there are few inputs.

    Returns:
        One interval per row and entry, [R, *input_shape, *input_shape], or per row, direction and
        coordinate, [R, V, *input_shape].

    Raises:
        InputError: A ValueError: something about the arguments that the caller can mend, or an
            activation whose slope jumps or is made of straight pieces, said in one line.
        NotImplementedError: A layer that is not supported, by name.
    """
    check_flag("optimize", optimize)
    problem = prepare_problem(model, x, eps, box, classes, rows, dtype, clip)
    vectors = None if directions is None else direction_vectors(directions, problem)
    bounds = _bounds(problem, vectors, optimize)
    return HessianBounds(*checked(bounds), problem.row_names)


@torch.no_grad()
def _bounds(problem: LocalProblem, vectors: Tensor | None, optimize: bool) -> Interval:
    check_curvature(problem.graph)
    shape, count = problem.centre.shape, len(problem.rows)
    if is_affine(problem):
        first = shape if vectors is None else vectors.shape[:1]
        zero = problem.rows.new_zeros(count, *first, *shape)
        return Interval(zero, zero.clone())
    terms = HessianTerms(problem.graph, default_memory_budget(problem.graph.device))
    known = first_order(problem, terms, optimize=optimize)
    root = RootProducts(problem, terms, known, optimize=optimize)
    if vectors is not None:
        return root.entries(vectors)
    return Interval(*(end.reshape(count, *shape, *shape) for end in root.hessians()))


def local_curvature(
    model: nn.Module | Graph,
    x: Numbers | None = None,
    eps: Numbers | str | None = None,
    norm: str | float = "inf",
    *,
    box: Ends | None = None,
    classes: int | Sequence[int] | None = None,
    rows: Numbers | None = None,
    clip: Ends | None = None,
    dtype: torch.dtype | None = None,
    timeout: float = 60.0,
    tolerance: float = 1e-4,
    search: bool = True,
    seed: int = 0,
    watch: Callable[[Progress], None] | None = None,
) -> LipschitzResult:
    """Certified bounds of the Lipschitz constant of each output's gradient over a box.

    With the norm ``inf`` it is the largest norm of the Hessian from Linf to L1, so that
    ``||J_c(x) - J_c(y)||_1 <= L ||x - y||_inf`` for any two points of the box; with ``2`` its
    largest singular value, with ``1`` its largest entry, by magnitude. In each of them
    ``|f_c(y) - f_c(x) - J_c(x) (y - x)| <= L/2 ||y - x||^2``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipschitz import local_curvature
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)).eval()
        >>> with torch.no_grad():  # tanh(x + y)
        ...     _ = model[0].weight.fill_(1.0), model[0].bias.zero_()
        ...     _ = model[2].weight.fill_(1.0), model[2].bias.zero_()
        >>> result = local_curvature(model, torch.zeros(2), eps=1.0, dtype=torch.float64)
        >>> result.status, round(result.upper_bound, 3)  # 4 times the largest |tanh''|
        ('exact', 3.079)

    Args:
        model, x, eps, box, classes, rows, clip, dtype: As in
            :func:`lipschitz.hessian_bounds`.
        norm: ``inf``, ``1`` or ``2``, in which inputs change.
        timeout: Seconds, all included.
        tolerance: Relative gap up to which the result is called exact.
        search: Cut the box, up to 64 inputs, until the bounds meet; else only its whole is bounded.
        seed: Of the points that the lower bound is looked for from.
        watch: Called with the state of the search, once per round.

    Returns:
        Certified bounds, one upper bound per row; the norm of the Hessian at ``witness`` is at
        least the lower one. 0 for an affine network. Ctrl-C returns the bounds reached so far.

    Raises:
        InputError, NotImplementedError: As :func:`lipschitz.hessian_bounds`.
    """
    check_number("timeout", timeout, infinite=True)
    check_number("tolerance", tolerance, zero=True)
    check_flag("search", search)
    sampling, norm = Sampling(seed=seed), norm_name(norm)
    problem = prepare_problem(model, x, eps, box, classes, rows, dtype, clip)
    return bound_curvature(
        replace(problem, norm=norm, outputs="each"),
        CurvatureOptions(timeout=timeout, tolerance=tolerance, search=search),
        sampling=sampling,
        watch=watch,
    )
