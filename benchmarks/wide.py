"""Wide boxes: linear and semidefinite bounds, and branch and bound with and without programs.

Example: python -m benchmarks.wide --timeout 60
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.networks import MLP_16, MLP_32, MNIST_CNN, Network, trained_mlp
from experiments.figures import COLOURS, MARKERS
from lipschitz import BranchOptions, MethodOptions, Prepared, make_problem
from lipschitz.errors import InputError
from lipschitz.search.interface import Progress
from utils import Parser, run_cli

NETWORKS = {
    "mnist-cnn": MNIST_CNN,
    "16": MLP_16,
    "32": MLP_32,
    "64": trained_mlp(64),
    "128": trained_mlp(128),
    "64-longer": trained_mlp(64, seed=1, epochs=60),
    "128-longer": trained_mlp(128, seed=1, epochs=60),
}
RADII = (0.02, 0.05, 0.1, 0.2)
IMAGE_RADII = (0.01, 0.05)
# Name -> a function from the time limit in seconds to the arguments of Prepared.
METHODS = {
    "crown": lambda seconds: {"method": "crown", "engine": "native"},
    "alpha": lambda seconds: {"method": "alpha"},
    "sdp": lambda seconds: {"method": "sdp", "options": MethodOptions(timeout=seconds)},
    "bab --sdp never": lambda seconds: {"branching": BranchOptions(timeout=seconds, sdp="never")},
    "bab --sdp auto": lambda seconds: {"branching": BranchOptions(timeout=seconds)},
}
COLUMNS = ("network", "eps", "method", "upper bound", "lower bound", "status", "s")


def measure(
    network: Network, radii: tuple[float, ...], seconds: float
) -> tuple[list[list[object]], dict[str, list[tuple[float, float]]]]:
    """Bounds of one network by every method.

    Args:
        network: What to bound, around its point.
        radii: Radii of the boxes.
        seconds: Of each search.

    Returns:
        Rows of :data:`COLUMNS`, and for the largest radius the course of every method: pairs of
        seconds and upper bound.
    """
    model, point = network.load()
    rows: list[list[object]] = []
    courses: dict[str, list[tuple[float, float]]] = {}
    for eps in radii:
        for method, arguments in METHODS.items():
            prepared = Prepared(model, point.shape, **arguments(seconds))
            problem = make_problem(prepared.graph, point, eps)
            course: list[tuple[float, float]] = []

            def watch(progress: Progress, course=course) -> None:
                course.append((progress.seconds, progress.upper_bound))

            begin = time.perf_counter()
            result = prepared.bound(problem, watch=watch)
            elapsed = time.perf_counter() - begin
            courses[method] = course or [(elapsed, result.upper_bound)]
            bounds = (f"{result.upper_bound:.3f}", f"{result.lower_bound:.3f}")
            rows.append([network.name, eps, method, *bounds, result.status, elapsed])
            print(rows[-1], flush=True)
    return rows, courses


def draw(
    rows: list[list[object]],
    courses: dict[str, list[tuple[float, float]]],
    title: str,
    path: Path,
) -> None:
    """Upper bounds against eps, a panel per network, and against seconds for one box.

    Args:
        rows: As :func:`measure` returns them.
        courses: Those of the last panel.
        title: Which box that is.
        path: The picture.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row[0] for row in rows))
    columns = min(4, len(names) + 1)
    lines = -(-(len(names) + 1) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(3.4 * columns, 3.0 * lines), squeeze=False)
    axes = list(grid.flat)
    styles: dict[str, dict[str, Any]] = {
        method: {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "linewidth": 1.3}
        for i, method in enumerate(METHODS)
    }
    for axis, name in zip(axes, names, strict=False):
        for method in METHODS:
            own = [row for row in rows if row[0] == name and row[2] == method]
            eps, bounds = [row[1] for row in own], [float(str(row[3])) for row in own]
            axis.plot(eps, bounds, label=method, **styles[method])
        radii = sorted({float(str(row[1])) for row in rows if row[0] == name})
        best = [max(float(str(r[4])) for r in rows if r[0] == name and r[1] == e) for e in radii]
        axis.plot(radii, best, "k:.", label="true gradients (below)")
        axis.set(title=name, xlabel="eps", xscale="log", ylim=(0, None))
        axis.set_xticks(radii, [f"{e:g}" for e in radii], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("upper bound")
    last = axes[len(names)]
    for method, course in courses.items():
        seconds, bounds = zip(*course, strict=True)
        many = {"marker": "", "drawstyle": "steps-post"} if len(course) > 1 else {}
        last.plot(seconds, bounds, label=method, **{**styles[method], **many})
    last.set(title=title, xlabel="seconds", xscale="log", ylim=(0, None))
    for axis in axes[len(names) + 1 :]:
        axis.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and publish the table and the picture."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--timeout", type=float, default=60, help="seconds each (default 60)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--eps", help="comma-separated; chosen for each network if not given")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    chosen = args.networks.split(",")
    for name in chosen:
        if name not in NETWORKS:
            raise InputError(f"--networks {name}: expected {', '.join(NETWORKS)}")
    try:
        given = tuple(float(eps) for eps in args.eps.split(",")) if args.eps else None
    except ValueError:
        raise InputError(f"--eps {args.eps}: expected numbers with commas between") from None
    rows: list[list[object]] = []
    courses: dict[str, list[tuple[float, float]]] = {}
    for name in chosen:
        radii = given or (IMAGE_RADII if name == "mnist-cnn" else RADII)
        found, courses = measure(NETWORKS[name], radii, args.timeout)
        rows += found
    title = f"{NETWORKS[chosen[-1]].name}\neps {radii[-1]:g}"
    tables.publish("wide", COLUMNS, rows)
    draw(rows, courses, title, tables.RESULTS / "wide.png")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
