"""Networks of Keras ``.h5`` files, read through h5py.

The layout is that of ``model.save("net.h5")``, in which RecurJac and CNN-Cert keep theirs: the
attribute ``model_config`` holds the layers in JSON, the group ``model_weights`` their arrays. Only
a chain of layers is read, and no Python code from the file is run.

Keras puts channels last. The network made here takes [B, C, H, W]; kernels and the weights of
the layer behind Flatten are reordered accordingly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipschitz.errors import InputError, suggest

Arrays = dict[str, np.ndarray]


class Function(nn.Module):
    """A function that torch has no module for."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of x."""
        return self.function(x)


_ACTIVATIONS: dict[str, Callable[[], nn.Module | None]] = {
    "linear": lambda: None,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "arctan": lambda: Function(torch.atan),
    "atan": lambda: Function(torch.atan),
    "softmax": lambda: nn.Softmax(1),
}


@dataclass
class _Chain:
    """The layers made so far.

    Attributes:
        path: The file, for messages.
        activation: What Lambda layers compute, if the user has said it.
        shape: Shape of a value, channels first, without the batch dimension.
        flattened: Shape before Flatten, while the order of numbers is still to be corrected.
        layers: The layers.
        dtype: Precision of the weights.
    """

    path: Path
    activation: str | None
    shape: tuple[int, ...] = ()
    flattened: tuple[int, ...] | None = None
    layers: list[nn.Module] = field(default_factory=list)
    dtype: torch.dtype = torch.float32

    def add(self, layer: nn.Module, **arrays: np.ndarray | None) -> None:
        """Append a layer with these weights and follow the shape through it."""
        layer = layer.to(self.dtype).eval()
        with torch.no_grad():
            for name, array in arrays.items():
                if array is not None:
                    getattr(layer, name).copy_(torch.from_numpy(np.ascontiguousarray(array)))
            self.shape = tuple(layer(torch.zeros(1, *self.shape, dtype=self.dtype)).shape[1:])
        self.layers.append(layer)

    def add_activation(self, name: Any) -> None:
        """Append an activation by its Keras name."""
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            hint = suggest(str(name), _ACTIVATIONS)
            raise NotImplementedError(f"{self.path}: the activation {name!r} is unknown{hint}")
        layer = _ACTIVATIONS[name]()
        if layer is not None:
            self.layers.append(layer)


def _channels_last(chain: _Chain, config: dict[str, Any]) -> None:
    if config.get("data_format", "channels_last") != "channels_last":
        raise NotImplementedError(f"{chain.path}: data_format={config['data_format']!r}")


def _dense(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    kernel = arrays["kernel"]  # [inputs, outputs]
    if chain.flattened is not None:
        channels, *sizes = chain.flattened
        by_place = kernel.reshape(*sizes, channels, -1)
        kernel = np.moveaxis(by_place, -2, 0).reshape(len(kernel), -1)
        chain.flattened = None
    if len(chain.shape) != 1 or chain.shape[0] != len(kernel):
        raise InputError(
            f"{chain.path}: a Dense layer of {len(kernel)} inputs after a layer of shape "
            f"{chain.shape}; put a Flatten before it"
        )
    layer = nn.Linear(*kernel.shape, bias="bias" in arrays)
    chain.add(layer, weight=kernel.T, bias=arrays.get("bias"))
    chain.add_activation(config.get("activation", "linear"))


def _same_padding(sizes: tuple[int, ...], extents: list[int], strides: list[int]) -> list[int]:
    """TensorFlow's padding 'same', for F.pad: last dimension first, the odd one at the end."""
    pads: list[int] = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    return pads


def _convolution(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    _channels_last(chain, config)
    kernel = np.moveaxis(arrays["kernel"], (-1, -2), (0, 1))  # [outputs, inputs, *sizes]
    strides, dilation = list(config["strides"]), list(config.get("dilation_rate", [1, 1]))
    groups = config.get("groups", 1)
    if config["padding"] not in ("valid", "same"):
        raise NotImplementedError(f"{chain.path}: padding={config['padding']!r}")
    padding = [0, 0]
    if config["padding"] == "same":
        extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        pads = _same_padding(chain.shape[1:], extents, strides)
        if pads[::2] == pads[1::2]:
            padding = [pads[2], pads[0]]
        else:
            chain.add(nn.ZeroPad2d(tuple(pads)))
    layer = nn.Conv2d(
        kernel.shape[1] * groups,
        kernel.shape[0],
        kernel.shape[2:],
        tuple(strides),
        tuple(padding),
        tuple(dilation),
        groups,
        bias="bias" in arrays,
    )
    chain.add(layer, weight=kernel, bias=arrays.get("bias"))
    chain.add_activation(config.get("activation", "linear"))


def _batch_norm(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    axis = config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) else axis
    if axis not in (-1, len(chain.shape)) or chain.flattened is not None:
        raise NotImplementedError(f"{chain.path}: BatchNormalization along axis {axis}")
    kinds = {1: nn.BatchNorm1d, 3: nn.BatchNorm2d}
    layer = kinds[len(chain.shape)](chain.shape[0], eps=config["epsilon"])
    chain.add(
        layer,
        weight=arrays.get("gamma"),
        bias=arrays.get("beta"),
        running_mean=arrays["moving_mean"],
        running_var=arrays["moving_variance"],
    )


def _pooling(kind: type[nn.Module]) -> Callable[[_Chain, dict[str, Any], Arrays], None]:
    def add(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
        _channels_last(chain, config)
        kernel = tuple(config["pool_size"])
        strides = list(config["strides"] or kernel)
        if config["padding"] == "same" and any(_same_padding(chain.shape[1:], kernel, strides)):
            raise NotImplementedError(f"{chain.path}: pooling with padding='same'")
        chain.add(kind(kernel, tuple(strides)))

    return add


def _global_average(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    _channels_last(chain, config)
    chain.add(nn.AdaptiveAvgPool2d(1))
    if not config.get("keepdims", False):
        chain.add(nn.Flatten())


def _zero_padding(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    _channels_last(chain, config)
    (top, bottom), (left, right) = config["padding"]
    chain.add(nn.ZeroPad2d((left, right, top, bottom)))


def _flatten(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    if len(chain.shape) == 3:
        chain.flattened = chain.shape
    chain.add(nn.Flatten())


def _lambda(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    function = config.get("function")
    if config.get("function_type") == "function" and isinstance(function, str):
        chain.add_activation(function)
    elif chain.activation is not None:
        chain.add_activation(chain.activation)
    else:
        raise InputError(
            f"{chain.path}: the Lambda layer {config.get('name')!r} is Python code, which is not "
            "run: say what such layers compute, as in --model-params activation=relu"
        )


def _leaky_relu(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    slope = config.get("alpha", config.get("negative_slope", 0.3))
    chain.add(nn.LeakyReLU(float(slope)))


def _relu(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    largest = config.get("max_value")
    if config.get("negative_slope") or config.get("threshold") or largest not in (None, 6.0):
        raise NotImplementedError(f"{chain.path}: ReLU with a slope, threshold or limit")
    chain.add(nn.ReLU() if largest is None else nn.ReLU6())


def _nothing(chain: _Chain, config: dict[str, Any], arrays: Arrays) -> None:
    pass


_LAYERS: dict[str, Callable[[_Chain, dict[str, Any], Arrays], None]] = {
    "InputLayer": _nothing,
    "Dense": _dense,
    "Conv2D": _convolution,
    "Convolution2D": _convolution,
    "BatchNormalization": _batch_norm,
    "AveragePooling2D": _pooling(nn.AvgPool2d),
    "MaxPooling2D": _pooling(nn.MaxPool2d),
    "GlobalAveragePooling2D": _global_average,
    "ZeroPadding2D": _zero_padding,
    "Flatten": _flatten,
    "Activation": lambda chain, config, _: chain.add_activation(config["activation"]),
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "Lambda": _lambda,
    "Dropout": _nothing,
}


def load_keras(path: Path, activation: str | None = None) -> tuple[nn.Sequential, tuple[int, ...]]:
    """The network of a file, in eval mode and its own precision, and the shape of one input.

    Args:
        path: The ``.h5`` file.
        activation: What its Lambda layers compute, such as ``relu`` or ``arctan``.

    Raises:
        InputError: The package h5py is missing, or the file is damaged or has no architecture.
        NotImplementedError: A layer without a rule, by name.
    """
    if not _is_hdf5(path):
        raise InputError(f"{path} is not an HDF5 file, or it is damaged")
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: reading .h5 needs the package h5py: pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            if config is None or "model_weights" not in file:
                raise InputError(
                    f"{path} holds weights without their layers; save it with model.save('net.h5')"
                )
            weights = {name: _arrays(group) for name, group in file["model_weights"].items()}
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not an HDF5 file, or it is damaged ({error})") from error
    layers = _layers_of(path, config)
    is_double = any(a.dtype == np.float64 for arrays in weights.values() for a in arrays.values())
    dtype = torch.float64 if is_double else torch.float32
    chain = _Chain(path, activation, _input_shape(path, layers), dtype=dtype)
    shape = chain.shape
    for layer in layers:
        kind, settings = layer["class_name"], layer["config"]
        if kind not in _LAYERS:
            raise NotImplementedError(f"{path}: the layer {settings.get('name')!r} of type {kind}")
        try:
            _LAYERS[kind](chain, settings, weights.get(settings.get("name"), {}))
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: the layer {settings.get('name')!r} of type {kind} does not fit: {error}"
            ) from error
    if chain.flattened is not None:
        raise NotImplementedError(f"{path}: a Flatten that no Dense layer follows")
    return nn.Sequential(*chain.layers).eval(), shape


def _is_hdf5(path: Path) -> bool:
    """Whether a file has HDF5's signature: at its begin, or at 512, 1024, 2048, ... bytes."""
    places = [0, *(512 << i for i in range(path.stat().st_size.bit_length()))]
    with open(path, "rb") as file:
        for place in places:
            file.seek(place)
            if file.read(8) == b"\x89HDF\r\n\x1a\n":
                return True
    return False


def _layers_of(path: Path, config: str | bytes) -> list[dict[str, Any]]:
    """The layers' descriptions, each with its class_name and config.

    Raises:
        InputError: Not the description of a Keras network.
        NotImplementedError: A network that is no chain of layers.
    """
    try:
        network = json.loads(config)
        kind, layers = network["class_name"], network["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not describe a Keras network, or it is damaged "
            f"({type(error).__name__}: {error}); save it with model.save('net.h5')"
        ) from error
    if kind != "Sequential":
        raise NotImplementedError(
            f"{path} is a {kind} network; only Sequential is read, so save it as .onnx (tf2onnx)"
        )
    layers = layers.get("layers") if isinstance(layers, dict) else layers
    known = {"class_name", "config"}
    if not layers or not all(isinstance(layer, dict) and known <= layer.keys() for layer in layers):
        raise InputError(f"{path} does not name its layers; save it with model.save('net.h5')")
    return layers


def _input_shape(path: Path, layers: list[dict[str, Any]]) -> tuple[int, ...]:
    for layer in layers[:2]:
        config = layer["config"]
        shape = config.get("batch_input_shape") or config.get("batch_shape")
        if shape and all(isinstance(size, int) for size in shape[1:]):
            return (shape[-1], *shape[1:-1]) if len(shape) == 4 else tuple(shape[1:])
    raise InputError(f"{path} does not say its input shape; save it with a built network")


def _arrays(group: Any) -> Arrays:
    """Arrays of a layer by their plain names: ``dense_1/dense_1/kernel:0`` is ``kernel``."""
    import h5py

    found: Arrays = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name.rpartition("/")[2].partition(":")[0]] = item[()]

    group.visititems(visit)
    return found
