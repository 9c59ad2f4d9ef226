"""Recurrent layers over a fixed number of steps, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.affine import Branch, Call
from lipschitz.network.composed.writer import Writer

# What is carried from step to step: h, and c of an LSTM.
State = tuple[Branch, ...]
# From what the step's input adds to the gates, the state, and the weights and bias of the state.
Cell = Callable[[Writer, Branch, State, Tensor, "Tensor | None"], State]


def _lstm(write: Writer, given: Branch, state: State, weight: Tensor, bias: Any) -> State:
    h, c = state
    gates = write.plus(given, write.linear(h, weight, bias))
    i, f, g, o = write.parts(gates, -1, 4)
    i, f, o = (write.sigmoid(gate) for gate in (i, f, o))
    c = write.plus(write.product(f, c), write.product(i, write.tanh(g)))
    return write.product(o, write.tanh(c)), c


def _gru(write: Writer, given: Branch, state: State, weight: Tensor, bias: Any) -> State:
    (h,) = state
    size = h.shape[-1]
    own = write.linear(h, weight, bias)
    both = write.plus(*(write.narrow(x, -1, 0, 2 * size) for x in (given, own)))
    r, z = write.parts(write.sigmoid(both), -1, 2)
    new, old = (write.narrow(x, -1, 2 * size, size) for x in (given, own))
    n = write.tanh(write.plus(new, write.product(r, old)))
    return (write.plus(n, write.product(z, write.plus(h, n, -1))),)


def _rnn(relu: bool) -> Cell:
    def cell(write: Writer, given: Branch, state: State, weight: Tensor, bias: Any) -> State:
        total = write.plus(given, write.linear(state[0], weight, bias))
        return (write.function(total, PiecewiseLinear()) if relu else write.tanh(total),)

    return cell


def is_recurrent(call: nn.Module | Sequence[str]) -> bool:
    """Whether a layer, or a function of one of these names, is recurrent over several steps."""
    if isinstance(call, nn.Module):
        return isinstance(call, nn.RNNBase)
    return any(name in _LAYERS for name in call)


class States(tuple):
    """The last states of a recurrent layer, one branch for each layer and direction."""


@dataclass(frozen=True)
class Weights:
    """Of one layer in one direction: of the input, of the state, and their biases."""

    of_input: Tensor
    of_state: Tensor
    input_bias: Tensor | None = None
    state_bias: Tensor | None = None


def _cell_of(module: nn.Module) -> tuple[Cell, int]:
    """The cell of a module, and how many tensors its state has."""
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return _lstm, 2
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        return _gru, 1
    return _rnn(module.nonlinearity == "relu"), 1


def _fixed(write: Writer, x: Branch, value: Tensor | None, size: int) -> Branch:
    """A constant state [size] as a branch; zeros if None."""
    weight = torch.zeros(size, x.shape[-1])
    return write.linear(x, weight, torch.zeros(size) if value is None else value)


def _one_of_batch(value: Tensor) -> Tensor:
    if not bool((value == value[:1]).all()):
        raise NotImplementedError("its first state has a batch dimension")
    return value[0]


def recurrent(write: Writer, module: nn.RNNBase, input: Any, hx: Any = None) -> tuple:
    """``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``: all outputs, and the last states by layer.

    Raises:
        NotImplementedError: The batch is not the first dimension, or a projection.
    """
    if not isinstance(input, Branch):
        raise NotImplementedError("its input is a constant")
    if module.proj_size:
        raise NotImplementedError("with a projection")
    _check_batch(input, first=module.batch_first)
    cell, count = _cell_of(module)
    weights = []
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))
            weights.append(Weights(*(getattr(module, f"{k}_l{layer}{suffix}") for k in kinds)))
    given = (None,) * count if hx is None else (hx if count == 2 else (hx,))
    x, final = _layers(write, input, given, weights, cell, bidirectional=module.bidirectional)
    return x, final if count == 2 else final[0]


def _layers(
    write: Writer,
    x: Any,
    given: Sequence[Any],
    weights: list[Weights],
    cell: Cell,
    *,
    bidirectional: bool,
) -> tuple[Branch, tuple[States, ...]]:
    """All outputs [steps, size], and the last states by layer and direction.

    Of one example alone (:attr:`Branch.whole`), both in the shapes that torch gives them.
    """
    whole, shape = x.whole, x.shape
    if whole:
        x = write.reshape(x, [shape.numel() // shape[-1], shape[-1]])
    if len(x.shape) != 2:
        raise NotImplementedError("only an input of shape [batch, steps, features] is covered")
    directions, last = 2 if bidirectional else 1, []
    for layer in range(len(weights) // directions):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            states = [_state_at(write, value, place) for value in given]
            part = write.named(f"layer{layer}" + ("_reverse" if direction else ""))
            found, state = _run(part, weights[place], x, states, cell, reverse=bool(direction))
            outputs.append(found)
            last.append(state)
        x = write.join(outputs, -1)
    final = tuple(States(state[i] for state in last) for i in range(len(given)))
    if not whole:
        return x, final
    alone = [1] * (len(shape) - 2)
    joined = []
    for states in final:
        rows = [write.reshape(state, [1, *alone, *state.shape]) for state in states]
        joined.append(write.join(rows, 0))
    return write.reshape(x, [*shape[:-1], x.shape[-1]]), tuple(joined)


def _state_at(write: Writer, value: Any, place: int) -> Branch | Tensor | None:
    """The first state of one layer and direction, [size].

    Raises:
        NotImplementedError: It depends on the input, and layers do not come first in a batch.
    """
    if isinstance(value, Branch):
        if not value.whole:
            raise NotImplementedError("its first state depends on the input of each of a batch")
        return write.reshape(write.narrow(value, 0, place, 1), value.shape[-1:])
    if value is None:
        return None
    return _one_of_batch(value[place].reshape(-1, value.shape[-1]))


def _run(
    write: Writer,
    weights: Weights,
    x: Branch,
    states: list[Branch | Tensor | None],
    cell: Cell,
    *,
    reverse: bool,
) -> tuple[Branch, State]:
    """One layer in one direction: all outputs [steps, size], and the last state."""
    size, steps = weights.of_state.shape[1], x.shape[0]
    given = write.linear(x, weights.of_input, weights.input_bias)
    inputs = [write.reshape(write.narrow(given, 0, t, 1), given.shape[1:]) for t in range(steps)]
    state = tuple(
        value if isinstance(value, Branch) else _fixed(write, inputs[0], value, size)
        for value in states
    )
    found: list[Branch] = []
    for t in reversed(range(steps)) if reverse else range(steps):
        step = write.named(f"step{t}")
        state = cell(step, inputs[t], state, weights.of_state, weights.state_bias)
        found.append(write.reshape(state[0], [1, size]))
    return write.join(found[::-1] if reverse else found, 0), state


def recurrent_cell(write: Writer, module: nn.RNNCellBase, input: Any, hx: Any = None) -> Any:
    """``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell``: one step."""
    cell, count = _cell_of(module)
    states = (None,) * count if hx is None else (tuple(hx) if count == 2 else (hx,))
    biases = (module.bias_ih, module.bias_hh) if module.bias else ()
    weights = Weights(module.weight_ih, module.weight_hh, *biases)
    state = _one_step(write, input, states, weights, cell)
    return state if count == 2 else state[0]


def _one_step(
    write: Writer, input: Any, states: Sequence[Any], weights: Weights, cell: Cell
) -> State:
    like = next(v for v in (input, *states) if isinstance(v, Branch))
    if isinstance(input, Branch):
        given = write.linear(input, weights.of_input, weights.input_bias)
    else:
        fixed = nn.functional.linear(
            _one_of_batch(input), weights.of_input, weights.input_bias
        ).detach()
        given = _fixed(write, like, fixed, len(fixed))

    def branch(value: Branch | Tensor | None) -> Branch:
        if isinstance(value, Branch):
            return value
        value = None if value is None else _one_of_batch(value)
        return _fixed(write, like, value, weights.of_state.shape[1])

    state = tuple(branch(value) for value in states)
    return cell(write, given, state, weights.of_state, weights.state_bias)


# -- as torch.export writes them -------------------------------------------------------------------


def lstm_cell(write: Writer, call: Call, input: Any, hx: Any, *weights: Any) -> tuple:
    """``aten.lstm_cell``."""
    return _one_step(write, input, tuple(hx), Weights(*weights), _lstm)


def gru_cell(write: Writer, call: Call, input: Any, hx: Any, *weights: Any) -> Branch:
    """``aten.gru_cell``."""
    return _one_step(write, input, (hx,), Weights(*weights), _gru)[0]


def exported_layers(cell: Cell, count: int) -> Callable[..., tuple]:
    """Rule of ``aten.lstm.input``, ``aten.gru.input`` and those of simple cells."""

    def rule(
        write: Writer,
        call: Call,
        input: Any,
        hx: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple:
        _check_batch(input, first=batch_first)
        if count == 2 and len(params) != (4 if has_biases else 2) * num_layers * (
            2 if bidirectional else 1
        ):
            raise NotImplementedError("with a projection")
        each = 4 if has_biases else 2
        weights = [Weights(*params[i : i + each]) for i in range(0, len(params), each)]
        given = tuple(hx) if count == 2 else (hx,)
        x, final = _layers(write, input, given, weights, cell, bidirectional=bidirectional)
        return (x, *final)

    return rule


def _check_batch(x: Branch, *, first: bool) -> None:
    if not x.whole and not first:
        raise NotImplementedError("its batch is not the first dimension; use batch_first=True")


_LAYERS = {
    "lstm": exported_layers(_lstm, 2),
    "gru": exported_layers(_gru, 1),
    "rnn_tanh": exported_layers(_rnn(False), 1),
    "rnn_relu": exported_layers(_rnn(True), 1),
}
RECURRENT_FUNCTIONS = {"lstm_cell": lstm_cell, "gru_cell": gru_cell, **_LAYERS}
