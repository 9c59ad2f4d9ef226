"""The recurrent layers of ONNX files, in torch: LSTM, GRU and RNN over a fixed number of steps.

Source: the operator schemas of ONNX, opset 14 and 22 (https://onnx.ai/onnx/operators/). Their gates
come in another order than torch's: input, output, forget, cell of an LSTM, and update, reset, new
of a GRU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipschitz.network.formats.onnx_shapes import Context

# For each gate in torch's order, its place in ONNX's.
_LSTM_GATES, _GRU_GATES, _RNN_GATES = (0, 2, 3, 1), (1, 0, 2), (0,)
_USUAL = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


def _reordered(weight: Tensor, gates: Sequence[int]) -> Tensor:
    """Rows [gates * size, ...] in torch's order."""
    parts = weight.chunk(len(gates))
    return torch.cat([parts[i] for i in gates])


def _weights(
    weight: Tensor, state_weight: Tensor, bias: Tensor | None, gates: Sequence[int]
) -> list[Tensor]:
    """torch's list of weights: of the input, of the state and both biases, by direction."""
    found: list[Tensor] = []
    for i in range(len(weight)):
        found += [_reordered(part[i], gates) for part in (weight, state_weight)]
        if bias is not None:
            found += [_reordered(part, gates) for part in bias[i].chunk(2)]
    return found


def _check(context: Context, kind: str, lengths: Any, steps: int | None) -> None:
    """Refuse what torch's layers do not compute.

    Raises:
        NotImplementedError: By name.
    """
    if context("clip") is not None or context("input_forget", 0):
        raise NotImplementedError(f"{kind} with clip or input_forget")
    activations = [name.lower() for name in context("activations", [])]
    usual = _USUAL.get(kind, activations)
    if any(activations[i] != usual[i % len(usual)] for i in range(len(activations))):
        raise NotImplementedError(f"{kind} with activations {', '.join(activations)}")
    if lengths is not None and not bool((lengths == steps).all()):
        raise NotImplementedError(f"{kind} with sequences of several lengths")


def _layer(
    context: Context,
    x: Any,
    states: list[Any],
    weights: list[Tensor],
    function: Callable[..., Any],
    *,
    biased: bool,
) -> list[Any]:
    """Outputs of an ONNX layer: all steps [T, D, B, H], and the last states [D, B, H]."""
    direction, batch_first = context("direction", "forward"), bool(context("layout", 0))
    both = direction == "bidirectional"
    size, directions = context("hidden_size"), 2 if both else 1
    if batch_first:
        x = x.transpose(0, 1)
        states = [s if s is None else s.transpose(0, 1) for s in states]
    if direction == "reverse":
        x = x.flip(0)
    # torch itself does not check that the states are as many as the examples, and reads past them.
    shape = directions, x.shape[1], size
    states = [x.new_zeros(*shape) if s is None else s.expand(*shape) for s in states]
    given = tuple(states) if len(states) == 2 else states[0]
    found = function(x, given, weights, biased, 1, 0.0, False, both, False)
    out, last = found[0], [found[i + 1] for i in range(len(states))]
    if direction == "reverse":
        out = out.flip(0)
    out = out.unflatten(-1, (directions, size)).permute(0, 2, 1, 3)
    if batch_first:  # [B, T, D, H] and [B, D, H]
        return [out.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)]
    return [out, *last]


def _first(context: Context, found: list[Any]) -> Any:
    return found if context.outputs > 1 else found[0]


def lstm(
    context: Context,
    x: Any,
    weight: Tensor,
    state_weight: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Any = None,
    cell: Any = None,
    peepholes: Tensor | None = None,
) -> Any:
    """LSTM."""
    _check(context, "LSTM", lengths, _steps(context))
    if peepholes is not None and bool(peepholes.any()):
        raise NotImplementedError("LSTM with peepholes")
    weights = _weights(weight, state_weight, bias, _LSTM_GATES)
    states = [hidden, cell]
    return _first(context, _layer(context, x, states, weights, torch.lstm, biased=bias is not None))


def gru(
    context: Context,
    x: Any,
    weight: Tensor,
    state_weight: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Any = None,
) -> Any:
    """GRU, the state's part of the new gate multiplied after its matrix as torch does it."""
    _check(context, "GRU", lengths, _steps(context))
    if not context("linear_before_reset", 0):
        raise NotImplementedError("GRU with linear_before_reset=0")
    weights = _weights(weight, state_weight, bias, _GRU_GATES)
    return _first(
        context, _layer(context, x, [hidden], weights, torch.gru, biased=bias is not None)
    )


def rnn(
    context: Context,
    x: Any,
    weight: Tensor,
    state_weight: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Any = None,
) -> Any:
    """RNN of tanh or ReLU."""
    _check(context, "RNN", lengths, _steps(context))
    kinds = {name.lower() for name in context("activations", ["Tanh"])}
    functions = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
    if len(kinds) != 1 or not kinds <= set(functions):
        raise NotImplementedError(f"RNN with activations {', '.join(sorted(kinds))}")
    weights = _weights(weight, state_weight, bias, _RNN_GATES)
    function = functions[kinds.pop()]
    return _first(context, _layer(context, x, [hidden], weights, function, biased=bias is not None))


def _steps(context: Context) -> int | None:
    shape = context.shapes[0]
    return None if shape is None else shape[1 if context("layout", 0) else 0]


RECURRENT_OPERATORS: dict[str, Callable[..., Any]] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
