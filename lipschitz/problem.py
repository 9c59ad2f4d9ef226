"""What is asked: :class:`LocalProblem`, a network, a box and the rows to bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

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
    centre: Tensor,
    eps: float | Tensor,
    clip: tuple[Tensor | float, Tensor | float] | None = None,
) -> tuple[Tensor, Tensor]:
    """The box ``centre +- eps``, cut to the data range.

    Coordinates of radius 0 stay where they are; the Jacobian has entries for them all the same.

    Args:
        centre: [*input_shape].
        eps: Radius per coordinate, broadcastable to ``centre`` (units of the network's input).
        clip: Smallest and largest value an input may take, broadcastable to ``centre``.

    Returns:
        ``(lower, upper)``, each [*input_shape].

    Raises:
        InputError: A negative, NaN or infinite eps, a centre that is not finite or lies outside
            ``clip``.
    """
    radius = torch.as_tensor(eps, dtype=centre.dtype, device=centre.device)
    if not _fits(radius, centre):
        raise InputError(
            f"eps has shape {tuple(radius.shape)}: expected a number, or radii that broadcast to "
            f"the input's shape {tuple(centre.shape)}"
        )
    if not torch.isfinite(radius).all() or (radius < 0).any():
        shown = float(radius) if radius.numel() == 1 else f"{radius.numel()} values"
        raise InputError(f"eps is {shown}: it must be a finite number, 0 or larger")
    if not torch.isfinite(centre).all():
        raise InputError("the input holds NaN or infinity: give finite numbers")
    lower, upper = centre - radius, centre + radius
    if clip is not None:
        smallest, largest = (
            torch.as_tensor(c, dtype=centre.dtype, device=centre.device) for c in clip
        )
        if (centre < smallest).any() or (centre > largest).any():
            raise InputError(
                f"the input reaches {float(centre.min()):g} .. {float(centre.max()):g}, outside "
                f"the data range {float(smallest.min()):g} .. {float(largest.max()):g} it is "
                "clipped to: check its normalisation"
            )
        lower, upper = torch.maximum(lower, smallest), torch.minimum(upper, largest)
    return lower.expand_as(centre).contiguous(), upper.expand_as(centre).contiguous()


def _fits(value: Tensor, centre: Tensor) -> bool:
    """Whether ``value`` broadcasts to the shape of ``centre``."""
    try:
        return torch.broadcast_shapes(value.shape, centre.shape) == centre.shape
    except RuntimeError:
        return False


def box_between(
    centre: Tensor,
    x_lower: Tensor | float,
    x_upper: Tensor | float,
    clip: tuple[Tensor | float, Tensor | float] | None = None,
) -> tuple[Tensor, Tensor]:
    """The box with these two ends, cut to the data range; it has to contain the centre.

    Args:
        centre: [*input_shape].
        x_lower, x_upper: Its ends, broadcastable to ``centre``.
        clip: As in :func:`input_box`.

    Returns:
        ``(lower, upper)``, each [*input_shape].

    Raises:
        InputError: Ends of another shape, not finite, crossed, or that leave the centre out.
    """
    ends = []
    for end in (x_lower, x_upper):
        end = torch.as_tensor(end).detach().to(centre)
        if not _fits(end, centre):
            raise InputError(
                f"an end of the box has shape {tuple(end.shape)}: expected a number or the shape "
                f"of x, {tuple(centre.shape)}"
            )
        if not torch.isfinite(end).all():
            raise InputError("the box holds NaN or infinity: give finite ends")
        ends.append(end.expand_as(centre))
    lower, upper = ends
    if clip is not None:
        smallest, largest = (torch.as_tensor(c).to(centre) for c in clip)
        lower, upper = torch.maximum(lower, smallest), torch.minimum(upper, largest)
    if (lower > upper).any():
        raise InputError("the box is empty: a lower end is above its upper end")
    if ((centre < lower) | (centre > upper)).any():
        raise InputError("x lies outside the box: give a point of it")
    return lower.contiguous(), upper.contiguous()


def class_rows(
    num_outputs: int,
    classes: Sequence[int] | None = None,
    margin_of: int | None = None,
    pairs: bool = False,
) -> tuple[Tensor, tuple[str, ...]]:
    """Output directions and their names.

    Args:
        num_outputs: C.
        classes: The outputs to bound; all if None.
        margin_of: If a label y is given, the rows are ``e_y - e_c`` for the classes c != y.
        pairs: The rows are the margins ``e_i - e_j`` of all pairs i < j of the classes; the other
            order has the same norms.

    Returns:
        Rows [R, C] and R names.

    Raises:
        InputError: A class or label that does not exist, or no row left.
    """
    chosen = list(range(num_outputs)) if classes is None else list(classes)
    for c in [*chosen, *([] if margin_of is None else [margin_of])]:
        if not 0 <= c < num_outputs:
            raise InputError(
                f"class {c} does not exist: the network has {num_outputs} outputs, "
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


def make_problem(
    graph: Graph,
    x: Tensor,
    eps: float | Tensor | None = None,
    *,
    x_lower: Tensor | float | None = None,
    x_upper: Tensor | float | None = None,
    clip: tuple[Tensor | float, Tensor | float] | None = None,
    classes: Sequence[int] | None = None,
    margin_of: int | None = None,
    pairs: bool = False,
    norm: str | float = "inf",
    outputs: str | None = None,
    inputs: str = "all",
) -> LocalProblem:
    """The problem of one example; see :func:`input_box` and :func:`class_rows`.

    Args:
        graph: The network.
        x: The example, [*input_shape] or [1, *input_shape].
        eps: Box radius in the units of ``x``, a number or one per coordinate.
        x_lower, x_upper: Instead of ``eps``: the two ends of the box.
        clip: Data range the box is cut to.
        classes: Outputs to bound, all if None.
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
    if (eps is None) == (x_lower is None) or (x_lower is None) != (x_upper is None):
        raise InputError("give either eps, the box's radius, or both of its ends")
    norm = norm_name(norm)
    if outputs is None:
        outputs = default_outputs(norm, margins=pairs or margin_of is not None)
    for what, given, known in (("outputs", outputs, OUTPUTS), ("inputs", inputs, INPUTS)):
        if given not in known:
            raise InputError(f"{what} {given!r}: expected {' or '.join(known)}")
    if tuple(x.shape) == (1, *graph.input_shape):
        x = x[0]
    if tuple(x.shape) != tuple(graph.input_shape):
        raise InputError(
            f"the input has shape {tuple(x.shape)}: the network takes {tuple(graph.input_shape)}, "
            "one example at a time"
        )
    centre = x.detach().to(device=graph.device, dtype=graph.dtype)
    if eps is None:
        lower, upper = box_between(centre, x_lower, x_upper, clip)
    else:
        lower, upper = input_box(centre, eps, clip)
    if inputs == "free" and not (upper > lower).any():
        raise InputError("no input is free: the box is a point; use inputs 'all'")
    rows, names = class_rows(graph.num_outputs, classes, margin_of, pairs)
    rows = rows.to(device=graph.device, dtype=graph.dtype)
    return LocalProblem(graph, centre, lower, upper, rows, names, norm, outputs, inputs)
