"""The network for the Adult data."""

from __future__ import annotations

from torch import nn


def adult_mlp(in_dim: int = 108, width: int = 512) -> nn.Sequential:
    """MLP with three hidden layers of `width` neurons and 2 outputs, on `in_dim` numbers."""
    return nn.Sequential(
        nn.Linear(in_dim, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 2),
    )
