"""One example of a run: its bounds, or why there are none, as a row."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from commands.certify import certify_row
from commands.options import classes_of, outputs_of
from commands.progress import ProgressBar, trace_to
from commands.rows import error_row, row_of
from lipschitz import LipschitzResult, LocalProblem, make_problem
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from utils import is_out_of_memory, memory_message

if TYPE_CHECKING:
    from commands.run import Run
    from data.points import Points

# Called with an example's problem and its result.
Seen = Callable[[LocalProblem, LipschitzResult], None]


def label_of(graph: Graph, points: Points, index: int) -> int:
    """The label of a point, or the class that the network predicts if it has none."""
    if points.labels is not None:
        return int(points.labels[index])
    at = points.x[index][None].to(device=graph.device, dtype=graph.dtype)
    return int(graph.values(at)[-1].argmax())


def problem_of(run: Run, index: int) -> LocalProblem:
    """What is asked about one of the points."""
    args, points, graph = run.args, run.points, run.prepared.graph
    return make_problem(
        graph,
        points.x[index],
        **points.box(index),
        clip=points.clip,
        classes=classes_of(args),
        margin_of=label_of(graph, points, index) if args.margins == "label" else None,
        pairs=args.margins == "all",
        norm=args.norm,
        outputs=outputs_of(args),
        inputs=args.inputs,
    )


def bound_example(run: Run, index: int, seen: Seen | None = None) -> LipschitzResult:
    """Certified bounds around one of the points.

    Args:
        run: The network, the points and the method.
        index: Which of the points.
        seen: Called with the problem and its result.
    """
    args = run.args
    problem = problem_of(run, index)
    watch = None if args.trace is None else trace_to(args.trace, args.start + index)
    hidden = not args.bab or args.quiet or None
    with closing(ProgressBar(run.seconds, disable=hidden)) as show:
        result = run.prepared.bound(
            problem,
            tolerance=args.tolerance,
            sampling=Sampling(seed=args.seed),
            watch=lambda state: [to(state) for to in (show, watch) if to is not None],
        )
    if seen is not None:
        seen(problem, result)
    return result


def row_of_example(run: Run, index: int, seen: Seen | None = None) -> dict[str, Any]:
    """The row of one of the points; of status ``error`` if its bounds fail.

    What stops one example, a box on which values overflow or a fault of this program, does not
    end the others. Ctrl-C does.

    Args:
        run: The network, the points and the method.
        index: Which of the points.
        seen: Called with the problem and its result, not with ``--certify``.
    """
    points, example = run.points, run.args.start + index
    label = None if points.labels is None else int(points.labels[index])
    begin = time.perf_counter()
    try:
        if run.args.certify:
            return certify_row(run, index, label_of(run.prepared.graph, points, index))
        return row_of(bound_example(run, index, seen), run.settings, example, label)
    except Exception as error:  # anything at all: the other examples go on
        seconds = time.perf_counter() - begin
        return error_row(run.settings, example, label, *_explained(error), seconds)


def _explained(error: Exception) -> tuple[str, str | None]:
    """What went wrong in one line, and the traceback if it is no mistake of the user's."""
    if is_out_of_memory(error):
        return memory_message(error), None
    text = str(error).strip()
    if isinstance(error, (InputError, NotImplementedError)) and text:
        return text, None
    return f"{type(error).__name__}: {text}", traceback.format_exc()
