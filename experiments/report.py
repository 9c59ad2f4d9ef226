"""Turns the rows that main.py wrote into a table and a picture.

Example: python experiments/report.py output/quickstart/*.jsonl --output output/quickstart
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import InputError, Parser, read_rows, run_cli

# Okabe and Ito's palette, distinct to colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP"


def load_rows(paths: list[str]) -> pd.DataFrame:
    """All rows of all files, one line per example and setting, the last one written winning.

    Raises:
        InputError: A file is missing or there is no row at all.
    """
    rows = []
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such file of rows; main.py --output makes one")
        rows += read_rows(path)
    if not rows:
        raise InputError("the files hold no rows: run main.py with --output first")
    table = pd.DataFrame(rows)
    arguments = table["model_params"].map(
        lambda params: ", ".join(f"{k}={v}" for k, v in (params or {}).items())
    )
    table["upper_bound"] = pd.to_numeric(table["upper_bound"])
    table["network"] = table["model"] + "(" + arguments + ")"
    key = ["data", "network", "weights", "method", "engine", "eps", "example", "optimize"]
    return table.drop_duplicates(key, keep="last")


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean bounds per network, method and radius.

    Returns:
        One line per group: network, method, eps (pixels), number of examples, mean upper and
        lower bound (per unit of normalised input), their ratio, how many are exact, mean seconds.
    """
    groups = rows.groupby(["data", "network", "method", "eps"], sort=True)
    table = groups.agg(
        examples=("example", "size"),
        upper_bound=("upper_bound", "mean"),
        lower_bound=("lower_bound", "mean"),
        exact=("status", lambda s: int((s == "exact").sum())),
        seconds=("seconds", "mean"),
    ).reset_index()
    table.insert(7, "ratio", table["upper_bound"] / table["lower_bound"])
    return table


def to_markdown(table: pd.DataFrame) -> str:
    """The summary as a Markdown table; a dash where a method certifies no upper bound."""
    numbers = {"upper_bound": ".3f", "lower_bound": ".3f", "ratio": ".3f", "seconds": ".2f"}
    columns = list(table.columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for _, row in table.iterrows():
        cells = ["-" if pd.isna(row[c]) else format(row[c], numbers.get(c, "")) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Bound against eps, a panel per network: certified upper bound, true-gradient lower bound."""
    networks = list(dict.fromkeys(table["network"]))
    figure, axes = _figure(len(networks))
    for axis, network in zip(axes, networks, strict=True):
        panel = table[table["network"] == network]
        certified = panel.dropna(subset="upper_bound")
        for number, (method, lines) in enumerate(certified.groupby("method")):
            style = {
                "color": _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
            }
            axis.plot(lines["eps"], lines["upper_bound"], label=f"{method}: upper bound", **style)
        lower = panel.groupby("eps")["lower_bound"].max()
        axis.plot(
            lower.index, lower, color="black", linestyle="--", marker="x", label="true gradients"
        )
        axis.set_title(network, fontsize=10)
        axis.set_xlabel("eps (pixels)")
        axis.set_ylim(0, 1.08 * panel[["upper_bound", "lower_bound"]].max().max())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("Linf local Lipschitz constant (mean)")
    _save(figure, path)


def draw_traces(paths: list[str], output: Path) -> None:
    """Certified bounds over the seconds of a search: a colour per file and example.

    Args:
        paths: Files of ``main.py --trace``.
        output: Picture to write.

    Raises:
        InputError: A file is missing, or none holds a row.
    """
    traces = []
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such trace; main.py --bab --trace makes one")
        rows = read_rows(path)
        if rows:
            table = pd.DataFrame(rows)
            table["example"] = table["example"].fillna(0).astype(int)
            groups = list(table.groupby("example"))
            several = len(groups) > 1
            traces += [(Path(path).stem + f", example {n}" * several, t) for n, t in groups]
    if not traces:
        raise InputError("the traces hold no rows: run main.py --bab with --trace first")
    figure, axis = _figure(1)
    for number, (name, table) in enumerate(traces):
        style = {"color": _COLOURS[number % len(_COLOURS)], "where": "post"}
        axis[0].step(table["seconds"], table["upper_bound"], label=name, **style)
        axis[0].step(table["seconds"], table["lower_bound"], linestyle="--", **style)
    axis[0].set_xlabel("seconds")
    axis[0].set_ylabel("upper bound (dashed: lower)")
    axis[0].set_xscale("symlog", linthresh=0.1)
    axis[0].grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8)
    _save(figure, output)


def _figure(panels: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, panels, figsize=(4.6 * panels, 3.6), squeeze=False, layout="constrained"
    )
    return figure, axes[0]


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Reads rows, prints the table, saves table.md, table.csv and bounds.png; draws traces."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROWS.jsonl", help="files of main.py --output")
    parser.add_argument("--trace", nargs="+", metavar="T.jsonl", help="files of main.py --trace")
    parser.add_argument("--output", default="output", help="folder (default output)")
    args = parser.parse_args(argv)
    folder = Path(args.output)
    if not args.rows and not args.trace:
        parser.error("no files: give rows of main.py --output, or --trace and its files")
    if args.trace:
        draw_traces(args.trace, folder / "trace.png")
        print(f"saved {folder / 'trace.png'}")
    if not args.rows:
        return 0
    table = summarise(load_rows(args.rows))
    folder.mkdir(parents=True, exist_ok=True)
    markdown = to_markdown(table)
    (folder / "table.md").write_text(markdown + "\n")
    table.to_csv(folder / "table.csv", index=False)
    draw(table, folder / "bounds.png")
    print(markdown)
    print(f"saved {folder / 'table.md'}, {folder / 'table.csv'}, {folder / 'bounds.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
