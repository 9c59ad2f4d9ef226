"""The network that ``main.py`` bounds: from the registry, a file of one's own, or a whole file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import nn

from data import DataSpec, load_data
from data.points import Points
from lipschitz.errors import InputError
from lipschitz.network.formats import is_network_file, load_model, read_network
from lipschitz.network.tracing import placement
from models import ModelSpec, model_spec
from models.checkpoint import Checkpoint, load_checkpoint, load_weights
from models.conversion import cnn_to_mlp
from utils import parse_params


@dataclass(frozen=True)
class Network:
    """The network to bound and what is known about it."""

    model: nn.Module
    spec: ModelSpec
    input_shape: tuple[int, ...]
    checkpoint: Checkpoint | None


def load_network(
    args: Namespace, facts: DataSpec | None, input_shape: Sequence[int] | None
) -> Network:
    """The network with its weights, in the mode and precision its maker gave it.

    The model's name and arguments may come from the checkpoint.

    Args:
        args: The command line.
        facts: The data set, None without one.
        input_shape: Shape of the points, None where the network or the data decide.

    Raises:
        InputError: No model named, unknown names, weights that do not fit.
    """
    params = parse_params(args.model_params, width=args.width, depth=args.depth)
    name = args.model
    if args.load and is_network_file(args.load):
        if name is not None:
            raise InputError(f"--model {name}: leave it out, {args.load} is a whole network")
        model, shape = read_network(args.load, **params)
        spec = ModelSpec(Path(args.load).name, params, shape, load_model)
        return _converted(args, Network(model, spec, shape, None))
    if name is None:
        known = load_checkpoint(args.load) if args.load else None
        if known is None or known.model is None:
            raise InputError("--model is missing: give a name of --list-models or file.py:factory")
        name, params = known.model, {**(known.params or {}), **params}
    data_shape = None if facts is None or facts.takes_any_shape else facts.input_shape
    spec = model_spec(name, params, data_shape)
    model = spec.build()
    checkpoint = load_weights(model, args.load, asked_for=name) if args.load else None
    if checkpoint is None and not _is_own(name):
        raise InputError(
            f"--load is missing: {name} has no weights of its own; train_model.py makes them"
        )
    shape = spec.shape_for(model, input_shape)
    if shape is None:
        raise InputError(
            f"the input shape of {name} is unknown: name its --data, give --input, or a --box with "
            "an interval per input"
        )
    return _converted(args, Network(model, spec, tuple(shape), checkpoint))


def _converted(args: Namespace, network: Network) -> Network:
    """The network, or with ``--cnn-to-mlp`` the equal MLP."""
    if not args.cnn_to_mlp:
        return network
    mlp = cnn_to_mlp(network.model, network.input_shape)
    return replace(network, model=mlp, input_shape=(prod(network.input_shape),))


def _is_own(name: str) -> bool:
    return ":" in name and not name.startswith("torchvision:")


def print_clean_accuracy(args: Namespace, network: Network, points: Points | None) -> None:
    """Share of examples classified correctly, over the test set or the points of a file."""
    if points is None:
        from commands.training import measure_accuracy

        test_data = load_data(
            args.data, train=False, model_input_shape=network.input_shape, root=args.data_root
        )
        accuracy = measure_accuracy(network.model, test_data, 256)
        print(f"clean_acc {accuracy:.4f} ({len(test_data)} examples)")
        return
    if points.labels is None:
        raise InputError(f"--clean: {args.input} has no labels; add an array 'y'")
    with torch.no_grad():
        predicted = network.model(points.x.to(*placement(network.model))).argmax(1).cpu()
    accuracy = float((predicted == points.labels).double().mean())
    print(f"clean_acc {accuracy:.4f} ({len(points.x)} examples)")
