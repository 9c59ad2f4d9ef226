"""From a PyTorch module to a :class:`lipschitz.graph.Graph`, refusing what is not covered.

The module is traced by ``torch.fx`` and then run node by node on random inputs of batch 2, so
that every shape is known and everything that does not depend on the input (sizes, constants,
``self.weight * 2``) is simply computed. What depends on the input must be affine or an activation
of the table; the rest is refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lipschitz import affine
from lipschitz.activations import (
    ACTIVATION_FUNCTIONS,
    ACTIVATION_MODULES,
    SUPPORTED_ACTIVATIONS,
    Activation,
    PiecewiseLinear,
    Square,
)
from lipschitz.graph import Graph, Node
from lipschitz.pooling import POOLING_FUNCTIONS, POOLING_MODULES, comparisons
from utils import InputError

# Modules whose training mode changes what they compute.
_TRAINING_SENSITIVE = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
)


def build_graph(model: nn.Module, input_shape: torch.Size | tuple[int, ...]) -> Graph:
    """The network as a graph of affine maps and activations, checked against autograd.

    Args:
        model: A network in eval mode that maps [B, *input_shape] to [B, C] (further output
            dimensions are flattened).
        input_shape: Shape of one input, without the batch dimension.

    Returns:
        The graph, in the model's own dtype and on its device.

    Raises:
        InputError: NaN or infinite weights, a layer left in training mode, an input shape the
            network does not accept, or a graph whose Jacobian is not autograd's.
        NotImplementedError: An operator, by name, that is neither affine nor a known activation.
    """
    _check_weights(model)
    _check_eval_mode(model)
    device, dtype = _placement(model)
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # torch.fx raises many kinds; all mean the same to a user
        raise NotImplementedError(
            f"{type(model).__name__} cannot be traced by torch.fx ({_first_line(error)}): its "
            "forward must not depend on the values of its input"
        ) from error
    generator = torch.Generator().manual_seed(0)
    sample = torch.rand(2, *input_shape, generator=generator, dtype=torch.float64)
    graph = _Builder(traced, sample.to(device=device, dtype=dtype)).build()
    check_jacobian(graph, model)
    return graph


def check_jacobian(graph: Graph, model: nn.Module, num_points: int = 4) -> None:
    """Compare the graph's outputs and Jacobian with the module's own, at random points.

    The batch size differs from the one used for tracing, which catches shapes frozen there.

    Raises:
        InputError: On any mismatch beyond rounding.
    """
    generator = torch.Generator().manual_seed(1)
    for count, scale in ((num_points + 1, 1.0), (1, 0.1)):
        x = torch.rand(count, *graph.input_shape, generator=generator, dtype=torch.float64)
        rows = torch.randn(count, graph.num_outputs, generator=generator, dtype=torch.float64)
        x = (x * scale).to(device=graph.device, dtype=graph.dtype).requires_grad_()
        rows = rows.to(x)
        with torch.enable_grad():
            output = model(x).reshape(count, -1)
            if output.requires_grad:
                expected = torch.autograd.grad(output, x, rows, allow_unused=True)[0]
                expected = torch.zeros_like(x) if expected is None else expected
            else:
                expected = torch.zeros_like(x)
        with torch.no_grad():
            values = graph.values(x)
            actual = graph.pull_back(values, rows)
        tolerance = 1e4 * torch.finfo(graph.dtype).eps
        for what, ours, theirs in (
            ("output", values[-1], output.detach()),
            ("Jacobian", actual, expected),
        ):
            scale_of = float(theirs.abs().max().clamp(min=1e-12))
            error = float((ours - theirs).abs().max()) / scale_of
            if not error <= tolerance:
                raise InputError(
                    f"the {what} of the traced graph differs from the network's own by a relative "
                    f"{error:.1e}: the network does something tracing cannot see (a hook, an "
                    "in-place change, a branch on its input); rewrite that part"
                )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def _check_weights(model: nn.Module) -> None:
    dtypes = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        dtypes.add(tensor.dtype)
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"the weights hold NaN or infinity in {name!r}: retrain or reload them"
            )
    if dtypes - {torch.float32, torch.float64} or len(dtypes) > 1:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        raise InputError(
            f"the weights are {names}: a bound needs all of them in float32 or all in float64; "
            "call model.float() or model.double()"
        )


def _check_eval_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _TRAINING_SENSITIVE) and module.training:
            raise InputError(
                f"{type(module).__name__} {name!r} is in training mode, where the network is not a "
                "fixed function: call model.eval() first"
            )


class _Builder:
    """Walks the traced graph once, computing what is constant and recording what is not."""

    def __init__(self, traced: fx.GraphModule, sample: Tensor) -> None:
        self.modules = dict(traced.named_modules())
        self.traced = traced
        self.sample = sample
        self.nodes: list[Node] = []
        self.samples: list[Tensor] = []  # value of each node on the sample
        self.env: dict[fx.Node, Any] = {}  # constants and, for the rest, _Ref

    def build(self) -> Graph:
        for node in self.traced.graph.nodes:
            self.env[node] = self._visit(node)
        return Graph(self.nodes, self.sample.device, self.sample.dtype)

    # -- helpers ---------------------------------------------------------------------------------

    def _add(self, name: str, parents: tuple[int, ...], value: Tensor, **operation: object) -> _Ref:
        if value.dim() < 1 or value.shape[0] != self.sample.shape[0]:
            raise NotImplementedError(
                f"{name!r} does not keep the batch dimension first (it gives shape "
                f"{tuple(value.shape)} for a batch of {self.sample.shape[0]})"
            )
        self.nodes.append(Node(name, parents, value.shape[1:], **operation))
        self.samples.append(value)
        return _Ref(len(self.nodes) - 1)

    def _resolve(self, argument: Any) -> Any:
        """Replace traced nodes inside an argument by constants or references."""
        return fx.node.map_arg(argument, lambda n: self.env[n])

    def _concrete(self, argument: Any) -> Any:
        """Replace references by their value on the sample."""
        if isinstance(argument, _Ref):
            return self.samples[argument.index]
        if isinstance(argument, (tuple, list)):
            return type(argument)(self._concrete(a) for a in argument)
        if isinstance(argument, dict):
            return {k: self._concrete(a) for k, a in argument.items()}
        return argument

    def _shape(self, ref: _Ref) -> torch.Size:
        return self.nodes[ref.index].shape

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        args, kwargs = self._concrete(args), self._concrete(kwargs)
        with torch.no_grad():
            if node.op == "call_module":
                return self.modules[node.target](*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return node.target(*args, **kwargs)

    # -- one traced node -------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if self.nodes:
                if node.args:  # an optional argument of forward: its default
                    return node.args[0]
                raise NotImplementedError(
                    f"the network takes a second input {node.target!r}: only one is covered"
                )
            return self._add(str(node.target), (), self.sample)
        if node.op == "get_attr":
            value: Any = self.traced
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value.detach() if isinstance(value, Tensor) else value
        args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
        if node.op == "output":
            return self._output(args[0])
        try:
            value = self._run(node, args, kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"the network does not accept inputs of shape {tuple(self.sample.shape[1:])}: "
                f"{node.name!r} fails with: {_first_line(error)}"
            ) from error
        inputs = [a for a in (*args, *kwargs.values()) if _holds_reference(a)]
        if not inputs or not isinstance(value, Tensor):
            return value
        target = self._name(node)
        try:
            return self._operation(node, args, kwargs, value)
        except NotImplementedError as error:
            reason = f" ({error})" if str(error) else ""
            raise NotImplementedError(
                f"{target} is not supported{reason}: the network may use Linear, Conv, BatchNorm "
                "(eval), AvgPool, Flatten/reshape, +, -, scaling by constants, "
                f"{SUPPORTED_ACTIVATIONS}"
            ) from error

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"layer {node.target!r} of type {type(self.modules[node.target]).__name__}"
        name = node.target if isinstance(node.target, str) else node.target.__name__
        return f"operator {name!r} (at {node.name!r})"

    def _output(self, result: Any) -> _Ref:
        if not isinstance(result, _Ref):
            raise NotImplementedError(
                f"the network returns a {type(result).__name__} that does not depend on its input "
                "alone: it must return one tensor of shape [batch, outputs]"
            )
        if result.index != len(self.nodes) - 1 or len(self._shape(result)) != 1:
            value = self.samples[result.index].reshape(self.sample.shape[0], -1)
            reshape = affine.Reshape(self._shape(result), value.shape[1:])
            return self._add("output", (result.index,), value, affine=reshape)
        return result

    def _operation(self, node: fx.Node, args: tuple, kwargs: dict, value: Tensor) -> _Ref:
        """The graph node for one call that depends on the input; its first input comes first."""
        target: Any = node.target
        if node.op == "call_module":
            return self._module(node, self.modules[target], args, kwargs, value)
        if target in affine.SUM_OPERATORS:
            return self._sum(node, args, kwargs, value)
        if target in affine.PRODUCT_OPERATORS or target in affine.QUOTIENT_OPERATORS:
            return self._scale(node, args, kwargs, value)
        first = args[0] if args else None
        if not isinstance(first, _Ref) or _holds_reference((args[1:], kwargs)):
            raise NotImplementedError
        shape = self._shape(first)
        if target is F.linear:
            weights = [*args[1:], *kwargs.values()]
            operation = affine.Linear(weights[0], weights[1] if weights[1:] else None, shape)
            return self._add_affine(node, first, _detached(operation), value)
        if target in affine.NEGATION_OPERATORS:
            return self._add_affine(
                node, first, affine.Scale(-value.new_ones(()), None, shape), value
            )
        if target in affine.IDENTITY_METHODS:
            return first
        if target in affine.RESHAPE_METHODS or target in affine.RESHAPE_FUNCTIONS:
            return self._add_affine(node, first, affine.Reshape(shape, value.shape[1:]), value)
        if target in affine.POSITIVE_FUNCTIONS:
            operation = affine.Positive(
                lambda x: target(x, *args[1:], **kwargs), shape, value.shape[1:]
            )
            return self._add_affine(node, first, operation, value)
        if target in POOLING_FUNCTIONS:
            windows = POOLING_FUNCTIONS[target](shape, value.shape[1:], *args[1:], **kwargs)
            return self._maximum(node, first, windows, value)
        if target in ACTIVATION_FUNCTIONS:
            activation = ACTIVATION_FUNCTIONS[target](*args[1:], **kwargs)
            return self._add_activation(node, first, activation, value)
        raise NotImplementedError

    def _add_affine(
        self, node: fx.Node, parent: _Ref, operation: affine.AffineMap, value: Tensor
    ) -> _Ref:
        operation = operation.to(self.sample.device, self.sample.dtype)
        return self._add(node.name, (parent.index,), value, affine=operation)

    def _add_activation(
        self, node: fx.Node, parent: _Ref, activation: Activation, value: Tensor
    ) -> _Ref:
        activation = activation.to(self.sample.device, self.sample.dtype)
        return self._add(node.name, (parent.index,), value, activation=activation)

    def _module(
        self, node: fx.Node, module: nn.Module, args: tuple, kwargs: dict, value: Tensor
    ) -> _Ref:
        if len(args) != 1 or kwargs or not isinstance(args[0], _Ref):
            raise NotImplementedError("it takes more than one input")
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotImplementedError("it has a forward hook")
        shape = self._shape(args[0])
        if _lookup(module, dict.fromkeys(affine.IDENTITY_MODULES, True)):
            return args[0]
        rule = _lookup(module, affine.AFFINE_MODULES)
        if rule is not None:
            operation = _detached(rule(module, shape, value.shape[1:]))
            return self._add_affine(node, args[0], operation, value)
        pooling = _lookup(module, POOLING_MODULES)
        if pooling is not None:
            windows = pooling[0](shape, value.shape[1:], **pooling[1](module))
            return self._maximum(node, args[0], windows, value)
        activation = _lookup(module, ACTIVATION_MODULES)
        if activation is not None:
            return self._add_activation(node, args[0], activation(module, value), value)
        raise NotImplementedError

    def _maximum(self, node: fx.Node, parent: _Ref, windows: Tensor, value: Tensor) -> _Ref:
        """The largest entry of every window, see :mod:`lipschitz.pooling`."""
        current, relu = parent, PiecewiseLinear()
        device, dtype = value.device, value.dtype
        for level in comparisons(windows, self._shape(parent), value.shape[1:]):
            x = self.samples[current.index]
            chosen = level.chosen.to(device, dtype)
            kept = chosen.linear(x)
            base = self._add(f"{node.name}.keep", (current.index,), kept, affine=chosen)
            if not level.difference.output_shape.numel():  # windows of one entry
                return base
            difference, placed = (p.to(device, dtype) for p in (level.difference, level.placed))
            excess = difference.linear(x)
            compared = self._add(
                f"{node.name}.compare", (current.index,), excess, affine=difference
            )
            excess = relu.forward(excess)
            positive = self._add(f"{node.name}.relu", (compared.index,), excess, activation=relu)
            excess = placed.linear(excess)
            gain = self._add(f"{node.name}.place", (positive.index,), excess, affine=placed)
            both = affine.Combination((1, 1), kept.shape[1:])
            current = self._add(node.name, (base.index, gain.index), kept + excess, affine=both)
        return current

    def _sum(self, node: fx.Node, args: tuple, kwargs: dict, value: Tensor) -> _Ref:
        signs = affine.SUM_OPERATORS[node.target]
        if len(args) != 2 or kwargs:
            raise NotImplementedError("only the plain two-operand form")
        left, right = args
        if isinstance(left, _Ref) and isinstance(right, _Ref):
            if self._shape(left) != self._shape(right):
                raise NotImplementedError("the two branches differ in shape")
            operation = affine.Combination(signs, self._shape(left))
            return self._add(node.name, (left.index, right.index), value, affine=operation)
        branch, constant, (sign, constant_sign) = (
            (left, right, signs) if isinstance(left, _Ref) else (right, left, signs[::-1])
        )
        shift = torch.as_tensor(constant, dtype=value.dtype, device=value.device) * constant_sign
        factor = torch.as_tensor(float(sign), dtype=value.dtype, device=value.device)
        return self._constant_scale(node, branch, factor, shift, value)

    def _scale(self, node: fx.Node, args: tuple, kwargs: dict, value: Tensor) -> _Ref:
        if len(args) != 2 or kwargs:
            raise NotImplementedError("only the plain two-operand form")
        left, right = args
        quotient = node.target in affine.QUOTIENT_OPERATORS
        if isinstance(left, _Ref) and isinstance(right, _Ref):
            if left.index == right.index and not quotient:
                return self._add_activation(node, left, Square(), value)
            raise NotImplementedError("both factors depend on the input")
        if quotient and isinstance(right, _Ref):
            raise NotImplementedError("it divides by a function of the input")
        branch, constant = (left, right) if isinstance(left, _Ref) else (right, left)
        factor = torch.as_tensor(constant, dtype=value.dtype, device=value.device)
        return self._constant_scale(node, branch, 1 / factor if quotient else factor, None, value)

    def _constant_scale(
        self, node: fx.Node, branch: _Ref, factor: Tensor, shift: Tensor | None, value: Tensor
    ) -> _Ref:
        shape = self._shape(branch)
        if value.shape[1:] != shape:
            raise NotImplementedError("the constant changes the shape")
        for constant in (factor, shift):
            if constant is not None and constant.dim() == value.dim() and constant.shape[0] != 1:
                raise NotImplementedError("the constant has a batch dimension")
        return self._add_affine(node, branch, affine.Scale(factor, shift, shape), value)


class _Ref:
    """A value that depends on the input: the index of its graph node."""

    def __init__(self, index: int) -> None:
        self.index = index


def _holds_reference(argument: Any) -> bool:
    if isinstance(argument, _Ref):
        return True
    if isinstance(argument, dict):
        return any(_holds_reference(a) for a in argument.values())
    return isinstance(argument, (tuple, list)) and any(_holds_reference(a) for a in argument)


def _lookup(module: nn.Module, table: dict[type[nn.Module], Any]) -> Any:
    """The table's entry for a module's type, or for a base whose ``forward`` it inherits."""
    for base in type(module).__mro__:
        if base in table:
            return table[base] if type(module).forward is base.forward else None
    return None


def _detached(operation: affine.AffineMap) -> affine.AffineMap:
    """Weights as plain tensors: no bound needs gradients with respect to them."""
    for name, value in vars(operation).items():
        if isinstance(value, Tensor):
            setattr(operation, name, value.detach().clone())
    return operation
