"""Transformers of many sizes: bounds over true gradients, seconds and peak memory.

Classifiers over token embeddings with weights of a seed: encoder layers (pre-norm, GELU), the mean
over tokens, one linear layer of two outputs. Bounded is the Linf local Lipschitz constant of the
first output on a box around all embeddings. With ``--onnx`` a network from a file takes their
place, with images of a file as centres, pixels in [0, 1] as the network takes them, all outputs.

The truth is the largest true gradient that sampling and climbing find. Every row has a process of
its own, which tells its peak memory.

Example: python -m benchmarks.transformers
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import tables
from lipschitz import MethodOptions, Prepared, make_problem
from lipschitz.arguments import radius_of
from lipschitz.errors import InputError
from lipschitz.network.formats import read_network
from lipschitz.network.graph import Graph
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem
from utils import Parser, run_cli

# d_model, heads, layers, tokens
SIZES = (
    "16x2x1x4,16x2x1x16,16x2x1x64,16x2x2x8,16x2x4x8,16x2x4x16,"
    "32x4x1x16,32x4x2x16,64x4x1x16,64x4x1x32,128x8x1x16"
)
METHODS = "ibp,crown"
COLUMNS = (
    "network",
    "eps",
    "method",
    "upper bound",
    "over true gradient",
    "s",
    "peak memory, MiB",
    "status",
)


class Classifier(nn.Module):
    """Encoder layers over embeddings [B, tokens, d], the mean over tokens, two outputs."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width,
            heads,
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 2]."""
        return self.head(self.encoder(x).mean(1))


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        upper, true: The bound, and the largest true gradient found.
        seconds: Of the call, true gradients included.
        memory: MiB that the process held at most.
        status: Of the result, or ``overflow`` where the bound is not a finite number.
    """

    upper: float
    true: float
    seconds: float
    memory: float
    status: str


def seeded(size: str) -> tuple[Graph, Tensor]:
    """A classifier of d_model x heads x layers x tokens, and embeddings of a seed.

    Raises:
        InputError: Other numbers.
    """
    try:
        width, heads, layers, tokens = map(int, size.split("x"))
        torch.manual_seed(0)
        model = Classifier(width, heads, layers).eval()
    except (ValueError, AssertionError) as error:
        raise InputError(f"size {size!r}: expected d_model x heads x layers x tokens") from error
    return build_graph(model, (tokens, width)), torch.randn(tokens, width)


def read(path: Path, images: Path, index: int) -> tuple[Graph, Tensor]:
    """A network from a file, and an image [C, H, W] of a .csv of labels and pixels 0 .. 255.

    Raises:
        InputError: A file that is missing, or of another form.
    """
    from benchmarks.sigmoid_files import flat_images

    network, shape = read_network(path)
    pixels = flat_images(images, index + 1)[index]
    if len(shape) != 3 or pixels.numel() != math.prod(shape):
        raise InputError(f"{path} takes {shape}, and {images} has {pixels.numel()} pixels an image")
    channels, height, width = shape
    image = pixels.unflatten(0, (height, width, channels)).permute(2, 0, 1)
    return build_graph(network, shape), image.float().contiguous()


def problem_of(args: argparse.Namespace, size: str, eps: float) -> LocalProblem:
    """What is bounded."""
    if args.onnx is None:
        graph, centre = seeded(size)
        return make_problem(graph, centre, eps, classes=[0])
    graph, centre = read(args.onnx, args.images, args.image)
    return make_problem(graph, centre, eps, clip=(0, 1))


def bound_alone(args: argparse.Namespace, size: str, eps: float, method: str) -> Row:
    """One row, meant to have the process to itself."""
    torch.set_num_threads(args.threads)
    problem = problem_of(args, size, eps)
    options = MethodOptions(timeout=args.timeout)
    prepared = Prepared(problem.graph, method=method, engine="native", options=options)
    begin = time.perf_counter()
    try:
        found = prepared.bound(problem)
    except InputError:  # the only one at this point
        return Row(math.inf, math.nan, time.perf_counter() - begin, math.nan, "overflow")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return Row(found.upper_bound, found.lower_bound, found.seconds, memory, found.status)


def measure(args: argparse.Namespace) -> list[list[object]]:
    """Rows of :data:`COLUMNS`."""
    rows: list[list[object]] = []
    fresh = multiprocessing.get_context("spawn")
    sizes = args.sizes.split(",") if args.onnx is None else [args.onnx.stem]
    for size in sizes:
        for eps in args.eps.split(","):
            radius = float(radius_of(eps))
            for method in args.methods.split(","):
                with ProcessPoolExecutor(1, mp_context=fresh) as pool:
                    row = pool.submit(bound_alone, args, size, radius, method).result()
                numbers = [f"{row.upper:.5g}", f"{row.upper / row.true:.6g}", row.seconds]
                numbers.append(f"{row.memory:.0f}")
                if row.status == "overflow":
                    numbers = ["-", "-", row.seconds, "-"]
                rows.append([size, eps, method, *numbers, row.status])
                print(rows[-1], flush=True)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print and publish the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=SIZES, help=f"of d x heads x layers x tokens ({SIZES})")
    parser.add_argument("--onnx", type=Path, help="a network from a file instead")
    parser.add_argument("--images", type=Path, help="with --onnx: .csv, a label and pixels a line")
    parser.add_argument("--image", type=int, default=0, help="which of them (default 0)")
    parser.add_argument("--eps", default="0.001,0.01", help="radii (default 0.001,0.01)")
    parser.add_argument("--methods", default=METHODS, help=f"of the table of methods ({METHODS})")
    parser.add_argument("--timeout", type=float, help="seconds of each bound (default: none)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args(argv)
    if (args.onnx is None) != (args.images is None):
        raise InputError("give --onnx and --images together")
    name = "transformers" if args.onnx is None else f"transformers_{args.onnx.stem}"
    tables.publish(name, COLUMNS, measure(args))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
