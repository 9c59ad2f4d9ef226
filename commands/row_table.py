"""Rows as a table for Excel and pandas: ``main.py --csv``, and a frame of a file of rows."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from commands.locked_file import LockedFile, Tidied
from commands.row_file import better, is_complete, latest, read_rows
from commands.row_schema import ROW_SCHEMA, SETTINGS
from lipschitz.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

# What a reader looks for comes first; of no use in a table are versions and tracebacks.
_FIRST = ("example", "label", "status", "upper_bound", "lower_bound", "radius", "seconds")
_LEFT_OUT = ("schema", "versions", "traceback")
COLUMNS = (
    *_FIRST,
    *(name for name in ROW_SCHEMA if name not in (*_FIRST, *_LEFT_OUT, *SETTINGS)),
    *SETTINGS,
)
_KEY = tuple(COLUMNS.index(name) for name in ("example", *SETTINGS))
_STATUS = COLUMNS.index("status")


class RowTable(LockedFile):
    """The file of ``--csv``: a line per example, a context manager.

    The columns are :data:`COLUMNS`, whatever was asked; what a row lacks is empty, true and false
    are words, lists and names with values are JSON text.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__("--csv", path)
        self._lines: dict[tuple[str, ...], dict[str, Any]] = {}

    def __enter__(self) -> RowTable:
        """Lock, tidy, write the header if it is not there."""
        super().__enter__()
        try:
            if not self.content():
                self.write_line(_line(COLUMNS))
        except BaseException:
            self.close()
            raise
        return self

    def tidy(self, content: bytes) -> Tidied:
        """The header and the latest line of every example and setting."""
        self._lines = {}
        if not content:
            return Tidied(b"", [])
        header = _line(COLUMNS)
        lines = content.splitlines(keepends=True)
        if lines[0] != header and not header.startswith(lines[0]):
            raise InputError(
                f"--csv {self.path} has other columns than rows have; name another file"
            )
        broken = []
        kept: dict[tuple[str, ...], tuple[bytes, dict[str, Any]]] = {}
        for line in lines[1:] if lines[0] == header else []:
            cells = _cells(line)
            if cells is None:
                broken.append(line.rstrip(b"\r\n"))
                continue
            key, row = _key(cells), _decoded(cells)
            before = kept.pop(key, None)
            is_later = before is None or better(before[1], row) is row
            kept[key] = (line, row) if is_later else before
        self._lines = {key: row for key, (_, row) in kept.items()}
        return Tidied(header + b"".join(line for line, _ in kept.values()), broken)

    def done(self, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """The complete lines of these settings, by example, as rows.

        Args:
            settings: Everything that a result depends on besides the example.
        """
        asked = tuple(_cell(settings.get(name)) for name in SETTINGS)
        return {
            row["example"]: row
            for key, row in self._lines.items()
            if key[1:] == asked and is_complete(row)
        }

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether there is a complete line of the row's example and settings."""
        found = self._lines.get(_key([_cell(row.get(name)) for name in COLUMNS]))
        return found is not None and is_complete(found)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append the line of a row; an earlier one of the same question goes.

        Raises:
            OSError: It cannot be written; the lines before it are kept.
        """
        cells = [_cell(row.get(name)) for name in COLUMNS]
        key = _key(cells)
        self.write_line(_line(cells), replaces=key in self._lines)
        self._lines[key] = better(self._lines.get(key), _decoded(cells))


def frame(*paths: str | os.PathLike[str]) -> pd.DataFrame:
    """The rows of files as a pandas frame: one line per example and setting, the latest.

    Names with values become columns of their own, ``search.timeout`` and the like; lists stay
    lists. A column in which every row lacks a value is there, without values.

    Args:
        *paths: Files of ``main.py --output``.

    Raises:
        InputError: A file is missing or is something else, or there is no pandas.
    """
    try:
        import pandas as pd
    except ImportError:
        raise InputError("a frame of rows needs pandas: pip install pandas") from None
    rows = []
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"{path}: there is no such file of rows")
        rows += read_rows(path)
    return pd.json_normalize(latest(rows), max_level=1)


def _cell(value: Any) -> str:
    """A value as it stands in the table; no line ends, so that a line is a line of the file."""
    if value is None:
        return ""
    if isinstance(value, str):
        return " ".join(value.splitlines())
    return json.dumps(value, sort_keys=True, default=lambda other: other.tolist())


def _line(cells: list[str] | tuple[str, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cells(line: bytes) -> list[str] | None:
    """The cells of a whole line, None if it is none."""
    try:
        (cells,) = csv.reader([line.decode()], strict=True)
    except (ValueError, csv.Error):
        return None
    return cells if line.endswith(b"\n") and len(cells) == len(COLUMNS) else None


def _key(cells: list[str]) -> tuple[str, ...]:
    return tuple(cells[place] for place in _KEY)


def _decoded(cells: list[str]) -> dict[str, Any]:
    """A line as a row: numbers, words and what was JSON text."""
    row = {}
    for name, cell in zip(COLUMNS, cells, strict=True):
        try:
            row[name] = None if cell == "" else json.loads(cell)
        except ValueError:
            row[name] = cell
    return row
