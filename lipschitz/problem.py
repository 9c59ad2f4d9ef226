"""What is asked and what is answered: :class:`LocalProblem` and :class:`LipschitzResult`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.graph import Graph
from utils import InputError

# Status words of a result. Every one of them comes with certified bounds.
BOUND = "bound"  # a bound, no search for more
EXACT = "exact"  # upper and lower bound meet within the tolerance
TIMEOUT = "timeout"
DOMAIN_LIMIT = "domain_limit"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class LocalProblem:
    """Bound ``max over rows r, x in box of || J(x)^T r ||_1``.

    With one-hot rows this is the Linf -> Linf local Lipschitz constant of the network on the box;
    a margin row ``e_y - e_c`` gives the constant of the margin ``f_y - f_c``.

    Attributes:
        graph: The network.
        centre: The point the box is drawn around, [*input_shape].
        lower, upper: The box, [*input_shape]; it contains the centre.
        rows: Output directions, [R, C].
        row_names: One short name per row, such as ``"3"`` or ``"7-3"``.
    """

    graph: Graph
    centre: Tensor
    lower: Tensor
    upper: Tensor
    rows: Tensor
    row_names: tuple[str, ...]

    def to(self, dtype: torch.dtype) -> LocalProblem:
        """The same problem with all its numbers in ``dtype``."""
        return LocalProblem(
            self.graph.to(self.graph.device, dtype),
            *(t.to(dtype) for t in (self.centre, self.lower, self.upper, self.rows)),
            self.row_names,
        )


@dataclass(frozen=True)
class LipschitzResult:
    """Certified bounds of a local Lipschitz constant.

    Attributes:
        upper_bound: No gradient in the box has a larger l1 norm, for any of the rows.
        lower_bound: The l1 norm of the true gradient at ``witness``; 0 if none was found.
        class_upper_bounds: One upper bound per row of the problem, in its order.
        root_upper_bound: The upper bound before any branching.
        status: ``bound``, ``exact``, ``timeout``, ``domain_limit``, ``interrupted``, or
            ``lower_bound_only`` from a method whose upper bound is infinity.
        witness: A point of the box whose gradient attains ``lower_bound``, or None.
        method, engine: What computed the upper bound.
        seconds: Wall-clock time.
        domains: Subdomains bounded by branch and bound, 0 without it.
        leaves_checked: Leaves whose activation region was checked by a linear program.
        dtype, device: Where and in what precision it was computed.
        branch: What branch and bound split, ``relu`` or ``input``; None without it.
    """

    upper_bound: float
    lower_bound: float
    class_upper_bounds: tuple[float, ...]
    root_upper_bound: float
    status: str
    witness: Tensor | None
    method: str
    engine: str
    seconds: float
    domains: int = 0
    leaves_checked: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    branch: str | None = None


def input_box(
    centre: Tensor,
    eps: float | Tensor,
    clip: tuple[Tensor | float, Tensor | float] | None = None,
) -> tuple[Tensor, Tensor]:
    """The box ``centre +- eps``, cut to the data range.

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


def class_rows(
    num_outputs: int, classes: Sequence[int] | None = None, margin_of: int | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Output directions and their names.

    Args:
        num_outputs: C.
        classes: The outputs to bound; all if None.
        margin_of: If a label y is given, the rows are ``e_y - e_c`` for the classes c != y.

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
    identity = torch.eye(num_outputs, dtype=torch.float64)
    if margin_of is None:
        rows, names = identity[chosen], tuple(str(c) for c in chosen)
    else:
        others = [c for c in chosen if c != margin_of]
        rows = identity[margin_of] - identity[others]
        names = tuple(f"{margin_of}-{c}" for c in others)
    if not len(rows):
        raise InputError("no output is left to bound: name at least one class")
    return rows, names


def make_problem(
    graph: Graph,
    x: Tensor,
    eps: float | Tensor,
    *,
    clip: tuple[Tensor | float, Tensor | float] | None = None,
    classes: Sequence[int] | None = None,
    margin_of: int | None = None,
) -> LocalProblem:
    """The problem of one example; see :func:`input_box` and :func:`class_rows`.

    Args:
        graph: The network.
        x: The example, [*input_shape] or [1, *input_shape].
        eps: Box radius, in the units of ``x``.
        clip: Data range the box is cut to.
        classes: Outputs to bound, all if None.
        margin_of: Bound the margins of this label instead of the outputs.

    Raises:
        InputError: Anything wrong with the example, eps, classes or clip.
    """
    if tuple(x.shape) == (1, *graph.input_shape):
        x = x[0]
    if tuple(x.shape) != tuple(graph.input_shape):
        raise InputError(
            f"the input has shape {tuple(x.shape)}: the network takes {tuple(graph.input_shape)}, "
            "one example at a time"
        )
    centre = x.detach().to(device=graph.device, dtype=graph.dtype)
    lower, upper = input_box(centre, eps, clip)
    rows, names = class_rows(graph.num_outputs, classes, margin_of)
    return LocalProblem(
        graph, centre, lower, upper, rows.to(device=graph.device, dtype=graph.dtype), names
    )
