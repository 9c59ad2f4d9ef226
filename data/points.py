"""The points at which bounds are computed, with their box in the network's units."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import DataSpec, evaluation_examples
from data.array_files import Arrays, check_numbers
from data.boxes import Box, Radius, Shape, per_input
from data.point_files import PointFile, read_points, warn_of_pixels
from lipschitz.errors import InputError
from lipschitz.problem import middle_of
from utils import numbers

# Pixels that boxes are cut to, as in the paper's code. The range is so wide that it hardly cuts
# anything; with --input-clipping boxes are cut to the data's own range instead.
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
        first: Number of the first of them in the file, for messages.
    """

    x: Tensor
    labels: Tensor | None
    radius: Tensor
    clip: tuple[Tensor, Tensor] | None
    source: str
    unit: Tensor
    ends: tuple[Tensor, Tensor] | None = None
    fixed: tuple[int, ...] = ()
    first: int = 0

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


def check_labels(points: Points, num_outputs: int) -> None:
    """Refuse labels that the network has no output for.

    Raises:
        InputError: Naming the first of them.
    """
    if points.labels is None:
        return
    wrong = (points.labels >= num_outputs).nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"{points.source.partition(':')[0]}: point {points.first + wrong[0]} has the label "
            f"{int(points.labels[wrong[0]])}; the network has {num_outputs} outputs, labels 0 to "
            f"{num_outputs - 1}"
        )


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
    given: Path | PointFile,
    eps: float | Radius | None,
    choice: Choice,
    *,
    std: str | None = None,
    facts: DataSpec | None = None,
    input_shape: Shape | None = None,
) -> Points:
    """The points of ``--input``, see :func:`data.point_files.read_points`.

    A .npz file may hold the boxes too, in the units of the points: ``eps``, a number or one per
    coordinate, for all points [*input_shape] or for each [n, *input_shape]; or their ends ``x_L``
    and ``x_U`` of these shapes.

    Args:
        given: The file, or what was read from it.
        eps: Radius, in the units of the points unless ``std`` is given, for all inputs, per
            channel or per flat coordinate; None takes the file's boxes.
        choice: Which of the points, and whether the box is cut to the data range.
        std: Per channel, comma-separated; divides eps.
        facts: The data set whose range the box may be cut to and whose size the points must have.
        input_shape: Shape of the network's input, into which the points are brought; None takes
            the file's.

    Raises:
        InputError: No such file, or arrays of other names, shapes or values.
    """
    points = read_points(given) if isinstance(given, Path) else given
    shape = points.input_shape if input_shape is None else tuple(input_shape)
    if facts is not None:
        facts = facts.with_shape(shape)
    points = points.shaped(shape)
    path, count = points.path, len(points.x)
    boxes = points.boxes
    if eps is None and not choice.needs_box:
        eps, boxes = 0.0, {}
        warn_of_pixels(points, None)
    elif eps is not None:
        eps = Radius(np.array(float(eps)), str(eps)) if not isinstance(eps, Radius) else eps
        warn_of_pixels(points, float(eps.values.max(initial=0.0)))
    radius, ends = _boxes_of_file(points, boxes, eps)
    unit = torch.ones((), dtype=torch.float64)
    if std is not None:
        if eps is None:
            raise InputError("--std divides --eps: the boxes in a file are in the points' units")
        unit = 1 / _per_channel("--std", std, shape)
    radius = radius * unit
    clip = None
    if choice.clip_to_data:
        if facts is None:
            raise InputError("--input-clipping with --input: name the --data whose range to use")
        clip = _clip_range(facts, facts.pixel_range)
    if choice.start >= count:
        raise InputError(f"--start {choice.start}: {path} holds the points 0 to {count - 1}")
    part = slice(choice.start, choice.start + choice.count)
    _warn_of_fewer(count - choice.start, choice, str(path))
    return Points(
        torch.from_numpy(points.x[part].astype(np.float64)),
        None if points.labels is None else torch.from_numpy(points.labels[part]),
        radius[part] if radius.dim() == points.x.ndim else radius,
        clip,
        points.source,
        unit,
        None if ends is None else tuple(end[part] for end in ends),
        first=choice.start,
    )


def points_of_box(box: Box, input_shape: Shape) -> Points:
    """The one example of ``--box``: the box, around its middle, in the network's units.

    Args:
        box: Its ends: one interval for all inputs, one per channel or flat coordinate, or in any
            shape that fits the network's input.
        input_shape: Shape of the network's input.

    Raises:
        InputError: Another number of inputs.
    """
    shape = tuple(input_shape)
    name = f"--box {box.source}"
    ends = (per_input(name, end, shape, by_channel=True) for end in (box.lower, box.upper))
    lower, upper = (end.expand(shape) for end in ends)
    return Points(
        middle_of(lower, upper)[None],
        None,
        torch.zeros((), dtype=torch.float64),
        None,
        f"box {box.source}",
        torch.ones((), dtype=torch.float64),
        (lower[None], upper[None]),
    )


def _boxes_of_file(
    points: PointFile, boxes: Arrays, eps: float | Radius | None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Radius, and the ends [n, *input_shape] if the file holds them."""
    path, shape, count = points.path, points.x.shape[1:], len(points.x)
    named = list(boxes)
    if eps is not None and named:
        raise InputError(f"--input {path} holds {', '.join(named)}: leave out --eps, or these")
    if eps is None and not named:
        raise InputError(
            "--eps is missing: give the radius of the box, such as 0.05, or an array eps in "
            f"{path}, or x_L and x_U"
        )
    if named not in ([], ["eps"], ["x_L", "x_U"]):
        raise InputError(f"--input {path} holds {', '.join(named)}: expected eps, or x_L and x_U")
    found = []
    for name in named:
        check_numbers(f"--input {path}: {name}", boxes[name])
        found.append(per_input(f"--input {path}: {name}", boxes[name], shape, count=count))
    if len(found) == 2:
        return torch.zeros((), dtype=torch.float64), tuple(b.expand(count, *shape) for b in found)
    if found:
        return found[0], None
    if isinstance(eps, Radius):
        name = f"--eps {eps.source}"
        return per_input(name, eps.values, shape, count=count, by_channel=True), None
    return torch.tensor(eps, dtype=torch.float64), None


def _per_channel(option: str, text: str, shape: Shape) -> Tensor:
    """Positive numbers, one for all or one per channel, broadcastable to ``shape``."""
    values = torch.tensor(numbers(option, text, float), dtype=torch.float64)
    if not bool(((values > 0) & torch.isfinite(values)).all()) or len(values) not in (1, shape[0]):
        raise InputError(
            f"{option} {text}: expected 1 or {shape[0]} positive numbers, one per channel"
        )
    return values.reshape(-1, *[1] * (len(shape) - 1))


def _warn_of_fewer(there: int, choice: Choice, where: str) -> None:
    if there < choice.count:
        after = f" from point {choice.start} on" if choice.start else ""
        print(
            f"warning: --num-examples {choice.count}: {where} holds {there}{after}", file=sys.stderr
        )


def _clip_range(facts: DataSpec, pixels: tuple[float, float]) -> tuple[Tensor, Tensor]:
    mean, std = facts.normalisation(torch.float64)
    return (pixels[0] - mean) / std, (pixels[1] - mean) / std


def points_of_data(
    facts: DataSpec,
    shape: tuple[int, ...],
    eps: float | Radius,
    choice: Choice,
    root: str | None,
) -> Points:
    """The test examples of a data set, or the centre of the cube for ``simple``.

    Args:
        facts: The data set.
        shape: Shape of one input as the network takes it.
        eps: Radius in pixels, for all inputs, per channel or per flat coordinate.
        choice: Which examples, and whether the box is cut to the data range.
        root: Folder of the data files, None for the default.
    """
    x, labels = evaluation_examples(
        facts.name, start=choice.start, count=choice.count, model_input_shape=shape, root=root
    )
    _warn_of_fewer(len(x), choice, facts.name)
    facts = facts.with_shape(shape)
    pixels = facts.pixel_range if choice.clip_to_data else _WIDE_PIXEL_RANGE
    _, std = facts.normalisation(torch.float64)
    clip = _clip_range(facts, pixels)
    if isinstance(eps, Radius):
        eps = per_input(f"--eps {eps.source}", eps.values, tuple(shape), by_channel=True)
    return Points(x.double(), labels, eps / std, clip, facts.name, 1 / std, first=choice.start)
