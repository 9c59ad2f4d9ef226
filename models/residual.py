"""Residual networks for CIFAR-sized images, in the layouts of VNN-COMP 2021's resnet_2b and _4b.

The widths there are 8 and 16 (https://github.com/stanleybak/vnncomp2021, cifar10_resnet); smaller
ones give networks of a few thousand neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipschitz.errors import InputError


class ResidualBlock(nn.Module):
    """``relu(conv(relu(conv(x))) + shortcut(x))``; the shortcut is a 1x1 convolution, or x."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        is_same = channels == width and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(channels, width, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """From [B, channels, H, W] to [B, width, H / stride, W / stride]."""
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


def _resnet(in_ch: int, in_dim: int, width: int, linear_size: int, stages: int) -> nn.Sequential:
    """A convolution, two blocks a stage (the first of stride 2) and two linear layers."""
    if in_dim < 4:
        raise InputError(f"in_dim={in_dim} is too small for a residual network; raise it to 4")
    layers: list[nn.Module] = [nn.Conv2d(in_ch, width, 3, stride=2, padding=1), nn.ReLU()]
    side, channels = -(-in_dim // 2), width
    for _ in range(stages):
        layers += [ResidualBlock(channels, 2 * width, 2), ResidualBlock(2 * width, 2 * width, 1)]
        side, channels = -(-side // 2), 2 * width
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * side * side, linear_size),
        nn.ReLU(),
        nn.Linear(linear_size, 10),
    )


def resnet2b(
    in_ch: int = 3, in_dim: int = 32, width: int = 4, linear_size: int = 100
) -> nn.Sequential:
    """Residual network of two blocks (VNN-COMP's resnet_2b has width 8); 10 outputs."""
    return _resnet(in_ch, in_dim, width, linear_size, 1)


def resnet4b(
    in_ch: int = 3, in_dim: int = 32, width: int = 4, linear_size: int = 100
) -> nn.Sequential:
    """Residual network of four blocks (VNN-COMP's resnet_4b has width 16); 10 outputs."""
    return _resnet(in_ch, in_dim, width, linear_size, 2)
