"""A plain ReLU MLP of any layer sizes: the form that a converted CNN takes."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from lipschitz.errors import InputError


def layer_sizes(sizes: str) -> tuple[int, ...]:
    """The numbers in `64-144-10`: inputs, hidden neurons, outputs.

    Raises:
        InputError: Fewer than two sizes, or one that is not a positive whole number.
    """
    parts = sizes.split("-")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"mlp: sizes={sizes!r} is not of the form 64-144-10")
    return tuple(int(part) for part in parts)


def mlp(sizes: str = "16-16-16-10") -> nn.Sequential:
    """MLP with these layer sizes and no Flatten in front."""
    widths = layer_sizes(sizes)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
