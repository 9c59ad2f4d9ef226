"""Adult (census income): continuous columns scaled to [0, 1], categorical ones one-hot.

Columns keep the order of the file, every value of a categorical column (the unknown `?` too) has
one column, in alphabetical order. This puts the continuous columns at 0, 10, 27, 63, 64 and 65 of
108, which are the paper's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import TensorDataset

from data.spec import DataSpec
from data.storage import data_root, fetch_file
from lipschitz.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

CONTINUOUS = (
    "age",
    "fnlwgt",
    "education-num",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
)
_COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
)
_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult"

SPEC = DataSpec(
    name="adult",
    input_shape=(108,),
    classes=2,
    mean=(0.0,),
    std=(1.0,),
    pixel_range=(0.0, 1.0),
    help="census records, label 1 for an income above 50K, downloaded on first use",
    source="UCI Adult (Becker and Kohavi, 1996), archive.ics.uci.edu/dataset/2/adult, CC BY 4.0",
    channels_shape=(108,),
)


def load(
    spec: DataSpec, *, train: bool, root: str | os.PathLike[str] | None, seed: int
) -> TensorDataset:
    """Adult's published training or test part; `seed` is not used.

    Raises:
        InputError: A file is missing or damaged.
    """
    folder = data_root(root) / "adult"
    names = ("adult.data",) if train else ("adult.data", "adult.test")
    for name in names:
        fetch_file(f"{_URL}/{name}", folder / name, f"adult ({name})")
    training = _read(folder / "adult.data")
    wanted = training if train else _read(folder / "adult.test")
    x = _encode(wanted, training, folder)
    if x.shape[1] != spec.input_shape[0]:
        raise InputError(
            f"{folder / 'adult.data'} gives {x.shape[1]} columns, expected "
            f"{spec.input_shape[0]}; the file is incomplete, delete it"
        )
    # Labels of the test file end in a full stop.
    labels = wanted["income"].str.rstrip(".").eq(">50K").to_numpy()
    return TensorDataset(torch.from_numpy(x), torch.from_numpy(labels.astype(np.int64)))


def continuous_columns(root: str | os.PathLike[str] | None = None) -> tuple[int, ...]:
    """Positions of the continuous features among the network's inputs.

    Raises:
        InputError: The training file is missing or damaged.
    """
    path = data_root(root) / "adult" / "adult.data"
    fetch_file(f"{_URL}/adult.data", path, "adult (adult.data)")
    training = _read(path)
    widths = [1 if name in CONTINUOUS else training[name].nunique() for name in _COLUMNS[:-1]]
    starts = np.cumsum([0, *widths])
    return tuple(int(starts[_COLUMNS.index(name)]) for name in CONTINUOUS)


def _read(path: Path) -> pd.DataFrame:
    try:
        # Here, because it takes half a second that no other data set should pay for.
        import pandas as pd
    except ImportError as error:
        raise InputError(f"adult is read by pandas: pip install pandas ({error})") from error
    try:
        table = pd.read_csv(
            path,
            header=None,
            names=list(_COLUMNS),
            skipinitialspace=True,
            comment="|",  # the first line of the test file
            na_filter=False,  # an unknown value, `?`, is a value like any other
            index_col=False,
        )
        for name in CONTINUOUS:
            table[name] = pd.to_numeric(table[name])
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not the Adult data ({error}); delete it") from error
    known = table["income"].isin([">50K", "<=50K", ">50K.", "<=50K."])
    if table.empty or not known.all():
        raise InputError(f"{path} is not the Adult data (labels other than >50K, <=50K); delete it")
    return table


def _encode(table: pd.DataFrame, training: pd.DataFrame, folder: Path) -> np.ndarray:
    """Input features of `table`, shape [N, columns], with the columns of `training`."""
    features = []
    for name in _COLUMNS[:-1]:
        column, seen = table[name].to_numpy(), training[name].to_numpy()
        if name in CONTINUOUS:
            lowest, span = seen.min(), np.ptp(seen)
            # A constant column carries no information; 0 keeps it finite.
            features.append(((column - lowest) / (span if span > 0 else 1))[:, None])
            continue
        values = np.unique(seen.astype(str))
        one_hot = column.astype(str)[:, None] == values
        if not one_hot.any(axis=1).all():
            new = column[~one_hot.any(axis=1)][0]
            raise InputError(f"{folder}: {name} {new!r} is in adult.test but not in adult.data")
        features.append(one_hot)
    return np.concatenate(features, axis=1).astype(np.float32)
