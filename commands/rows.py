"""What ``main.py`` writes and prints of a result: its row, its line and the summary."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from typing import Any

from torch import nn

from lipschitz import METHODS, LipschitzResult, Prepared
from lipschitz.bounds.methods import kind_of
from lipschitz.words import default_outputs
from models import ModelSpec
from utils import versions

SCHEMA = 1


def settings_of(
    args: Namespace,
    model: nn.Module,
    spec: ModelSpec,
    prepared: Prepared,
    *,
    eps: float | None,
    source: str,
) -> dict[str, Any]:
    """Everything that a result depends on besides the example's number.

    Args:
        args: The command line.
        model, spec: The network and how it is made.
        prepared: The same with its method.
        eps: In pixels; None if the points' file holds the boxes or a radius is looked for.
        source: Where the points come from.
    """
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    optimized = args.method == "crown" and not args.no_optimize
    searched: tuple[str, ...] = ()
    if args.bab:
        searched = ("timeout", "heuristic", "branch", "refresh", "beta_steps", "sdp")
        searched += ("batch_size", "max_domains")
    elif METHODS[args.method].searches:
        searched = ("timeout",)
    return {
        "data": source,
        "model": spec.name,
        "model_params": spec.params,
        "load": args.load,
        "weights": weights.hexdigest()[:12],
        "cnn_to_mlp": args.cnn_to_mlp,
        "method": "bab" if args.bab else args.method,
        "engine": prepared.engine,
        "search": {name: getattr(args, name) for name in searched},
        "norm": args.norm,
        "outputs": args.outputs or default_outputs(args.norm, margins=args.margins is not None),
        "inputs": args.inputs,
        "certify": args.certify,
        "eps": eps,
        "fixed": args.fixed,
        "std": args.std,
        "input_clipping": args.input_clipping,
        "classes": args.classes,
        "margins": args.margins,
        "optimize": optimized,
        "ob_iteration": args.ob_iteration if optimized else None,
        "ob_lr": args.ob_lr if optimized else None,
        "tolerance": args.tolerance,
        "device": prepared.graph.device.type,
        "dtype": str(prepared.graph.dtype).removeprefix("torch."),
        "seed": args.seed,
    }


def row_of(
    result: LipschitzResult, settings: dict[str, Any], example: int, label: int | None
) -> dict:
    """The result as a row of the output file."""
    return {
        "schema": SCHEMA,
        "example": example,
        "label": label,
        **settings,
        "kind": kind_of(result.method, result.norm),
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
        "versions": versions(),
    }


def _known(bound: float) -> float | None:
    """A bound for a row; None from a method that certifies none."""
    return bound if bound < float("inf") else None


def line_of(row: dict[str, Any], seconds: float) -> str:
    """The line printed for an example."""
    label = "-" if row["label"] is None else row["label"]
    upper = "-" if row["upper_bound"] is None else f"{row['upper_bound']:.4f}"
    return (
        f"example {row['example']} label {label} upper {upper} lower {row['lower_bound']:.4f} "
        f"status {row['status']} seconds {seconds:.2f}"
    )


def summary_of(rows: list[dict[str, Any]]) -> str:
    """The last line: mean bound and mean seconds, as the paper's code prints them.

    Where a method certifies no upper bound, the mean is that of lower bounds and marked so.
    """
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    certified = all(row["upper_bound"] is not None for row in rows)
    side = "upper_bound" if certified else "lower_bound"
    mean = sum(row[side] for row in rows) / len(rows)
    return f"avg_lip {'' if certified else '>='}{mean:.2f} avg_time {seconds:.2f}"
