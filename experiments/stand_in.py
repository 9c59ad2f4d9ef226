"""Trains a small image network on digits scaled to its input, where the real data is not at hand.

Example: python experiments/stand_in.py --model cnn_4layer_stride1_padding0 \\
             --model-params in_ch=3,in_dim=12,width=2,linear_size=8 \\
             --checkpoint models_pretrained/stand_in/cifar.pth --points output/cifar.npz
"""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from commands.training import TrainingOptions, train
from data import LabelledData, data_spec, load_data
from models import ModelSpec, model_spec
from utils import Parser, atomic_write_bytes, parse_params, run_cli, set_seed

# Test examples that are written to the file of points.
_POINTS = 10


def scaled_digits(spec: ModelSpec, *, train_part: bool) -> LabelledData:
    """The 8x8 digits, scaled to an image network's input and repeated in its channels."""
    shape = spec.input_shape
    digits = load_data("digits", train=train_part)
    images, labels = digits.take(0, len(digits))
    images = torch.nn.functional.interpolate(images, size=shape[1:], mode="bilinear")
    images = images.expand(-1, *shape).contiguous()
    facts = replace(
        data_spec("digits"),
        name=f"digits scaled to {'x'.join(map(str, shape))}",
        input_shape=shape,
        channels_shape=shape,
    )
    return LabelledData(facts, TensorDataset(images, labels))


def main(argv: list[str] | None = None) -> int:
    """Trains, saves the checkpoint and the first test images.

    Returns:
        The exit code, 0.
    """
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="an image network of the registry")
    parser.add_argument("--model-params", metavar="NAME=VALUE,...", help="its arguments")
    parser.add_argument("--num-epochs", type=int, default=5, help="default 5")
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="weights to write")
    parser.add_argument("--points", required=True, metavar="FILE.npz", help="images to write")
    args = parser.parse_args(argv)
    set_seed(0)
    spec = model_spec(args.model, parse_params(args.model_params))
    options = TrainingOptions(args.num_epochs, lr=0.003, batch_size=64, seed=0, quiet=True)
    test = scaled_digits(spec, train_part=False)
    train(
        spec,
        spec.build(),
        scaled_digits(spec, train_part=True),
        test,
        options,
        Path(args.checkpoint),
    )
    x, y = test.take(0, _POINTS)
    buffer = io.BytesIO()
    np.savez(buffer, x=x.numpy(), y=y.numpy())
    atomic_write_bytes(args.points, buffer.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
