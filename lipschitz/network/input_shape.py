"""Whether a tensor is one point of a network or a batch of them.

A network maps [B, *input_shape] to [B, C], but many accept more than that: a linear layer takes any
leading dimensions, a convolution an example without a batch dimension. Running it on two and on
three examples tells what it takes for one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipschitz.arguments import Numbers, point_of
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.network.tracing import checked_module, placement


def input_shape_of(
    model: nn.Module | Graph,
    x: Numbers | None,
    x_lower: Numbers | None = None,
    x_upper: Numbers | None = None,
) -> torch.Size:
    """Shape of one input: that of ``x``, less a batch dimension of 1 if the network takes it so.

    Args:
        model: A network that maps [B, *input_shape] to [B, C], or its graph.
        x: [*input_shape] or [1, *input_shape].
        x_lower, x_upper: The ends of the box, which tell where ``x`` is None.

    Raises:
        InputError: A batch of points, no network, or nothing that has a shape.
    """
    if isinstance(model, Graph):
        return model.input_shape
    model = checked_module(model)
    name = "the input" if x is not None else "the box"
    example = _between(x_lower, x_upper) if x is None else point_of("x", x)
    if not example.dim():
        return example.shape
    one_of_batch = _outputs(model, example[0])
    if one_of_batch is None:
        return example.shape
    if len(example) == 1 and example.dim() > 1:
        return example.shape[1:]
    whole = _outputs(model, example)
    if whole is not None and (example.dim() == 1 or _mixes(whole, one_of_batch, len(example))):
        return example.shape
    if len(example) == 1:
        return example.shape[1:]
    shape = tuple(example.shape)
    advice = "give one point per call and loop over the batch"
    if whole is not None:
        advice += f"; if it is one point of shape {shape}, give it a batch dimension, x[None]"
    raise InputError(
        f"{name} has shape {shape}, a batch of {len(example)} points of shape {shape[1:]} for this "
        f"network: {advice}"
    )


def _between(x_lower: Numbers | None, x_upper: Numbers | None) -> Tensor:
    """A tensor of the shape of the box, which one of its ends may have alone.

    Raises:
        InputError: Neither has, or they do not go together.
    """
    if x_lower is None or x_upper is None:
        raise InputError("x is missing: give a point, or both ends of the box")
    ends = tuple(
        point_of(f"the {side} end of the box", end)
        for side, end in (("lower", x_lower), ("upper", x_upper))
    )
    if not any(end.dim() for end in ends):
        raise InputError(
            "x is missing, and both ends of the box are numbers: give one of the three in the "
            "shape of the network's input"
        )
    try:
        return torch.broadcast_tensors(*ends)[0]
    except RuntimeError:
        shapes = " and ".join(str(tuple(end.shape)) for end in ends)
        raise InputError(f"the ends of the box have shapes {shapes}: expected the same") from None


def _outputs(model: nn.Module, example: Tensor) -> torch.Size | None:
    """Shape of the output of one example, None if the network does not take batches of it.

    Two sizes of the batch: a convolution takes one of them for channels.
    """
    device, dtype = placement(model)
    shapes = set()
    for count in (2, 3):
        # A copy: the network may work in place.
        batch = example.expand(count, *example.shape).to(device, dtype, copy=True).contiguous()
        try:
            with torch.no_grad():
                output = model(batch)
        except Exception:  # a module may raise anything on a shape that it does not expect
            return None
        if not isinstance(output, Tensor) or output.shape[:1] != (count,):
            return None
        shapes.add(output.shape[1:])
    return shapes.pop() if len(shapes) == 1 else None


def _mixes(whole: torch.Size, one: torch.Size, count: int) -> bool:
    """Whether a network that takes ``count`` inputs together makes one example of them.

    It does where their outputs are [C] only when taken together, and no list of the outputs that
    each has by itself, as with the mean over a sequence: [B, T, F] to [B, C]. Layers that act on
    the last dimension alone give [B, T, C].
    """
    return len(whole) == 1 and len(one) != 1 and whole.numel() != count * one.numel()
