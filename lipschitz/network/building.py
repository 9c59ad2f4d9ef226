"""From the trace of a network to its graph, node by node.

The trace is run on a sample of inputs, so that every shape is known and everything that does
not depend on the input (sizes, constants, ``self.weight * 2``) is simply computed. What depends on
the input must have a rule in :mod:`lipschitz.network.affine` or in
:mod:`lipschitz.network.composed`, or be an activation of the table; the rest is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lipschitz.errors import InputError, first_line
from lipschitz.network import affine
from lipschitz.network.activations import (
    ACTIVATION_FUNCTIONS,
    ACTIVATION_MODULES,
    SUPPORTED_ACTIVATIONS,
    Absolute,
    PReLU,
    Softsign,
    Square,
)
from lipschitz.network.affine import Branch, Call
from lipschitz.network.affine.calls import is_in_place
from lipschitz.network.composed import (
    MASK_FROM,
    MASKED,
    WRITTEN_FUNCTIONS,
    WRITTEN_MODULES,
    Extreme,
    States,
    Writer,
)
from lipschitz.network.graph import Graph
from lipschitz.network.pooling import POOLING_FUNCTIONS, POOLING_MODULES
from lipschitz.network.recording import Recording

_COVERED = (
    "a network may use linear, convolutional, average-pooling, resizing and normalising layers "
    "(BatchNorm in eval mode), reshaping, indexing, concatenation, sums, products, quotients, "
    "softmax, attention, normalisation, LSTM and GRU, and "
    f"{SUPPORTED_ACTIVATIONS}"
)
# Operators that masks are written with: minus infinity is a constant of these.
_MASKING = frozenset(["add", "masked_fill", "where", "baddbmm"])
_DIVISIONS = frozenset(["div", "divide", "true_divide", "truediv"])
# Functions whose first dimension is the batch, and layers of which no dimension is.
_CHANNELS = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    batch_norm instance_norm group_norm prelu interpolate upsample
    upsample_bicubic2d _upsample_bicubic2d_aa
"""
_BATCH_FIRST = frozenset(_CHANNELS.split())
# Activations of the table if what else they take are numbers.
_OF_NUMBERS = frozenset(["pow", "clamp", "clip"])
_ANY_SHAPE = (nn.Linear, nn.Flatten, nn.Unflatten)


class Builder(Recording):
    """Walks a trace once, computing what is constant and recording what is not.

    Args:
        traced: The network.
        sample: A batch of inputs, [B, *input_shape]; two, unless the network takes another number.
    """

    def __init__(self, traced: fx.GraphModule, sample: Tensor) -> None:
        super().__init__(sample)
        self.modules = dict(traced.named_modules())
        self.traced = traced
        self.env: dict[fx.Node, Any] = {}  # constants and, for the rest, Branch
        self.memory: dict[fx.Node, Tensor] = {}  # results on the sample, to see which share memory
        self.order = {node: i for i, node in enumerate(traced.graph.nodes)}

    def build(self) -> Graph:
        """The graph, in the sample's precision and on its device.

        Raises:
            InputError: The network does not accept inputs of the sample's shape.
            NotImplementedError: An operator that is neither affine nor an activation, by name.
        """
        dead = self._dead()
        for node in self.traced.graph.nodes:
            if node not in dead:
                self.env[node] = self._visit(node)
        return Graph(self.live_nodes(), self.sample_input.device, self.sample_input.dtype)

    # -- helpers ---------------------------------------------------------------------------------

    def _input(self, first: Branch) -> Branch:
        """What the network's code gets, from the graph's first node."""
        return first

    def _dead(self) -> set[fx.Node]:
        """Calls whose result nobody reads (assertions, branches for training)."""
        dead: set[fx.Node] = set()
        for node in reversed(self.traced.graph.nodes):
            is_call = node.op in ("call_function", "call_method", "call_module")
            if is_call and not self._in_place(node) and all(user in dead for user in node.users):
                dead.add(node)
        return dead

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.modules[node.target], "inplace", False))
        options = node.kwargs.get("inplace", False), node.kwargs.get("out") is not None
        return is_in_place(node.target) or any(options)

    def _resolve(self, argument: Any) -> Any:
        """Replace traced nodes inside an argument by constants or branches."""
        return fx.node.map_arg(argument, lambda n: self.env[n])

    def _concrete(self, argument: Any) -> Any:
        """Replace branches by their value on the sample."""
        if isinstance(argument, Branch):
            return self.samples[argument.index]
        if isinstance(argument, Extreme):
            return argument
        if isinstance(argument, (tuple, list)) and not isinstance(argument, torch.Size):
            return type(argument)([self._concrete(a) for a in argument])
        if isinstance(argument, dict):
            return {k: self._concrete(a) for k, a in argument.items()}
        return argument

    def _run(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        if self._in_place(node):
            if not args or not isinstance(args[0], Tensor) or kwargs.get("out") is not None:
                raise NotImplementedError("what it changes in place cannot be followed")
            args = (args[0].clone(), *args[1:])
        if node.op == "call_module":
            return self.modules[node.target](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    # -- one traced node -------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if self.nodes:
                if str(node.target).startswith("*"):  # *args and **kwargs: nothing is given
                    return {} if str(node.target).startswith("**") else ()
                if node.args:  # an optional argument of forward: its default
                    return node.args[0]
                raise NotImplementedError(
                    f"the network takes a second input {node.target!r}: only one is covered"
                )
            self.memory[node] = self.sample_input
            return self._input(self.add(str(node.target), (), self.sample_input))
        if node.op == "get_attr":
            value: Any = self.traced
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value.detach() if isinstance(value, Tensor) else value
        args, kwargs = tuple(self._resolve(node.args)), dict(self._resolve(node.kwargs))
        if node.op == "output":
            return self._output(args[0])
        if node.target in (operator.getitem, getattr) and isinstance(args[0], tuple):
            pick = operator.getitem if node.target is operator.getitem else getattr
            part = pick(args[0], args[1])
            if isinstance(part, Branch):
                self.memory[node] = self._concrete(part)
            return part
        selects = node.target is torch.ops.aten.select.int and isinstance(args[0], States)
        if selects and args[1] == 0:
            return args[0][args[2]]
        if any(isinstance(value, States) for value in (*args, *kwargs.values())):
            raise NotImplementedError(
                f"{self._name(node)} is not supported: of the last states of a recurrent layer "
                "only single ones, such as h[-1], are covered"
            )
        computed = result = self._evaluate(node, args, kwargs)
        if isinstance(computed, Tensor):
            self.memory[node] = computed
        try:
            if next(affine.branches_of((args, kwargs)), None) is not None:
                result = self._dependent(node, args, kwargs, computed)
            if self._in_place(node):
                self._overwrite(node, computed, result)
        except NotImplementedError as error:
            reason = f" ({error})" if str(error) else ""
            raise NotImplementedError(
                f"{self._name(node)} is not supported{reason}: {_COVERED}"
            ) from error
        return result

    def _overwrite(self, node: fx.Node, computed: Any, result: Any) -> None:
        """Let whoever reads the changed value later read the new one.

        Raises:
            NotImplementedError: Another value that is read later shares its memory, or it is a
                weight.
        """
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node) or not isinstance(computed, Tensor):
            raise NotImplementedError("what it changes in place cannot be followed")
        if changed.op == "get_attr":
            raise NotImplementedError("it changes a weight in place")
        address = self.memory[changed].untyped_storage().data_ptr()
        for other, tensor in self.memory.items():
            shares = tensor.untyped_storage().data_ptr() == address
            later = any(self.order[user] > self.order[node] for user in other.users)
            if shares and later and other not in (changed, node):
                raise NotImplementedError(
                    f"it changes {changed.name!r} in place, whose memory {other.name!r} shares"
                )
        self.env[changed] = result
        self.memory[changed] = computed

    def _evaluate(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        try:
            with torch.no_grad():
                return self._run(node, self._concrete(args), self._concrete(kwargs))
        except NotImplementedError as error:
            raise NotImplementedError(f"{self._name(node)}: {first_line(error)}") from error
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise InputError(
                f"the network does not accept inputs of shape {tuple(self.nodes[0].shape)} in a "
                f"batch of {len(self.sample_input)}: {node.name!r} fails with: {first_line(error)}"
            ) from error

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"layer {node.target!r} of type {type(self.modules[node.target]).__name__}"
        name = node.target if isinstance(node.target, str) else node.target.__name__
        if node.target is getattr:
            name = str(node.args[1])
        return f"operator {name!r} (at {node.name!r})"

    def _output(self, result: Any) -> Branch:
        if isinstance(result, (tuple, list)) and len(result) == 1:  # as torch.export returns it
            result = result[0]
        if not isinstance(result, Branch):
            kind = type(result).__name__.removeprefix("immutable_")
            what = "a constant" if isinstance(result, Tensor) else f"a {kind}"
            raise NotImplementedError(
                f"the network returns {what}: it must return one tensor of shape [batch, outputs] "
                "that depends on its input"
            )
        if result.index != len(self.nodes) - 1 or len(result.shape) != 1:
            value = self.samples[result.index].reshape(self.sample_input.shape[0], -1)
            reshape = affine.Reshape(result.shape, value.shape[1:])
            return self.add("output", (result.index,), value, affine=reshape)
        return result

    def _dependent(self, node: fx.Node, args: tuple, kwargs: dict, result: Any) -> Any:
        """What a call that depends on the input gives: a branch, several, or sizes."""
        names = affine.operator_names(node.target) if node.op != "call_module" else ()
        if node.target is getattr:
            names = (args[1],)
        if affine.METADATA.intersection(names):
            return result
        if affine.LIKE_ANOTHER.intersection(names) and not isinstance(args[0], Branch):
            return result
        return self._ruled(node, names, args, kwargs, result)

    def _ruled(
        self, node: fx.Node, names: tuple[str, ...], args: tuple, kwargs: dict, result: Any
    ) -> Any:
        """What the rule of a call gives."""
        if affine.SPLITS.intersection(names):
            return tuple(self._part(node, args, kwargs, i, part) for i, part in enumerate(result))
        if node.op == "call_module":
            module = self.modules[node.target]
            run = lambda a, k: self._run(node, a, k)  # noqa: E731
            return self._module(node.name, module, args, kwargs, result, run)
        try:
            return self._function(node, names, args, kwargs, result)
        except (TypeError, AttributeError) as error:  # arguments its rule does not take
            raise NotImplementedError(f"not in this form: {first_line(error)}") from error

    def _function(
        self, node: fx.Node, names: tuple[str, ...], args: tuple, kwargs: dict, result: Any
    ) -> Branch:
        if _MASKING.intersection(names) and _has_minus_infinity((args, kwargs)):
            args, kwargs = _masked(args), _masked(kwargs)
            result = self._evaluate(node, args, kwargs)
        whole = any(branch.whole for branch in affine.branches_of((args, kwargs)))
        if whole and _BATCH_FIRST.intersection(names):
            raise NotImplementedError("it does not keep the batch dimension first")
        value = self._sampled(result, whole=whole)
        pooling = _entry(POOLING_FUNCTIONS, node.target, names)
        if pooling is not None and isinstance(result, Tensor) and not whole:
            windows = pooling(args[0].shape, result.shape[1:], *args[1:], **kwargs)
            return self.maximum(node.name, args[0], windows, result.shape[1:])
        activation = _entry(ACTIVATION_FUNCTIONS, node.target, names)
        several = _OF_NUMBERS.intersection(names) and _has_values((args[1:], kwargs))
        if activation is not None and isinstance(args[0], Branch) and not several:
            return self.add_function(node.name, args[0], activation(*args[1:], **kwargs), value)
        if "prelu" in names:  # it has a slope per channel, so the value's shape counts
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            return self.add_function(node.name, args[0], PReLU.of(weight, result), result)
        if "mul" in names and args[0] == args[1]:
            return self.add_function(node.name, args[0], Square(), value)
        if _DIVISIONS.intersection(names) and self._is_softsign(*args):
            return self.add_function(node.name, args[0], Softsign(), value)
        for name in names:
            if name in affine.REFUSED_FUNCTIONS:
                raise NotImplementedError(affine.REFUSED_FUNCTIONS[name])
            if name in WRITTEN_FUNCTIONS:
                first = result[0] if isinstance(result, tuple) else result
                call = self._call(node, args, kwargs, first)
                writer = Writer(self, node.name)
                written = WRITTEN_FUNCTIONS[name](writer, call, *args, **kwargs)
                if written is not None:
                    return written
            if name in affine.FUNCTION_RULES:
                call = self._call(node, args, kwargs, result)
                found = affine.FUNCTION_RULES[name](call, *args, **kwargs)
                return self.add_value(node.name, found, value)
        raise NotImplementedError

    @staticmethod
    def _sampled(result: Any, *, whole: bool) -> Any:
        """A result on the sample as a node's value, with the batch dimension first."""
        return result.unsqueeze(0) if whole and isinstance(result, Tensor) else result

    def _is_softsign(self, numerator: Any, denominator: Any) -> bool:
        """Whether it is ``x / (1 + |x|)``, as torch.export writes softsign."""
        if not (isinstance(numerator, Branch) and isinstance(denominator, Branch)):
            return False
        shifted = self.nodes[denominator.index]
        if not isinstance(shifted.affine, affine.Scale) or shifted.affine.bias is None:
            return False
        inner = self.nodes[shifted.parents[0]]
        is_one = bool((shifted.affine.factor == 1).all() and (shifted.affine.bias == 1).all())
        return (
            is_one
            and isinstance(inner.activation, Absolute)
            and inner.parents == (numerator.index,)
            and numerator.shape == denominator.shape
        )

    def _call(
        self,
        node: fx.Node | None,
        args: tuple,
        kwargs: dict,
        result: Any,
        run: Callable[[tuple, dict], Any] | None = None,
    ) -> Call:
        if not isinstance(result, Tensor):
            raise NotImplementedError(f"it gives a {type(result).__name__}")
        if result.dtype != self.sample_input.dtype:
            raise NotImplementedError(f"it changes the precision to {result.dtype}")
        return Call(args, kwargs, result, run or (lambda a, k: self._run(node, a, k)))

    def _part(self, node: fx.Node, args: tuple, kwargs: dict, i: int, part: Tensor) -> Branch:
        """Result number ``i`` of a split."""
        call = Call(args, kwargs, part, lambda a, k: self._run(node, a, k)[i])
        value = self._sampled(part, whole=call.whole)
        return self.add_value(f"{node.name}_{i}", affine.positive(call), value)

    def _module(
        self,
        name: str,
        module: nn.Module,
        args: tuple,
        kwargs: dict,
        value: Any,
        run: Callable[[tuple, dict], Any],
    ) -> Any:
        """What a layer gives: a branch, or several."""
        refused = _lookup(module, affine.REFUSED_MODULES)
        if refused is not None:
            raise NotImplementedError(refused)
        rule = _lookup(module, WRITTEN_MODULES)
        if rule is not None:
            if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
                raise NotImplementedError("it has a forward hook")
            written = rule(Writer(self, name), module, *args, **kwargs)
            if written is not None:
                return written
        if len(args) != 1 or kwargs or not isinstance(args[0], Branch):
            raise NotImplementedError("it takes more than one input")
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotImplementedError("it has a forward hook")
        if _lookup(module, dict.fromkeys(affine.IDENTITY_MODULES, True)):
            return args[0]
        whole = args[0].whole
        rule = _lookup(module, affine.MODULE_RULES)
        activation = _lookup(module, ACTIVATION_MODULES)
        free = isinstance(module, _ANY_SHAPE) or activation is not None
        if whole and (not free or isinstance(module, nn.PReLU)):
            raise NotImplementedError("it does not keep the batch dimension first")
        sampled = self._sampled(value, whole=whole)
        if rule is not None:
            applied = rule(self._call(None, args, kwargs, value, run), module)
            return self.add_value(name, applied, sampled)
        pooling = _lookup(module, POOLING_MODULES)
        if pooling is not None and isinstance(value, Tensor):
            windows = pooling[0](args[0].shape, value.shape[1:], **pooling[1](module))
            return self.maximum(name, args[0], windows, value.shape[1:])
        if activation is not None:
            return self.add_function(name, args[0], activation(module, value), sampled)
        raise NotImplementedError

    def call_module(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What a layer inside another gives.

        Raises:
            NotImplementedError: It is not covered, by name.
        """

        def run(given: tuple, options: dict) -> Any:
            return module(*given, **options)

        try:
            value = None
            if _lookup(module, WRITTEN_MODULES) is None:
                with torch.no_grad():
                    value = run(self._concrete(args), self._concrete(kwargs))
            return self._module(name, module, args, kwargs, value, run)
        except NotImplementedError as error:
            reason = str(error) or "it is not covered"
            raise NotImplementedError(f"its {type(module).__name__} {name!r}: {reason}") from error

    def call_function(self, name: str, function: Callable[..., Tensor], x: Branch) -> Branch:
        """What a function or layer of one value gives inside a layer.

        Raises:
            NotImplementedError: It is not an activation of the table.
        """
        if isinstance(function, nn.Module):
            return self.call_module(name, function, x)
        names = affine.operator_names(function)
        activation = _entry(ACTIVATION_FUNCTIONS, function, names)
        if activation is None:
            raise NotImplementedError(f"its activation {getattr(function, '__name__', function)}")
        return self.add_function(name, x, activation())


def _entry(table: dict[Any, Any], target: Any, names: tuple[str, ...]) -> Any:
    """A table's entry for a function, a method or an ATen operator, or None."""
    keys = [target]
    for name in names:
        keys += [name, getattr(F, name, None), getattr(torch, name, None)]
    return next((table[key] for key in keys if key in table), None)


def _lookup(module: nn.Module, table: dict[type[nn.Module], Any]) -> Any:
    """The table's entry for a module's type, or for a base whose ``forward`` it inherits."""
    for base in type(module).__mro__:
        if base in table:
            return table[base] if type(module).forward is base.forward else None
    return None


def _has_values(argument: Any) -> bool:
    """Whether an argument is a value that depends on the input, or a tensor of several numbers."""
    if isinstance(argument, dict):
        return any(_has_values(value) for value in argument.values())
    if isinstance(argument, (tuple, list)):
        return any(_has_values(value) for value in argument)
    return isinstance(argument, Branch) or (isinstance(argument, Tensor) and argument.numel() > 1)


def _is_masking(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool((value < MASK_FROM).any())
    return isinstance(value, float) and value < MASK_FROM


def _has_minus_infinity(argument: Any) -> bool:
    """Whether a constant among the arguments is minus infinity, or stands for it."""
    values = argument.values() if isinstance(argument, dict) else argument
    if isinstance(argument, (dict, tuple, list)):
        return any(_has_minus_infinity(value) for value in values)
    return _is_masking(argument)


def _masked(argument: Any) -> Any:
    """The arguments with a large negative number instead, of which softmax makes the same."""
    if isinstance(argument, dict):
        return {key: _masked(value) for key, value in argument.items()}
    if isinstance(argument, (tuple, list)) and not isinstance(argument, torch.Size):
        return type(argument)([_masked(value) for value in argument])
    if not _is_masking(argument):
        return argument
    if not isinstance(argument, Tensor):
        return MASKED
    return torch.where(argument < MASK_FROM, MASKED, argument)
