"""Networks of ``.onnx`` files, read through the package onnx.

The file's operators are run one after the other in torch, so that the network is traced like any
other. A number of examples that the file fixes is taken for whatever the batch is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipschitz.errors import InputError
from lipschitz.network.formats.exported import ExportedNetwork
from lipschitz.network.formats.onnx_folding import (
    Step,
    folded,
    of_one_example,
    used,
    with_ranks,
    without_guards,
    without_transposes,
)
from lipschitz.network.formats.onnx_operators import OPERATORS
from lipschitz.network.formats.onnx_shapes import Context


class OnnxNetwork(nn.Module):
    """The operators of a file.

    Args:
        steps: In the order in which they run.
        constants: By name of the value.
        input_name, output_name: Of the values that go in and come out.
    """

    def __init__(
        self, steps: list[Step], constants: Mapping[str, Tensor], input_name: str, output_name: str
    ) -> None:
        super().__init__()
        self.steps = steps
        self._alone: list[OnnxNetwork] = []  # a list, so that its weights are not counted twice
        self.input_name, self.output_name = input_name, output_name
        self.constant_names = {name: f"constant_{i}" for i, name in enumerate(constants)}
        for name, value in constants.items():
            # Minus infinity is a mask; as a weight it would be refused.
            if value.is_floating_point() and bool(torch.isfinite(value).all()):
                parameter = nn.Parameter(value, requires_grad=False)
                self.register_parameter(self.constant_names[name], parameter)
            else:
                self.register_buffer(self.constant_names[name], value)

    @property
    def one_example(self) -> OnnxNetwork:
        """The same network of one example, every size in it a number; itself if there is none."""
        return self._alone[0] if self._alone else self

    @one_example.setter
    def one_example(self, network: OnnxNetwork) -> None:
        self._alone = [network]

    def forward(self, x: Tensor) -> Tensor:
        """The file's output; the batch dimension comes first and may have any size."""
        values: dict[str, Any] = {"": None, self.input_name: x}
        for name, attribute in self.constant_names.items():
            # Not by getattr: torch.fx replaces attributes by symbols without a value.
            kind = self._parameters if attribute in self._parameters else self._buffers
            values[name] = kind[attribute]
        for step in self.steps:
            inputs = [values[name] for name in step.inputs]
            found = OPERATORS[step.operator](step.context, *inputs)
            found = found if len(step.outputs) > 1 else [found]
            for i, name in enumerate(step.outputs):
                if name:
                    values[name] = found[i]
        return values[self.output_name]


def load_onnx(path: Path) -> tuple[OnnxNetwork, tuple[int, ...]]:
    """The network of a file and the shape of one input.

    Raises:
        InputError: The package onnx is missing, the file is damaged, or it has several inputs or
            outputs or no batch dimension.
        NotImplementedError: An operator without a rule, by name.
    """
    try:
        import onnx
    except ImportError:
        raise InputError(
            f"{path}: reading .onnx needs the package onnx: pip install onnx"
        ) from None
    try:
        _check_external_data(onnx, path)
        model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    except InputError:
        raise
    except Exception as error:  # protobuf and onnx raise many kinds on a damaged file
        raise InputError(f"{path} is not an ONNX file, or it is damaged ({error})") from error
    graph = model.graph
    constants = {c.name: _tensor(onnx.numpy_helper.to_array(c)) for c in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    for what, found in (("input", inputs), ("output", graph.output)):
        if len(found) != 1:
            raise InputError(f"{path} has {len(found)} {what}s: a bound needs one of each")
    batch, *shape = _dimensions(inputs[0]) or (None,)
    if not shape or not all(isinstance(size, int) for size in shape):
        raise InputError(
            f"{path} takes inputs of shape {[batch, *shape]} (None is left open): expected a batch "
            "dimension and then numbers; export it for one input shape"
        )
    known = [*graph.value_info, *graph.input, *graph.output]
    shapes = {v.name: _dimensions(v) for v in known if v.type.tensor_type.HasField("shape")}
    shapes |= {name: tuple(value.shape) for name, value in constants.items()}
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=13)
    steps = []
    for node in graph.node:
        attributes = {a.name: _attribute(onnx, a) for a in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(path, attributes)
            shapes[node.output[0]] = tuple(constants[node.output[0]].shape)
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise NotImplementedError(f"{path}: the operator {node.op_type} is not supported")
        context = Context(
            attributes,
            tuple(shapes.get(name) for name in node.input),
            len(node.output),
            batch,
            opset,
        )
        outputs = (
            node.output[:1] if node.op_type in ("Dropout", "BatchNormalization") else node.output
        )
        steps.append(Step(node.op_type, context, tuple(node.input), tuple(outputs)))
    names = inputs[0].name, graph.output[0].name
    steps = used(without_guards(steps, constants), names[1])
    try:
        network = _of_batches(path, steps, constants, names, (batch or 2, *shape))
    except (NotImplementedError, InputError) as error:
        if batch not in (None, 1):
            raise
        try:
            return _alone(path, steps, constants, names, shape), tuple(shape)
        except (NotImplementedError, InputError):
            raise error from None
    if batch not in (None, 1):
        return network, tuple(shape)
    try:
        alone = _alone(path, steps, constants, names, shape)
    except (NotImplementedError, InputError):
        return network, tuple(shape)
    if batch == 1 and not _agree(network, alone, shape):
        return alone, tuple(shape)
    network.one_example = alone.program
    return network, tuple(shape)


def _of_batches(
    path: Path,
    steps: list[Step],
    constants: Mapping[str, Tensor],
    names: tuple[str, str],
    shape: tuple[int, ...],
) -> OnnxNetwork:
    """The network on batches of any size, the number of examples in the file left open."""
    constants = dict(constants)
    steps = without_transposes(steps, constants)
    steps = folded(path, steps, constants)
    steps = with_ranks(path, steps, constants, names[0], shape)
    network = OnnxNetwork(steps, constants, *names).eval()
    _try_out(path, network, shape)
    return network


def _alone(
    path: Path,
    steps: list[Step],
    constants: Mapping[str, Tensor],
    names: tuple[str, str],
    shape: Sequence[int],
) -> ExportedNetwork:
    """The network on one example after the other, every size in the file taken at its word."""
    left, constants = of_one_example(path, steps, dict(constants), names[0], (1, *shape))
    return ExportedNetwork(OnnxNetwork(left, constants, *names).eval(), 1)


def _agree(network: OnnxNetwork, alone: ExportedNetwork, shape: Sequence[int]) -> bool:
    """Whether the network computes the same of several examples at once as of each."""
    dtype = max({p.dtype for p in network.parameters()}, key=str, default=torch.float32)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    try:
        with torch.no_grad():
            found, expected = network(x), alone(x)
    except Exception:  # sizes that do not fit raise many kinds
        return False
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-3, atol=1e-5, equal_nan=True
    )


def _check_external_data(onnx: Any, path: Path) -> None:
    """Refuse a file whose weights lie in other files that are not there.

    Raises:
        InputError: Naming the first of them.
    """
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location")
        if location is not None and not (path.parent / location).is_file():
            raise InputError(
                f"{path} keeps its weights in the file {location}, which is missing: put it beside "
                f"{path.name}, into {path.parent.resolve()}"
            )


def _try_out(path: Path, network: OnnxNetwork, shape: tuple[int, ...]) -> None:
    dtypes = {p.dtype for p in network.parameters()}
    x = torch.zeros(shape, dtype=max(dtypes, key=str, default=torch.float32))
    try:
        with torch.no_grad():
            network(x)
    except NotImplementedError:
        raise
    except Exception as error:  # whatever torch says of operators that do not fit together
        raise InputError(f"{path} does not run in torch: {error}") from error


def _dimensions(value: Any) -> tuple[int | None, ...]:
    """Sizes of a value; None for one that is left open."""
    return tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.copy())


def _attribute(onnx: Any, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return _tensor(onnx.numpy_helper.to_array(value))
    if hasattr(value, "__len__") and not isinstance(value, str):
        return [part.decode() if isinstance(part, bytes) else part for part in value]
    return value


def _constant(path: Path, attributes: dict[str, Any]) -> Tensor:
    (name, value), *others = attributes.items()
    if others or name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise NotImplementedError(f"{path}: the operator Constant with {', '.join(attributes)}")
    return value if isinstance(value, Tensor) else torch.tensor(value)
