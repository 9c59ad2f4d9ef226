"""The points at which bounds are computed, with their box in the network's units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import DataSpec, evaluation_examples
from utils import InputError, numbers

# The paper's code cuts the box to these pixels, that is, hardly; --input-clipping to the data's.
_WIDE_PIXEL_RANGE = (-1.0, 2.0)


@dataclass(frozen=True)
class Choice:
    """Which points.

    Attributes:
        start, count: First point and how many.
        clip_to_data: Cut the box to the range of the data.
    """

    start: int = 0
    count: int = 1
    clip_to_data: bool = False


@dataclass(frozen=True)
class Points:
    """The examples and their box.

    Attributes:
        x: [n, *input_shape], in the network's units.
        labels: [n], or None.
        radius: eps in the network's units, broadcastable to one example.
        clip: Range the box is cut to, or None.
        source: What identifies the points when a run is resumed.
    """

    x: Tensor
    labels: Tensor | None
    radius: Tensor
    clip: tuple[Tensor, Tensor] | None
    source: str


def points_of_file(
    path: Path,
    eps: float,
    choice: Choice,
    *,
    std: str | None = None,
    facts: DataSpec | None = None,
) -> Points:
    """The points of ``--input``: arrays ``x`` [n, *input_shape] and, optionally, ``y`` [n].

    Args:
        path: The .npz file.
        eps: Radius, in the units of the points unless ``std`` is given.
        choice: Which of the points, and whether the box is cut to the data range.
        std: Per channel, comma-separated; divides eps.
        facts: The data set whose range the box may be cut to and whose size the points must have.

    Raises:
        InputError: No such file, or arrays of other names, shapes or values.
    """
    if not path.is_file():
        raise InputError(f"--input {path}: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise InputError(f"--input {path} is not a numpy .npz file ({error})") from error
    if "x" not in content:
        raise InputError(f"--input {path} holds {sorted(content)}: expected an array 'x'")
    x = content["x"]
    if not np.issubdtype(x.dtype, np.number) or x.ndim < 2 or not len(x):
        raise InputError(
            f"--input {path}: x is {x.dtype} of shape {x.shape}; expected numbers of shape "
            "[n, *input shape], the batch dimension first"
        )
    if facts is not None:
        facts = facts.with_shape(x.shape[1:])
    if not np.isfinite(x).all():
        raise InputError(f"--input {path}: x holds NaN or infinity; expected finite numbers")
    labels = content.get("y")
    if labels is not None and (labels.shape != x.shape[:1] or labels.dtype.kind not in "iu"):
        raise InputError(
            f"--input {path}: y is {labels.dtype} of shape {labels.shape}; expected whole numbers "
            f"of shape {x.shape[:1]}"
        )
    radius = torch.tensor(eps, dtype=torch.float64)
    if std is not None:
        std = torch.tensor(numbers("--std", std, float), dtype=torch.float64)
        if not bool((std > 0).all()) or len(std) not in (1, x.shape[1]):
            raise InputError(
                f"--std {std}: expected 1 or {x.shape[1]} positive numbers, one per channel"
            )
        radius = radius / std.reshape(-1, *[1] * (x.ndim - 2))
    clip = None
    if choice.clip_to_data:
        if facts is None:
            raise InputError("--input-clipping with --input: name the --data whose range to use")
        clip = _clip_range(facts, facts.pixel_range)
    stop = choice.start + choice.count
    if choice.start >= len(x):
        raise InputError(f"--start {choice.start}: {path} holds the points 0 to {len(x) - 1}")
    return Points(
        torch.from_numpy(x[choice.start : stop].astype(np.float64)),
        None if labels is None else torch.from_numpy(labels[choice.start : stop].astype(np.int64)),
        radius,
        clip,
        f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}",
    )


def _clip_range(facts: DataSpec, pixels: tuple[float, float]) -> tuple[Tensor, Tensor]:
    mean, std = facts.normalisation(torch.float64)
    return (pixels[0] - mean) / std, (pixels[1] - mean) / std


def points_of_data(
    facts: DataSpec, shape: tuple[int, ...], eps: float, choice: Choice, root: str | None
) -> Points:
    """The test examples of a data set, or the centre of the cube for ``simple``.

    Args:
        facts: The data set.
        shape: Shape of one input as the network takes it.
        eps: Radius in pixels.
        choice: Which examples, and whether the box is cut to the data range.
        root: Folder of the data files, None for the default.
    """
    x, labels = evaluation_examples(
        facts.name, start=choice.start, count=choice.count, model_input_shape=shape, root=root
    )
    facts = facts.with_shape(shape)
    pixels = facts.pixel_range if choice.clip_to_data else _WIDE_PIXEL_RANGE
    _, std = facts.normalisation(torch.float64)
    return Points(x.double(), labels, eps / std, _clip_range(facts, pixels), facts.name)
