"""The random k-cluster data of LipMIP and of the paper.

Uniform points in the unit cube; some of them are leaders with random labels, and every point has
the label of its nearest leader.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch.utils.data import TensorDataset

from data.spec import DataSpec
from data.storage import data_root
from utils import atomic_write_bytes

NUM_POINTS = 10_000
LEADERS_PER_DIMENSION = 5
TRAIN_SHARE = 0.7

SPEC = DataSpec(
    name="simple",
    input_shape=(16,),
    classes=10,
    mean=(0.0,),
    std=(1.0,),
    pixel_range=(0.0, 1.0),
    help="random clusters in the unit cube of dimension 16, or 1x8x8 for CNNs",
    source="generated here, after LipMIP (Jordan and Dimakis, 2020); no licence needed",
    channels_shape=(16,),
    takes_any_shape=True,
    evaluated_at_centre=True,
)


def generate(
    dimension: int, seed: int, num_points: int = NUM_POINTS, classes: int = SPEC.classes
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the points and labels them.

    Args:
        dimension: D, of the unit cube.
        seed: Same seed, same data.
        num_points: N, of which 5 D (at most all) are leaders.
        classes: Number of labels.

    Returns:
        Points, shape [N, D], and labels, shape [N].
    """
    rng = np.random.default_rng(seed)
    points = rng.random((num_points, dimension), dtype=np.float32)
    num_leaders = min(LEADERS_PER_DIMENSION * dimension, num_points)
    leaders = rng.choice(num_points, size=num_leaders, replace=False)
    leader_labels = rng.integers(classes, size=num_leaders)
    nearest = cdist(points, points[leaders]).argmin(axis=1)
    return points, leader_labels[nearest]


def load(
    spec: DataSpec, *, train: bool, root: str | os.PathLike[str] | None, seed: int
) -> TensorDataset:
    """The first 70 % of the points for training, the rest for testing.

    The points are independent draws, so the split needs no shuffling.
    """
    points, labels = _cached(math.prod(spec.input_shape), root, seed)
    num_train = int(TRAIN_SHARE * len(points))
    part = slice(None, num_train) if train else slice(num_train, None)
    x = torch.from_numpy(points[part]).reshape(-1, *spec.input_shape)
    return TensorDataset(x, torch.from_numpy(labels[part]))


def _cached(
    dimension: int, root: str | os.PathLike[str] | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    path = data_root(root) / "synthetic" / f"dimension{dimension}_seed{seed}.npz"
    try:
        with np.load(path) as stored:
            points, labels = stored["points"], stored["labels"]
        if points.shape == (NUM_POINTS, dimension) and labels.shape == (NUM_POINTS,):
            return points, labels
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        pass  # absent or damaged: it is cheap to generate again
    points, labels = generate(dimension, seed)
    buffer = io.BytesIO()
    np.savez(buffer, points=points, labels=labels)
    # A read-only place only costs the time to generate it again.
    with contextlib.suppress(OSError):
        atomic_write_bytes(path, buffer.getvalue())
    return points, labels
