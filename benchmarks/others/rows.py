"""The CSV file: one row a box and method, appended as they come; a rerun goes on from it."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lipschitz.errors import InputError

ATTACK = "attack"
_AGAIN = ("crashed", "killed")  # what a rerun tries once more


@dataclass(frozen=True)
class Row:
    """What one method gave for one box.

    Attributes:
        set: ``table``, ``wider`` or ``published``.
        network, eps: The box; ``eps`` as it stands in the manifest.
        method: Of the library, or ``attack``.
        timeout: Seconds that it was given.
        upper, lower: Bounds; None where there is none.
        status: The library's, or ``refused``, ``killed``, ``crashed``, ``out of memory``.
        seconds, cpu: Of the clock and of the processor.
        note: Why, in words.
        course: Of the attack: pairs of seconds and norms.
    """

    set: str
    network: str
    eps: str
    method: str
    timeout: float
    upper: float | None = None
    lower: float | None = None
    status: str = ""
    seconds: float | None = None
    cpu: float | None = None
    note: str = ""
    course: tuple[tuple[float, float], ...] = ()

    @property
    def key(self) -> tuple[str, str, str, float]:
        """What tells it from others: a row of the same key is not computed again."""
        return self.network, self.eps, self.method, self.timeout

    def lower_at(self, seconds: float) -> float:
        """The attack's largest norm after so many seconds."""
        return max((norm for at, norm in self.course if at <= seconds), default=0.0)


_NUMBERS = ("timeout", "upper", "lower", "seconds", "cpu")
COLUMNS = tuple(field.name for field in fields(Row))


def row_of(cells: dict[str, Any], **more: Any) -> Row:
    """A row from what a worker says."""
    known = {name: cells[name] for name in COLUMNS if cells.get(name) is not None}
    known["course"] = tuple((float(s), float(v)) for s, v in cells.get("course") or ())
    return Row(**{**known, **more})


class RowFile:
    """A CSV file of rows.

    Args:
        path: Made if it is not there; a last line that was cut off is dropped.

    Raises:
        InputError: Another file than one of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.is_file() and path.stat().st_size:
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_line(COLUMNS))

    def add(self, row: Row) -> None:
        """Append a row and flush it."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(_line(_cells(row)))
            file.flush()

    def has(self, key: tuple[str, str, str, float], seconds: float | None = None) -> bool:
        """Whether a row is there that a rerun need not compute again.

        Args:
            key: The row's.
            seconds: That it must have been given, but for little; of an attack, whose time is that
                of the slowest method.
        """
        return any(
            row.key == key
            and row.status not in _AGAIN
            and (seconds is None or row.seconds is None or row.seconds >= 0.9 * seconds)
            for row in self.rows
        )

    def _read(self) -> None:
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole)
        reader = csv.DictReader(io.StringIO(whole))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{self.path} has other columns: give another --output folder")
        try:
            self.rows = [_parsed(cells) for cells in reader]
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path} is damaged ({error}): give another --output") from None


def _line(cells: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _cells(row: Row) -> list[Any]:
    course = " ".join(f"{seconds:.3f}:{norm!r}" for seconds, norm in row.course)
    values = [getattr(row, name) for name in COLUMNS[:-1]]
    return ["" if value is None else _one_line(value) for value in values] + [course]


def _one_line(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value


def _parsed(cells: dict[str, str]) -> Row:
    values: dict[str, Any] = dict(cells)
    for name in _NUMBERS:
        values[name] = float(cells[name]) if cells[name] else None
    pairs = (pair.split(":") for pair in cells["course"].split())
    values["course"] = tuple((float(s), float(v)) for s, v in pairs)
    return Row(**values)
