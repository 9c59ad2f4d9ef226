"""Certified monotonicity of a network on a table (Shi et al. 2022, section 5.3).

If ``d f_c / d x_i >= 0`` everywhere on a box, ``f_c`` never falls when feature i rises within it.
By default the box lets one feature run over its whole range, the others staying at an example's
values, as in the paper; what is proved is said in :mod:`lipschitz.applications.signs`.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from lipschitz.applications.jacobian import box_problem
from lipschitz.applications.sign_search import SignLimits
from lipschitz.applications.signs import VERDICTS, EntrySign, check_features, entry_signs
from lipschitz.arguments import Ends, Numbers, fitted, pair_of, tensor_of
from lipschitz.checks import whole_number
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem, class_rows

_COLUMNS = (
    "example",
    "feature",
    "name",
    "output",
    "verdict",
    "lower",
    "upper",
    "domains",
    "seconds",
)


@dataclass(frozen=True)
class MonotonicityOptions:
    """What to certify, and how hard to try.

    Attributes:
        features: Flat index -> name of the input coordinates asked about.
        interval: Ends of the range of the one feature that is free, in the network's units;
            numbers, or one per feature, broadcastable to one input.
        eps: Instead: all inputs are free within this radius, broadcastable to one input.
        classes: Outputs, or one of them; all if None.
        margin_of: Instead: the margins of this output over the others.
        limits: Of each branch and bound; a timeout of 0 leaves it out.
        optimize: Optimise the slopes of pre-activation bounds.
        csv: File to write one line per entry to.
        start: Number of the first example.

    Raises:
        InputError: An interval without two ends, or a start below 0.
    """

    features: dict[int, str]
    interval: Ends = (0.0, 1.0)
    eps: Numbers | str | None = None
    classes: int | Sequence[int] | None = None
    margin_of: int | None = None
    limits: SignLimits = field(default_factory=SignLimits)
    optimize: bool = True
    csv: str | os.PathLike[str] | None = None
    start: int = 0

    def __post_init__(self) -> None:
        pair_of("interval", self.interval)
        whole_number("start", self.start, least=0)


def run_monotonicity(
    graph: Graph,
    points: Numbers,
    options: MonotonicityOptions,
    watch: Callable[[list[EntrySign]], object] | None = None,
) -> list[EntrySign]:
    """Certify the signs for every example; the CSV gets its lines as soon as they are known.

    Args:
        graph: The network.
        points: Examples, [n, *input_shape].
        options: What to certify.
        watch: Called with the entries of an example once they are known.

    Returns:
        One result per example, feature and output direction.

    Raises:
        InputError: A feature or class that does not exist, an empty range, a wrong shape.
    """
    results: list[EntrySign] = []
    # Converted to the network's precision first: in a tensor of whole numbers the ends of a
    # feature's range would be cut to whole numbers.
    examples = tensor_of("points", points).to(device=graph.device, dtype=graph.dtype)
    if examples.dim() != len(graph.input_shape) + 1:
        raise InputError(
            f"points have shape {tuple(examples.shape)}: expected a batch of inputs of shape "
            f"{tuple(graph.input_shape)}, the batch dimension first"
        )
    check_features(graph, list(options.features))
    rows, names = class_rows(graph.num_outputs, options.classes, options.margin_of)
    if options.csv is not None:
        write_csv(options.csv, [], options.features)
    for index, x in enumerate(examples):
        found: list[EntrySign] = []
        for problem, features in _problems(graph, x, options):
            problem = replace(problem, rows=rows.to(problem.rows), row_names=names)
            found += entry_signs(
                problem, features, limits=options.limits, optimize=options.optimize
            )
        found = [replace(sign, example=options.start + index) for sign in found]
        if options.csv is not None:
            write_csv(options.csv, found, options.features, append=True)
        if watch is not None:
            watch(found)
        results += found
    return results


def _problems(
    graph: Graph, x: Tensor, options: MonotonicityOptions
) -> Iterable[tuple[LocalProblem, list[int]]]:
    """The boxes of one example, each with the features asked about on it."""
    features = list(options.features)
    if options.eps is not None:
        yield box_problem(graph, x, options.eps), features
        return
    ends = [
        fitted("interval", tensor_of("interval", end), x).expand_as(x).flatten()
        for end in options.interval
    ]
    for feature in features:
        low, high = (float(end[feature]) for end in ends)
        if not low <= high:
            raise InputError(f"the range {low:g} .. {high:g} of feature {feature} is empty")
        lower, upper, centre = (x.detach().clone().contiguous() for _ in range(3))
        lower.view(-1)[feature], upper.view(-1)[feature] = low, high
        centre.view(-1)[feature] = (low + high) / 2
        yield box_problem(graph, centre, box=(lower, upper)), [feature]


def count_signs(signs: Iterable[EntrySign]) -> dict[tuple[int, str], Counter[str]]:
    """How often each verdict was reached, by feature and output direction."""
    counts: dict[tuple[int, str], Counter[str]] = {}
    for sign in signs:
        counts.setdefault((sign.feature, sign.row), Counter())[sign.verdict] += 1
    return counts


def table(signs: Iterable[EntrySign], names: dict[int, str]) -> str:
    """The counts as a Markdown table, a line per feature and output direction."""
    lines = [
        f"| feature | output | {' | '.join(VERDICTS)} |",
        f"|---|---|{'---|' * len(VERDICTS)}",
    ]
    for (feature, row), count in count_signs(signs).items():
        numbers = " | ".join(str(count[verdict]) for verdict in VERDICTS)
        lines.append(f"| {names.get(feature, feature)} | {row} | {numbers} |")
    return "\n".join(lines)


def write_csv(
    path: str | os.PathLike[str],
    signs: Iterable[EntrySign],
    names: dict[int, str],
    *,
    append: bool = False,
) -> None:
    """One line per entry, a header first.

    Args:
        path: The file; its folder is made if missing.
        signs: What to write; ``lower`` and ``upper`` bound the entry in the network's units.
        names: Names of the features.
        append: Add to the file instead of writing it anew.

    Raises:
        OSError: It cannot be written, say on a full disk; the lines before these are whole.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if not append:
        writer.writerow(_COLUMNS)
    for s in signs:
        name = names.get(s.feature, str(s.feature))
        bounds = [s.lower, s.upper, s.domains, round(s.seconds, 4)]
        writer.writerow([s.example, s.feature, name, s.row, s.verdict, *bounds])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if append else "wb", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        left = memoryview(text.getvalue().encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            if path.is_file():
                file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from None
