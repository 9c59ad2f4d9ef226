"""The breast cancer data that come with scikit-learn: a real table without a download."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch.utils.data import TensorDataset

from data.spec import DataSpec

TEST_SHARE = 0.2

SPEC = DataSpec(
    name="cancer",
    input_shape=(30,),
    classes=2,
    mean=(0.0,),
    std=(1.0,),
    pixel_range=(0.0, 1.0),
    help="569 tumours, 30 measurements scaled to [0, 1], label 1 if benign, with scikit-learn",
    source="UCI Breast Cancer Wisconsin (Diagnostic) (Wolberg et al., 1995), CC BY 4.0",
    channels_shape=(30,),
)


def load(
    spec: DataSpec, *, train: bool, root: str | os.PathLike[str] | None, seed: int
) -> TensorDataset:
    """80 % of the tumours for training, 20 % for testing, both classes in the same proportion.

    Every feature is scaled by the training part's minimum and maximum, so a test example may lie a
    little outside [0, 1]. `root` is not used: the table is in the scikit-learn package.
    """
    # Here, because scikit-learn takes a second that no other data set should pay for.
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    values, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(
        values, labels, test_size=TEST_SHARE, stratify=labels, random_state=seed
    )
    train_values, test_values, train_labels, test_labels = parts
    lowest, span = train_values.min(axis=0), np.ptp(train_values, axis=0)
    scaled = ((train_values if train else test_values) - lowest) / span
    x = torch.tensor(scaled, dtype=torch.float32)
    y = torch.tensor(train_labels if train else test_labels, dtype=torch.int64)
    return TensorDataset(x.reshape(-1, *spec.input_shape), y)


def feature_names() -> tuple[str, ...]:
    """The measurements, in the order of the network's inputs."""
    from sklearn.datasets import load_breast_cancer

    return tuple(str(name) for name in load_breast_cancer().feature_names)
