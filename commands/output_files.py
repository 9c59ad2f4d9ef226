"""Where a run's rows go: the file of ``--output``, the table of ``--csv``, both or neither."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.row_file import RowFile, say_resumed
from commands.row_table import RowTable
from lipschitz.errors import InputError


class OutputFiles:
    """The open files of a run, made by :func:`open_outputs`.

    Args:
        rows: The file of rows, or None.
        table: The table, or None.
    """

    def __init__(self, rows: RowFile | None, table: RowTable | None) -> None:
        self._rows, self._table = rows, table

    def done(
        self, settings: Mapping[str, Any], examples: Sequence[int]
    ) -> dict[int, dict[str, Any]]:
        """The rows that an earlier run has left, which need not be computed; says how many.

        Rows that the table lacks are added to it.

        Args:
            settings: Everything that a result depends on besides the example.
            examples: Numbers of those asked for.
        """
        first = self._rows if self._rows is not None else self._table
        if first is None:
            return {}
        known = first.done(settings)
        found = {example: known[example] for example in examples if example in known}
        say_resumed(first.path, len(found), len(examples))
        if self._rows is not None and self._table is not None:
            for row in found.values():
                if not self._table.has(row):
                    self._table.append(row)
        return found

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row to the files there are.

        Raises:
            OSError: It cannot be written; what was there before is kept.
        """
        for file in (self._rows, self._table):
            if file is not None:
                file.append(row)


@contextlib.contextmanager
def open_outputs(output: str | None, csv: str | None) -> Iterator[OutputFiles]:
    """Lock and open the files of a run.

    Args:
        output: The file of rows, ``--output``.
        csv: The table, ``--csv``.

    Raises:
        InputError: Another run has one of them, it is a folder, holds something else, or both are
            one.
    """
    if output and csv and Path(output).resolve() == Path(csv).resolve():
        raise InputError(f"--output and --csv are both {os.fspath(output)}: name two files")
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(RowFile(output)) if output else None
        table = stack.enter_context(RowTable(csv)) if csv else None
        yield OutputFiles(rows, table)
