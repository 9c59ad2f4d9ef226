"""The networks that are measured: stored ones and ones trained here, on data without a download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train_model
from data import load_data
from models import build_model
from models.checkpoint import load_weights

FOLDER = Path("models_pretrained")
STORED = Path(__file__).resolve().parent.parent / "tests" / "reference"


@dataclass(frozen=True)
class Network:
    """A network and the point its box is drawn around."""

    name: str
    load: Callable[[], tuple[nn.Module, Tensor]]


def _stored_mlp(width: int) -> Network:
    def load() -> tuple[nn.Module, Tensor]:
        model = build_model("simple_mlp_3layer", width=width)
        load_weights(model, STORED / f"simple_mlp_3layer_{width}.pth")
        return model.eval(), torch.full((16,), 0.5)

    return Network(f"stored MLP, width {width}", load)


def trained_mlp(width: int, seed: int = 0, epochs: int = 30) -> Network:
    """3-layer MLP on the random-K-cluster data, trained until many neurons are in play.

    The longer it is trained, the larger its weights and the looser its bounds.
    """
    longer = "" if epochs == 30 else f", {epochs} epochs"

    def load() -> tuple[nn.Module, Tensor]:
        stem = f"benchmark_mlp{width}_seed{seed}" + longer.replace(", ", "_").replace(" ", "_")
        path = FOLDER / f"{stem}.pth"
        if not path.is_file():
            argv = ["--data", "simple", "--model", "simple_mlp_3layer", "--width", str(width)]
            argv += ["--seed", str(seed), "--num-epochs", str(epochs)]
            argv += ["--output", str(path), "--quiet"]
            train_model.main(argv)
        model = build_model("simple_mlp_3layer", width=width)
        load_weights(model, path)
        return model.eval(), torch.full((16,), 0.5)

    return Network(f"MLP, width {width}, seed {seed}{longer}", load)


def trained_on_scaled_digits(
    name: str, shape: tuple[int, int, int], epochs: int = 6, **params: int
) -> Network:
    """An image network on the 8x8 digits scaled up to its input size."""

    def load() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        model = build_model(name, **params)
        images, labels = load_data("digits", train=True).take(0, 10**6)
        images = F.interpolate(images, size=shape[1:], mode="bilinear").expand(-1, *shape)
        point = images[0].clone()
        arguments = "_".join(f"{k}{v}" for k, v in params.items())
        path = FOLDER / f"benchmark_{name}_{arguments}.pth"
        if path.is_file():
            load_weights(model, path)
            return model.eval(), point
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=generator).split(64):
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        path.parent.mkdir(exist_ok=True)
        torch.save(model.state_dict(), path)
        return model.eval(), point

    return Network(f"{name}({arguments_text(params)})", load)


def arguments_text(params: dict[str, int]) -> str:
    """Arguments as they are written in a call."""
    return ", ".join(f"{k}={v}" for k, v in params.items())


MLP_16, MLP_32 = _stored_mlp(16), _stored_mlp(32)
MNIST_CNN = trained_on_scaled_digits("mnist_cnn_4layer", (1, 28, 28))
CIFAR_CNN_DEMO = trained_on_scaled_digits(
    "cnn_4layer_stride1_padding0", (3, 32, 32), width=4, linear_size=32
)
