"""The Markdown and the picture of a scoreboard."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path

from benchmarks.others.verdicts import LATE, NEAR, Summary, Verdict
from utils import versions

STEM = "others"
_SIDE = 2.3  # inches of a panel
_SHORT = 30  # an axis whose end is below this times its beginning has ticks within its decades


def markdown(
    groups: dict[str, list[Verdict]],
    summaries: dict[str, Summary],
    methods: Sequence[str],
    published: Sequence[str],
    how: str,
) -> str:
    """The tables of all sets, their means, and what is wrong.

    Args:
        groups: Set -> its boxes.
        summaries: Set -> what they say together.
        methods: Columns.
        published: Lines about published values.
        how: Time limit and the like, one line.
    """
    lines = [how, ""]
    for group, verdicts in groups.items():
        lines += [f"## {group}", "", *_table(verdicts, methods), ""]
        lines += [f"- {line}" for line in summary_lines(summaries[group])] + [""]
    if published:
        lines += ["## published values", "", *[f"- {line}" for line in published], ""]
    lines += ["## what is wrong", ""]
    lines += [f"- {line}" for line in wrong_lines(groups)] or ["Nothing was found."]
    known = versions()
    lines += ["", f"{platform.machine()}, torch {known['torch']}, python {known['python']}"]
    return "\n".join(lines) + "\n"


def summary_lines(summary: Summary) -> list[str]:
    """A set in words."""
    mean = "none" if summary.mean is None else f"{summary.mean:.4g}"
    lines = [
        f"geometric mean of the best ratio: {mean} ({summary.compared} of {summary.boxes} boxes "
        "have a bound and a gradient)",
        f"exact: {summary.exact} of {summary.boxes}; within {NEAR:g}: {summary.near}",
    ]
    alone = [f"{m} {mean:.4g} ({n})" for m, (mean, n) in summary.means.items()]
    return lines + ([f"alone (boxes): {', '.join(alone)}"] if alone else [])


def wrong_lines(groups: dict[str, list[Verdict]]) -> list[str]:
    """Everything that is wrong or late, a line each, unsound bounds first."""
    found = [f"{v.title}: {w}" for verdicts in groups.values() for v in verdicts for w in v.wrong]
    found.sort(key=lambda line: "UNSOUND" not in line)
    for verdicts in groups.values():
        for v in verdicts:
            for method in v.late:
                row = v.rows[method]
                found.append(
                    f"{v.title}: {method} took {row.seconds:.3g} s, more than {LATE:g} times "
                    f"its {row.timeout:g} s"
                )
    return found


def _table(verdicts: Sequence[Verdict], methods: Sequence[str]) -> list[str]:
    heads = ["network", "eps", "true (attack)", *methods, "best / true"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for v in verdicts:
        ratio = v.ratio(v.best)
        best = "no bound" if v.best is None else "no gradient" if ratio is None else _number(ratio)
        truth = f"{v.truth:.6g} ({v.attack:.6g})"
        cells = [v.network, v.eps, truth, *(_cell(v, m) for m in methods)]
        lines.append("| " + " | ".join([*cells, f"**{best}**" if v.exact else best]) + " |")
    return [*lines, "", "Cells: upper bound / true, seconds; bold: exact."]


def _cell(v: Verdict, method: str) -> str:
    row = v.rows.get(method)
    if row is None:
        return ""
    if row.upper is None:
        return row.status
    ratio = v.ratio(method)
    shown = f"{row.upper:.5g} / 0" if ratio is None else _number(ratio)
    seconds = "" if row.seconds is None else f", {row.seconds:.2g} s"
    return f"**{shown}**{seconds}" if row.status == "exact" else f"{shown}{seconds}"


def _number(ratio: float) -> str:
    return f"{ratio:.4f}" if ratio < 10 else f"{ratio:.4g}"


def draw(verdicts: Sequence[Verdict], methods: Sequence[str], path: Path) -> None:
    """Ratio against seconds, a panel a network, a line a radius.

    Args:
        verdicts: Of all sets.
        methods: Colours, in this order.
        path: The picture.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    from experiments.figures import COLOURS, MARKERS

    names = list(dict.fromkeys(v.network for v in verdicts))
    columns = min(8, max(1, math.ceil(math.sqrt(len(names)))))
    lines = -(-len(names) // columns)
    size = (_SIDE * columns, _SIDE * lines + 0.8)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False)
    styles = {
        method: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, method in enumerate(methods)
    }
    for axis, name in zip(grid.flat, names, strict=False):
        for v in (v for v in verdicts if v.network == name):
            points = [
                (max(v.rows[m].seconds or 0, 1e-3), ratio, m)
                for m in methods
                if (ratio := v.ratio(m)) is not None
            ]
            if not points:
                continue
            axis.plot([p[0] for p in points], [p[1] for p in points], color="0.8", linewidth=0.8)
            axis.annotate(f"{v.eps}", (points[0][0], points[0][1]), fontsize=6, color="0.4")
            for seconds, ratio, method in points:
                axis.plot(seconds, ratio, markersize=4, linestyle="", **styles[method])
        axis.set_title(name, fontsize=7)
        axis.set(xscale="log", yscale="log")
        axis.axhline(1, color="black", linewidth=0.6, linestyle=":")
        axis.tick_params(labelsize=6)
        for line, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            line.set_minor_formatter(NullFormatter())
            if high < _SHORT * low:
                line.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
                line.set_major_formatter("{x:g}")
    for axis in list(grid.flat)[len(names) :]:
        axis.axis("off")
    figure.supxlabel("seconds", fontsize=8)
    figure.supylabel("upper bound / largest true gradient found", fontsize=8)
    handles = [
        plt.Line2D([], [], linestyle="", label=method, **style) for method, style in styles.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)
    plt.close(figure)
