"""Files that hold a whole network: ``.onnx``, Keras ``.h5`` and ``.pt2`` of torch.export."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lipschitz.errors import InputError
from lipschitz.network.formats.exported import load_exported
from lipschitz.network.formats.keras_file import load_keras
from lipschitz.network.formats.onnx_file import load_onnx

_LOADERS: dict[str, Callable[..., tuple[nn.Module, tuple[int, ...]]]] = {
    ".onnx": load_onnx,
    ".h5": load_keras,
    ".hdf5": load_keras,
    ".pt2": load_exported,
}
_INSTEAD = {
    ".keras": "save it with model.save('net.h5'), or as .onnx",
    ".pb": "save it as .onnx (tf2onnx)",
    ".tflite": "save it as .onnx (tf2onnx)",
}


def is_network_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this name holds a network's layers besides its weights."""
    return Path(path).suffix.lower() in (*_LOADERS, *_INSTEAD)


def read_network(path: str | os.PathLike[str], **params: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """The network of a file and the shape of one input.

    Args:
        path: The file; its ending says the format.
        params: What the format's loader takes besides; ``activation`` for Keras.

    Raises:
        InputError: No such file, an unknown ending, a missing package or a damaged file.
        NotImplementedError: A layer that is not covered, by name.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _INSTEAD:
        raise InputError(f"{path}: {suffix} files are not read; {_INSTEAD[suffix]}")
    if suffix not in _LOADERS:
        raise InputError(
            f"{path}: expected a network as {', '.join(_LOADERS)}; weights alone go with a model"
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a file")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty: save the network again")
    unknown = params.keys() - ({"activation"} if _LOADERS[suffix] is load_keras else set())
    if unknown:
        raise InputError(f"{path} has no argument {sorted(unknown)[0]!r}: its layers are fixed")
    return _LOADERS[suffix](path, **params)


def load_model(path: str | os.PathLike[str], **params: Any) -> nn.Module:
    """The network of an ``.onnx``, Keras ``.h5`` or ``.pt2`` file, in eval mode.

    It takes [B, C, H, W] whatever the file's own order. A network saved as weights alone is a
    state dict: ``model.load_state_dict(torch.load(path, weights_only=True))``.

    Args:
        path: The file; its ending says the format.
        params: ``activation``: what the Lambda layers of a Keras file compute, such as ``relu``.

    Raises:
        InputError: A ValueError: no such file, a missing package, a damaged file.
        NotImplementedError: A layer that is not covered, by name.
    """
    return read_network(path, **params)[0]
