"""From a PyTorch module to a :class:`lipschitz.network.graph.Graph`, refusing what is not covered.

The module is traced by ``torch.fx``, or by ``torch.export`` where its Python code branches on
shapes, and the trace becomes a graph in :mod:`lipschitz.network.building`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn

from lipschitz.checks import shown, whole_number
from lipschitz.errors import InputError, first_line
from lipschitz.network.building import Builder
from lipschitz.network.composed import WRITTEN_MODULES
from lipschitz.network.formats.exported import ExportedNetwork
from lipschitz.network.graph import Graph, Node
from lipschitz.network.one_example import OneExampleBuilder

# Modules whose training mode changes what they compute.
_TRAINING_SENSITIVE = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
)


def build_graph(model: nn.Module, input_shape: Sequence[int]) -> Graph:
    """The network as a graph of affine maps and activations, checked against autograd.

    Args:
        model: A network in eval mode that maps [B, *input_shape] to [B, C] (further output
            dimensions are flattened).
        input_shape: Shape of one input, without the batch dimension. It is taken at its word: a
            network of linear layers alone accepts a whole batch as one input.

    Returns:
        The graph, in the model's own dtype and on its device.

    Raises:
        InputError: No module, NaN or infinite weights, a layer left in training mode, an input
            shape the network does not accept, an output that is no tensor, or a graph whose
            Jacobian is not autograd's.
        NotImplementedError: An operator, by name, that is neither affine nor a known activation.
    """
    model = checked_module(model)
    input_shape = _shape_of(input_shape)
    device, dtype = placement(model)
    batch = (model.batch if isinstance(model, ExportedNetwork) else None) or 2
    generator = torch.Generator().manual_seed(0)
    sample = torch.rand(batch, *input_shape, generator=generator, dtype=torch.float64)
    sample = sample.to(device=device, dtype=dtype)
    _check_output(model, sample)
    try:
        return _read(model, sample, _trace)
    except AttributeError as error:
        # What stands for a tensor while torch.fx traces is none, nor a tuple: code that asks goes
        # another way than it does with tensors.
        try:
            return _read(model, sample, _export)
        except NotImplementedError:
            raise
        except RuntimeError:
            raise NotImplementedError(
                f"{type(model).__name__} cannot be traced by torch.fx ({first_line(error)}): its "
                "forward must not depend on what kind of values it gets"
            ) from error


_Tracer = Callable[[nn.Module, Tensor], fx.GraphModule]


def _read(model: nn.Module, sample: Tensor, trace: _Tracer) -> Graph:
    """The graph by one way of tracing, compared with the network.

    Raises:
        InputError, NotImplementedError: As :func:`build_graph`.
    """
    try:
        graph = Builder(trace(model, sample), sample).build()
    except NotImplementedError as error:
        return _of_one_example(model, sample[:1], trace, error)
    check_jacobian(graph, model)
    return graph


def _of_one_example(
    model: nn.Module, example: Tensor, trace: _Tracer, reason: NotImplementedError
) -> Graph:
    """The graph of a network whose code does not keep the batch first, from one example.

    Raises:
        NotImplementedError: What kept it from being read, with a batch first or without.
    """
    if isinstance(model, ExportedNetwork) and model.batch not in (None, 1):
        raise reason
    try:
        alone = getattr(model, "one_example", model)
        graph = OneExampleBuilder(trace(alone, example), example).build()
        check_jacobian(graph, model)
    except NotImplementedError as error:
        is_clearer = _is_about_batch(reason) and not _is_about_batch(error)
        raise (error if is_clearer else reason) from None
    except InputError:
        raise reason from None
    return graph


def _is_about_batch(error: NotImplementedError) -> bool:
    """Whether a network was refused for where its batch dimension is."""
    phrases = (
        "batch dimension first",
        "batch is not the first",
        "last states",
        "number of dimensions",
        "examples of a batch",
        "for each example",
        "of each of a batch",
    )
    return any(phrase in str(error) for phrase in phrases)


def checked_module(model: Any) -> nn.Module:
    """The network, without torch.compile around it, if it can be bounded on some input at all.

    Raises:
        InputError: No module, NaN or infinite weights, or a layer left in training mode.
    """
    if not isinstance(model, nn.Module):
        advice = "expected a torch.nn.Module in eval mode"
        if isinstance(model, type):
            advice += "; make one of the class first"
        elif isinstance(model, str):
            advice += "; lipschitz.load_model reads one from a file"
        elif callable(model):
            advice += "; call the function in the forward of one"
        raise InputError(f"model {shown(model)}: {advice}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model is TorchScript, whose calls cannot be followed: give the torch.nn.Module that "
            "it was made from, or a file of torch.export.save"
        )
    model = getattr(model, "_orig_mod", model)
    _check_weights(model)
    _check_eval_mode(model)
    return model


def _shape_of(given: Any) -> tuple[int, ...]:
    """The shape of one input.

    Raises:
        InputError: No sequence of whole numbers, 1 or larger.
    """
    if isinstance(given, (str, Tensor)) or not isinstance(given, Sequence):
        raise InputError(
            f"input_shape {shown(given)}: expected the shape of one input, such as (4,) or x.shape"
        )
    try:
        return tuple(whole_number("size", size, least=1) for size in given)
    except InputError:
        raise InputError(
            f"input_shape {tuple(given)}: expected whole numbers, 1 or larger"
        ) from None


def _check_output(model: nn.Module, sample: Tensor) -> None:
    """Refuse a network whose output is no tensor; what fails otherwise, tracing names better.

    Raises:
        InputError: With what it returns instead.
    """
    try:
        with torch.no_grad():
            output = model(sample.clone())
    except Exception:  # a module may raise anything
        return
    if isinstance(output, Tensor):
        if not output.numel():
            raise InputError(
                f"the network returns an empty tensor, of shape {tuple(output.shape)} for a batch "
                f"of {len(sample)}: it must have an output"
            )
        return
    name = type(output).__name__
    kind = "None" if output is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if isinstance(output, dict):
        kind += f" with the keys {', '.join(map(repr, output))}"
    raise InputError(
        f"the network returns {kind}: it must return one tensor of shape [batch, outputs] that "
        "depends on its input; wrap it in a module that picks it"
    )


def _trace(model: nn.Module, sample: Tensor) -> fx.GraphModule:
    """The calls that the module makes.

    Raises:
        NotImplementedError: They depend on the values of the input.
    """
    if isinstance(model, ExportedNetwork):
        model = model.program
    if isinstance(model, fx.GraphModule):
        return model
    if type(model) in WRITTEN_MODULES:  # a layer is followed as a whole, not its own code
        model = nn.Sequential(model).eval()
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # torch.fx raises many kinds; all mean the same to a user
        reason = error
    try:
        return _export(model, sample)
    except RuntimeError:  # the reason of torch.fx is the shorter one
        raise NotImplementedError(
            f"{type(model).__name__} cannot be traced by torch.fx ({first_line(reason)}): its "
            "forward must not depend on the values of its input"
        ) from reason


def _export(model: nn.Module, sample: Tensor) -> fx.GraphModule:
    """The calls that the module makes on tensors of the sample's shape.

    Raises:
        RuntimeError: They depend on its values.
    """
    try:
        # torch.export prints what it was doing when it fails.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), _plain_attention():
            return torch.export.export(model, (sample,), strict=False).module()
    except Exception as error:  # torch.export raises many kinds
        raise RuntimeError(first_line(error)) from error


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused transformer layer that torch calls in eval mode, which hides its steps."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def check_jacobian(graph: Graph, model: nn.Module, num_points: int = 4) -> None:
    """Compare the graph's outputs and Jacobian with the module's own, at random points.

    The batch size differs from the one used for tracing, which catches shapes frozen there.

    Raises:
        InputError: On any mismatch beyond rounding.
    """
    generator, compared = torch.Generator().manual_seed(1), 0
    for count, scale in ((num_points + 1, 1.0), (1, 0.1)):
        x = torch.rand(count, *graph.input_shape, generator=generator, dtype=torch.float64)
        rows = torch.randn(count, graph.num_outputs, generator=generator, dtype=torch.float64)
        x = (x * scale).to(device=graph.device, dtype=graph.dtype).requires_grad_()
        rows = rows.to(x)
        output, expected = _own_gradient(model, x, rows)
        with torch.no_grad():
            values = graph.values(x)
            actual = graph.pull_back(values, rows)
        # torch's own derivative of hardsigmoid has its sixth in float32 whatever the precision.
        tolerance = max(1e4 * torch.finfo(graph.dtype).eps, 5e-8)
        # Where the network itself is not defined, say the root of a negative number.
        defined = output.isfinite().all(1) & expected.flatten(1).isfinite().all(1)
        compared += int(defined.sum())
        if not bool(defined.any()):
            continue
        for what, ours, theirs in (
            ("output", values[-1][defined], output[defined]),
            ("Jacobian", actual[defined], expected[defined]),
        ):
            scale_of = float(theirs.abs().max().clamp(min=1e-12))
            error = float((ours - theirs).abs().max()) / scale_of
            if not error <= tolerance and not (
                what == "Jacobian" and _is_rounding(graph, expected, x, rows)
            ):
                raise InputError(
                    f"the {what} of the traced graph differs from the network's own by a relative "
                    f"{error:.1e}: the network does something tracing cannot see (a hook, an "
                    "in-place change, a branch on its input); rewrite that part"
                )
    if not compared:
        raise InputError(
            "the network gives no finite numbers at any of some random inputs in [0, 1], where its "
            "graph is compared with it: scale its input so that it does"
        )


def _is_rounding(graph: Graph, expected: Tensor, x: Tensor, rows: Tensor) -> bool:
    """Whether two Jacobians differ by no more than rounding of slopes does.

    Where a softmax is all but decided, autograd's derivative of it is what is left of two numbers
    that cancel, as if every slope were off by the last place of 1.
    """
    unit = torch.finfo(graph.dtype).eps

    def off(node: Node, preact: Tensor) -> Tensor:
        slope = node.activation.slope(preact)
        return slope if node.activation.curvatures == (0,) else slope + unit

    with torch.no_grad():
        values = graph.values(x.detach())
        ours = graph.pull_back(values, rows)
        noise = (graph.pull_back(values, rows, off) - ours).abs().amax()
    return bool((ours - expected).abs().amax() <= 100 * noise)


def _own_gradient(model: nn.Module, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The module's own output at x, [B, C], and by autograd its ``J(x)^T rows``."""
    try:
        with torch.enable_grad():
            # A copy: the first layer may work in place, which the leaf x does not allow.
            output = model(x.clone()).reshape(len(x), -1)
            if not output.requires_grad:
                return output, torch.zeros_like(x)
            gradient = torch.autograd.grad(output, x, rows, allow_unused=True)[0]
    except RuntimeError as error:
        raise InputError(
            f"the network does not run with gradients on a batch of {len(x)} "
            f"({first_line(error)}): write x.shape[0] where the batch size is a number, and leave "
            "values that are read again as they are"
        ) from error
    return output.detach(), torch.zeros_like(x) if gradient is None else gradient


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and precision of a network's weights and buffers, torch's defaults without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def _check_weights(model: nn.Module) -> None:
    dtypes = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise InputError(
                f"the weights {name!r} have no values yet: load them, and call a lazy network once "
                "on an example"
            )
        if not tensor.is_floating_point():
            continue
        dtypes.add(tensor.dtype)
        # Minus infinity in a buffer is a mask, added to what a softmax takes.
        is_mask = not isinstance(tensor, nn.Parameter)
        finite = torch.isfinite(tensor) | (tensor == -torch.inf if is_mask else False)
        if not finite.all():
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
