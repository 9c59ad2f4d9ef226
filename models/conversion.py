"""A convolutional network as the equal MLP.

Every run of affine layers between two activations becomes one `Linear`, whose matrix is read off
by feeding the run the unit vectors, so each layer's own forward is the only definition used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import nn

from lipschitz.errors import InputError

# Exact types only: a subclass may compute anything.
_AFFINE = frozenset(
    {
        nn.Linear,
        nn.Conv1d,
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
        nn.ZeroPad2d,
    }
)
_RESHAPES = frozenset({nn.Flatten, nn.Unflatten, nn.Identity})
_ELEMENTWISE = frozenset(
    {
        nn.ReLU,
        nn.LeakyReLU,
        nn.ReLU6,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Sigmoid,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Tanh,
        nn.Softplus,
        nn.Softsign,
        nn.LogSigmoid,
    }
)
_DROPOUT = frozenset({nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout})
# Unit vectors sent through a layer at once to read its matrix off. A choice: only memory and speed
# depend on it.
_UNIT_VECTORS_AT_ONCE = 256
# Random inputs on which the MLP is compared with the network, and the largest relative difference.
# Choices: they catch a wrong conversion, and leave room for another order of summation.
_CHECK_POINTS = 8
_RELATIVE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def cnn_to_mlp(model: nn.Module, input_shape: tuple[int, ...]) -> nn.Sequential:
    """The MLP of `Linear` layers and activations that computes the same function.

    Matrices are dense, a hidden layer of N neurons after M costs N x M numbers. The equality is
    checked at random inputs, on the model's precision.

    Args:
        model: A `Sequential`, possibly nested, in eval mode.
        input_shape: Shape of one input of `model`, without the batch.

    Returns:
        A network on flat inputs [B, D] with D the product of `input_shape`.

    Raises:
        InputError: A layer that is no affine map, reshape or elementwise activation; a layer in
            training mode; inputs that the model does not take; a failed check.
    """
    # In float64, so that folding several layers into one loses nothing before the last rounding.
    double = copy.deepcopy(model).double().cpu()
    converted: list[nn.Module] = []
    run: list[nn.Module] = []
    shape = tuple(input_shape)
    for name, layer in _leaves(double, ""):
        _refuse_unknown(name, layer)
        if type(layer) in _DROPOUT:
            continue
        if type(layer) in _ELEMENTWISE:
            linear, shape = _linear_of(run, shape)
            converted += [*linear, copy.deepcopy(layer)]
            run = []
        else:
            run.append(layer)
    converted += _linear_of(run, shape)[0]
    first = next(model.parameters(), torch.empty(0))
    mlp = nn.Sequential(*converted).to(device=first.device, dtype=first.dtype).eval()
    _check_equal(model, mlp, tuple(input_shape))
    return mlp


def _leaves(layer: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    if type(layer) is not nn.Sequential:
        yield prefix, layer
        return
    for name, child in layer.named_children():
        yield from _leaves(child, f"{prefix}.{name}" if prefix else name)


def _refuse_unknown(name: str, layer: nn.Module) -> None:
    kind = type(layer).__name__
    where = f"layer {name!r} ({kind})" if name else kind
    if type(layer) not in _AFFINE | _RESHAPES | _ELEMENTWISE | _DROPOUT:
        raise InputError(f"cannot convert {where} to an MLP: it is no known affine map")
    changes_in_training = type(layer) in _DROPOUT | {nn.BatchNorm1d, nn.BatchNorm2d}
    if layer.training and changes_in_training:
        raise InputError(f"{where} is in training mode; call model.eval() first")
    if changes_in_training and getattr(layer, "track_running_stats", True) is False:
        raise InputError(f"{where} has no running statistics, so it mixes the inputs of a batch")


@torch.no_grad()
def _linear_of(
    run: list[nn.Module], shape: tuple[int, ...]
) -> tuple[list[nn.Linear], tuple[int, ...]]:
    """The run of affine layers as one Linear (none if it only reshapes), and its output shape."""
    affine = nn.Sequential(*run)
    inputs = math.prod(shape)
    try:
        offset = affine(torch.zeros(1, *shape, dtype=torch.float64))
    except RuntimeError as error:
        raise InputError(
            f"the model does not take inputs of shape {'x'.join(map(str, shape))}: {error}"
        ) from None
    output_shape = tuple(offset.shape[1:])
    if all(type(layer) in _RESHAPES for layer in run):
        return [], output_shape
    # Without random initial weights, which would move the caller's random state.
    linear = nn.utils.skip_init(nn.Linear, inputs, offset.numel(), dtype=torch.float64)
    linear.bias.copy_(offset.flatten())
    for start in range(0, inputs, _UNIT_VECTORS_AT_ONCE):
        rows = range(start, min(start + _UNIT_VECTORS_AT_ONCE, inputs))
        units = torch.zeros(len(rows), inputs, dtype=torch.float64)
        units[range(len(rows)), rows] = 1
        columns = affine(units.reshape(-1, *shape)) - offset
        linear.weight[:, start : rows.stop] = columns.flatten(1).T
    return [linear], output_shape


@torch.no_grad()
def _check_equal(model: nn.Module, mlp: nn.Module, input_shape: tuple[int, ...]) -> None:
    first = next(model.parameters(), torch.empty(0))
    # A generator of its own leaves the caller's random state alone.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_CHECK_POINTS, *input_shape, generator=generator, dtype=torch.float64).to(first)
    expected = model(x).flatten(1).double()
    difference = (mlp(x.flatten(1)).double() - expected).abs().max()
    tolerance = _RELATIVE_TOLERANCE.get(first.dtype, 1e-2)
    if not difference <= tolerance * expected.abs().max().clamp(min=1e-30):
        raise InputError(
            f"the converted MLP differs from the model by {difference:.3g} at a random input; "
            "use the network as it is"
        )
