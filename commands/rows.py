"""What ``main.py`` writes and prints of a result: its row, its line and the summary."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from commands.curvature import PreparedCurvature, curvature_kind, curvature_search
from commands.options import outputs_of, seconds_of
from data.boxes import read_radius
from lipschitz import METHODS, LipschitzResult, Prepared
from lipschitz.bounds.methods import kind_of
from lipschitz.errors import one_line
from lipschitz.search.curvature import CURVATURE
from lipschitz.words import ERROR
from utils import duration, significant, versions

if TYPE_CHECKING:
    from commands.network import Network

# Version of the table of names in ``row_schema``, written into every row.
SCHEMA = 1


def settings_of(
    args: Namespace, network: Network, prepared: Prepared | PreparedCurvature, *, source: str
) -> dict[str, Any]:
    """Everything that a result depends on besides the example's number.

    Args:
        args: The command line.
        network: The network and how it is made.
        prepared: The same with its method.
        source: Where the points come from.
    """
    weights = hashlib.sha256()
    for name, tensor in network.model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    optimized = args.method in ("crown", "joint") and not args.no_optimize
    by_steps = optimized and args.method == "crown" and not args.curvature
    return {
        "data": source,
        "model": network.spec.name,
        "model_params": network.spec.params,
        "load": args.load,
        "weights": weights.hexdigest()[:12],
        "cnn_to_mlp": args.cnn_to_mlp,
        "method": CURVATURE if args.curvature else "bab" if args.bab else args.method,
        "engine": prepared.engine,
        "search": curvature_search(args) if args.curvature else _search_of(args),
        "norm": args.norm,
        "outputs": outputs_of(args),
        "inputs": args.inputs,
        "certify": args.certify,
        "eps": eps_of(args.eps),
        "box": args.box,
        "fixed": args.fixed,
        "std": args.std,
        "input_clipping": args.input_clipping,
        "classes": args.classes,
        "margins": args.margins,
        "optimize": optimized,
        "ob_iteration": args.ob_iteration if by_steps else None,
        "ob_lr": args.ob_lr if by_steps else None,
        "tolerance": args.tolerance,
        "device": prepared.graph.device.type,
        "dtype": str(prepared.graph.dtype).removeprefix("torch."),
        "seed": args.seed,
    }


def _search_of(args: Namespace) -> dict[str, Any]:
    """Options of what searches."""
    searched: tuple[str, ...] = ()
    if args.bab:
        searched = ("timeout", "heuristic", "branch", "refresh", "beta_steps", "sdp")
        searched += ("batch_size", "max_domains")
    elif METHODS[args.method].searches or args.timeout is not None:
        searched = ("timeout",)
    search = {name: getattr(args, name) for name in searched}
    return {**search, "timeout": seconds_of(args)} if searched else {}


def eps_of(text: str | None) -> float | str | None:
    """The radius for a row: a number where it is one for all inputs, else what was given."""
    return None if text is None else read_radius(text).setting


def row_of(
    result: LipschitzResult, settings: dict[str, Any], example: int, label: int | None
) -> dict:
    """The result as a row of the output file."""
    return {
        "schema": SCHEMA,
        "example": example,
        "label": label,
        **settings,
        "kind": _kind(result, settings),
        "upper_bound": _known(result.upper_bound),
        "lower_bound": result.lower_bound,
        "class_upper_bounds": [_known(bound) for bound in result.class_upper_bounds],
        "root_upper_bound": _known(result.root_upper_bound),
        "status": result.status,
        "seconds": result.seconds,
        "domains": result.domains,
        "leaves_checked": result.leaves_checked,
        "branch": result.branch,
        "solver_gap": result.solver_gap,
        "not_reached": list(result.not_reached),
        "versions": versions(),
    }


def _kind(result: LipschitzResult, settings: dict[str, Any]) -> str:
    if result.method == CURVATURE:
        return curvature_kind(settings["search"])
    return kind_of(result.method, result.norm)


def error_row(
    settings: dict[str, Any],
    example: int,
    label: int | None,
    error: str,
    trace: str | None,
    seconds: float,
) -> dict[str, Any]:
    """The row of an example that has no bounds.

    Args:
        settings: What it would have depended on.
        example, label: Which one.
        error: What went wrong, in one line.
        trace: The traceback of a fault of this program; None if the line says it all.
        seconds: Until then.
    """
    return {
        "schema": SCHEMA,
        "example": example,
        "label": label,
        **settings,
        "status": ERROR,
        "error": one_line(error),
        "traceback": trace,
        "seconds": seconds,
        "versions": versions(),
    }


def _known(bound: float) -> float | None:
    """A bound for a row; None from a method that certifies none."""
    return bound if bound < float("inf") else None


def shown_label(row: dict[str, Any]) -> str:
    """The label of a row for a line."""
    return "-" if row["label"] is None else str(row["label"])


def line_of(row: dict[str, Any]) -> str:
    """The line printed for an example."""
    upper = "-" if row["upper_bound"] is None else significant(row["upper_bound"])
    line = (
        f"example {row['example']} label {shown_label(row)} upper {upper} "
        f"lower {significant(row['lower_bound'])} status {row['status']} "
        f"seconds {duration(row['seconds'])}"
    )
    if row.get("not_reached"):
        line += f" not reached: {', '.join(row['not_reached'])}"
    return line


def error_line(row: dict[str, Any]) -> str:
    """The line printed, on stderr, for an example of status ``error``."""
    return f"error: example {row['example']}: {row['error']}"


def summary_of(rows: list[dict[str, Any]]) -> str:
    """The last line: mean bound and mean seconds, as the paper's code prints them.

    Where a method certifies no upper bound, the mean is that of lower bounds and marked so.
    """
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    certified = all(row["upper_bound"] is not None for row in rows)
    side = "upper_bound" if certified else "lower_bound"
    mean = sum(row[side] for row in rows) / len(rows)
    return f"avg_lip {'' if certified else '>='}{significant(mean)} avg_time {duration(seconds)}"
