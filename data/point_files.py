"""The points of ``--input``, as a file holds them, before the network's input shape is known."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.array_files import Arrays, check_numbers, fingerprint, is_table, read_numpy, read_table
from data.boxes import Shape, fits
from lipschitz.errors import InputError

_LABELS = ("y", "label", "labels")
_BOXES = ("eps", "x_L", "x_U")


@dataclass(frozen=True)
class PointFile:
    """The points of a file.

    Attributes:
        path: The file.
        x: [n, *input_shape], or one point alone.
        labels: [n] whole numbers, 0 or larger; None without labels.
        boxes: The file's own boxes by name: eps, or x_L and x_U.
        source: The file's name and a hash of what is in it.
    """

    path: Path
    x: np.ndarray
    labels: np.ndarray | None
    boxes: Arrays
    source: str

    @property
    def input_shape(self) -> Shape:
        """Shape of one point, taking the first dimension for the number of points."""
        return self.x.shape[1:] if self.x.ndim > 1 else self.x.shape

    def shaped(self, input_shape: Shape) -> PointFile:
        """The same points in the shape of a network's input, [n, *input_shape].

        Raises:
            InputError: They have another number of numbers, or another order of dimensions.
        """
        shape, wanted = self.x.shape, tuple(input_shape)
        if fits(shape[1:], wanted):
            return replace(self, x=self.x.reshape(-1, *wanted))
        if shape == wanted or (len(shape) == 1 and fits(shape, wanted)):
            return replace(self, x=self.x.reshape(1, *wanted))
        found = f"{len(self.x)} points of shape {shape[1:]}"
        if len(shape) == 1:
            found = f"1 point of {len(self.x)} numbers"
        hint = ""
        if sorted(shape[1:]) == sorted(wanted):
            hint = "; move the channels first, x.transpose(0, 3, 1, 2)" if len(wanted) == 3 else ""
        elif is_table(self.path) and shape[1] == np.prod(wanted) + 1 and self.labels is None:
            hint = "; if a column holds the labels, give the file a header line that names it y"
        raise InputError(
            f"--input {self.path} holds {found}; the network takes inputs of shape {wanted}{hint}"
        )


def read_points(path: Path) -> PointFile:
    """The points of a file.

    Args:
        path: .npz with the arrays x [n, *input shape] and, optionally, y [n] and boxes (eps, or
            x_L and x_U); .npy [n, *input shape] or one point; .csv with a line for each point,
            with or without a header, in which a column y or label holds the labels.

    Raises:
        InputError: No such file, damaged, or arrays of other names, shapes or values.
    """
    if is_table(path):
        content = _of_table(path)
    else:
        read = read_numpy("--input", path)
        content = read if isinstance(read, dict) else {"x": read}
    if "x" not in content:
        raise InputError(f"--input {path} holds {sorted(content)}: expected an array 'x'")
    x = content["x"]
    check_numbers(f"--input {path}: x", x)
    if not x.size or not x.ndim:
        raise InputError(
            f"--input {path}: x is {x.dtype} of shape {x.shape}; expected numbers of shape "
            "[n, *input shape], the batch dimension first"
        )
    labels = None if "y" not in content else _labels_of(path, content["y"], x)
    boxes = {name: content[name] for name in _BOXES if name in content}
    return PointFile(path, x, labels, boxes, fingerprint(path))


def warn_of_pixels(points: PointFile, eps: float | None) -> None:
    """Say on stderr that images were not scaled, where it looks like it.

    Args:
        points: The points.
        eps: Largest radius, None where it is not known.
    """
    x = points.x
    if points.boxes or not (eps is None or 0 < eps < 1) or x.min() < 0 or x.max() > 255:
        return
    # Whole numbers alone may be counts or years of age; images reach the upper half.
    if x.max() > (1 if x.dtype == np.uint8 else 127) and bool((x == np.floor(x)).all()):
        against = "" if eps is None else f", eps is {eps:.3g}"
        print(
            f"warning: --input {points.path}: the points are whole numbers 0 to {int(x.max())}"
            f"{against}; a network that was trained on pixels in [0, 1] needs x / 255",
            file=sys.stderr,
        )


def _of_table(path: Path) -> Arrays:
    table = read_table("--input", path)
    names = [name.lower() for name in table.names or ()]
    if "" in names:
        raise InputError(
            f"--input {path}: column {names.index('') + 1} has no name; if it numbers the lines, "
            "leave it out (index=False in pandas)"
        )
    found = [i for i, name in enumerate(names) if name in _LABELS]
    if len(found) > 1:
        raise InputError(f"--input {path} has {len(found)} columns of labels: expected one")
    x = np.delete(table.values, found, axis=1)
    return {"x": x, "y": table.values[:, found[0]]} if found else {"x": x}


def _labels_of(path: Path, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Labels as whole numbers, [n].

    Raises:
        InputError: Another shape, other numbers, or negative ones.
    """
    is_whole = y.dtype.kind in "iu"
    if is_table(path):  # numbers of a table are read as one kind
        is_whole = bool((y == np.floor(y)).all() and np.isfinite(y).all())
    counts = (len(x), 1) if x.ndim == 1 else (len(x),)  # one point alone has one label
    if y.shape not in [(count,) for count in counts] or not is_whole:
        hint = "; if the column is no label, give it another name" if is_table(path) else ""
        raise InputError(
            f"--input {path}: y is {y.dtype} of shape {y.shape}; expected whole numbers of shape "
            f"{x.shape[:1]}{hint}"
        )
    if (y < 0).any():
        place = int(np.flatnonzero(y < 0)[0])
        raise InputError(
            f"--input {path}: y holds the label {y[place]:g} at point {place}; expected 0 or "
            "larger, or no y"
        )
    return y.astype(np.int64)
