"""Networks for the synthetic data: MLPs on 16 numbers, a small CNN on 1x8x8 and its MLP forms.

Layer orders are those of the paper's code, so that its state dicts load.
"""

from __future__ import annotations

from torch import nn


def simple_mlp_3layer(width: int = 16, in_dim: int = 16) -> nn.Sequential:
    """MLP with two hidden layers of `width` neurons and 10 outputs."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_dim, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def simple_mlp_width32(depth: int = 2, in_dim: int = 16) -> nn.Sequential:
    """MLP with `depth` linear layers, `depth - 1` of them hidden with 32 neurons; 10 outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for index in range(depth - 1):
        layers += [nn.Linear(in_dim if index == 0 else 32, 32), nn.ReLU()]
    layers.append(nn.Linear(in_dim if depth == 1 else 32, 10))
    return nn.Sequential(*layers)


def simple_cnn_3layer(width: int = 16) -> nn.Sequential:
    """CNN with two 3x3 convolutions of `width` channels on 1x8x8 inputs; 10 outputs."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.ReLU(),
        nn.Conv2d(width, width, 3),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(width * 4 * 4, 10),
    )


def _mlp_of_simple_cnn(width: int) -> nn.Sequential:
    # 6x6 and 4x4 positions are left after the first and the second 3x3 convolution of 8x8.
    return nn.Sequential(
        nn.Linear(64, 36 * width),
        nn.ReLU(),
        nn.Linear(36 * width, 16 * width),
        nn.ReLU(),
        nn.Linear(16 * width, 10),
    )


def simple_cnn_3layer_2() -> nn.Sequential:
    """The MLP equal to simple_cnn_3layer(width=2), on 64 numbers."""
    return _mlp_of_simple_cnn(2)


def simple_cnn_3layer_4() -> nn.Sequential:
    """The MLP equal to simple_cnn_3layer(width=4), on 64 numbers."""
    return _mlp_of_simple_cnn(4)


def simple_cnn_3layer_8() -> nn.Sequential:
    """The MLP equal to simple_cnn_3layer(width=8), on 64 numbers."""
    return _mlp_of_simple_cnn(8)


def simple_cnn_3layer_16() -> nn.Sequential:
    """The MLP equal to simple_cnn_3layer(width=16), on 64 numbers."""
    return _mlp_of_simple_cnn(16)
