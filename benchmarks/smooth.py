"""Curved activations: bounds over the truth on one-dimensional boxes, from an image to white.

The boxes are ``x(t) = image + t (1 - image)`` for t in [0, eps]; bounded is the largest
``|d f_c / d t|`` over all outputs c. The first layer is folded with the line, so t is the network's
only input. The truth is the largest on a dense grid, which is at most a little below it.

Networks are sigmoid MLPs stored as a PyTorch state dict, layers in order. Images are a NumPy array,
one image a row, pixels in [0, 1]. With a checkout of github.com/uiuc-arc/Pasado its code bounds the
same boxes.

Example: python -m benchmarks.smooth --network mlp.pth --images images.npy --pasado Pasado
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import tables
from benchmarks.pasado import LINES, Pasado, load_pasado
from benchmarks.sigmoid_files import Layers, flat_images, numbers, sigmoid_mlp, stored_layers
from lipschitz import BranchOptions, MethodOptions, Prepared, build_graph, make_problem
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem
from utils import Parser, run_cli

RADII = "0.632,0.0632,0.00632,0.00063"
COLUMNS = ("eps", "method", "mean bound / mean truth", "largest bound / truth", "CPU s, median")
# Points of the grid.
_GRID = 4001
# Seconds of a search by the clock, for a machine that is busy: most end in two.
_TIMEOUT = 60
# The bound of a box [0, eps], and the seconds it took.
Bound = Callable[[float], tuple[float, float]]


def on_line(layers: Layers, image: Tensor) -> nn.Sequential:
    """The network as a function of t, [B, 1] to [B, C], in float64."""
    (weight, bias), *rest = layers
    return sigmoid_mlp([((weight @ (1 - image))[:, None], weight @ image + bias), *rest])


def truth(model: nn.Module, eps: float) -> float:
    """The largest ``|d f_c / d t|`` on a grid."""
    t = torch.linspace(0, eps, _GRID, dtype=torch.float64)[:, None]
    _, slopes = torch.func.jvp(model, (t,), (torch.ones_like(t),))
    return float(slopes.detach().abs().max())


def _named(method: str, **options: bool) -> Callable[[Graph], Callable[[LocalProblem], float]]:
    def prepare(graph: Graph) -> Callable[[LocalProblem], float]:
        prepared = Prepared(graph, method=method, engine="native", options=MethodOptions(**options))
        return lambda problem: float(prepared.upper_bounds(problem).max())

    return prepare


def _search(graph: Graph) -> Callable[[LocalProblem], float]:
    prepared = Prepared(graph, branching=BranchOptions(timeout=_TIMEOUT))
    return lambda problem: prepared.bound(problem).upper_bound


# Name -> from a network to what bounds a box. Upper bounds alone; only the search needs both sides.
METHODS = {
    "crown": _named("crown"),
    "joint, no steps": _named("joint", optimize=False),
    "joint": _named("joint"),
    "alpha": _named("alpha"),
    "bab": _search,
}


def by_method(graph: Graph, method: str) -> Bound:
    """Bounds by one of :data:`METHODS`."""
    bound = METHODS[method](graph)

    def timed(eps: float) -> tuple[float, float]:
        centre = torch.full((1,), eps / 2, dtype=torch.float64)
        problem = make_problem(graph, centre, eps / 2)
        begin = time.process_time()
        return bound(problem), time.process_time() - begin

    return timed


def by_pasado(pasado: Pasado, layers: Layers, image: Tensor, line: str) -> Bound:
    """Results of Pasado's code, the input formed as one of :data:`LINES` says."""
    return lambda eps: pasado.bound(layers, image, eps, LINES[line])


def measure(
    layers: Layers, images: Tensor, radii: tuple[float, ...], pasado: Pasado | None
) -> list[list[object]]:
    """Rows of :data:`COLUMNS`.

    The methods take turns on every image, so that all see the machine as busy as it is.

    Args:
        layers: Of the network.
        images: [N, D].
        radii: Lengths of the lines.
        pasado: Its code, for rows of its own.
    """
    models = [on_line(layers, image) for image in images]
    bounds: list[dict[str, Bound]] = []
    for model, image in zip(models, images, strict=True):
        of_image: dict[str, Bound] = {}
        if pasado is not None:
            of_image |= {line: by_pasado(pasado, layers, image, line) for line in LINES}
        graph = build_graph(model, (1,))
        bounds.append(of_image | {method: by_method(graph, method) for method in METHODS})
    rows: list[list[object]] = []
    for eps in radii:
        true = [truth(model, eps) for model in models]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in bounds[0]}
        for of_image in bounds:
            for name, bound in of_image.items():
                if name != "bab":  # the last, and long
                    bound(eps)  # fills caches
                found[name].append(bound(eps))
        for name, results in found.items():
            upper, seconds = zip(*results, strict=True)
            mean = sum(upper) / sum(true)
            most = max(bound / largest for bound, largest in zip(upper, true, strict=True))
            rows.append([eps, name, f"{mean:.5f}", f"{most:.5f}", statistics.median(seconds)])
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
    parser.add_argument("--pasado", type=Path, help="a checkout of github.com/uiuc-arc/Pasado")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    pasado = None if args.pasado is None else load_pasado(args.pasado)
    layers = stored_layers(args.network)
    images, radii = flat_images(args.images, args.count), numbers("--eps", args.eps)
    if not len(images) or images.shape[1] != layers[0][0].shape[1]:
        raise InputError(
            f"{args.images}: {len(images)} images of {images.shape[1]} pixels for a network of "
            f"{layers[0][0].shape[1]} inputs"
        )
    rows = measure(layers, images, radii, pasado)
    tables.publish(f"smooth_{args.network.stem}", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
