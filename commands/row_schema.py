"""What stands in a row of ``main.py --output``: names, meanings, units, and when a value is absent.

A row is one line of JSON for one example. The docs show this table; a test holds it against rows
that ``main.py`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The kinds of rows.
BOUNDS, RADIUS, FAILED = "bounds", "radius", "error"
KINDS = (BOUNDS, RADIUS, FAILED)


@dataclass(frozen=True)
class Column:
    """One name of a row.

    Attributes:
        meaning: What the value says.
        unit: Its unit, or its type where there is none.
        absent: When it is null; '' if never.
        kinds: The kinds of rows that have it: of bounds, of a certified ``radius``
            (``--certify``), of an example that failed.
        is_setting: Whether another value makes another result of the same example, so that a
            resumed run computes it.
    """

    meaning: str
    unit: str
    absent: str = ""
    kinds: tuple[str, ...] = KINDS
    is_setting: bool = False


def _setting(meaning: str, unit: str, absent: str = "") -> Column:
    return Column(meaning, unit, absent, is_setting=True)


def _of_bounds(meaning: str, unit: str, absent: str = "") -> Column:
    return Column(meaning, unit, absent, (BOUNDS,))


def _of_radius(meaning: str, unit: str, absent: str = "") -> Column:
    return Column(meaning, unit, absent, (RADIUS,))


_CONSTANT = (
    "norm of output (with --curvature of gradient) over norm of input; inputs in the network's "
    "units (pixels / std)"
)

ROW_SCHEMA: dict[str, Column] = {
    "schema": Column("version of this table", "whole number"),
    "example": Column("number of the example in its data set or file", "from 0"),
    "label": Column(
        "its class; with --certify that predicted by the network if the file has none",
        "output number",
        "points without labels",
    ),
    "data": _setting("data set, or the points' file with a hash of what is in it", "text"),
    "model": _setting("name of the network", "text", "a whole network of a file"),
    "model_params": _setting("its arguments", "name -> value", "a whole network of a file"),
    "load": _setting("file of the weights", "path", "no --load"),
    "weights": _setting("hash of the weights: other weights, another hash", "12 hex digits"),
    "cnn_to_mlp": _setting("whether the equal MLP was bounded", "true or false"),
    "method": _setting("--method, or bab with --bab, or curvature with --curvature", "text"),
    "engine": _setting("what computed the bounds", "native or auto_lirpa"),
    "search": _setting(
        "options of what searches, such as timeout in seconds", "name -> value, {} if none does"
    ),
    "norm": _setting("of input and output", "inf, 1 or 2, as text"),
    "outputs": _setting("outputs one by one, or all together", "each or all"),
    "inputs": _setting("which inputs count", "all or free"),
    "certify": _setting("whether a radius was certified", "true or false"),
    "eps": _setting(
        "radius of the box",
        "pixels; of the network's units for --input without --std; text as given if it is one "
        "per input",
        "--certify, or boxes given by their ends",
    ),
    "box": _setting("the box of --box, as given", "text, the network's units", "no --box"),
    "fixed": _setting("inputs that do not change", "text", "no --fixed"),
    "std": _setting("divides eps, per channel", "text", "no --std; a data set has its own"),
    "input_clipping": _setting("whether the box was cut to the data's range", "true or false"),
    "classes": _setting("outputs asked about", "text", "all"),
    "margins": _setting("differences of outputs instead of outputs", "label or all", "outputs"),
    "optimize": _setting(
        "whether crown, joint or --curvature optimised slopes or planes", "true or false"
    ),
    "ob_iteration": _setting("steps of that", "number", "not optimised, or --curvature"),
    "ob_lr": _setting("length of these steps", "number", "not optimised, or --curvature"),
    "tolerance": _setting("relative gap that is called exact", "number"),
    "device": _setting("where it was computed", "cpu or cuda"),
    "dtype": _setting("precision", "float32 or float64"),
    "seed": _setting("of the sampled points", "whole number"),
    "kind": _of_bounds(
        "what the upper bound covers and what its proof rests on, as the method's entry in --help",
        "text",
    ),
    "upper_bound": _of_bounds(
        "no Jacobian in the box (with --curvature no Hessian) has a larger norm",
        _CONSTANT,
        "the method certifies none",
    ),
    "lower_bound": _of_bounds(
        "norm of a true gradient (Hessian) at a point of the box, 0 if none was found", _CONSTANT
    ),
    "class_upper_bounds": _of_bounds(
        "upper bound of each output or margin; one number where the norm is of all together",
        f"list; {_CONSTANT}",
    ),
    "root_upper_bound": _of_bounds(
        "upper bound before any branching", _CONSTANT, "the method certifies none"
    ),
    "radius": _of_radius("no point within it is classified otherwise", "pixels, in the norm"),
    "margin": _of_radius("the label's output less the largest other one", "output"),
    "nearest": _of_radius("the class that limits the radius", "output number"),
    "evaluations": _of_radius("boxes that were bounded to find it", "number"),
    "status": Column(
        "bound: no search; exact: upper and lower bound meet within the tolerance; timeout, "
        "domain_limit, interrupted: a search stopped there, its bounds hold; lower_bound_only: no "
        "upper bound; certified or misclassified: of a radius; error: no result",
        "word",
    ),
    "error": Column("what went wrong", "one line", kinds=(FAILED,)),
    "traceback": Column(
        "where, for a report of the fault", "text", "the user can mend it", (FAILED,)
    ),
    "seconds": Column("wall-clock time", "seconds"),
    "domains": _of_bounds("subdomains that were bounded, 0 without a search", "number"),
    "leaves_checked": _of_bounds("linear regions checked by a linear program", "number"),
    "branch": _of_bounds("what the search split", "relu, input or both", "no --bab"),
    "solver_gap": _of_bounds(
        "of sdp: how far the bound may be above its program's optimum",
        "relative",
        "other methods, or the program was not reached",
    ),
    "not_reached": _of_bounds(
        "what the time did not suffice for; the bounds hold without it", "list of words, often []"
    ),
    "versions": Column("of Python, this tool and what it uses", "package -> version or null"),
}
SETTINGS = tuple(name for name, column in ROW_SCHEMA.items() if column.is_setting)
# What a result adds to its question.
_FOUND = ROW_SCHEMA.keys() - {"example", *SETTINGS}


def kind_of_row(row: Mapping[str, Any]) -> str:
    """Which kind of row it is: of :data:`KINDS`."""
    if row.get("status") == FAILED:
        return FAILED
    return RADIUS if row.get("certify") else BOUNDS


def identity(row: Mapping[str, Any]) -> str:
    """The example and all settings: rows of the same identity answer the same question.

    A name that the table does not know counts as a setting, so that rows of other versions are
    never taken for one; a missing setting is the same as null.
    """
    asked = {name: value for name, value in row.items() if value is not None and name not in _FOUND}
    return json.dumps(asked, sort_keys=True)


def schema_table() -> str:
    """The table as Markdown, for the docs."""
    lines = ["| name | meaning | unit | null when |", "|---|---|---|---|"]
    for name, column in ROW_SCHEMA.items():
        rows = "" if column.kinds == KINDS else f" (rows of {' and '.join(column.kinds)})"
        cells = (f"`{name}`", column.meaning + rows, column.unit, column.absent or "never")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
