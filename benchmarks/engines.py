"""Root bounds of the two engines side by side: tightness and ratio of seconds.

Example: python -m benchmarks.engines
"""

from __future__ import annotations

import sys

import torch

from benchmarks.networks import CIFAR_CNN_DEMO, MLP_16, MLP_32, MNIST_CNN, Network, trained_mlp
from benchmarks.tables import publish, seconds_of
from lipschitz import MethodOptions, Prepared, make_problem
from utils import Parser, run_cli

CASES: list[tuple[Network, float]] = [
    (MLP_16, 0.05),
    (MLP_32, 0.2),
    (trained_mlp(64), 0.05),
    (trained_mlp(128), 0.05),
    (CIFAR_CNN_DEMO, 1 / 255 / 0.2009),
    (MNIST_CNN, 0.01),
    (MNIST_CNN, 0.05),
]


def measure(network: Network, eps: float, repeats: int) -> list[object]:
    """One row: upper bounds (largest of ten outputs) and seconds of each way of bounding."""
    model, point = network.load()
    bounds, seconds = [], []
    for method, engine, optimize in (
        ("crown", "auto_lirpa", False),
        ("crown", "native", False),
        ("crown", "auto_lirpa", True),
        ("alpha", "native", True),
    ):
        prepared = Prepared(
            model,
            point.shape,
            method=method,
            engine=engine,
            options=MethodOptions(optimize=optimize),
        )
        problem = make_problem(prepared.graph, point, eps)
        bounds.append(float(prepared.upper_bounds(problem).max()))
        seconds.append(seconds_of(lambda p=prepared, q=problem: p.upper_bounds(q), repeats))
    return [
        network.name,
        round(eps, 4),
        *(f"{b:.3f}" for b in bounds),
        *seconds,
        seconds[0] / seconds[1],
        seconds[2] / seconds[3],
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure every case and publish the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default 3)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    ways = ("A crown", "B crown", "A crown optimised", "B alpha")
    publish(
        "engines",
        [
            "network",
            "eps",
            *(f"{way}: bound" for way in ways),
            *(f"{way}: s" for way in ways),
            "A/B crown, times",
            "A/B optimised, times",
        ],
        [measure(network, eps, args.repeats) for network, eps in CASES],
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
