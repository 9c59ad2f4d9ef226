"""``main.py --picture``: an image, the certified bound of each pixel's |J|, and a true gradient."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lipschitz import LipschitzResult, LocalProblem
from lipschitz.applications.jacobian_intervals import certified_entries, root_bounds
from lipschitz.errors import InputError
from utils import significant


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of an input that is an image, also of one that is flattened.

    Raises:
        InputError: It is none.
    """
    if len(shape) == 2:
        return (1, *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape
    size = math.prod(shape)
    for channels in (1, 3):
        side = math.isqrt(size // channels)
        if len(shape) == 1 and side > 1 and channels * side * side == size:
            return channels, side, side
    raise InputError(
        f"--picture draws images; an input of shape {shape} is none: expected [H, W], [1, H, W], "
        "[3, H, W] or a flattened square"
    )


def entry_bounds(problem: LocalProblem, result: LipschitzResult) -> tuple[str, Tensor]:
    """Certified bound of every |entry| of the output that may have the largest gradient.

    Returns:
        The output's name and [*input_shape]: no point of the box has a larger |J_i|.
    """
    bounds = result.class_upper_bounds
    if len(bounds) == len(problem.rows):
        worst = int(np.argmax(bounds))
    else:  # of all rows together
        ends = certified_entries(problem, root_bounds(problem, "native", optimize=False))
        worst = int(torch.maximum(-ends.lower, ends.upper).flatten(1).sum(1).argmax())
    one = replace(
        problem, rows=problem.rows[worst : worst + 1], row_names=(problem.row_names[worst],)
    )
    ends = certified_entries(one, root_bounds(one, "native", optimize=True))
    return problem.row_names[worst], torch.maximum(-ends.lower, ends.upper)[0]


def draw(
    path: Path, problem: LocalProblem, result: LipschitzResult, *, example: int, label: int | None
) -> None:
    """Write the three pictures side by side.

    A pixel's |J| is the sum over its channels. The two maps have one scale of colours. Constants
    are per unit of the network's input.

    Args:
        path: The file; its ending decides the format.
        problem: What was bounded.
        result: Its bounds.
        example, label: For the title.

    Raises:
        InputError: matplotlib is missing, or the file's ending is unknown to it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--picture needs matplotlib: pip install matplotlib") from None

    shape = image_shape(tuple(problem.centre.shape))
    name, bounds = entry_bounds(problem, result)
    bounds = bounds.reshape(shape).sum(0).cpu()
    gradient = torch.zeros_like(bounds)
    if result.witness is not None:
        row = problem.rows[[problem.row_names.index(name)]]
        at = result.witness[None].to(problem.centre)
        gradient = problem.graph.gradients(at, row)[0].abs().reshape(shape).sum(0).cpu()
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    image = problem.centre.reshape(shape).cpu().double().movedim(0, -1)
    image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
    axes[0].imshow(image.squeeze(-1), cmap="gray")
    known = "" if label is None else f", label {label}"
    axes[0].set_title(f"example {example}{known}")
    largest = float(bounds.max()) or 1.0
    shown = None
    for axis, values, title in (
        (axes[1], bounds, f"certified bound of |J|, output {name}\nsum {_sum(bounds)}"),
        (axes[2], gradient, f"true |J| at the witness\nsum {_sum(gradient)}"),
    ):
        shown = axis.imshow(values, cmap="magma", vmin=0, vmax=largest)
        axis.set_title(title)
    for axis in axes:
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes[1:], label="per unit of the network's input")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise InputError(f"--picture {path}: {error}") from None


def _sum(values: Tensor) -> str:
    return significant(float(values.double().sum()), 5)


def path_of(file: str, example: int, *, several: bool) -> Path:
    """The file of one example: the given one, or with the example's number before its ending."""
    path = Path(file)
    return path.with_name(f"{path.stem}_{example}{path.suffix}") if several else path
