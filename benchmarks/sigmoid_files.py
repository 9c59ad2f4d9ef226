"""Sigmoid networks and images of others, read from the files that they are published as."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from data.array_files import check_numbers, is_table, read_numpy, read_table
from lipschitz.errors import InputError
from models.checkpoint import load_checkpoint

Layers = list[tuple[Tensor, Tensor]]


def stored_layers(path: Path, dimensions: tuple[int, ...] = (2,)) -> Layers:
    """Weights and biases in order, in float64.

    Args:
        path: A state dict, by itself or in a dictionary.
        dimensions: What a weight may have: 2 for linear layers, 4 for convolutions of images.

    Raises:
        InputError: The file is missing, or holds anything else.
    """
    values = [value.double() for value in load_checkpoint(path).state_dict.values()]
    layers = list(zip(values[::2], values[1::2], strict=False))
    are_layers = all(w.dim() in dimensions and b.shape == w.shape[:1] for w, b in layers)
    if not layers or len(values) % 2 or not are_layers:
        kind = "linear layers" if dimensions == (2,) else "convolutions and linear layers"
        raise InputError(f"{path}: expected the weights and biases of {kind} by turns")
    return layers


def sigmoid_mlp(layers: Layers) -> nn.Sequential:
    """The network [B, D] to [B, C] with a sigmoid between linear layers, in float64."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        modules += [_filled(nn.Linear(weight.shape[1], weight.shape[0]), weight, bias)]
        modules += [nn.Sigmoid()]
    return nn.Sequential(*modules[:-1]).eval()


def sigmoid_cnn(layers: Layers, stride: int) -> nn.Sequential:
    """The network [B, C, H, W] to [B, C'], a sigmoid after every layer but the last, in float64.

    Args:
        layers: Convolutions without padding, then linear layers.
        stride: Of all convolutions; a state dict does not tell.
    """
    modules: list[nn.Module] = []
    for weight, bias in layers:
        if weight.dim() == 4:
            out, inner, *kernel = weight.shape
            layer = nn.Conv2d(inner, out, (kernel[0], kernel[1]), stride)
        else:
            if not any(isinstance(module, nn.Flatten) for module in modules):
                modules += [nn.Flatten()]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
        modules += [_filled(layer, weight, bias), nn.Sigmoid()]
    return nn.Sequential(*modules[:-1]).eval()


def _filled(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Module:
    layer.weight.data, layer.bias.data = weight, bias
    return layer


def flat_images(path: Path, count: int) -> Tensor:
    """The first images of a file, [count, pixels] in float64, pixels in [0, 1].

    Args:
        path: A .npy file with one image a row; or a .csv file as ERAN's, a label and the pixels
            0 .. 255 on each line.
        count: How many; fewer if the file holds fewer.

    Raises:
        InputError: No such file, or anything else in it.
    """
    if count < 1:
        raise InputError(f"--count {count}: expected a number from 1")
    if is_table(path):
        return torch.from_numpy(read_table("--images", path).values[:count, 1:]) / 255
    array = read_numpy("--images", path)
    if isinstance(array, dict) or array.ndim < 2:
        raise InputError(f"--images {path}: expected one array, one image a row")
    check_numbers(f"--images {path}", array)
    return torch.from_numpy(array[:count]).double().flatten(1)


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers or fractions such as 2/255 with commas between, 0 or above.

    Raises:
        InputError: Anything else.
    """
    try:
        found = tuple(float(Fraction(part)) for part in text.split(","))
    except (ValueError, ArithmeticError):
        found = ()
    if not found or min(found) < 0:
        raise InputError(f"{option} {text}: expected numbers from 0 with commas between")
    return found
