"""Rows of main.py and notes on what has no row, as one table of means.

Rows that :mod:`experiments.parallel` collected bear the names of their method and network; for
those that main.py wrote by itself the names are made from its settings.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from commands.row_file import latest, read_rows
from experiments.units import Units, units_of
from lipschitz.errors import InputError
from lipschitz.words import ERROR

# Method -> its name in tables. Those that bound the L2 constant say how it became one of Linf.
_LABELS = {
    "lipsdp": "lipsdp (global L2 x sqrt(D))",
    "eclipse": "eclipse (local L2 x sqrt(D))",
    "bab_paper": "bab (paper's)",
}
# From loose to tight, roughly; methods that are not here come after them.
METHOD_ORDER = (
    "global",
    "lipsdp (global L2 x sqrt(D))",
    "eclipse (local L2 x sqrt(D))",
    "ibp",
    "fastlip",
    "recurjac",
    "crown",
    "alpha",
    "sdp",
    "lipmip",
    "lipbab",
    "bab (paper's)",
    "bab",
    "sampling",
)
GROUP = ["data", "network", "method", "eps"]
_NAMED_SIZE = re.compile(r"(?P<family>.*\b(?P<axis>width|depth))[ =](?P<size>\d+)(?P<rest>.*)")
# Settings that tell two results of one example apart, where rows do not name their run.
_SETTINGS = ["weights", "engine", "optimize"]


@dataclass(frozen=True)
class Results:
    """Everything that a report is made of.

    Attributes:
        means: A line per network, method and radius, see :func:`summarise`.
        reasons: Data, network, method, radius and why some or all examples have no row.
        signs: Rows of monotonicity runs.
        machines: What the rows were computed on.
        versions: Package -> versions seen.
        units: Name of the data and units, of every row of bounds.
    """

    means: pd.DataFrame
    reasons: list[tuple[str, str, str, float, str]]
    signs: list[dict[str, Any]]
    machines: list[str]
    versions: dict[str, list[str]]
    units: list[tuple[str, Units]]


def read_results(paths: list[str], only: set[str] | None = None) -> Results:
    """All rows of all files; the notes beside each file of rows.

    Args:
        paths: Files of rows; ``notes.jsonl`` in the same folder is read too.
        only: Names of the jobs whose rows and notes are meant, None for all.

    Raises:
        InputError: A file is missing, or there is no row.
    """
    rows, notes = [], []
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"{path}: there is no such file of rows; main.py --output makes one")
        rows += read_rows(path)
        notes += read_rows(path.with_name("notes.jsonl"))
    if only is not None:
        rows = [row for row in rows if row.get("job") in only]
        notes = [note for note in notes if note["job"] in only]
    if not rows:
        raise InputError("the files hold no rows: run main.py with --output first")
    signs = [row for row in rows if "signs" in row]
    # Certified radii are no bounds.
    bounds = latest(row for row in rows if "signs" not in row and not row.get("certify"))
    done = {row.get("job") for row in rows}
    notes = [note for note in notes if note["job"] not in done]
    table = named(bounds)
    failed = table[table["status"] == ERROR] if len(table) else table
    table = table.drop(failed.index)
    versions: dict[str, list[str]] = {}
    for row in rows:
        for package, version in (row.get("versions") or {}).items():
            seen = versions.setdefault(package, [])
            if version is not None and version not in seen:
                seen.append(version)
    machines = dict.fromkeys(row["machine"] for row in rows if row.get("machine"))
    reasons = list(dict.fromkeys([*_reasons(notes, table), *_errors(failed)]))
    means = with_dashes(summarise(table), reasons)
    units = [(data_name(row["data"]), units_of(row)) for row in bounds]
    return Results(means, reasons, signs, list(machines), versions, units)


def data_name(source: str) -> str:
    """The name of a data set, or that of a file without its ending and the hash of its content."""
    name, is_file, _ = str(source).rpartition(":")
    return name.rpartition(".")[0] or name if is_file else str(source)


def radius_of(eps: Any) -> float:
    """A radius as a number, NaN where there is none or not one for all inputs."""
    try:
        return float(Fraction(eps)) if isinstance(eps, str) else float(eps)
    except (TypeError, ValueError):
        return math.nan


def radius_text(eps: float) -> str:
    """A radius for a table or a title, '' where there is none."""
    return "" if math.isnan(eps) else f"eps {eps:.4g}"


def _measure_of(row: dict[str, Any]) -> str:
    """What tells a constant from the Linf constant of all inputs; nothing for that one."""
    norm, said = row.get("norm"), ""
    if norm in ("1", "2"):
        said = f", L{norm} of {row['outputs']}"
    return said + (", free inputs" if row.get("inputs") == "free" else "")


def named(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One line per example and setting, the last one written winning, with the names of tables."""
    table = pd.DataFrame(rows, columns=sorted({key for row in rows for key in row}) or GROUP)
    if table.empty:
        return table
    for column in ("run", "network", "job"):
        if column not in table:
            table[column] = None
    table["data"] = table["data"].map(data_name)
    for column in ("upper_bound", "lower_bound"):  # rows of errors have none
        table[column] = pd.to_numeric(table[column]) if column in table else math.nan
    made = table["model"] + "(" + table["model_params"].map(_arguments) + ")"
    table["network"] = table["network"].where(table["network"].notna(), made)
    table["network"] += [
        f", eps {eps}" if isinstance(eps, str) and math.isnan(radius_of(eps)) else ""
        for eps in table["eps"]
    ]
    table["eps"] = table["eps"].map(radius_of)
    engines = table.groupby("method")["engine"].transform("nunique")
    method = table["method"].where(engines == 1, table["method"] + " on " + table["engine"])
    table["method"] = table["run"].where(table["run"].notna(), method).map(label)
    # Constants of different norms are different quantities.
    table["method"] += [_measure_of(row) for row in table.to_dict("records")]
    return table.drop_duplicates([*GROUP, "example", *_SETTINGS], keep="last")


def label(run: str) -> str:
    """The name of a method in tables and figures."""
    return _LABELS.get(run, run)


def _arguments(params: dict[str, Any] | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in (params or {}).items())


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the examples of each network, method and radius, in the rows' order.

    Returns:
        Columns: data, network, method, eps (NaN for boxes given by their ends), examples, mean
        upper and lower bound, their ratio, how many are exact, how many were stopped by a limit of
        time or of subdomains, mean seconds. The units are those of :mod:`experiments.units`.
    """
    if rows.empty:
        return pd.DataFrame(columns=[*GROUP, *_MEANS])
    table = rows.groupby(GROUP, sort=False, dropna=False).agg(**_MEANS_OF).reset_index()
    table.insert(7, "ratio", table["upper_bound"] / table["lower_bound"])
    return _in_order(table)


def _count(*words: str) -> Any:
    return lambda status: int(status.isin(words).sum())


_MEANS_OF = {
    "examples": ("example", "size"),
    "upper_bound": ("upper_bound", lambda bounds: bounds.mean(skipna=False)),
    "lower_bound": ("lower_bound", "mean"),
    "exact": ("status", _count("exact")),
    "timeouts": ("status", _count("timeout", "domain_limit", "interrupted")),
    "seconds": ("seconds", "mean"),
}
_MEANS = ["examples", "upper_bound", "lower_bound", "ratio", "exact", "timeouts", "seconds"]


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Networks as they first came, narrow ones first, radii growing, methods from loose to tight.

    Workers finish in any order; a table must not depend on it.
    """
    networks = dict.fromkeys(table["network"])
    families = list(dict.fromkeys((size_of(network) or (network,))[0] for network in networks))

    def place(network: str) -> tuple[int, int]:
        family, _, size = size_of(network) or (network, "", 0)
        return families.index(family), size

    methods = [method for method in METHOD_ORDER if method in set(table["method"])]
    methods += [m for m in dict.fromkeys(table["method"]) if m not in METHOD_ORDER]
    keys = [
        (*place(network), math.isnan(eps), eps, methods.index(method))
        for network, eps, method in table[["network", "eps", "method"]].itertuples(index=False)
    ]
    order = sorted(range(len(table)), key=keys.__getitem__)
    return table.iloc[order].reset_index(drop=True)


def _reasons(
    notes: list[dict[str, Any]], rows: pd.DataFrame
) -> list[tuple[str, str, str, float, str]]:
    """Why there is no row, once per network, method, radius and reason."""
    data_of = {} if rows.empty else dict(zip(rows["network"], rows["data"], strict=True))
    reasons = []
    for note in notes:
        if note.get("eps") is not None:
            eps = radius_of(note["eps"])
            data = data_of.get(note["network"], "-")
            reasons.append((data, note["network"], label(note["run"]), eps, note["reason"]))
    return list(dict.fromkeys(reasons))


def _errors(failed: pd.DataFrame) -> list[tuple[str, str, str, float, str]]:
    """Why examples of main.py's own rows have no bounds."""
    if failed.empty:
        return []
    return [
        (*key, f"example {example}: {error}")
        for *key, example, error in failed[[*GROUP, "example", "error"]].itertuples(index=False)
    ]


def with_dashes(
    means: pd.DataFrame, reasons: list[tuple[str, str, str, float, str]]
) -> pd.DataFrame:
    """The means with a line of nothing for each method that did not run on a network."""
    # By the radius's text, since NaN is not equal to itself.
    have = {(*line[:3], radius_text(line[3])) for line in means[GROUP].itertuples(index=False)}
    lacking = {(*reason[:3], radius_text(reason[3])): reason[:4] for reason in reasons}
    lacking = [reason for key, reason in lacking.items() if key not in have]
    if not lacking:
        return means
    dashes = pd.DataFrame(lacking, columns=GROUP)
    dashes = dashes.assign(examples=0).reindex(columns=means.columns)
    return _in_order(pd.concat([means, dashes], ignore_index=True) if len(means) else dashes)


def size_of(network: str) -> tuple[str, str, int] | None:
    """Family, axis (width or depth) and size in a network's name, None if it has none.

    Example: 'MLP, width 32' is ('MLP, width', 'width', 32).
    """
    match = _NAMED_SIZE.fullmatch(network)
    if match is None:
        return None
    return match["family"] + match["rest"], match["axis"], int(match["size"])
