"""Checkpoints that know what they are, and strict loading of anyone's weights.

A checkpoint is a dictionary with the weights under `state_dict` and plain values beside it, so
that it loads with `torch.load(..., weights_only=True)`, which runs no code from the file.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipschitz.errors import InputError
from utils import torch_save_atomic

_FORMAT = "lipschitz-checkpoint-1"
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_MAX_LISTED = 4


@dataclass(frozen=True)
class Checkpoint:
    """Weights and where they come from; for a bare state dict only `state_dict` is known.

    Attributes:
        state_dict: The weights, on the CPU.
        model: Name in the registry or `file.py:factory`.
        params: Arguments of the factory.
        data: Name of the data set trained on.
        input_shape: Shape of one input.
        classes: Number of outputs.
        mean: Per channel, in pixels; network input = (pixel - mean) / std.
        std: Per channel, in pixels.
        seed: Seed of the training.
        accuracy: Share of test examples classified correctly, in [0, 1].
        epochs: Epochs trained.
        versions: Of Python, torch and the tool.
    """

    state_dict: dict[str, torch.Tensor] = field(repr=False)
    model: str | None = None
    params: dict[str, Any] | None = None
    data: str | None = None
    input_shape: tuple[int, ...] | None = None
    classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int | None = None
    accuracy: float | None = None
    epochs: int | None = None
    versions: dict[str, str | None] | None = None

    @property
    def description(self) -> str | None:
        """For example `simple_cnn_3layer(width=4)`; None if the checkpoint does not know."""
        if self.model is None:
            return None
        arguments = ", ".join(f"{name}={value}" for name, value in (self.params or {}).items())
        return f"{self.model}({arguments})"


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically; folders on the way are made."""
    content = {"format": _FORMAT, **vars(checkpoint)}
    content["state_dict"] = {
        name: tensor.detach().cpu() for name, tensor in checkpoint.state_dict.items()
    }
    torch_save_atomic(content, path)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads our own checkpoint, a plain state dict, or one inside a dictionary.

    In a dictionary such as `{"model": ..., "optimizer": ..., "epoch": ...}` the weights are the
    one value that is a state dict, under whatever key. A prefix that all keys share because the
    model was wrapped (`module.`) is removed.

    Raises:
        InputError: No such file, not a checkpoint, a whole pickled model, several state dicts, or
            weights that are NaN or infinite.
    """
    content = _read(Path(path))
    known: dict[str, Any] = {}
    if isinstance(content, dict) and content.get("format") == _FORMAT:
        known = {key: content.get(key) for key in Checkpoint.__dataclass_fields__}
        content = known.pop("state_dict")
    weights = _state_dict_in(path, content)
    weights = _without_wrapper_prefix(weights)
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name!r} contains NaN or infinity; train the network again")
    return Checkpoint(state_dict=weights, **known)


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, asked_for: str | None = None
) -> Checkpoint:
    """Loads weights into `model`, every key and shape matching.

    A model given float64 weights becomes a float64 model: rounding them would change the network.

    Args:
        model: The network to fill.
        path: A file that `load_checkpoint` reads.
        asked_for: What the user calls the model, for the error message.

    Returns:
        The checkpoint, with all that it knows about its origin.

    Raises:
        InputError: As `load_checkpoint`, or the weights do not fit; the message lists the
            missing and unexpected keys and the shapes that differ.
    """
    checkpoint = load_checkpoint(path)
    problems = _mismatches(model.state_dict(), checkpoint.state_dict)
    if problems:
        asked = f" {asked_for}" if asked_for else " the model"
        origin = checkpoint.description
        was = f"; it was saved from {origin}" if origin else ""
        raise InputError(f"{path} does not fit{asked}{was}: {'; '.join(problems)}")
    if any(tensor.dtype == torch.float64 for tensor in checkpoint.state_dict.values()):
        model.double()
    model.load_state_dict(checkpoint.state_dict)
    return checkpoint


def _read(path: Path) -> Any:
    if not path.is_file():
        if path.is_dir():
            raise InputError(f"there is no checkpoint {path}: it is a folder")
        raise InputError(f"there is no checkpoint {path}; train one with train_model.py")
    if _is_torchscript(path):
        raise InputError(
            f"{path} is a TorchScript program, which is not read; save the network as .pt2 "
            "(torch.export.save) or .onnx, or its model.state_dict()"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch refuses foreign classes; a zip or pickle that got so far is a pickled object.
        holds_objects = zipfile.is_zipfile(path) or path.read_bytes()[:1] == b"\x80"
        if holds_objects:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise InputError(
                f"{path} holds pickled objects ({named[1] if named else 'a whole model?'}), which "
                "are not loaded because they may run code; save model.state_dict() instead"
            ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError):
        pass  # how torch reports a damaged file differs from version to version
    raise InputError(f"{path} is not a checkpoint, or it is damaged")


def _is_torchscript(path: Path) -> bool:
    """Whether a file holds code beside its weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _state_dict_in(path: str | os.PathLike[str], content: Any) -> dict[str, torch.Tensor]:
    """The state dict that a file's content is, or the only one that it holds.

    Raises:
        InputError: None or several; the message names the keys.
    """
    if _is_state_dict(content):
        return content
    advice = "save model.state_dict() with torch.save"
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no state dict; {advice}")
    found = [key for key, value in content.items() if _is_state_dict(value)]
    if not found:
        keys = _listed([str(key) for key in content])
        raise InputError(f"{path} holds no state dict under its keys {keys}; {advice}")
    if len(found) > 1:
        raise InputError(
            f"{path} holds several state dicts, {_listed([str(key) for key in found])}: save the "
            f"one that is meant, torch.save(torch.load({str(path)!r})[{found[0]!r}], ...)"
        )
    return content[found[0]]


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) for key in value)
        and all(isinstance(tensor, torch.Tensor) for tensor in value.values())
    )


def _without_wrapper_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name[len(prefix) :]: tensor for name, tensor in weights.items()}
    return weights  # as it is, if it can be: torch keeps layers' versions beside the tensors


def _mismatches(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[str]:
    shapes = [
        f"{name} is {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "shape": shapes,
    }
    return [f"{kind} {_listed(items)}" for kind, items in kinds.items() if items]


def _listed(items: list[str]) -> str:
    rest = len(items) - _MAX_LISTED
    return ", ".join(items[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
