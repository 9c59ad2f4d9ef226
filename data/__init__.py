"""Data sets by name.

`data_spec` gives the facts without reading a file, `load_data` the examples, and
`evaluation_examples` the points at which bounds are computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from data import adult, digits, synthetic, tabular, vision
from data.spec import DataSpec, LabelledData
from lipschitz.errors import InputError, suggest

__all__ = [
    "DataSpec",
    "LabelledData",
    "continuous_features",
    "data_spec",
    "evaluation_examples",
    "list_data",
    "load_data",
]

Shape = tuple[int, ...]

_REGISTRY: dict[str, tuple[DataSpec, Callable[..., Any]]] = {
    spec.name.lower(): (spec, load)
    for spec, load in (
        (synthetic.SPEC, synthetic.load),
        (digits.SPEC, digits.load),
        (vision.MNIST, vision.load_mnist),
        (vision.CIFAR, vision.load_cifar),
        (vision.TINY_IMAGENET, vision.load_tiny_imagenet),
        (adult.SPEC, adult.load),
        (tabular.SPEC, tabular.load),
    )
}
# Other names that are understood. The paper's code has two names for its synthetic data, one for
# each shape; here the model decides on the shape.
_ALIASES = {"simpledata": "simple", "simplecnn": "simple", "cifar10": "cifar"}


def _find(name: str) -> tuple[DataSpec, Callable[..., Any]]:
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key not in _REGISTRY:
        names = [spec.name for spec, _ in _REGISTRY.values()]
        raise InputError(f"unknown data set {name!r}{suggest(name, names)}; see --list-data")
    return _REGISTRY[key]


def data_spec(name: str, model_input_shape: Shape | None = None) -> DataSpec:
    """The facts about a data set, without reading any of its files.

    Args:
        name: Its name in any case, or `simpleData` or `simpleCNN` for `simple`.
        model_input_shape: Shape that the model takes; None for the data's own.

    Raises:
        InputError: The name is unknown, or the shape does not fit.
    """
    return _find(name)[0].with_shape(model_input_shape)


def load_data(
    name: str,
    *,
    train: bool,
    model_input_shape: Shape | None = None,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> LabelledData:
    """The training or the test part of a data set, normalised.

    Missing files of MNIST, CIFAR and adult are downloaded unless $LIPSCHITZ_OFFLINE is set.

    Args:
        name: As in `data_spec`.
        train: True for the training part (augmented where the paper does), False for the test.
        model_input_shape: Shape that the model takes; None for the data's own.
        root: Folder of the files; None for $LIPSCHITZ_DATA, else `data/cache`.
        seed: Of the generated data and of the split of `digits`. Training and evaluation must
            use the same one, or test examples have been trained on.

    Raises:
        InputError: Unknown name, shape that does not fit, or files missing or damaged; the
            message says what to download and where to put it.
    """
    spec, load = _find(name)
    spec = spec.with_shape(model_input_shape)
    return LabelledData(spec, load(spec, train=train, root=root, seed=seed))


def evaluation_examples(
    name: str,
    *,
    start: int = 0,
    count: int = 1,
    model_input_shape: Shape | None = None,
    root: str | os.PathLike[str] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The points at which bounds are computed: test examples, or the centre for `simple`.

    Args:
        name: As in `data_spec`.
        start: Number of the first test example.
        count: How many.
        model_input_shape: Shape that the model takes; None for the data's own.
        root: As in `load_data`.

    Returns:
        x: Normalised inputs, shape [B, *input_shape]; for `simple` B is 1.
        y: Labels, shape [B]; None for the centre, which has none.

    Raises:
        InputError: As `load_data`, or there are no such examples.
    """
    spec = data_spec(name, model_input_shape)
    if spec.evaluated_at_centre:
        return torch.full((1, *spec.input_shape), 0.5), None
    data = load_data(name, train=False, model_input_shape=model_input_shape, root=root)
    return data.take(start, count)


def continuous_features(name: str, root: str | os.PathLike[str] | None = None) -> dict[int, str]:
    """The features of a table that are numbers, not categories: input coordinate -> name.

    Args:
        name: As in `data_spec`.
        root: As in `load_data`.

    Raises:
        InputError: Not a table, or its files are missing or damaged.
    """
    spec, _ = _find(name)
    if spec is adult.SPEC:
        return dict(zip(adult.continuous_columns(root), adult.CONTINUOUS, strict=True))
    if spec is tabular.SPEC:
        return dict(enumerate(tabular.feature_names()))
    raise InputError(f"{spec.name} is not a table: name the features by their numbers")


def list_data() -> tuple[DataSpec, ...]:
    """Every data set of the registry; `str(spec)` is its line of help."""
    return tuple(spec for spec, _ in _REGISTRY.values())
