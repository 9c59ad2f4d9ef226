"""What one call of ``main.py`` works on: the points, the network and the method made ready."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from commands.curvature import PreparedCurvature, prepare_curvature
from commands.network import Network, load_network, print_clean_accuracy
from commands.options import branching_of, classes_of, seconds_of
from commands.picture import image_shape
from commands.rows import settings_of
from data import data_spec
from data.boxes import read_box, read_radius
from data.point_files import read_points
from data.points import (
    Choice,
    Points,
    check_labels,
    coordinates,
    points_of_box,
    points_of_data,
    points_of_file,
)
from lipschitz import MethodOptions, Prepared
from lipschitz.bounds.options import SlopeOptimization
from lipschitz.errors import InputError
from lipschitz.network.formats import is_network_file
from lipschitz.precision import disable_tf32
from lipschitz.problem import class_rows
from models.checkpoint import load_checkpoint
from utils import choose_device, choose_dtype, set_seed, use_threads_that_pay


@dataclass(frozen=True)
class Loaded:
    """What the command line names.

    Attributes:
        network: The network.
        points: The points and their boxes; None if only the clean accuracy is asked for.
        device: Where to compute.
    """

    network: Network
    points: Points | None
    device: torch.device


@dataclass(frozen=True)
class Run:
    """Everything that the bounds of one call of ``main.py`` need.

    Attributes:
        args: The command line.
        argv: The same as it was typed.
        points: The points and their boxes.
        prepared: The network with its method, or with what ``--curvature`` asks for.
        settings: What a result depends on besides the example's number.
    """

    args: Namespace
    argv: list[str]
    points: Points
    prepared: Prepared | PreparedCurvature
    settings: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Time limit of each example, of what searches."""
        return seconds_of(self.args)

    @property
    def can_search(self) -> bool:
        """Whether ``--bab`` may gain anything on this network."""
        return self.prepared.can_search


def load(args: Namespace) -> Loaded:
    """Read the points and the network.

    Raises:
        InputError: Something is missing, unknown or does not fit.
    """
    set_seed(args.seed)
    disable_tf32()
    device = choose_device(args.device)
    if args.data is None and args.load and args.input is None and not is_network_file(args.load):
        args.data = load_checkpoint(args.load).data
    if args.data is None and args.input is None and args.box is None:
        raise InputError("--data is missing: name a data set of --list-data, or give --input")
    needs_box = args.eps is not None or not (args.clean or args.mono or args.certify)
    if args.input is None and args.box is None and needs_box and args.eps is None:
        raise InputError("--eps is missing: give the radius of the box in pixels, such as 0.05")
    radius = None if args.eps is None else read_radius(args.eps)
    box = None if args.box is None else read_box(args.box)
    given = None if args.input is None else read_points(Path(args.input))
    facts = None if args.data is None else data_spec(args.data)
    choice = Choice(args.start, args.num_examples, args.input_clipping, needs_box=needs_box)
    shape = given.input_shape if given is not None else None if box is None else box.input_shape
    network = load_network(args, facts, shape)
    points = None
    if given is not None:
        if args.cnn_to_mlp:
            raise InputError("--cnn-to-mlp with --input: convert with train_model.py --cnn-to-mlp")
        options = {"std": args.std, "facts": facts, "input_shape": network.input_shape}
        points = points_of_file(given, radius, choice, **options)
    elif box is not None:
        points = points_of_box(box, network.input_shape)
    elif not args.clean:
        points = points_of_data(facts, network.input_shape, radius or 0.0, choice, args.data_root)
    if points is not None:
        size = prod(network.input_shape)
        points = replace(points, fixed=coordinates("--fixed", args.fixed, size))
    return Loaded(network, points, device)


def clean_accuracy(args: Namespace, loaded: Loaded) -> None:
    """Print the share of examples classified correctly (``--clean``)."""
    loaded.network.model.eval().to(loaded.device)
    print_clean_accuracy(args, loaded.network, loaded.points)


def prepare(args: Namespace, argv: list[str], loaded: Loaded) -> Run:
    """Make the network ready for the method.

    Raises:
        InputError, NotImplementedError: The network is not one that the method takes.
    """
    network = loaded.network
    if args.picture is not None:
        image_shape(network.input_shape)
    prepared = _prepared(args, network, loaded.device)
    check_labels(loaded.points, prepared.graph.num_outputs)
    if args.classes is not None:  # else every example would be refused for the same reason
        class_rows(prepared.graph.num_outputs, classes_of(args))
    widest = max(node.shape.numel() for node in prepared.graph.nodes)
    use_threads_that_pay(widest * widest)  # coefficients of one layer's bounds in another
    settings = settings_of(args, network, prepared, source=loaded.points.source)
    return Run(args, argv, loaded.points, prepared, settings)


def _prepared(
    args: Namespace, network: Network, device: torch.device
) -> Prepared | PreparedCurvature:
    model, dtype = network.model.to(device), choose_dtype(args.dtype, network.model)
    if args.curvature:
        return prepare_curvature(args, model, network.input_shape, dtype)
    return Prepared(
        model,
        network.input_shape,
        method=args.method,
        engine=args.engine,
        options=MethodOptions(
            optimize=not args.no_optimize,
            slopes=SlopeOptimization(args.ob_iteration, args.ob_lr),
            rows_at_once=args.batch_size,
            memory_budget=args.memory_budget and args.memory_budget * 2**20,
            timeout=args.timeout,
            seed=args.seed,
        ),
        branching=branching_of(args) if args.bab else None,
        dtype=dtype,
        norm=args.norm,
        inputs=args.inputs,
    )
