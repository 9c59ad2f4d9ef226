"""The means as Markdown, CSV and LaTeX; certified signs as Markdown.

Every table says its units, why there is a dash, and what it was computed on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd

from experiments.rows import Results, label, radius_text
from experiments.units import said
from utils import duration, significant

DASH = "-"
_FORMATS: dict[str, Callable[[float], str]] = {
    "eps": lambda eps: f"{eps:.4g}",
    "examples": lambda count: f"{count:.0f}",
    "upper_bound": significant,
    "lower_bound": significant,
    "ratio": lambda ratio: f"{ratio:.4g}",
    "exact": lambda count: f"{count:.0f}",
    "timeouts": lambda count: f"{count:.0f}",
    "seconds": duration,
}
_COLUMNS = (
    "Means over the examples. Bounds: local Lipschitz constant in Linf, unless the method names "
    "another norm; eps: radius of the box; ratio: upper over lower bound; exact, timeouts: how "
    "many examples (stopped by the limit of time or of subdomains; their bounds hold). "
    "A dash: nothing certified."
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}
_LATEX_PHRASES = {"L2 x sqrt(D)": r"$L_2 \times \sqrt{D}$"}


def cells_of(line: pd.Series) -> list[str]:
    """The cells of a line of means; a dash where there is nothing."""
    cells = []
    for name, value in line.items():
        is_nothing = pd.isna(value) or (name == "examples" and value == 0)
        cells.append(DASH if is_nothing else _FORMATS.get(name, str)(value))
    return cells


def to_markdown(means: pd.DataFrame) -> str:
    """All means as a Markdown table."""
    return _markdown(list(means.columns), [cells_of(line) for _, line in means.iterrows()])


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "|" + "|".join(cells) + "|"
        if cells[0] == "---"
        else "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in lines
    )


def overview(means: pd.DataFrame) -> str:
    """Methods against networks and radii: mean upper bound (mean seconds), as Markdown.

    Bold where all examples are exact, an asterisk where some timed out.
    """
    radii = [radius_text(eps) for eps in means["eps"]]
    cases = list(dict.fromkeys(zip(means["network"], radii, strict=True)))
    methods = list(dict.fromkeys(means["method"]))
    found = {
        (line["network"], radius_text(line["eps"]), line["method"]): _bound_and_seconds(line)
        for _, line in means.iterrows()
    }
    rows = [
        [
            ", ".join(filter(None, (network, radius))),
            *(found.get((network, radius, m), DASH) for m in methods),
        ]
        for network, radius in cases
    ]
    return _markdown(["network", *methods], rows)


def _bound_and_seconds(line: pd.Series) -> str:
    if pd.isna(line["upper_bound"]):
        if pd.isna(line["lower_bound"]):
            return DASH
        return f">= {line['lower_bound']:.4g} ({line['seconds']:.2g} s)"
    bound = f"{line['upper_bound']:.4g}"
    bound = f"**{bound}**" if line["exact"] == line["examples"] else bound
    return f"{bound}{'*' if line['timeouts'] else ''} ({line['seconds']:.2g} s)"


def document(results: Results, title: str | None = None) -> str:
    """The Markdown document: overview, all means, signs, why there are dashes, machine."""
    parts = [f"# {title}"] if title else []
    if len(results.means):
        if results.means["method"].nunique() > 1:
            parts += [
                overview(results.means),
                "Mean upper bound (mean seconds); bold: exact on all examples; *: some timed out; "
                ">=: a lower bound only.",
            ]
        parts += [to_markdown(results.means), legend(results)]
    if results.signs:
        parts += [signs_table(results.signs), SIGNS_UNITS]
    if results.reasons:
        parts.append("Dashes and missing examples:\n\n" + "\n".join(reasons_of(results)))
    parts.append(provenance(results))
    return "\n\n".join(filter(None, parts)) + "\n"


def legend(results: Results) -> str:
    """What the columns are, and in which units."""
    return f"{_COLUMNS} {said(results.units)}"


def reasons_of(results: Results) -> list[str]:
    """A Markdown item per method, network and reason, with the radii it concerns."""
    radii: dict[tuple[str, str, str], list[float]] = {}
    for _, network, method, eps, reason in results.reasons:
        radii.setdefault((method, network, reason), []).append(eps)
    return [
        f"- {method} on {network}{_radii(values)}: {reason}"
        for (method, network, reason), values in radii.items()
    ]


def _radii(values: list[float]) -> str:
    known = sorted({eps for eps in values if eps == eps})
    return f", eps {', '.join(f'{eps:.4g}' for eps in known)}" if known else ""


def provenance(results: Results) -> str:
    """Machines and versions in one line; '' if the rows do not tell."""
    versions = "; ".join(
        f"{package} {', '.join(seen)}" for package, seen in results.versions.items() if seen
    )
    said = [f"Computed on {' and on '.join(results.machines)}."] if results.machines else []
    return " ".join([*said, f"Versions: {versions}." if versions else ""]).strip()


def to_latex(results: Results) -> str:
    """The means as a tabular for booktabs, networks apart; reasons and machine as comments."""
    means = results.means
    columns = [str(name).replace("_", " ") for name in means.columns]
    text = sum(name in ("data", "network", "method") for name in means.columns)
    lines = [f"% {latex_comment(legend(results))}", "% needs \\usepackage{booktabs}"]
    lines += [f"% {latex_comment(reason)}" for reason in reasons_of(results)]
    lines += [f"% {latex_comment(provenance(results))}"]
    lines += [
        r"\begin{tabular}{" + "l" * text + "r" * (len(columns) - text) + "}",
        r"\toprule",
        " & ".join(columns) + r" \\",
    ]
    before = None
    for _, line in means.iterrows():
        if line["network"] != before:
            lines.append(r"\midrule")
            before = line["network"]
        cells = ["--" if cell == DASH else latex(cell) for cell in cells_of(line)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """Text with the characters that mean something to LaTeX escaped."""
    for phrase, formula in _LATEX_PHRASES.items():
        before, found, after = text.partition(phrase)
        if found:
            return latex(before) + formula + latex(after)
    return "".join(_LATEX.get(character, character) for character in text)


def latex_comment(text: str) -> str:
    """Text on one line, so that all of it stays a comment."""
    return " ".join(text.split())


SIGNS_UNITS = (
    "Entries of the Jacobian over each example's box by certified sign: how many, and mean "
    "seconds for one. 'neither' is proved by gradients of both signs, 'undecided' proves nothing."
)


def signs_table(rows: list[dict[str, Any]]) -> str:
    """Verdicts of monotonicity runs by network, method and feature, all features last."""
    from lipschitz.applications.signs import VERDICTS

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["network"], label(row["run"])), []).extend(row["signs"])
    lines = []
    for (network, method), signs in groups.items():
        names = list(dict.fromkeys(sign["name"] for sign in signs))
        for name in [*names, None]:
            chosen = [sign for sign in signs if name in (None, sign["name"])]
            counts = Counter(sign["verdict"] for sign in chosen)
            seconds = sum(sign["seconds"] for sign in chosen) / len(chosen)
            shown = "**all**" if name is None else name
            verdicts = [str(counts[verdict]) for verdict in VERDICTS]
            lines.append([network, method, shown, *verdicts, duration(seconds)])
    return _markdown(["network", "method", "feature", *VERDICTS, "seconds"], lines)
