"""Boxes on the command line: one radius or one per input, and a controller's whole domain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.array_files import (
    check_numbers,
    fingerprint,
    is_table,
    names_a_file,
    read_numpy,
    read_table,
)
from lipschitz.errors import InputError

Shape = tuple[int, ...]

_LOWER, _UPPER = ("lower", "low", "lo", "min", "x_l"), ("upper", "high", "hi", "max", "x_u")


@dataclass(frozen=True)
class Radius:
    """What ``--eps`` says.

    Attributes:
        values: One number [], or one per channel or flat coordinate [k], or as a file has them.
        source: What was typed; of a file also a hash of what is in it.
    """

    values: np.ndarray
    source: str

    @property
    def setting(self) -> float | str:
        """What a row says: the number, or where the numbers come from."""
        return self.source if self.values.ndim else float(self.values)


@dataclass(frozen=True)
class Box:
    """What ``--box`` says.

    Attributes:
        lower, upper: Ends, [] for all inputs alike, else as they were given.
        source: What was typed; of a file also a hash of what is in it.
    """

    lower: np.ndarray
    upper: np.ndarray
    source: str

    @property
    def input_shape(self) -> Shape | None:
        """Shape of one input; None if it is one interval for inputs of any shape."""
        return self.lower.shape or None


def read_radius(text: str) -> Radius:
    """The radii of ``--eps``: ``0.05``, ``2/255``, ``0.1,0.2,0`` or a file .npy, .csv.

    Raises:
        InputError: Neither numbers nor a file of numbers; negative, NaN or infinite ones.
    """
    if names_a_file(text):
        path = Path(text)
        values = read_table("--eps", path).values if is_table(path) else read_numpy("--eps", path)
        if isinstance(values, dict):
            raise InputError(f"--eps {path} is a .npz file: expected one array, .npy or .csv")
        check_numbers(f"--eps {path}", values)
        if is_table(path) and 1 in values.shape:
            values = values.reshape(-1)
        radius = Radius(values.astype(np.float64), fingerprint(path))
    else:
        expected = "expected a number such as 0.05 or 2/255, one per input as 0.1,0.2, or a file"
        found = [_number(part, f"--eps {text}: {expected}") for part in text.split(",")]
        radius = Radius(np.array(found if len(found) > 1 else found[0]), text)
    if not (np.isfinite(radius.values).all() and (radius.values >= 0).all()):
        what = "a finite number" if radius.values.ndim == 0 else "finite numbers"
        raise InputError(f"--eps {text}: expected {what}, 0 or larger")
    return radius


def read_box(text: str) -> Box:
    """The box of ``--box``: ``LO,HI`` for all inputs, ``LO,HI;LO,HI;...`` one by one, or a file.

    Files: .npz with arrays x_L and x_U, .npy [2, *input shape], .csv with a line per input and
    the columns lower and upper.

    Raises:
        InputError: Neither intervals nor such a file, ends that are not finite or the wrong way
            round.
    """
    if names_a_file(text):
        path = Path(text)
        lower, upper = _ends_of_table(path) if is_table(path) else _ends_of_arrays(path)
        source = fingerprint(path)
    else:
        expected = "expected LO,HI such as -1,1, or one interval per input such as '-1,1;0,2', "
        wrong = f"--box {text}: {expected}or a file .npz, .npy or .csv"
        pairs = [interval.split(",") for interval in text.strip(" ;").split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise InputError(wrong)
        ends = np.array([[_number(end, wrong) for end in pair] for pair in pairs])
        lower, upper = ends.T if len(ends) > 1 else ends[0]
        source = text
    lower, upper = (np.array(end, dtype=np.float64) for end in (lower, upper))
    if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        raise InputError(f"--box {text}: expected finite ends")
    crossed = np.flatnonzero(lower > upper)
    if len(crossed):
        i = crossed[0]
        raise InputError(
            f"--box {text}: the lower end {lower.flat[i]:g} of input {i} is above its upper end "
            f"{upper.flat[i]:g}"
        )
    return Box(lower, upper, source)


def fits(given: Shape, wanted: Shape) -> bool:
    """Whether numbers of one shape can be meant for another.

    They can if one of the two is flat, or if they differ in dimensions of size 1 only. Channels
    that come last in one and first in the other are another order, not another shape.
    """
    longer = [[size for size in shape if size != 1] for shape in (given, wanted)]
    same_size = math.prod(given) == math.prod(wanted)
    return same_size and (longer[0] == longer[1] or min(map(len, longer)) <= 1)


def per_input(
    name: str,
    values: np.ndarray,
    shape: Shape,
    *,
    count: int | None = None,
    by_channel: bool = False,
) -> Tensor:
    """Numbers for the inputs of a network, float64.

    Args:
        name: What they are, for the message.
        values: One for all, or one per flat coordinate in any shape that fits.
        shape: Of one input.
        count: Number of points: one set of numbers for each of them will do too.
        by_channel: One number for each index of the first dimension of ``shape`` will do too.

    Returns:
        Broadcastable to ``shape``, or [count, *shape].

    Raises:
        InputError: Another number of numbers.
    """
    numbers = torch.from_numpy(np.array(values, dtype=np.float64))
    if numbers.numel() == 1:
        return numbers.reshape(())
    if fits(values.shape, shape):
        return numbers.reshape(shape)
    if count is not None and values.shape[:1] == (count,) and fits(values.shape[1:], shape):
        return numbers.reshape(count, *shape)
    if by_channel and values.ndim == 1 and len(values) == shape[0]:
        return numbers.reshape(-1, *[1] * (len(shape) - 1))
    if by_channel and values.ndim == 1:
        channels = f", {shape[0]}, one per channel," if len(shape) > 1 else ""
        raise InputError(
            f"{name} is for {len(values)} inputs; expected 1 number{channels} or "
            f"{math.prod(shape)}, one per input"
        )
    each = "" if count is None else f", for all points, or {(count, *shape)}"
    raise InputError(
        f"{name} is {values.dtype} of shape {values.shape}; expected numbers of shape {shape}{each}"
    )


def _number(text: str, wrong: str) -> float:
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(wrong) from None


def _ends_of_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = read_table("--box", path)
    places = [0, 1]
    if table.names is not None:
        names = [name.lower() for name in table.names]
        found = [[i for i, name in enumerate(names) if name in known] for known in (_LOWER, _UPPER)]
        places = [columns[0] for columns in found if len(columns) == 1]
    if len(places) != 2 or table.values.shape[1] != 2:
        has = f"{table.values.shape[1]} columns" if table.names is None else ", ".join(table.names)
        raise InputError(
            f"--box {path} has {has}: expected the columns lower and upper, a line per input"
        )
    lower, upper = table.values[:, places].T
    return lower, upper


def _ends_of_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = read_numpy("--box", path)
    if isinstance(content, dict):
        if not {"x_L", "x_U"} <= content.keys():
            raise InputError(f"--box {path} holds {_listed(content)}: expected x_L and x_U")
        lower, upper = content["x_L"], content["x_U"]
    elif content.ndim and len(content) == 2:
        lower, upper = content
    else:
        raise InputError(
            f"--box {path} has shape {content.shape}: expected [2, *input shape], the lower ends "
            "and the upper ends"
        )
    for name, end in (("the lower end", lower), ("the upper end", upper)):
        check_numbers(f"--box {path}: {name}", np.asarray(end))
    if np.shape(lower) != np.shape(upper):
        raise InputError(
            f"--box {path}: the ends have shapes {np.shape(lower)} and {np.shape(upper)}: expected "
            "the same"
        )
    return lower, upper


def _listed(names: dict[str, np.ndarray]) -> str:
    return ", ".join(sorted(names))
