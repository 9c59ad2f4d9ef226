"""The numbers of a box: its centre and its radius in the units of the network.

Both sides, the bounds and the attack, take them from here; nothing of the library is imported.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

# One entry of a manifest, as JSON holds it.
Entry = dict[str, Any]


def centre_of(entry: Entry, folder: Path) -> np.ndarray:
    """The centre, [*input_shape] in float32.

    Args:
        entry: Of the manifest.
        folder: Where its files lie.

    Raises:
        ValueError: Numbers that do not fit the input's shape, or none.
    """
    shape, given = tuple(entry["input_shape"]), entry["centre"]
    if "array" in given:
        values = np.load(folder / given["array"], allow_pickle=False).astype(np.float64)
        if "index" in given:
            values = values[given["index"]]
    elif "values" in given:
        values = np.array(given["values"], dtype=np.float64)
    elif {"low", "high"} <= given.keys():
        values = (np.array(given["low"], dtype=float) + np.array(given["high"], dtype=float)) / 2
    else:
        raise ValueError("centre: expected array, values, or low and high")
    if values.size != np.prod(shape):
        raise ValueError(f"centre: {values.size} numbers for the input shape {list(shape)}")
    values = values.reshape(shape)
    if "array" in given:
        values = (values - _channels(entry.get("mean", [0]), shape)) / _std(entry)
    if not np.isfinite(values).all():
        raise ValueError("centre: expected finite numbers")
    return values.astype(np.float32)


def radius_of(entry: Entry, eps: float | str) -> np.ndarray:
    """The radius of every input, [*input_shape] in float32.

    Args:
        entry: Of the manifest; where it names standard deviations, ``eps`` is of pixels.
        eps: A number, or text such as ``2/255``.

    Raises:
        ValueError: No number above 0.
    """
    try:
        number = float(Fraction(str(eps)))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"eps {eps!r}: expected a number such as 0.1 or 2/255") from None
    if not 0 < number < np.inf:
        raise ValueError(f"eps {eps!r}: expected a number above 0")
    radius = np.full(tuple(entry["input_shape"]), number) / _std(entry)
    return radius.astype(np.float32)


def _std(entry: Entry) -> np.ndarray:
    return _channels(entry.get("std", [1]), tuple(entry["input_shape"]))


def _channels(numbers: list[float], shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of channels, to be broadcast over an input [C, ...]."""
    values = np.array(numbers, dtype=np.float64)
    if values.ndim != 1 or len(values) not in (1, shape[0]):
        raise ValueError(f"{len(values)} means or standard deviations for {shape[0]} channels")
    return values.reshape(-1, *[1] * (len(shape) - 1))
