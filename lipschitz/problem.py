"""What is asked: :class:`LocalProblem`, a network, a box and the rows to bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from lipschitz.arguments import Ends, Numbers, fitted, fitted_clip, point_of, radius_of
from lipschitz.checks import shown, whole_number
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.norms import Measure
from lipschitz.words import INPUTS, OUTPUTS, default_outputs, norm_name


@dataclass(frozen=True)
class LocalProblem:
    """Bound the Jacobian's operator norm over a box.

    With ``outputs`` ``each`` it is the largest dual norm of ``J(x)^T r`` over the rows r: with
    one-hot rows and Linf that is the Linf -> Linf local Lipschitz constant of the network; a
    margin row ``e_y - e_c`` gives the constant of the margin ``f_y - f_c``. With ``all`` it is the
    operator norm of the matrix of all rows, the same number for Linf.

    Attributes:
        graph: The network.
        centre: The point the box is drawn around, [*input_shape].
        lower, upper: The box, [*input_shape]; it contains the centre.
        rows: Output directions, [R, C].
        row_names: One short name per row, such as ``"3"`` or ``"7-3"``.
        norm: ``inf``, ``1`` or ``2``, of input and output.
        outputs: ``each`` row by itself, or ``all`` together.
        inputs: ``all`` inputs count, or the ``free`` ones, whose interval is not a point.
    """

    graph: Graph
    centre: Tensor
    lower: Tensor
    upper: Tensor
    rows: Tensor
    row_names: tuple[str, ...]
    norm: str = "inf"
    outputs: str = "each"
    inputs: str = "all"

    @cached_property
    def measure(self) -> Measure:
        """What is measured of the Jacobian; one row is the same by itself and together."""
        joint = self.outputs == "all" and self.norm != "inf" and len(self.rows) > 1
        free = None
        if self.inputs == "free":
            free = (self.upper > self.lower).flatten().to(self.rows)
        return Measure(self.norm, joint, free)

    def to(self, dtype: torch.dtype) -> LocalProblem:
        """The same problem with all its numbers in ``dtype``."""
        return replace(
            self,
            graph=self.graph.to(self.graph.device, dtype),
            **{n: getattr(self, n).to(dtype) for n in ("centre", "lower", "upper", "rows")},
        )


def input_box(
    centre: Tensor, eps: Numbers | str, clip: Ends | None = None
) -> tuple[Tensor, Tensor]:
    """The box ``centre +- eps``, cut to the data range.

    Coordinates of radius 0 stay where they are; the Jacobian has entries for them all the same.

    Args:
        centre: [*input_shape].
        eps: Radius per coordinate, broadcastable to ``centre`` (units of the network's input);
            text is read too, such as ``"2/255"``.
        clip: Smallest and largest value an input may take, broadcastable to ``centre``.

    Returns:
        ``(lower, upper)``, each [*input_shape].

    Raises:
        InputError: A negative, NaN or infinite eps, a centre that is not finite or lies outside
            ``clip``.
    """
    radius = fitted("eps", radius_of(eps), centre)
    if not torch.isfinite(radius).all() or (radius < 0).any():
        if radius.numel() == 1:
            raise InputError(f"eps is {float(radius):g}: it must be a finite number, 0 or larger")
        wrong = radius[~((radius >= 0) & torch.isfinite(radius))]
        raise InputError(
            f"{len(wrong)} of the {radius.numel()} radii in eps are negative, NaN or infinite, the "
            f"first is {float(wrong[0]):g}: give finite numbers, 0 or larger"
        )
    if not torch.isfinite(centre).all():
        raise InputError("the input holds NaN or infinity: give finite numbers")
    lower, upper = centre - radius, centre + radius
    ends = fitted_clip(clip, centre)
    if ends is not None:
        smallest, largest = ends
        if (centre < smallest).any() or (centre > largest).any():
            raise InputError(
                f"the input reaches {float(centre.min()):g} .. {float(centre.max()):g}, outside "
                f"the data range {float(smallest.min()):g} .. {float(largest.max()):g} it is "
                "clipped to: check its normalisation"
            )
        lower, upper = torch.maximum(lower, smallest), torch.minimum(upper, largest)
    return lower.expand_as(centre).contiguous(), upper.expand_as(centre).contiguous()


def box_between(
    like: Tensor, x_lower: Numbers, x_upper: Numbers, clip: Ends | None = None
) -> tuple[Tensor, Tensor]:
    """The box with these two ends, cut to the data range.

    Args:
        like: A tensor of the shape, precision and device of a point, [*input_shape].
        x_lower, x_upper: Its ends, broadcastable to ``like``.
        clip: As in :func:`input_box`.

    Returns:
        ``(lower, upper)``, each [*input_shape].

    Raises:
        InputError: Ends of another shape, not finite, or crossed.
    """
    ends = []
    for side, end in (("lower", x_lower), ("upper", x_upper)):
        name = f"the {side} end of the box"
        end = fitted(name, point_of(name, end), like)
        if not torch.isfinite(end).all():
            raise InputError("the box holds NaN or infinity: give finite ends")
        ends.append(end.expand_as(like))
    lower, upper = ends
    if (lower > upper).any():
        raise InputError("the box is empty: a lower end is above its upper end")
    cut = fitted_clip(clip, like)
    if cut is not None:
        lower, upper = torch.maximum(lower, cut[0]), torch.minimum(upper, cut[1])
        if (lower > upper).any():
            raise InputError("the box lies outside clip: nothing is left of it")
    return lower.contiguous(), upper.contiguous()


def middle_of(lower: Tensor, upper: Tensor) -> Tensor:
    """The middle of a box, in it whatever the rounding: same shape."""
    return torch.minimum(torch.maximum(lower / 2 + upper / 2, lower), upper)


def one_point(x: Tensor, input_shape: Sequence[int]) -> Tensor:
    """The only point in x, [*input_shape], without a batch dimension of 1.

    Raises:
        InputError: A batch of points, or another shape.
    """
    shape, expected = tuple(x.shape), tuple(input_shape)
    if shape == expected:
        return x
    if shape[1:] != expected or not shape:
        advice = "one example at a time"
        if expected[1:] == shape and expected:
            advice += "; leave the batch dimension out of input_shape when preparing it"
        raise InputError(f"the input has shape {shape}: the network takes {expected}, {advice}")
    if len(x) != 1:
        raise InputError(
            f"the input has shape {shape}, a batch of {len(x)} points: the network takes "
            f"{expected}; give one point per call and loop over the batch"
        )
    return x[0]


def class_numbers(classes: int | Sequence[int]) -> list[int]:
    """The classes as a list; one number is a list of one.

    Raises:
        InputError: Anything but whole numbers.
    """
    try:
        many = [classes] if isinstance(classes, str) else list(classes)
    except TypeError:  # a number, or a tensor of no dimension
        many = [classes]
    return [whole_number("class", c) for c in many]


def class_rows(
    num_outputs: int,
    classes: int | Sequence[int] | None = None,
    margin_of: int | None = None,
    pairs: bool = False,
) -> tuple[Tensor, tuple[str, ...]]:
    """Output directions and their names.

    Args:
        num_outputs: C.
        classes: The outputs to bound, or one of them; all if None.
        margin_of: If a label y is given, the rows are ``e_y - e_c`` for the classes c != y.
        pairs: The rows are the margins ``e_i - e_j`` of all pairs i < j of the classes; the other
            order has the same norms.

    Returns:
        Rows [R, C] and R names.

    Raises:
        InputError: A class or label that does not exist, or no row left.
    """
    chosen = list(range(num_outputs)) if classes is None else class_numbers(classes)
    if margin_of is not None:
        margin_of = whole_number("label", margin_of)
    named = [("class", c) for c in chosen] + [("label", margin_of)] * (margin_of is not None)
    for what, c in named:
        if not 0 <= c < num_outputs:
            raise InputError(
                f"{what} {c} does not exist: the network has {num_outputs} outputs, "
                f"0 to {num_outputs - 1}"
            )
    if len(set(chosen)) != len(chosen):
        raise InputError(f"classes {chosen} repeat a class: name each once")
    if pairs and margin_of is not None:
        raise InputError("give either a label, for its margins, or ask for all pairs, not both")
    identity = torch.eye(num_outputs, dtype=torch.float64)
    if pairs:
        both = list(combinations(chosen, 2))
        first, second = ([pair[i] for pair in both] for i in (0, 1))
        rows, names = identity[first] - identity[second], tuple(f"{i}-{j}" for i, j in both)
    elif margin_of is None:
        rows, names = identity[chosen], tuple(str(c) for c in chosen)
    else:
        others = [c for c in chosen if c != margin_of]
        rows = identity[margin_of] - identity[others]
        names = tuple(f"{margin_of}-{c}" for c in others)
    if not len(rows):
        what = "output is" if margin_of is None and not pairs else "margin of two outputs is"
        raise InputError(f"no {what} left to bound: the network has {num_outputs}, see classes")
    return rows, names


def check_box_given(x: object, eps: object, x_lower: object, x_upper: object) -> None:
    """Refuse a box that is described twice, by half or not at all.

    Raises:
        InputError: With what to give.
    """
    if (eps is None) == (x_lower is None) or (x_lower is None) != (x_upper is None):
        raise InputError(
            "give either eps, the box's radius, or both of its ends, x_lower and x_upper"
        )
    if x is None and eps is not None:
        raise InputError(
            "x is missing: eps is a radius around it; give x, or the box's ends instead of eps"
        )


def make_problem(
    graph: Graph,
    x: Numbers | None = None,
    eps: Numbers | str | None = None,
    *,
    x_lower: Numbers | None = None,
    x_upper: Numbers | None = None,
    clip: Ends | None = None,
    classes: int | Sequence[int] | None = None,
    margin_of: int | None = None,
    pairs: bool = False,
    norm: str | float = "inf",
    outputs: str | None = None,
    inputs: str = "all",
) -> LocalProblem:
    """The problem of one example; see :func:`input_box` and :func:`class_rows`.

    Args:
        graph: The network.
        x: The example, [*input_shape] or [1, *input_shape], a tensor, an array or a list; with
            both ends of the box it may be None, which is the middle.
        eps: Box radius in the units of ``x``, a number (also as text, ``"2/255"``) or one per
            coordinate, broadcastable to ``x``.
        x_lower, x_upper: Instead of ``eps``: the two ends of the box.
        clip: Data range the box is cut to.
        classes: Outputs to bound, or one of them; all if None.
        margin_of: Bound the margins of this label instead of the outputs.
        pairs: Bound the margins of all pairs of outputs.
        norm: ``inf``, ``1`` or ``2``.
        outputs: ``each`` output or margin by itself, or the operator norm of ``all`` together;
            None is ``all`` for outputs and ``each`` for margins (see :func:`default_outputs`).
        inputs: ``all`` inputs count in the norm, or only the ``free`` ones, those that the box
            lets change.

    Raises:
        InputError: Anything wrong with the example, the box, classes, clip or names.
    """
    if not isinstance(graph, Graph):
        raise InputError(
            f"graph {shown(graph)}: expected a network's graph, that of Prepared(...).graph or "
            "build_graph(...)"
        )
    check_box_given(x, eps, x_lower, x_upper)
    norm = norm_name(norm)
    if outputs is None:
        outputs = default_outputs(norm, margins=pairs or margin_of is not None)
    for what, given, known in (("outputs", outputs, OUTPUTS), ("inputs", inputs, INPUTS)):
        if given not in known:
            raise InputError(f"{what} {given!r}: expected {' or '.join(known)}")
    centre = torch.zeros(graph.input_shape, device=graph.device, dtype=graph.dtype)
    if x is not None:
        centre = one_point(point_of("x", x), graph.input_shape).to(centre)
    if eps is None:
        lower, upper = box_between(centre, x_lower, x_upper, clip)
        if x is None:
            centre = middle_of(lower, upper)
        elif not ((centre >= lower) & (centre <= upper)).all():
            raise InputError("x lies outside the box: give a point of it")
    else:
        lower, upper = input_box(centre, eps, clip)
    if inputs == "free" and not (upper > lower).any():
        raise InputError("no input is free: the box is a point; use inputs 'all'")
    rows, names = class_rows(graph.num_outputs, classes, margin_of, pairs)
    rows = rows.to(device=graph.device, dtype=graph.dtype)
    return LocalProblem(graph, centre, lower, upper, rows, names, norm, outputs, inputs)
