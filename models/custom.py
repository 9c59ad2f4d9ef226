"""Networks from outside: `path/to/file.py:factory` and `torchvision:name`."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from lipschitz.errors import InputError, suggest
from models.neighbours import Neighbours
from models.torchvision_compat import import_torchvision


def load_factory(name: str) -> Callable[..., nn.Module]:
    """The function `factory` of the file in `path/to/file.py:factory`.

    The file is executed, as `python path/to/file.py` would, but not as `__main__`. It may import
    its neighbours, whatever they are called, see :class:`models.neighbours.Neighbours`; so may
    the function when it is called.

    Raises:
        InputError: Not of that form, no such file, the file cannot be imported, or it has no
            such function.
    """
    path_text, colon, attribute = name.rpartition(":")
    path = Path(path_text)
    if not colon or path.suffix != ".py" or not attribute.isidentifier():
        raise InputError(f"model {name!r}: expected path/to/file.py:factory")
    if not path.is_file():
        raise InputError(f"model {name!r}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"custom_model_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    # Registered before execution: dataclasses and pickling look modules up by name.
    sys.modules[spec.name] = module
    neighbours = Neighbours(path.resolve().parent)
    try:
        with neighbours.first():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's own file may raise anything
        raise InputError(f"cannot import {path}: {what_happened(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise InputError(f"{path} has no function {attribute!r}{suggest(attribute, functions)}")

    @functools.wraps(factory, updated=())
    def build(*args: object, **params: object) -> nn.Module:
        with neighbours.first():
            return factory(*args, **params)

    return build


def what_happened(error: BaseException) -> str:
    """An exception of a user's code in one line."""
    if isinstance(error, SystemExit):
        return (
            f"it calls sys.exit({'' if error.code is None else repr(error.code)}); put what runs "
            'as a script under if __name__ == "__main__":'
        )
    return f"{type(error).__name__}: {error}"


def torchvision_factory(name: str) -> Callable[..., nn.Module]:
    """The function of `torchvision:resnet18`, without weights: nothing is downloaded.

    Raises:
        InputError: torchvision is missing or has no such network.
    """
    kind = name.partition(":")[2]
    try:
        models = import_torchvision("models")
    except ImportError:
        raise InputError(
            f"model {name!r}: torchvision is missing: pip install torchvision"
        ) from None
    known = models.list_models(module=models)
    if kind not in known:
        raise InputError(f"torchvision has no model {kind!r}{suggest(kind, known)}")
    builder = models.get_model_builder(kind)

    @functools.wraps(builder)
    def build(**params: object) -> nn.Module:
        if {"weights", "weights_backbone", "pretrained"} & params.keys():
            raise InputError(f"{name} takes its weights from --load; nothing is downloaded")
        return builder(**params)

    return build
