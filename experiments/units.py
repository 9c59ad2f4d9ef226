"""In which units the bounds and radii of rows are, read off the rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Units:
    """Of a row.

    Attributes:
        bound: What the bounds are per.
        eps: What the radius is in.
        axis: The same for the axis of a picture, '' if there is no radius.
    """

    bound: str
    eps: str
    axis: str


_OF_DATA = Units("unit of normalised input, (pixel - mean) / std", "in pixels", "pixels")
_OF_FILE = Units("unit of the file's values", "in the same units", "units of the file's values")
_OF_FILE_WITH_STD = Units(_OF_FILE.bound, "in pixels, divided by --std", "pixels")
_OF_FILES_BOXES = Units(_OF_FILE.bound, "none, the boxes are given in the file", "")
_OF_BOX = Units("unit of the network's input", "none, the box is given by its ends", "")


def units_of(row: dict[str, Any]) -> Units:
    """The units of a row of ``main.py``: of a data set, of a file, or of ``--box``."""
    source = str(row.get("data"))
    if source.startswith("box "):
        return _OF_BOX
    if ":" not in source:  # else a hash follows the file's name
        return _OF_DATA
    if row.get("eps") is None:
        return _OF_FILES_BOXES
    return _OF_FILE_WITH_STD if row.get("std") else _OF_FILE


def said(units: Iterable[tuple[str, Units]]) -> str:
    """One sentence for all rows where they agree, else one for each kind, with the data's names.

    Args:
        units: The name of the data and the units of every row.
    """
    by_units: dict[Units, list[str]] = {}
    for name, found in units:
        names = by_units.setdefault(found, [])
        if name not in names:
            names.append(name)
    sentences = [f"bounds per {unit.bound}; eps: {unit.eps}" for unit in by_units]
    if len(sentences) > 1:
        sentences = [
            f"{', '.join(names)}: {sentence}"
            for names, sentence in zip(by_units.values(), sentences, strict=True)
        ]
    return f"Units: {'. '.join(sentences)}." if sentences else ""


def axis_of(units: Iterable[tuple[str, Units]]) -> str:
    """What an axis of radii is in; '' if the rows do not agree."""
    axes = {found.axis for _, found in units} - {""}
    return axes.pop() if len(axes) == 1 else ""
