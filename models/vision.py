"""Networks for MNIST, CIFAR-10 and TinyImageNet, with the layer orders of the paper's code."""

from __future__ import annotations

from torch import nn

from lipschitz.errors import InputError


def mnist_mlp_3layer(width: int = 20) -> nn.Sequential:
    """MLP with two hidden layers of `width` neurons on 784 pixels; 10 outputs."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def mnist_cnn_4layer() -> nn.Sequential:
    """CNN with two 4x4 convolutions of 8 channels on 1x28x28 images; 10 outputs."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4),
        nn.ReLU(),
        nn.Conv2d(8, 8, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 22 * 22, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def mnist_cnn_4layer_8() -> nn.Sequential:
    """The MLP equal to mnist_cnn_4layer, on 784 numbers."""
    return nn.Sequential(
        nn.Linear(784, 5000),
        nn.ReLU(),
        nn.Linear(5000, 3872),
        nn.ReLU(),
        nn.Linear(3872, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def _cnn(
    *,
    convolutions: int,
    stride: int,
    padding: int,
    in_ch: int,
    in_dim: int,
    width: int,
    linear_size: int,
    classes: int,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    side = in_dim
    for index in range(convolutions):
        channels = in_ch if index == 0 else width
        layers += [nn.Conv2d(channels, width, 3, stride=stride, padding=padding), nn.ReLU()]
        if side + 2 * padding < 3:
            raise InputError(
                f"in_dim={in_dim} is too small for {convolutions} convolutions of size 3; raise it"
            )
        side = (side + 2 * padding - 3) // stride + 1
    layers += [
        nn.Flatten(),
        nn.Linear(width * side**2, linear_size),
        nn.ReLU(),
        nn.Linear(linear_size, classes),
    ]
    return nn.Sequential(*layers)


def cnn_4layer_stride1_padding0(
    in_ch: int = 3, in_dim: int = 32, width: int = 32, linear_size: int = 256
) -> nn.Sequential:
    """CNN with two 3x3 convolutions and a hidden linear layer; 10 outputs."""
    return _cnn(
        convolutions=2,
        stride=1,
        padding=0,
        in_ch=in_ch,
        in_dim=in_dim,
        width=width,
        linear_size=linear_size,
        classes=10,
    )


def cnn_4layer_stride1_padding0_demo(in_ch: int = 3, in_dim: int = 32) -> nn.Sequential:
    """cnn_4layer_stride1_padding0 with 4 channels and 32 hidden neurons, for quick tries."""
    return cnn_4layer_stride1_padding0(in_ch=in_ch, in_dim=in_dim, width=4, linear_size=32)


def cnn_6layer_stride1_padding0(
    in_ch: int = 3, in_dim: int = 32, width: int = 32, linear_size: int = 256
) -> nn.Sequential:
    """CNN with four 3x3 convolutions and a hidden linear layer; 10 outputs."""
    return _cnn(
        convolutions=4,
        stride=1,
        padding=0,
        in_ch=in_ch,
        in_dim=in_dim,
        width=width,
        linear_size=linear_size,
        classes=10,
    )


def cnn_4layer_stride2_imagenet(
    in_ch: int = 3, in_dim: int = 64, width: int = 32, linear_size: int = 256
) -> nn.Sequential:
    """CNN with two 3x3 convolutions of stride 2 and a hidden linear layer; 200 outputs."""
    return _cnn(
        convolutions=2,
        stride=2,
        padding=1,
        in_ch=in_ch,
        in_dim=in_dim,
        width=width,
        linear_size=linear_size,
        classes=200,
    )


def cnn_6layer_stride2_imagenet(
    in_ch: int = 3, in_dim: int = 64, width: int = 32, linear_size: int = 256
) -> nn.Sequential:
    """CNN with four 3x3 convolutions of stride 2 and a hidden linear layer; 200 outputs."""
    return _cnn(
        convolutions=4,
        stride=2,
        padding=1,
        in_ch=in_ch,
        in_dim=in_dim,
        width=width,
        linear_size=linear_size,
        classes=200,
    )
