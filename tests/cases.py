"""The networks that every promise is tested on: one entry enrols a network in all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "tests/reference"


class ResidualFromInput(nn.Module):
    """``x - 0.5 g(x)`` with x the raw input: the identity path must not be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * self.inner(x)


class ResidualConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.act = nn.ReLU()
        self.last = nn.Linear(3 * 4, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 2.0)
            self.norm.weight.uniform_(-1.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.first(x)))
        y = self.act(y + self.second(y))  # the same activation module twice
        return self.last(torch.flatten(F.avg_pool2d(y, 2), 1))


class Functional(nn.Module):
    """Functional forms, ``view`` with the batch size, constants, a shared layer, an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.out = nn.Linear(6, 2, bias=False)
        self.unused = nn.Linear(6, 3)
        self.register_buffer("shift", torch.tensor([0.1, -0.2, 0.3, 0.0, 0.5, -0.5]))

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), -1)
        y = F.relu((x - self.shift) / 2)
        y = F.leaky_relu(-self.lin(y) + 0.1, 0.2)
        y = torch.relu(F.linear(y, self.lin.weight * 0.5, self.lin.bias) * 1.5)
        return self.out(y)


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(inputs, outputs, bias=bias)]
        if i < len(sizes) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


class RandomNet(nn.Module):
    """Linear layers with activations between them, and a skip wherever two sizes agree."""

    def __init__(self, sizes, seed, scale, negative_slope, residual):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(a, b).double() for a, b in pairwise(sizes))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(scale)
        self.act = nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()
        self.residual = residual
        self.eval()

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            y = layer(x)
            if i < len(self.layers) - 1:
                y = self.act(y)
            if self.residual and layer.in_features == layer.out_features:
                y = x + y
            x = y
        return x


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]

    def model(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.make().eval().to(dtype)

    def point(self, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.input_shape, generator=generator, dtype=torch.float64).to(dtype)


CASES = [
    Case("mlp2", lambda: mlp(4, 8, 3), (4,)),
    Case("mlp3", lambda: mlp(5, 10, 8, 3), (5,)),
    Case("mlp5", lambda: mlp(4, 6, 6, 6, 6, 2), (4,)),
    Case("mlp_no_bias", lambda: mlp(3, 7, 5, 2, bias=False), (3,)),
    Case("mlp_image", lambda: mlp(6, 8, 3), (1, 2, 3)),
    Case("leaky_relu", lambda: mlp(4, 8, 8, 3, activation=lambda: nn.LeakyReLU(0.1)), (4,)),
    Case("steep_leaky_relu", lambda: mlp(4, 8, 8, 3, activation=lambda: nn.LeakyReLU(0.7)), (4,)),
    Case("affine", lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (3,)),
    Case(
        "relu_first",
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)),
        (4,),
    ),
    Case(
        "relu_last",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2), nn.ReLU()),
        (4,),
    ),
    Case("residual_from_input", ResidualFromInput, (4,)),
    Case("residual_convolution", ResidualConvolution, (1, 5, 5)),
    Case("functional", Functional, (2, 3)),
    Case(
        "convolution",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
            nn.ReLU(),
            nn.Conv2d(4, 3, 2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3 * 4 * 4, 3),
        ),
        (2, 6, 5),
    ),
    Case(
        "pooled",
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2, padding=1),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.BatchNorm1d(3 * 2 * 2),
            nn.Linear(3 * 2 * 2, 4),
            nn.ReLU(),
            nn.Linear(4, 2),
        ),
        (1, 6, 6),
    ),
    Case(
        "convolution_1d",
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, stride=2, padding="valid"),
            nn.ReLU(),
            nn.Conv1d(3, 2, 3, padding="same"),
            nn.LeakyReLU(0.01),
            nn.AvgPool1d(2),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        (2, 9),
    ),
]


@dataclass(frozen=True)
class Reference:
    """A stored network, a box around a point and what is known about it.

    ``crown_root`` is the paper's relaxation at the root (float64, independent code); ``exact`` was
    found by enumerating activation regions and by a second exact method; ``released_root`` is what
    the paper's released code printed with slope optimisation, rounded to two digits.
    """

    file: str
    eps: float
    crown_root: float
    exact: float | None = None
    released_root: float | None = None

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        if "mlp" in self.file:
            width = int(self.file.split("_")[-1])
            model = mlp(16, width, width, 10)
        else:
            model = nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3),
                nn.Flatten(),
                nn.ReLU(),
                nn.Linear(64, 10),
            )
        model.load_state_dict(torch.load(REFERENCE / f"{self.file}.pth", weights_only=True))
        return model.eval().to(dtype)

    def point(self, dtype: torch.dtype = torch.float64) -> Tensor:
        if "mlp" in self.file:
            return torch.full((16,), 0.5, dtype=dtype)
        return torch.from_numpy(np.load(REFERENCE / "digits8.npz")["x"][0]).to(dtype)


REFERENCES = [
    Reference("simple_mlp_3layer_16", 0.02, 21.707249, 21.627609905),
    Reference("simple_mlp_3layer_16", 0.05, 23.295737, 22.664308989, 23.30),
    Reference("simple_mlp_3layer_16", 0.2, 37.635725, 23.25670819, 35.82),
    Reference("simple_mlp_3layer_32", 0.02, 31.794083, 25.996385734),
    Reference("simple_mlp_3layer_32", 0.05, 37.299644, 31.252300348, 37.30),
    Reference("simple_mlp_3layer_32", 0.2, 73.866459, None, 72.83),
    Reference("simple_cnn_3layer_4", 0.02, 64.998787),
]
