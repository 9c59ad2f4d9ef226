"""The points at which bounds are computed, with their box in the network's units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import DataSpec, evaluation_examples
from lipschitz.errors import InputError
from utils import numbers

# The paper's code cuts the box to these pixels, that is, hardly; --input-clipping to the data's.
_WIDE_PIXEL_RANGE = (-1.0, 2.0)


@dataclass(frozen=True)
class Choice:
    """Which points.

    Attributes:
        start, count: First point and how many.
        clip_to_data: Cut the box to the range of the data.
        needs_box: Whether a box is asked for at all.
    """

    start: int = 0
    count: int = 1
    clip_to_data: bool = False
    needs_box: bool = True


@dataclass(frozen=True)
class Points:
    """The examples and their box.

    Attributes:
        x: [n, *input_shape], in the network's units.
        labels: [n], or None.
        radius: eps in the network's units, broadcastable to one example, or one for each,
            [n, *input_shape].
        clip: Range the box is cut to, or None.
        source: What identifies the points when a run is resumed.
        unit: What one pixel is in the network's units, broadcastable to one example.
        ends: Instead of the radius: the boxes' two ends, each [n, *input_shape].
        fixed: Flat coordinates that keep their value.
    """

    x: Tensor
    labels: Tensor | None
    radius: Tensor
    clip: tuple[Tensor, Tensor] | None
    source: str
    unit: Tensor
    ends: tuple[Tensor, Tensor] | None = None
    fixed: tuple[int, ...] = ()

    def box(self, index: int) -> dict[str, Tensor]:
        """The box of one example, as :func:`lipschitz.make_problem` takes it."""
        x = self.x[index]
        fixed = torch.zeros(x.numel(), dtype=torch.bool)
        fixed[list(self.fixed)] = True
        fixed = fixed.reshape(x.shape)
        if self.ends is not None:
            lower, upper = (torch.where(fixed, x, end[index]) for end in self.ends)
            return {"x_lower": lower, "x_upper": upper}
        radius = self.radius[index] if self.radius.dim() > x.dim() else self.radius
        return {"eps": radius.expand(x.shape).masked_fill(fixed, 0)}


def coordinates(option: str, text: str | None, size: int) -> tuple[int, ...]:
    """Flat coordinates from ``3,5-9``; none if there is no text.

    Raises:
        InputError: Not such a list, or numbers beyond ``size``.
    """
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        if not (first.isdigit() and (last if dash else first).isdigit()):
            raise InputError(f"{option} {text}: expected input numbers such as 3,5-9")
        found.update(range(int(first), int(last if dash else first) + 1))
    if found and max(found) >= size:
        raise InputError(f"{option} {text}: the inputs are numbered 0 to {size - 1}")
    return tuple(sorted(found))


def points_of_file(
    path: Path,
    eps: float | None,
    choice: Choice,
    *,
    std: str | None = None,
    facts: DataSpec | None = None,
) -> Points:
    """The points of ``--input``: arrays ``x`` [n, *input_shape] and, optionally, ``y`` [n].

    The file may hold the boxes too, in the units of the points: ``eps``, a number or one per
    coordinate, for all points [*input_shape] or for each [n, *input_shape]; or their ends ``x_L``
    and ``x_U`` of these shapes.

    Args:
        path: The .npz file.
        eps: Radius, in the units of the points unless ``std`` is given; None takes the file's
            boxes.
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
    if eps is None and not choice.needs_box:
        eps, content = 0.0, {"x": x}
    radius, ends = _boxes_of_file(path, content, eps)
    unit = torch.ones((), dtype=torch.float64)
    if std is not None:
        if eps is None:
            raise InputError("--std divides --eps: the boxes in a file are in the points' units")
        std = torch.tensor(numbers("--std", std, float), dtype=torch.float64)
        if not bool((std > 0).all()) or len(std) not in (1, x.shape[1]):
            raise InputError(
                f"--std {std}: expected 1 or {x.shape[1]} positive numbers, one per channel"
            )
        unit = 1 / std.reshape(-1, *[1] * (x.ndim - 2))
    radius = radius * unit
    clip = None
    if choice.clip_to_data:
        if facts is None:
            raise InputError("--input-clipping with --input: name the --data whose range to use")
        clip = _clip_range(facts, facts.pixel_range)
    stop = choice.start + choice.count
    if choice.start >= len(x):
        raise InputError(f"--start {choice.start}: {path} holds the points 0 to {len(x) - 1}")
    part = slice(choice.start, stop)
    return Points(
        torch.from_numpy(x[part].astype(np.float64)),
        None if labels is None else torch.from_numpy(labels[part].astype(np.int64)),
        radius[part] if radius.dim() == x.ndim else radius,
        clip,
        f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}",
        unit,
        None if ends is None else tuple(end[part] for end in ends),
    )


def _boxes_of_file(
    path: Path, content: dict[str, np.ndarray], eps: float | None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Radius, and the ends [n, *input_shape] if the file holds them."""
    shape = content["x"].shape
    named = [name for name in ("eps", "x_L", "x_U") if name in content]
    if eps is not None and named:
        raise InputError(f"--input {path} holds {', '.join(named)}: leave out --eps, or these")
    if eps is None and not named:
        raise InputError(
            "--eps is missing: give the radius of the box, such as 0.05, or an array eps in "
            f"{path}, or x_L and x_U"
        )
    if named not in ([], ["eps"], ["x_L", "x_U"]):
        raise InputError(f"--input {path} holds {', '.join(named)}: expected eps, or x_L and x_U")
    boxes = []
    for name in named:
        box = content[name]
        if box.shape not in ((), shape[1:], shape) or not np.issubdtype(box.dtype, np.number):
            raise InputError(
                f"--input {path}: {name} is {box.dtype} of shape {box.shape}; expected numbers of "
                f"shape {shape[1:]}, for all points, or {shape}"
            )
        boxes.append(torch.from_numpy(np.array(box, dtype=np.float64)))
    if len(boxes) == 2:
        return torch.zeros((), dtype=torch.float64), tuple(b.expand(shape) for b in boxes)
    return boxes[0] if boxes else torch.tensor(eps, dtype=torch.float64), None


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
    clip = _clip_range(facts, pixels)
    return Points(x.double(), labels, eps / std, clip, facts.name, 1 / std)
