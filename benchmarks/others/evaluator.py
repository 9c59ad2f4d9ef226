"""Networks evaluated in float64 for the attack, by code that shares nothing with the library.

A network here is a function of one example; :class:`Network` maps it over a batch. Activations with
a kink go through :class:`Kinks`, which says how they are taken: as they are, or rounded off so that
the norm of a gradient can be climbed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.others.box import Entry

# Share of the largest value of a layer below which a value may be 0 but for rounding.
_DOUBT = 1e-13


@dataclass
class Kinks:
    """How ReLUs and maxima are taken, and what went into them.

    Attributes:
        widths: For every place of a kink in order, the widths over which its inputs are rounded
            off, numbers or tensors to be broadcast; None takes all as they are.
        slope: Of a ReLU whose input is 0 but for rounding.
        inputs: The values that went in, place by place, [...] each; differences to the largest
            for maxima.
    """

    widths: list[Tensor] | None = None
    slope: float = 0.0
    inputs: list[Tensor] = field(default_factory=list)

    def _width(self) -> Tensor | None:
        return None if self.widths is None else self.widths[len(self.inputs) - 1]

    def relu(self, z: Tensor) -> Tensor:
        """The larger of ``z`` and 0."""
        self.inputs.append(z)
        width = self._width()
        if width is not None:
            return width * F.softplus(z / width)
        doubt = _DOUBT * z.detach().abs().amax()
        at_kink = self.slope * z
        return torch.where(z > doubt, z, torch.where(z < -doubt, torch.zeros_like(z), at_kink))

    def largest(self, z: Tensor) -> Tensor:
        """The largest of ``z`` [..., K] over the last dimension."""
        self.inputs.append(z - z.detach().amax(-1, keepdim=True))
        width = self._width()
        if width is None:
            return z.amax(-1)
        width = width.mean()
        return width * torch.logsumexp(z / width, -1)


Function = Callable[[Tensor, Kinks], Tensor]


class Network:
    """A network on batches.

    Args:
        function: From one example [*input_shape] to [C]; every kink is asked of its second
            argument.
    """

    def __init__(self, function: Function) -> None:
        self.function = function

    def outputs(
        self, x: Tensor, widths: list[Tensor] | None = None, slope: float = 0.0
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs [B, C] and the inputs [B, ...] of all kinks.

        Args:
            x: [B, *input_shape].
            widths, slope: As in :class:`Kinks`.
        """

        def single(one: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            kinks = Kinks(widths, slope)
            result = self.function(one, kinks).reshape(-1)
            return result, tuple(kinks.inputs)

        found, inputs = torch.func.vmap(single)(x)
        return found, list(inputs)


def load_network(entry: Entry, folder: Path) -> Network:
    """The network of an entry of the manifest.

    Raises:
        ValueError: A layer or an operator that is not known here.
    """
    path = folder / entry["file"]
    if path.suffix == ".onnx":
        from benchmarks.others.onnx_evaluator import onnx_function

        return Network(onnx_function(path))
    return Network(_layered(entry["layers"], stored_weights(path)))


def stored_weights(path: Path) -> Callable[[str], tuple[Tensor, Tensor]]:
    """A function from a layer's name to its weight [out, in, ...] and its bias."""
    if path.suffix == ".npz":
        arrays = np.load(path, allow_pickle=False)

        def from_archive(name: str) -> tuple[Tensor, Tensor]:
            return torch.tensor(arrays[f"W{name}"].T).double(), torch.tensor(
                arrays[f"b{name}"]
            ).double()

        return from_archive
    stored = torch.load(path, weights_only=True, map_location="cpu")
    while isinstance(stored, list) or "state_dict" in stored:
        stored = stored[0] if isinstance(stored, list) else stored["state_dict"]

    def from_state(name: str) -> tuple[Tensor, Tensor]:
        return stored[f"{name}.weight"].double(), stored[f"{name}.bias"].double()

    return from_state


def _layered(layers: list[object], weights: Callable[[str], tuple[Tensor, Tensor]]) -> Function:
    steps: list[Function] = []
    for layer in layers:
        if isinstance(layer, dict):
            if "linear" in layer:
                steps.append(_linear(*weights(layer["linear"])))
            else:
                arguments = (layer.get("stride", 1), layer.get("padding", 0))
                steps.append(_convolution(*weights(layer["conv"]), *arguments))
        elif layer == "relu":
            steps.append(lambda x, kinks: kinks.relu(x))
        elif layer in ("sigmoid", "tanh"):
            curve = torch.sigmoid if layer == "sigmoid" else torch.tanh
            steps.append(lambda x, kinks, curve=curve: curve(x))
        elif layer == "flatten":
            steps.append(lambda x, kinks: x.reshape(-1))
        else:
            raise ValueError(f"the attack knows no layer {layer!r}")

    def function(x: Tensor, kinks: Kinks) -> Tensor:
        for step in steps:
            x = step(x, kinks)
        return x

    return function


def _linear(weight: Tensor, bias: Tensor) -> Function:
    return lambda x, kinks: x @ weight.T + bias


def _convolution(weight: Tensor, bias: Tensor, stride: int, padding: int) -> Function:
    return lambda x, kinks: F.conv2d(x[None], weight, bias, stride, padding)[0]
