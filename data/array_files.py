"""Arrays and tables that users give as files: .npz, .npy and .csv."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lipschitz.errors import InputError, first_line

Arrays = dict[str, np.ndarray]

_TABLES = (".csv", ".tsv", ".txt")
_ENDINGS = (".npz", ".npy", *_TABLES)


@dataclass(frozen=True)
class Table:
    """Numbers in lines and columns.

    Attributes:
        names: Of the columns; None without a header line.
        values: [lines, columns].
    """

    names: tuple[str, ...] | None
    values: np.ndarray


def names_a_file(text: str) -> bool:
    """Whether an option's value stands for a file, not for numbers."""
    return Path(text).suffix.lower() in _ENDINGS or Path(text).exists()


def is_table(path: Path) -> bool:
    """Whether a file of this name holds text in lines and columns."""
    return path.suffix.lower() in _TABLES


def fingerprint(path: Path) -> str:
    """A file's name and a hash of what is in it: what identifies it when a run is resumed."""
    return f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def read_numpy(option: str, path: Path) -> np.ndarray | Arrays:
    """The array of a .npy file, or the arrays of a .npz file by their names.

    Args:
        option: For messages, such as ``--input``.
        path: The file; what is in it counts, not its ending.

    Raises:
        InputError: No such file, another format, damaged, or arrays of Python objects.
    """
    if not _existing(option, path).startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")):
        raise InputError(f"{option} {path} is not a numpy .npz file: expected .npz, .npy or .csv")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            content = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # numpy, zipfile and zlib report damaged files in many ways
        if "Object arrays" in str(error):
            raise InputError(
                f"{option} {path} holds Python objects, which are not loaded because they may run "
                "code: save arrays of numbers, such as np.asarray(x, dtype=float)"
            ) from error
        raise InputError(f"{option} {path} is damaged: {first_line(error)}") from error
    arrays = {name: array for name, array in content.items() if isinstance(array, np.ndarray)}
    if not arrays:
        raise InputError(
            f"{option} {path} is a zip file without arrays: expected one of np.savez, or .npy, .csv"
        )
    return arrays


def read_table(option: str, path: Path) -> Table:
    """The numbers of a .csv file, separated by commas, semicolons, tabs or blanks.

    A first line of names is the header; so is one that counts 0, 1, 2 and so on, as pandas writes
    it by itself. Empty lines and lines that begin with # do not count.

    Args:
        option: For messages, such as ``--input``.
        path: The file.

    Raises:
        InputError: No such file, no text, no numbers, or a line that is no number or too short;
            the message names line and column.
    """
    try:
        text = _existing(option, path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{option} {path} is not text: expected lines of numbers") from None
    first = next((line for line in text.splitlines() if _counts(line)), "")
    separator = next((mark for mark in (";", "\t", ",", " ") if mark in first.strip()), ",")
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    lines = [(reader.line_num, cells) for cells in reader if _counts("".join(cells))]
    names = None
    if lines and _is_header(lines[0][1], alone=len(lines) == 1):
        names = tuple(cell.strip() for cell in lines.pop(0)[1])
    if not lines:
        raise InputError(f"{option} {path} holds no numbers")
    width = len(lines[0][1]) if names is None else len(names)
    for number, cells in lines:
        if len(cells) != width:
            raise InputError(
                f"{option} {path} line {number} has {len(cells)} columns, expected {width}"
            )
        for place, cell in enumerate(cells):
            if not _is_number(cell):
                column = str(place + 1) if names is None else repr(names[place])
                raise InputError(
                    f"{option} {path} line {number}, column {column}: {cell!r} is not a number"
                )
    return Table(names, np.array([[float(cell) for cell in cells] for _, cells in lines]))


def check_numbers(name: str, array: np.ndarray) -> None:
    """Refuse an array that does not hold finite real numbers.

    Args:
        name: Which, for the message.
        array: Any array.

    Raises:
        InputError: Complex numbers, text, true and false, NaN or infinity.
    """
    if array.dtype.kind == "c":
        raise InputError(f"{name} is {array.dtype}: expected real numbers")
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} is {array.dtype} of shape {array.shape}: expected numbers")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity; expected finite numbers")


def _existing(option: str, path: Path) -> bytes:
    """What is in the file.

    Raises:
        InputError: No such file, a folder, or nothing in it.
    """
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder: name a file, .npz, .npy or .csv")
    if not path.exists():
        raise InputError(f"{option} {path}: there is no such file")
    content = path.read_bytes()
    if not content:
        raise InputError(f"{option} {path} is empty")
    return content


def _counts(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _is_header(cells: list[str], *, alone: bool) -> bool:
    """Whether a line names columns; a line of numbers with a slip of the pen does not."""
    numbers = [cell.strip() for cell in cells if _is_number(cell)]
    counted = [[str(i + first) for i in range(len(numbers))] for first in (0, 1)]
    if len(numbers) < len(cells):
        return numbers in counted
    return numbers == counted[0] and len(cells) > 2 and not alone


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
