"""Sigmoid CNNs, boxes around whole images: the bounds with planes and without.

Bounded is the local Lipschitz constant in Linf, the largest of all outputs; the truth is the
largest true gradient that an attack finds, so ratios are at least as large as they should be. Every
method runs in a process of its own, which tells its peak memory; a method's first call is timed.

Networks are state dicts of convolutions without padding and linear layers, in order, with a sigmoid
after each but the last.

Example: python -m benchmarks.smooth_cnn --network cnn.pth --images images.npy --shape 1,28,28
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.sigmoid_files import flat_images, numbers, sigmoid_cnn, stored_layers
from lipschitz import Prepared, build_graph, make_problem
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.true_gradients import Sampling, sample_gradients
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem
from utils import Parser, run_cli

COLUMNS = (
    "eps, pixels",
    "method",
    "mean bound / mean gradient",
    "largest bound / gradient",
    "CPU s, median",
    "peak memory, MiB (before the bound)",
)
_ATTACK = Sampling(num_random=256, ascent_steps=100)
_GRADIENT = "true gradient"


def _by_name(method: str) -> Callable[[Graph, LocalProblem], float]:
    def bound(graph: Graph, problem: LocalProblem) -> float:
        prepared = Prepared(graph, method=method, engine="native")
        return float(prepared.upper_bounds(problem).max())

    return bound


def _without_planes(graph: Graph, problem: LocalProblem) -> float:
    return float(native_alpha(problem, planes=False).class_upper_bounds.max())


def _attacked(graph: Graph, problem: LocalProblem) -> float:
    return float(sample_gradients(problem, _ATTACK).norms.max())


METHODS = {
    "crown": _by_name("crown"),
    "alpha, no planes": _without_planes,
    "joint": _by_name("joint"),
    "alpha": _by_name("alpha"),
}


@dataclass(frozen=True)
class Measured:
    """What one method gave, alone in a process.

    Attributes:
        bounds, seconds: Of every image.
        memory, memory_before: MiB that the process held at most, and before the first bound.
    """

    bounds: list[float]
    seconds: list[float]
    memory: float
    memory_before: float


def bound_images(method: str, args: argparse.Namespace, eps: float) -> Measured:
    """Bounds by one method, meant to have the process to itself.

    Args:
        method: Of :data:`METHODS`, or the true gradient.
        args: The command line's.
        eps: Radius, in pixels.
    """
    torch.set_num_threads(args.threads)
    graph, images, std = load(args)
    bound = _attacked if method == _GRADIENT else METHODS[method]
    bounds, seconds, before = [], [], _peak_memory()
    for image in images:
        problem = make_problem(graph, image, eps / std)
        begin = time.process_time()
        bounds.append(bound(graph, problem))
        seconds.append(time.process_time() - begin)
    return Measured(bounds, seconds, _peak_memory(), before)


def load(args: argparse.Namespace) -> tuple[Graph, Tensor, Tensor]:
    """The network, its normalised images [N, C, H, W] and the standard deviations [C, 1, 1].

    Raises:
        InputError: Files or options that do not make sense, or not together.
    """
    shape = tuple(map(int, numbers("--shape", args.shape)))
    mean, std = (
        torch.tensor(numbers(f"--{name}", getattr(args, name)), dtype=torch.float64)
        for name in ("mean", "std")
    )
    images = flat_images(args.images, args.count)
    if len(shape) != 3 or images.shape[1] != math.prod(shape):
        raise InputError(
            f"--shape {args.shape}: expected channels, height and width of images of "
            f"{images.shape[1]} pixels"
        )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, shape[0]):
            raise InputError(f"--{name}: {len(values)} numbers for {shape[0]} channels")
    if not (std > 0).all():
        raise InputError(f"--std {args.std}: expected numbers above 0")
    mean, std = mean[:, None, None], std[:, None, None].expand(shape[0], 1, 1)
    # Rows of pixels with their channels beside each other, as ERAN stores them, are turned.
    channels, height, width = shape
    images = (
        images.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
        if args.channels_last
        else images.unflatten(1, shape)
    )
    model = sigmoid_cnn(stored_layers(args.network, (2, 4)), args.stride).float()
    try:
        graph = build_graph(model, shape)
    except RuntimeError as error:
        raise InputError(f"{args.network}, --shape {args.shape}, --stride: {error}") from None
    return graph, ((images - mean) / std).float().contiguous(), std.float()


def _peak_memory() -> float:
    """MiB that this process has held at most.

    Where Linux tells it: ``ru_maxrss`` of a new process begins with its parent's.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(args: argparse.Namespace) -> list[list[object]]:
    """Rows of :data:`COLUMNS`."""
    rows: list[list[object]] = []
    for name, eps in zip(args.eps.split(","), numbers("--eps", args.eps), strict=True):
        true = _alone(_GRADIENT, args, eps).bounds
        for method in METHODS:
            found = _alone(method, args, eps)
            mean = sum(found.bounds) / sum(true)
            most = max(bound / largest for bound, largest in zip(found.bounds, true, strict=True))
            seconds = statistics.median(found.seconds)
            memory = f"{found.memory:.0f} ({found.memory_before:.0f})"
            rows.append([name, method, f"{mean:.4f}", f"{most:.4f}", seconds, memory])
            print(rows[-1], flush=True)
    return rows


def _alone(method: str, args: argparse.Namespace, eps: float) -> Measured:
    """:func:`bound_images` in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(bound_images, method, args, eps).result()


def main(argv: list[str] | None = None) -> int:
    """Measure, print and publish the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", type=Path, required=True, help="state dict of a sigmoid CNN")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help=".npy, one image a row, pixels in [0, 1]; or .csv, a label and pixels 0 .. 255 a line",
    )
    parser.add_argument("--shape", required=True, help="channels, height, width: 1,28,28")
    parser.add_argument("--channels-last", action="store_true", help="pixel by pixel in the file")
    parser.add_argument("--mean", default="0", help="of a channel, in pixels (default 0)")
    parser.add_argument("--std", default="1", help="of a channel, in pixels (default 1)")
    parser.add_argument("--stride", type=int, default=2, help="of all convolutions (default 2)")
    parser.add_argument("--count", type=int, default=2, help="images, from the first (default 2)")
    parser.add_argument("--eps", default="0.001,0.01", help="in pixels (default 0.001,0.01)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args(argv)
    if args.stride < 1 or args.threads < 1:
        raise InputError(f"--stride {args.stride} --threads {args.threads}: expected 1 or more")
    numbers("--eps", args.eps)  # what is wrong is said before anything runs
    load(args)
    tables.publish(f"smooth_{args.network.stem}", COLUMNS, measure(args))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
