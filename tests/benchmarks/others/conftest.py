"""A folder of small networks with its manifest, as the scoreboard takes it."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn


def save_mlp(path, weights):
    """Weights [in, out] and biases as an archive."""
    arrays = {}
    for place, (weight, bias) in enumerate(weights):
        arrays[f"W{place}"] = np.asarray(weight, dtype=np.float32)
        arrays[f"b{place}"] = np.asarray(bias, dtype=np.float32)
    np.savez(path, **arrays)


@pytest.fixture
def nets(tmp_path):
    """Folder of an MLP with two inputs and a CNN, both seeded."""
    folder = tmp_path / "nets"
    folder.mkdir()
    random = np.random.default_rng(0)
    sizes = (2, 6, 5, 2)
    layers = [
        (random.normal(size=(a, b)), 0.3 * random.normal(size=b))
        for a, b in itertools.pairwise(sizes)
    ]
    save_mlp(folder / "mlp.npz", layers)
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    torch.save({"state_dict": [cnn.state_dict()]}, folder / "cnn.pth")
    np.save(folder / "image.npy", np.linspace(0, 1, 16).reshape(1, 1, 4, 4))
    entries = [
        {
            "name": "mlp",
            "file": "mlp.npz",
            "input_shape": [2],
            "layers": [{"linear": "0"}, "relu", {"linear": "1"}, "relu", {"linear": "2"}],
            "centre": {"low": [-1, 0], "high": [1, 1]},
            "boxes": [{"eps": 0.5, "set": "table"}, {"eps": "1/100", "set": "wider"}],
        },
        {
            "name": "cnn",
            "file": "cnn.pth",
            "input_shape": [1, 4, 4],
            "layers": [
                {"conv": "0", "stride": 2, "padding": 1},
                "relu",
                "flatten",
                {"linear": "3"},
            ],
            "centre": {"array": "image.npy", "index": 0},
            "mean": [0.5],
            "std": [0.25],
            "boxes": [{"eps": 0.1, "set": "wider"}],
        },
    ]
    write(folder, entries)
    return folder


def write(folder, entries):
    (folder / "manifest.json").write_text(json.dumps(entries))
