"""Library calls for single entries of the Jacobian and for its products with directions.

Certified intervals of every ``d f_c(x) / d x_i`` over a box, and of every directional derivative
``J(x) v``. The relaxations are those of the norm (Shi et al. 2022, sections 3.2 and 3.3); only the
last step, the chords of ``|J_i|``, is left out. Where activations are curved, every entry and every
directional derivative is bounded by planes besides, which are off by the square of the box's radius
only (:mod:`lipschitz.bounds.native.plane_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lipschitz.applications.jacobian_intervals import (
    certified_entries,
    certified_products,
    checked,
    root_bounds,
)
from lipschitz.arguments import Ends, Numbers, check_dtype, pair_of, tensor_of
from lipschitz.bounds.native.plane_rows import ProblemPlanes
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.network.input_shape import input_shape_of
from lipschitz.network.tracing import build_graph
from lipschitz.precision import disable_tf32
from lipschitz.problem import LocalProblem, check_box_given, make_problem
from lipschitz.result import plain_fields


@dataclass(frozen=True)
class JacobianBounds:
    """Certified intervals: ``lower <= value <= upper`` at every point of the box.

    Attributes:
        lower, upper: [R, *input_shape] for entries, [R, V] for directional derivatives.
        row_names: One short name per output direction, such as ``"3"``.
    """

    lower: Tensor
    upper: Tensor
    row_names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as values that JSON can hold: tensors and tuples as lists."""
        return plain_fields(self)


def jacobian_bounds(
    model: nn.Module | Graph,
    x: Numbers | None = None,
    eps: Numbers | str | None = None,
    *,
    box: Ends | None = None,
    classes: int | Sequence[int] | None = None,
    rows: Numbers | None = None,
    engine: str = "native",
    optimize: bool = True,
    dtype: torch.dtype | None = None,
    clip: Ends | None = None,
) -> JacobianBounds:
    """Certified interval of every entry of the Jacobian over a box.

    The box is ``x +- eps`` or the given ``box``. The intervals hold for every product of the
    layers' Clarke derivatives there, so for autograd's gradient at every point too, up to the
    rounding margin of :mod:`lipschitz.rounding`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipschitz import jacobian_bounds
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 1.0]]))
        ...     _ = model[0].bias.zero_(), model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
        >>> x = torch.tensor([0.1, 0.5])  # the first neuron is inactive, the second active
        >>> bounds = jacobian_bounds(model, x, eps=0.01)
        >>> bounds.lower.round(decimals=3).tolist(), bounds.upper.round(decimals=3).tolist()
        ([[0.5, 1.0]], [[0.5, 1.0]])
        >>> wide = jacobian_bounds(model, x, box=(0.1, 1.0))  # the first neuron may be either
        >>> wide.lower.round(decimals=3).tolist(), wide.upper.round(decimals=3).tolist()
        ([[0.5, -1.0]], [[1.5, 1.0]])

    Numbers may come as tensors, numpy arrays, lists or plain numbers; a batch of points is refused.

    Args:
        model: A network in eval mode mapping [B, *input_shape] to [B, C], or its graph.
        x: A point of the box, [*input_shape] or [1, *input_shape]; a leading 1 is the batch
            dimension if the network takes it so. Left out, it is the middle of ``box``.
        eps: Box radius, a number (also as text, ``"2/255"``) or one per input, broadcastable to
            ``x``.
        box: Instead of ``eps``: lower and upper ends, broadcastable to ``x``.
        classes: Outputs to bound, or one of them; all if None.
        rows: Instead of ``classes``: output directions, [R, C]; bounded is ``J(x)^T row``.
        engine: ``native`` or ``auto_lirpa``.
        optimize: Optimise the slopes of pre-activation bounds, and the planes of curved
            activations, as far as that is affordable for so many entries.
        dtype: Precision to compute in; the model's own if None.
        clip: Smallest and largest value of an input, to which the box is cut.

    Returns:
        One interval per row and input coordinate, [R, *input_shape].

    Raises:
        InputError: A ValueError: something about the arguments that the caller can mend, said in
            one line.
        NotImplementedError: A layer that is not supported, by name.
    """
    problem = prepare_problem(model, x, eps, box, classes, rows, dtype, clip)
    root = root_bounds(problem, engine, optimize=optimize)
    planes = ProblemPlanes.of(problem, root, optimize=optimize)
    bounds = checked(certified_entries(problem, root, planes=planes))
    return JacobianBounds(*bounds, problem.row_names)


def jvp_bounds(
    model: nn.Module | Graph,
    x: Numbers | None = None,
    eps: Numbers | str | None = None,
    directions: Numbers | None = None,
    *,
    box: Ends | None = None,
    classes: int | Sequence[int] | None = None,
    rows: Numbers | None = None,
    engine: str = "native",
    optimize: bool = True,
    dtype: torch.dtype | None = None,
    clip: Ends | None = None,
) -> JacobianBounds:
    """Certified interval of directional derivatives ``J(x) v`` over a box.

    One linear bound per direction (Jacobian-vector product), which is tighter than adding up the
    entries' intervals; the better of the two is returned. Curved activations get planes besides,
    one row for each end. With ``engine='auto_lirpa'`` that engine bounds everything but this last
    pass.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipschitz import jvp_bounds
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 1.0]]))
        ...     _ = model[0].bias.zero_(), model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
        >>> both = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
        >>> found = jvp_bounds(model, torch.tensor([0.5, 0.5]), directions=both, box=(0.1, 1.0))
        >>> found.lower.round(decimals=3).tolist(), found.upper.round(decimals=3).tolist()
        ([[0.5, 2.0]], [[1.5, 2.0]])

    Args:
        model, x, eps, box, classes, rows, engine, optimize, dtype, clip: As in
            :func:`jacobian_bounds`.
        directions: One direction v [*input_shape], or many [V, *input_shape].

    Returns:
        One interval per row and direction, [R, V]; V is 1 for one direction.

    Raises:
        InputError, NotImplementedError: As :func:`jacobian_bounds`, or directions of another shape.
    """
    problem = prepare_problem(model, x, eps, box, classes, rows, dtype, clip)
    vectors = direction_vectors(directions, problem)
    root = root_bounds(problem, engine, optimize=optimize)
    planes = ProblemPlanes.of(problem, root, optimize=optimize)
    bounds = checked(certified_products(problem, root, vectors, planes=planes))
    return JacobianBounds(*bounds, problem.row_names)


def box_problem(
    graph: Graph,
    x: Numbers | None = None,
    eps: Numbers | str | None = None,
    *,
    box: Ends | None = None,
    classes: int | Sequence[int] | None = None,
    rows: Numbers | None = None,
    clip: Ends | None = None,
) -> LocalProblem:
    """The problem of ``x +- eps`` or of a given box; arguments as in :func:`jacobian_bounds`.

    Raises:
        InputError: Anything wrong with them.
    """
    if (eps is None) == (box is None):
        raise InputError("give either eps, the box's radius, or box, its two ends")
    if rows is not None and classes is not None:
        raise InputError("give either classes or rows, not both")
    lower, upper = (None, None) if box is None else pair_of("box", box)
    problem = make_problem(graph, x, eps, x_lower=lower, x_upper=upper, clip=clip, classes=classes)
    if rows is None:
        return problem
    rows = tensor_of("rows", rows)
    if rows.dim() != 2 or rows.shape[1] != graph.num_outputs or not len(rows):
        raise InputError(
            f"rows have shape {tuple(rows.shape)}: expected [R, {graph.num_outputs}], one output "
            "direction per row"
        )
    if not torch.isfinite(rows).all():
        raise InputError("rows hold NaN or infinity: give finite numbers")
    names = tuple(f"row{i}" for i in range(len(rows)))
    return replace(problem, rows=rows.to(problem.rows), row_names=names)


def prepare_problem(
    model: nn.Module | Graph,
    x: Numbers | None,
    eps: Numbers | str | None,
    box: Ends | None,
    classes: int | Sequence[int] | None,
    rows: Numbers | None,
    dtype: torch.dtype | None,
    clip: Ends | None,
) -> LocalProblem:
    """The problem of a call like :func:`jacobian_bounds`, in the precision that it asks for.

    Raises:
        InputError, NotImplementedError: As there.
    """
    disable_tf32()
    check_dtype(dtype)
    ends = (None, None) if box is None else pair_of("box", box)
    if eps is not None or box is not None:  # else box_problem says what is missing, in its words
        check_box_given(x, eps, *ends)
    graph = model
    if not isinstance(model, Graph):
        graph = build_graph(model, input_shape_of(model, x, *ends))
    if dtype is not None:
        graph = graph.to(graph.device, dtype)
    return box_problem(graph, x, eps, box=box, classes=classes, rows=rows, clip=clip)


def direction_vectors(directions: Numbers | None, problem: LocalProblem) -> Tensor:
    """The directions as [V, *input_shape].

    Raises:
        InputError: None, of another shape, or not finite.
    """
    shape = tuple(problem.centre.shape)
    if directions is None:
        raise InputError("directions are missing: give one v of the input's shape, or many")
    vectors = tensor_of("directions", directions)
    if tuple(vectors.shape) == shape:
        vectors = vectors[None]
    if tuple(vectors.shape[1:]) != shape or not len(vectors):
        raise InputError(
            f"directions have shape {tuple(vectors.shape)}: expected {shape}, or many of them "
            "with a leading dimension"
        )
    if not torch.isfinite(vectors).all():
        raise InputError("directions hold NaN or infinity: give finite numbers")
    return vectors.to(problem.centre)
