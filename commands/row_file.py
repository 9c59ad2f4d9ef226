"""Rows of results, a line of JSON each: a run's file of them, and plain readers and writers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from commands.locked_file import LockedFile, Tidied, append_line
from commands.row_schema import identity
from lipschitz.errors import InputError
from lipschitz.words import ERROR, INTERRUPTED

# Which of two rows of one example is kept: the one of larger worth. Any other status is complete.
_WORTH = {ERROR: 0, INTERRUPTED: 1}
_COMPLETE = 2


class RowFile(LockedFile):
    """The file of rows of one run of ``main.py``, a context manager.

    Args:
        path: The file of ``--output``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__("--output", path)
        self._rows: dict[str, dict[str, Any]] = {}

    def tidy(self, content: bytes) -> Tidied:
        """The lines of the latest rows."""
        lines, broken = _parsed(content, self.path)
        self._rows = {identity(row): row for row in latest(row for _, row in lines)}
        kept = {id(row) for row in self._rows.values()}
        whole = [line + b"\n" for line, row in lines if id(row) in kept]
        return Tidied(b"".join(whole), broken)

    def done(self, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """The complete rows of these settings, by example.

        Args:
            settings: Everything that a result depends on besides the example.
        """
        settings = json.loads(_dumped(settings))  # as a row gives them back
        return {
            row["example"]: row
            for row in self._rows.values()
            if is_complete(row)
            and "example" in row
            and all(row.get(name) == value for name, value in settings.items())
        }

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row and force it to disk; an earlier one of the same question goes.

        Args:
            row: Values of JSON types, numpy or torch scalars and arrays.

        Raises:
            OSError: It cannot be written; the rows before it are kept.
            ValueError: A number is NaN or infinite.
        """
        line = encoded(row)
        row = json.loads(line)
        key = identity(row)
        self.write_line(line, replaces=key in self._rows)
        self._rows[key] = better(self._rows.get(key), row)


def encoded(row: Mapping[str, Any]) -> bytes:
    """A row as a line.

    Raises:
        ValueError: A number is NaN or infinite, which JSON cannot hold and no result may be.
    """
    return _dumped(row).encode() + b"\n"


def _dumped(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, default=lambda value: value.tolist())


def append_row(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Append one row to a file that needs no lock, and force it to disk.

    Args:
        path: The rows' file; it and its folders are made if missing.
        row: Values of JSON types, numpy or torch scalars and arrays.

    Raises:
        OSError: It cannot be written; the file is as before.
        ValueError: A number is NaN or infinite.
    """
    append_line(path, encoded(row))


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows of a file in their order; [] if there is no such file yet.

    A row that was cut off by a crash is left out.

    Raises:
        InputError: A line is no row at all: the file is something else.
    """
    path = Path(path)
    if not path.exists():
        return []
    if not path.is_file():
        raise InputError(f"{path} is not a regular file: it cannot be read for rows")
    lines, _ = _parsed(path.read_bytes(), path)
    return [row for _, row in lines]


def latest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those that a later row of the same question replaces.

    A complete row is not replaced by an interrupted one, nor that by an error.
    """
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = identity(row)
        best[key] = better(best.pop(key, None), row)
    return list(best.values())


def better(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, Any]:
    """Which of two rows of the same question counts."""
    return after if before is None or _worth(after) >= _worth(before) else before


def is_complete(row: Mapping[str, Any]) -> bool:
    """Whether a resumed run need not compute the row again."""
    return _worth(row) == _COMPLETE


def say_resumed(path: Path, there: int, asked: int) -> None:
    """Say on stderr what a resumed run finds."""
    if there == asked:
        which = "the row of the example" if asked == 1 else f"the rows of all {asked} examples"
        print(f"{path} has {which} already: nothing to compute", file=sys.stderr)
    elif there:
        print(f"{path} has {there} of {asked} examples already", file=sys.stderr)


def _worth(row: Mapping[str, Any]) -> int:
    return _WORTH.get(row.get("status"), _COMPLETE)


def _parsed(content: bytes, path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[bytes]]:
    """Lines with their rows, and broken lines.

    Raises:
        InputError: A line is no row at all.
    """
    lines, broken = [], []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            lines.append((line, row))
        elif line.startswith(b"{") or b"\0" in line:  # zeros: of a machine that lost its power
            broken.append(line)
        elif line.strip():
            raise InputError(f"{path} line {number} is not a result row; name another output file")
    return lines, broken
