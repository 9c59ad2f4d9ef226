"""A live line on stderr for a search, and a file of its bounds over time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tqdm import tqdm

from commands.row_file import append_row
from lipschitz.search.interface import Progress
from utils import significant

Watch = Callable[[Progress], None]


class ProgressBar:
    """Shows upper and lower bound, gap, subdomains per second and open subdomains.

    Args:
        timeout: Seconds the search may take: the length of the bar.
        disable: True: never; None: only on a terminal.
    """

    def __init__(self, timeout: float, disable: bool | None = None) -> None:
        self._bar = tqdm(
            total=timeout,
            desc="bab",
            file=sys.stderr,
            leave=False,
            disable=disable,
            bar_format="{desc} {n:.0f}/{total:.0f}s |{bar:10}| {postfix}",
        )

    def __call__(self, state: Progress) -> None:
        """Take in the state of the search."""
        self._bar.n = min(state.seconds, self._bar.total)
        gap = state.upper_bound / state.lower_bound - 1 if state.lower_bound > 0 else float("inf")
        rate = state.domains / max(state.seconds, 1e-9)
        self._bar.set_postfix_str(
            f"upper {significant(state.upper_bound)} lower {significant(state.lower_bound)} "
            f"gap {gap:.2%} "
            f"domains {state.domains} ({rate:.0f}/s) open {state.open_domains}",
            refresh=False,
        )
        self._bar.update(0)

    def close(self) -> None:
        """Remove the line."""
        self._bar.close()


def trace_to(path: str | os.PathLike[str], example: int | None = None) -> Watch:
    """A watcher that appends a row whenever a bound has changed or a second has passed.

    Where the file cannot be written, say on a full disk, it ends with a warning and the search
    goes on.

    Args:
        path: JSON-lines file.
        example: Number of the example, for the rows.
    """
    last: Progress | None = None
    ended = False

    def watch(state: Progress) -> None:
        nonlocal last, ended
        if ended:
            return
        changed = last is None or (state.upper_bound, state.lower_bound) != (
            last.upper_bound,
            last.lower_bound,
        )
        if (
            last is None
            or state.finished
            or (changed and state.seconds - last.seconds > 0.02)
            or (state.seconds - last.seconds > 1)
        ):
            row = {"example": example, **vars(state)}
            try:
                append_row(path, row)
            except OSError as error:
                ended = True
                where = f"of example {example} " if example is not None else ""
                tqdm.write(
                    f"warning: --trace {path}: {error.strerror}; the trace {where}ends here",
                    file=sys.stderr,
                )
            last = state

    return watch
