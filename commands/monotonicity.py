"""``main.py --mono``: certified signs of features' effects."""

from __future__ import annotations

from argparse import Namespace
from math import prod
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from commands.options import classes_of, seconds_of
from data import continuous_features, data_spec
from data.points import coordinates
from lipschitz import build_graph
from lipschitz.applications.monotonicity import MonotonicityOptions, run_monotonicity, table
from lipschitz.applications.sign_search import SignLimits
from lipschitz.errors import InputError
from utils import choose_dtype

if TYPE_CHECKING:
    from commands.run import Loaded


def certify_signs(args: Namespace, loaded: Loaded) -> None:
    """Certify signs of features' effects (``--mono``) and print how often each was found."""
    points, device, network = loaded.points, loaded.device, loaded.network
    if args.features is not None:
        size = prod(network.input_shape)
        features = {i: str(i) for i in coordinates("--features", args.features, size)}
    elif args.data is not None:
        features = continuous_features(args.data, args.data_root)
    else:
        raise InputError("--features is missing: name the features by their numbers")
    interval = (0.0, 1.0)
    if args.data is not None:
        facts = data_spec(args.data, network.input_shape)
        mean, std = facts.normalisation(torch.float64)
        interval = tuple((end - mean) / std for end in facts.pixel_range)
    graph = build_graph(network.model.to(device), network.input_shape)
    graph = graph.to(device, choose_dtype(args.dtype, network.model))
    options = MonotonicityOptions(
        features,
        interval=interval,
        eps=None if args.eps is None else points.radius,
        classes=classes_of(args),
        limits=SignLimits(timeout=seconds_of(args)),
        optimize=not args.no_optimize,
        csv=args.csv,
        start=args.start,
    )
    with tqdm(total=len(points.x), desc="examples", disable=args.quiet or None) as bar:
        signs = run_monotonicity(graph, points.x.to(device), options, lambda _: bar.update())
    print(table(signs, features))
