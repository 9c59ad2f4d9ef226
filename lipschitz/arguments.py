"""Numbers, lists, arrays and tensors that users give, as tensors.

Tensors keep their precision; everything else is read in float64, so that nothing is lost before it
is converted to the network's precision.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lipschitz.checks import shown
from lipschitz.errors import InputError, first_line

# What every public call takes where it says tensor: numbers, lists and arrays too.
Numbers = Tensor | ArrayLike
Ends = tuple[Numbers, Numbers]


def tensor_of(name: str, value: Any) -> Tensor:
    """What was given as a tensor of real numbers, detached, in its own precision.

    Args:
        name: What it is, for messages.
        value: A tensor, an array, a number or a (nested) list of numbers.

    Raises:
        InputError: Anything else, complex numbers, a list whose parts differ in length.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.layout != torch.strided:
            what = "complex" if value.is_complex() else "sparse"
            raise InputError(f"{name} is {what}: expected a dense tensor of real numbers")
        return value.detach()
    if value is None or isinstance(value, (bool, str)):
        raise InputError(f"{name} {shown(value)}: expected numbers")
    try:
        if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
            return torch.stack([tensor_of(name, part) for part in value])
        array = np.asarray(value)
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} {shown(value)} is no array: {first_line(error)}") from error
    if array.dtype.kind == "c":
        raise InputError(f"{name} is complex: expected real numbers")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} {shown(value)} does not hold numbers: expected real numbers")
    # A copy: torch reads neither foreign byte orders nor negative strides.
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def point_of(name: str, value: Any) -> Tensor:
    """A point of the input space, see :func:`tensor_of`.

    Raises:
        InputError: No numbers, or none at all.

    Warns:
        UserWarning: Pixels from 0 to 255, which most networks take only after scaling.
    """
    point = tensor_of(name, value)
    if str(getattr(value, "dtype", "")) in ("uint8", "torch.uint8"):
        warnings.warn(
            f"{name} is uint8: scale pixels 0 to 255 as the network was trained, such as "
            "x.astype('float32') / 255 (a tensor: x.float() / 255), and give eps in the same unit",
            stacklevel=2,
        )
    if not point.numel():
        raise InputError(f"{name} is empty, of shape {tuple(point.shape)}: give one point")
    return point


def radius_of(value: Any) -> Tensor:
    """A radius, which may be text, a decimal or a fraction such as ``"2/255"``.

    Raises:
        InputError: No such number.
    """
    if not isinstance(value, str):
        return tensor_of("eps", value)
    try:
        number = float(Fraction(value)) if "/" in value else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"eps {value!r}: expected a number such as 0.05 or 2/255") from None
    return torch.tensor(number, dtype=torch.float64)


def fitted(name: str, value: Tensor, like: Tensor) -> Tensor:
    """The numbers in the precision and on the device of a point, where they broadcast to it.

    A batch dimension of 1 is left out.

    Args:
        name: What they are, for messages.
        value: The numbers.
        like: The point, [*input_shape].

    Raises:
        InputError: They do not broadcast.
    """
    if value.shape[:1] == (1,) and value.dim() == like.dim() + 1:
        value = value[0]
    try:
        fits = torch.broadcast_shapes(value.shape, like.shape) == like.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"{name} has shape {tuple(value.shape)}: expected a number, or numbers that broadcast "
            f"to the input's shape {tuple(like.shape)}"
        )
    return value.to(like)


def pair_of(name: str, value: Any) -> Ends:
    """Two ends.

    Raises:
        InputError: Not two of them.
    """
    try:
        lower, upper = value
    except (TypeError, ValueError):
        raise InputError(
            f"{name} {shown(value)}: expected a pair, its lower and its upper end"
        ) from None
    return lower, upper


def fitted_clip(clip: Ends | None, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Smallest and largest value of an input, each broadcastable to the point ``like``.

    Raises:
        InputError: Not two ends, of another shape, NaN, or crossed.
    """
    if clip is None:
        return None
    smallest, largest = (
        fitted("clip", tensor_of("clip", end), like) for end in pair_of("clip", clip)
    )
    if not (smallest <= largest).all():
        raise InputError(
            "clip holds NaN, or a smallest value above its largest: give (smallest, largest)"
        )
    return smallest, largest


def check_dtype(dtype: Any) -> None:
    """Refuse what is no precision to compute in; None is the network's own.

    Raises:
        InputError: With those that are.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(f"dtype {dtype!r}: expected torch.float32 or torch.float64")
