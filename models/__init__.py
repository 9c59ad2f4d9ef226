"""Networks by name.

`model_spec` says what a name and its arguments stand for (input shape, classes), `build_model`
makes the network with torch's current random state. A name `path/to/file.py:factory` stands for
a user's own factory, `torchvision:resnet18` for a network of torchvision.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lipschitz.errors import InputError, suggest
from models import adult, mlp, residual, simple, vision
from models.custom import load_factory, torchvision_factory, what_happened

__all__ = ["ModelEntry", "ModelSpec", "build_model", "list_models", "load_factory", "model_spec"]

Shape = tuple[int, ...]
Params = dict[str, Any]


def _flat(params: Params) -> Shape:
    return (params["in_dim"],)


def _image(params: Params) -> Shape:
    return (params["in_ch"], params["in_dim"], params["in_dim"])


def _flat_from_data(shape: Shape) -> Params:
    return {"in_dim": math.prod(shape)}


def _image_from_data(shape: Shape) -> Params:
    is_square_image = len(shape) == 3 and shape[1] == shape[2]
    return {"in_ch": shape[0], "in_dim": shape[1]} if is_square_image else {}


def _nothing_from_data(shape: Shape) -> Params:
    return {}


@dataclass(frozen=True)
class ModelEntry:
    """One row of the registry.

    Attributes:
        factory: Makes the network; its name is the name of the model.
        input_shape: Shape of one input, from the factory's arguments.
        takes_any_shape: The network flattens first, so any shape with as many numbers will do.
        params_from_data: Arguments that follow from the shape of the data's examples.
    """

    factory: Callable[..., nn.Module]
    input_shape: Callable[[Params], Shape]
    takes_any_shape: bool = False
    params_from_data: Callable[[Shape], Params] = _nothing_from_data

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self.factory.__name__

    @property
    def default_params(self) -> Params:
        """The factory's arguments with their defaults."""
        parameters = inspect.signature(self.factory).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    @property
    def help(self) -> str:
        """One line on what the network is."""
        return (inspect.getdoc(self.factory) or "").splitlines()[0]

    def __str__(self) -> str:
        """The line that `--list-models` prints."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.default_params.items())
        return f"{self.name}({arguments}): {self.help}"


_ENTRIES = (
    ModelEntry(simple.simple_mlp_3layer, _flat, True, _flat_from_data),
    ModelEntry(simple.simple_mlp_width32, _flat, True, _flat_from_data),
    ModelEntry(simple.simple_cnn_3layer, lambda params: (1, 8, 8)),
    ModelEntry(simple.simple_cnn_3layer_2, lambda params: (64,)),
    ModelEntry(simple.simple_cnn_3layer_4, lambda params: (64,)),
    ModelEntry(simple.simple_cnn_3layer_8, lambda params: (64,)),
    ModelEntry(simple.simple_cnn_3layer_16, lambda params: (64,)),
    ModelEntry(vision.mnist_mlp_3layer, lambda params: (1, 28, 28), True),
    ModelEntry(vision.mnist_cnn_4layer, lambda params: (1, 28, 28)),
    ModelEntry(vision.mnist_cnn_4layer_8, lambda params: (784,)),
    ModelEntry(vision.cnn_4layer_stride1_padding0, _image, False, _image_from_data),
    ModelEntry(vision.cnn_4layer_stride1_padding0_demo, _image, False, _image_from_data),
    ModelEntry(vision.cnn_6layer_stride1_padding0, _image, False, _image_from_data),
    ModelEntry(vision.cnn_4layer_stride2_imagenet, _image, False, _image_from_data),
    ModelEntry(vision.cnn_6layer_stride2_imagenet, _image, False, _image_from_data),
    ModelEntry(residual.resnet2b, _image, False, _image_from_data),
    ModelEntry(residual.resnet4b, _image, False, _image_from_data),
    ModelEntry(adult.adult_mlp, _flat, False, _flat_from_data),
    ModelEntry(mlp.mlp, lambda params: (mlp.layer_sizes(params["sizes"])[0],)),
)
_REGISTRY = {entry.name: entry for entry in _ENTRIES}


@dataclass(frozen=True)
class ModelSpec:
    """A model with all its arguments settled.

    Attributes:
        name: Name in the registry, `path/to/file.py:factory` or `torchvision:name`.
        params: Every argument of the factory that is known, defaults included.
        input_shape: Shape of one input; None for a user's factory without data.
        factory: Makes the network.
    """

    name: str
    params: Params
    input_shape: Shape | None
    factory: Callable[..., nn.Module] = field(repr=False, compare=False)

    def build(self) -> nn.Module:
        """The network with fresh weights from torch's random state.

        Those of the registry are in eval mode; a user's factory decides on the mode itself.

        Raises:
            InputError: A user's factory fails or does not return a torch module.
        """
        if self.name in _REGISTRY:
            return self.factory(**self.params).eval()
        try:
            model = self.factory(**self.params)
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # a user's own code may raise anything
            raise InputError(f"{self.name} failed: {what_happened(error)}") from error
        if not isinstance(model, nn.Module):
            raise InputError(
                f"{self.name} returned {type(model).__name__}; it must return a torch.nn.Module"
            )
        return model.eval() if self.name.startswith("torchvision:") else model

    def shape_for(self, model: nn.Module, given: Shape | None) -> Shape | None:
        """Shape of one input, where points of the shape `given` are to be bounded.

        That of this specification; but a user's network is asked whether it takes the points as
        they are, since its data may come in another shape.

        Args:
            model: The network that was built.
            given: Shape of one point of the user's, None without points.
        """
        if given is None or self.input_shape is None:
            return self.input_shape if given is None else tuple(given)
        if self.name in _REGISTRY:
            return self.input_shape
        try:
            replace(self, input_shape=tuple(given)).count_classes(model)
        except InputError:
            return self.input_shape
        return tuple(given)

    def count_classes(self, model: nn.Module) -> int:
        """Number of outputs of `model` on inputs of this specification's shape.

        Raises:
            InputError: The model does not take such inputs, or its output is not [B, C].
        """
        if self.input_shape is None:
            raise InputError(f"the input shape of {self.name} is unknown; name its data set")
        # Weights may be of any type and device; the inputs have to follow them.
        first = next(model.parameters(), torch.empty(0))
        x = torch.zeros(2, *self.input_shape, dtype=first.dtype, device=first.device)
        shown = "x".join(map(str, self.input_shape))
        # Each by itself: a layer that was left in training mode is found later, not hidden here.
        modes = {module: module.training for module in model.modules()}
        try:
            with torch.no_grad():
                output = model.eval()(x)
        except Exception as error:  # shape errors of user modules come in every type
            raise InputError(
                f"{self.name} does not take inputs of shape {shown}: {error}"
            ) from error
        finally:
            for module, training in modes.items():
                module.training = training
        if output.ndim != 2 or len(output) != 2:
            raise InputError(
                f"{self.name} maps 2 inputs to shape {list(output.shape)}; expected [2, classes]"
            )
        return output.shape[1]


def model_spec(
    name: str, params: Params | None = None, data_shape: Shape | None = None
) -> ModelSpec:
    """What a model name and its arguments stand for.

    Args:
        name: Name in the registry, `path/to/file.py:factory` or `torchvision:name`.
        params: Arguments of the factory; the rest come from the data's shape, then the defaults.
        data_shape: Shape of one example of the data; None lets the model choose (data `simple`).

    Returns:
        The settled specification; its `input_shape` is `data_shape` wherever the model takes it.

    Raises:
        InputError: An unknown name, an unknown argument, a value of the wrong type, or a model
            that cannot take examples of `data_shape`.
    """
    params = dict(params or {})
    if ":" in name or name.endswith(".py"):
        is_torchvision = name.startswith("torchvision:")
        factory = torchvision_factory(name) if is_torchvision else load_factory(name)
        _refuse_unknown_params(name, factory, params)
        return ModelSpec(name, params, data_shape, factory)
    if name not in _REGISTRY:
        raise InputError(f"unknown model {name!r}{suggest(name, _REGISTRY)}; see --list-models")
    entry = _REGISTRY[name]
    _refuse_unknown_params(name, entry.factory, params)
    defaults = entry.default_params
    _refuse_bad_values(name, defaults, params)
    from_data = entry.params_from_data(data_shape) if data_shape is not None else {}
    params = {**defaults, **from_data, **params}
    shape = entry.input_shape(params)
    if data_shape is not None:
        if math.prod(shape) != math.prod(data_shape):
            raise InputError(
                f"{name} takes inputs of shape {'x'.join(map(str, shape))}, "
                f"the data has {'x'.join(map(str, data_shape))}; choose another model or data set"
            )
        if entry.takes_any_shape:
            shape = tuple(data_shape)
    return ModelSpec(name, params, shape, entry.factory)


def build_model(name: str, **params: Any) -> nn.Module:
    """The network of that name in eval mode, freshly initialised; see `model_spec`."""
    return model_spec(name, params).build()


def list_models() -> tuple[ModelEntry, ...]:
    """Every model of the registry; `str(entry)` is its line of help."""
    return _ENTRIES


def _refuse_unknown_params(name: str, factory: Callable[..., Any], params: Params) -> None:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # a factory written in C has no signature; calling it will tell
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for unknown in params.keys() - parameters.keys():
        takes = ", ".join(parameters) or "no arguments"
        raise InputError(f"{name} has no argument {unknown!r}; it takes: {takes}")


def _refuse_bad_values(name: str, defaults: Params, params: Params) -> None:
    for key, value in params.items():
        if type(value) is not type(defaults[key]):
            expected = "a whole number" if isinstance(defaults[key], int) else "text"
            raise InputError(f"{name}: {key}={value} is not {expected}")
        if isinstance(value, int) and value < 1:
            raise InputError(f"{name}: {key}={value} must be at least 1")
