"""Printing and saving what a benchmark measured."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import versions

RESULTS = Path(__file__).resolve().parent / "results"


def seconds_of(job: Callable[[], object], repeats: int = 3) -> float:
    """Median wall-clock seconds of a job, after one run that is not counted."""
    job()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        job()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def publish(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table and save it with the machine it was measured on.

    Args:
        name: File name without suffix, under benchmarks/results.
        columns: Column heads, units included.
        rows: Cells; numbers are shown with four significant digits.
    """
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    known = versions()
    lines += ["", f"{platform.machine()}, torch {known['torch']}, python {known['python']}"]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
