"""Curved activations: bounds over the truth on one-dimensional boxes, from an image to white.

The boxes are ``x(t) = image + t (1 - image)`` for t in [0, eps]; bounded is the largest
``|d f_c / d t|`` over all outputs c. The first layer is folded with the line, so t is the network's
only input. The truth is the largest on a dense grid, which is at most a little below it.

Networks are sigmoid MLPs stored as a PyTorch state dict, layers in order. Images are a NumPy array,
one image a row, pixels in [0, 1].

Example: python -m benchmarks.smooth --network mlp.pth --images images.npy
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import tables
from lipschitz import BranchOptions, Prepared, make_problem
from lipschitz.errors import InputError
from utils import Parser, run_cli

RADII = "0.632,0.0632,0.00632,0.00063"
METHODS = {
    "crown": {"method": "crown", "engine": "native"},
    "joint": {"method": "joint"},
    "alpha": {"method": "alpha"},
    "bab": {"branching": BranchOptions(timeout=10)},
}
COLUMNS = ("eps", "method", "upper bound / truth", "largest of the images", "s, median")
# Points of the grid.
_GRID = 4001


def stored_layers(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of an MLP, in order.

    Raises:
        InputError: The file is missing, or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        values = [value.double() for value in state.values()]
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (AttributeError, RuntimeError, OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"{path}: expected a state dict ({error})") from None
    layers = list(zip(values[::2], values[1::2], strict=False))
    if not layers or any(w.dim() != 2 or b.shape != w.shape[:1] for w, b in layers):
        raise InputError(f"{path}: expected the weights and biases of linear layers by turns")
    return layers


def on_line(layers: list[tuple[Tensor, Tensor]], image: Tensor) -> nn.Sequential:
    """The network as a function of t, [B, 1] to [B, C], in float64."""
    (weight, bias), *rest = layers
    folded = [((weight @ (1 - image))[:, None], weight @ image + bias), *rest]
    modules: list[nn.Module] = []
    for index, (weight, bias) in enumerate(folded):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight, bias
        modules += [linear] if index == len(folded) - 1 else [linear, nn.Sigmoid()]
    return nn.Sequential(*modules).eval()


def truth(model: nn.Module, eps: float) -> float:
    """The largest ``|d f_c / d t|`` on a grid."""
    t = torch.linspace(0, eps, _GRID, dtype=torch.float64)[:, None]
    _, slopes = torch.func.jvp(model, (t,), (torch.ones_like(t),))
    return float(slopes.detach().abs().max())


def measure(models: list[nn.Module], radii: list[float]) -> list[list[object]]:
    """Rows of :data:`COLUMNS`."""
    rows: list[list[object]] = []
    for eps in radii:
        true = [truth(model, eps) for model in models]
        for method, arguments in METHODS.items():
            ratios, seconds = [], []
            for model, largest in zip(models, true, strict=True):
                prepared = Prepared(model, (1,), **arguments)
                centre = torch.full((1,), eps / 2, dtype=torch.float64)
                problem = make_problem(prepared.graph, centre, eps / 2)
                prepared.bound(problem)  # the first run fills caches
                result = prepared.bound(problem)
                ratios.append(result.upper_bound / largest)
                seconds.append(result.seconds)
            mean, most = statistics.mean(ratios), max(ratios)
            rows.append([eps, method, f"{mean:.5f}", f"{most:.5f}", statistics.median(seconds)])
            print(rows[-1], flush=True)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print and publish the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", type=Path, required=True, help="state dict of a sigmoid MLP")
    parser.add_argument("--images", type=Path, required=True, help=".npy, one image a row")
    parser.add_argument("--count", type=int, default=4, help="images, from the first (default 4)")
    parser.add_argument("--eps", default=RADII, help=f"comma-separated (default {RADII})")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    layers = stored_layers(args.network)
    try:
        images = torch.from_numpy(np.load(args.images)).double().flatten(1)[: args.count]
        radii = [float(eps) for eps in args.eps.split(",")]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--images or --eps: {error}") from None
    if not len(images) or images.shape[1] != layers[0][0].shape[1]:
        raise InputError(
            f"{args.images}: {len(images)} images of {images.shape[1]} pixels for a network of "
            f"{layers[0][0].shape[1]} inputs"
        )
    rows = measure([on_line(layers, image) for image in images], radii)
    tables.publish(f"smooth_{args.network.stem}", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
