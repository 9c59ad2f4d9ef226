"""The 8x8 digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import os

import torch
from torch.utils.data import TensorDataset

from data.spec import DataSpec

TEST_SHARE = 0.2

SPEC = DataSpec(
    name="digits",
    input_shape=(1, 8, 8),
    classes=10,
    mean=(0.0,),
    std=(1.0,),
    pixel_range=(0.0, 1.0),
    help="1,797 handwritten digits, bundled with scikit-learn",
    source="UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), CC BY 4.0",
    channels_shape=(1, 8, 8),
)


def load(
    spec: DataSpec, *, train: bool, root: str | os.PathLike[str] | None, seed: int
) -> TensorDataset:
    """80 % of the digits for training, 20 % for testing, every class in the same proportion.

    `root` is not used: the images are in the scikit-learn package.
    """
    # Here, because scikit-learn takes a second that no other data set should pay for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images / 16.0, labels, test_size=TEST_SHARE, stratify=labels, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = parts
    x = torch.tensor(train_images if train else test_images, dtype=torch.float32)
    y = torch.tensor(train_labels if train else test_labels, dtype=torch.int64)
    return TensorDataset(x.reshape(-1, *spec.input_shape), y)
