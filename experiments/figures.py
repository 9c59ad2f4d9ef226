"""Pictures of the means and of the course of searches, as PNG and PDF.

A method has the same colour, marker and line in every picture; the palette is Okabe and Ito's,
distinct to colour-blind readers too, and no two methods share a marker.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from commands.row_file import read_rows
from experiments.rows import METHOD_ORDER, label, radius_text, size_of
from lipschitz.errors import InputError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "h", "p", "*", "d", "8", "H")
_LINES = ("-", "--", "-.")
_MOST_COLUMNS, _PANEL, _MOST_TICKS = 3, (3.9, 3.1), 8
_WIDE = 5  # an axis whose largest value is above this times its smallest is logarithmic
_BOUND = "local Lipschitz constant\n(per unit of the network's input)"
_TRUE = {
    "color": "black",
    "linestyle": ":",
    "marker": ".",
    "label": "true gradients (below)",
    "zorder": 1,
}


def styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each method is drawn: colours change first, then kinds of line."""
    places = {method: place for place, method in enumerate(METHOD_ORDER)}
    chosen = {}
    for method in methods:
        place = places.setdefault(method, len(places))
        chosen[method] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": _LINES[place // len(COLOURS) % len(_LINES)],
            "markersize": 5,
            "linewidth": 1.3,
        }
    return chosen


def draw_radii(means: pd.DataFrame, path: Path, unit: str = "") -> None:
    """Mean upper bound against eps, a panel per network, true gradients below.

    Boxes that have no radius are left out where others have one, else drawn as bars.

    Args:
        means: As :func:`experiments.rows.summarise`.
        path: Picture to write, without suffix.
        unit: What eps is in.
    """

    def draw(axis: Any, panel: pd.DataFrame) -> None:
        _lines(axis, panel, "eps", "upper_bound")
        _true_gradients(axis, panel, "eps")
        _ticks_at(axis, sorted(panel["eps"].unique()))

    if means["eps"].notna().any():
        means = means[means["eps"].notna()]
    if means["eps"].nunique() > 1:
        what = f"eps ({unit})" if unit else "eps"
        _draw_panels(means, "network", draw, path, what, _BOUND)
        return
    radius = radius_text(means["eps"].iloc[0])
    what = _BOUND.replace("\n", " ") + (f", {radius}" if radius else "")
    _draw_panels(means, "network", _bars, path, what, "")


def draw_sizes(means: pd.DataFrame, folder: Path) -> list[Path]:
    """Mean upper bound and mean seconds against width or depth, a panel per radius.

    Args:
        means: As :func:`experiments.rows.summarise`.
        folder: Gets ``bounds_by_width`` and ``seconds_by_width``, or ``depth``, for the families
            of at least two networks.

    Returns:
        The pictures drawn, without suffix.
    """
    sizes = [size_of(network) or (None, None, 0) for network in means["network"]]
    sized = means.assign(
        family=[family for family, _, _ in sizes],
        axis=[axis for _, axis, _ in sizes],
        size=[size for _, _, size in sizes],
    )
    drawn = []
    for axis_name in ("width", "depth"):
        chosen = sized[sized["axis"] == axis_name]
        chosen = chosen[chosen.groupby("family")["size"].transform("nunique") > 1]
        if chosen.empty:
            continue
        several = chosen["family"].nunique() > 1
        chosen = chosen.assign(
            panel=[
                " ".join(filter(None, (family if several else "", radius_text(eps)))) or family
                for family, eps in zip(chosen["family"], chosen["eps"], strict=True)
            ]
        )
        for value, what in (("upper_bound", _BOUND), ("seconds", "seconds per example (mean)")):
            path = folder / f"{'bounds' if value == 'upper_bound' else value}_by_{axis_name}"
            bounds = value == "upper_bound"

            def draw(axis: Any, panel: pd.DataFrame, value=value, bounds=bounds) -> None:
                _lines(axis, panel, "size", value)
                if bounds:
                    _true_gradients(axis, panel, "size")
                if panel["size"].max() >= 8 * panel["size"].min():
                    axis.set_xscale("log", base=2)
                _ticks_at(axis, sorted(panel["size"].unique()))

            _draw_panels(chosen, "panel", draw, path, axis_name, what)
            drawn.append(path)
    return drawn


def draw_traces(paths: Sequence[str], output: Path) -> None:
    """Certified bounds over the seconds of a search, a panel per instance.

    Traces whose names are equal up to ``@`` are of one instance and share a panel; what follows it
    is the method. Without ``@`` the file's name is both.

    Args:
        paths: Files of ``main.py --trace``.
        output: Picture to write; a PDF is saved beside a PNG.

    Raises:
        InputError: A file is missing, or none holds a row.
    """
    panels: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such trace; main.py --bab --trace makes one")
        rows = read_rows(path)
        if rows:
            table = pd.DataFrame(rows)
            table["example"] = table["example"].fillna(0).astype(int)
            groups = list(table.groupby("example"))
            instance, is_named, method = Path(path).stem.partition("@")
            for number, course in groups:
                name = label(method) if is_named else instance
                name += f", example {number}" if len(groups) > 1 else ""
                panels.setdefault(instance if is_named else "", []).append((name, course))
    if not panels:
        raise InputError("the traces hold no rows: run main.py --bab with --trace first")
    figure, axes = _figure(len(panels))
    names = list(dict.fromkeys(name for traces in panels.values() for name, _ in traces))
    chosen = styles(names)
    for axis, (instance, traces) in zip(axes, panels.items(), strict=False):
        for name, course in traces:
            colour = chosen[name]["color"]
            axis.step(
                course["seconds"], course["upper_bound"], color=colour, where="post", label=name
            )
            axis.step(
                course["seconds"], course["lower_bound"], color=colour, where="post", linestyle="--"
            )
        axis.set_title(textwrap.fill(instance.replace("_", " ").replace(":", "/"), 44), fontsize=9)
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    _label(figure, axes, "seconds", "upper bound (dashed: lower bound)")
    _save(figure, output)


def _lines(axis: Any, panel: pd.DataFrame, x: str, y: str) -> None:
    """A line per method; filled markers where the bound is exact on all examples."""
    known = panel.dropna(subset=y)
    chosen = styles(dict.fromkeys(panel["method"]))
    for method, lines in known.groupby("method", sort=False):
        lines = lines.sort_values(x)
        axis.plot(lines[x], lines[y], label=method, **chosen[method], markerfacecolor="white")
        if y == "upper_bound":
            exact = lines[lines["exact"] == lines["examples"]]
            filled = {**chosen[method], "linestyle": "none"}
            axis.plot(exact[x], exact[y], **filled)
    if y == "upper_bound":
        axis.plot([], [], "o", color="gray", label="filled: exact on all examples")
    if (known[y] > 0).all() and known[y].max() > _WIDE * known[y].min():
        axis.set_yscale("log")
        _plain_numbers(axis.yaxis, axis.get_ylim())


def _bars(axis: Any, panel: pd.DataFrame) -> None:
    """A bar per method with its mean upper bound, dark if exact; true gradients as a line."""
    known = panel.dropna(subset="upper_bound")
    is_exact = known["exact"] == known["examples"]
    colours = [COLOURS[0] if exact else COLOURS[5] for exact in is_exact]
    bars = axis.barh(known["method"], known["upper_bound"], color=colours)
    axis.bar_label(bars, [f"{bound:.4g}" for bound in known["upper_bound"]], padding=2, fontsize=7)
    axis.plot([], [], "s", color=COLOURS[0], label="exact on all examples")
    axis.axvline(panel["lower_bound"].max(), **{**_TRUE, "marker": None})
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    bounds = known["upper_bound"]
    if (bounds > 0).all() and bounds.max() > _WIDE * bounds.min():
        axis.set_xscale("log")
        _plain_numbers(axis.xaxis, axis.get_xlim())
    axis.set_xlim(right=axis.get_xlim()[1] * 2)  # room for the numbers


def _true_gradients(axis: Any, panel: pd.DataFrame, x: str) -> None:
    lower = panel.dropna(subset="lower_bound").groupby(x)["lower_bound"].max()
    axis.plot(lower.index, lower, linewidth=1.3, **_TRUE)


def _draw_panels(
    means: pd.DataFrame,
    by: str,
    draw: Callable[[Any, pd.DataFrame], None],
    path: Path,
    x_label: str,
    y_label: str,
) -> None:
    panels = list(dict.fromkeys(means[by]))
    figure, axes = _figure(len(panels))
    for axis, name in zip(axes, panels, strict=False):
        draw(axis, means[means[by] == name])
        axis.set_title(textwrap.fill(name, 44), fontsize=9)
        axis.grid(alpha=0.3)
    _label(figure, axes, x_label, y_label)
    _save(figure, path)


def _plain_numbers(axis: Any, limits: tuple[float, float]) -> None:
    """Plain numbers at 1, 2 and 5 times powers of ten of a logarithmic axis, if few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    is_short = limits[1] < 300 * limits[0]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    if is_short:
        axis.set_minor_locator(NullLocator())


def _ticks_at(axis: Any, values: list[float]) -> None:
    """Name the few values that there are on the x axis."""
    from matplotlib.ticker import NullLocator

    if len(values) <= _MOST_TICKS:
        axis.set_xticks(values, [f"{value:.3g}" for value in values])
        axis.xaxis.set_minor_locator(NullLocator())


def _figure(panels: int) -> tuple[Any, list[Any]]:
    """A figure and its panels, row by row; places without a panel are left empty."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(panels, _MOST_COLUMNS)
    rows = math.ceil(panels / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(_PANEL[0] * columns + 2.2, _PANEL[1] * rows + 0.4),
        squeeze=False,
        layout="constrained",
    )
    flat = list(axes.flat)
    for axis in flat[panels:]:
        axis.set_visible(False)
    return figure, flat[:panels]


def _label(figure: Any, axes: list[Any], x_label: str, y_label: str) -> None:
    """Names of the axes once, and one legend for all panels."""
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    named = {}
    for axis in axes:
        for line, name in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(name, line)
    figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize=8)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=150)
    plt.close(figure)
