"""Subdomains per second of branch and bound against batch size, width, depth and threads.

Example: python -m benchmarks.scaling
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from benchmarks.tables import publish
from lipschitz import BranchOptions, Prepared, make_problem
from models import build_model
from utils import Parser, choose_device, run_cli

WIDTHS, DEPTHS = (16, 32, 64, 128, 256), (2, 3, 4, 5)
BATCHES = (16, 64, 256, 1024)


def rate(model: nn.Module, batch_size: int, seconds: float, device: torch.device) -> float:
    """Subdomains bounded per second on a wide box around 0.5, where the search cannot end."""
    options = BranchOptions(timeout=seconds, batch_size=batch_size, branch="relu", tolerance=1e-9)
    prepared = Prepared(model.to(device), (16,), engine="native", branching=options)
    result = prepared.bound(make_problem(prepared.graph, torch.full((16,), 0.5), 0.4))
    return result.domains / result.seconds


def main(argv: list[str] | None = None) -> int:
    """Measure one influence after the other and publish the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5, help="per measurement (default 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    torch.manual_seed(0)
    rows: list[list[object]] = []

    def measure(what: str, model: nn.Module, batch: int, threads: int) -> None:
        torch.set_num_threads(threads)
        rows.append([what, batch, threads, rate(model.eval(), batch, args.seconds, device)])
        print(rows[-1], flush=True)

    for width in WIDTHS:
        # Weights three times as large keep many neurons open, as in a trained network.
        measure(f"3 layers, width {width}", _scaled("simple_mlp_3layer", width=width), 512, 1)
    for depth in DEPTHS:
        measure(f"{depth} layers, width 32", _scaled("simple_mlp_width32", depth=depth), 512, 1)
    for batch in BATCHES:
        measure("3 layers, width 64", _scaled("simple_mlp_3layer", width=64), batch, 1)
    for threads in range(1, (os.cpu_count() or 1) + 1):
        measure("3 layers, width 256", _scaled("simple_mlp_3layer", width=256), 512, threads)
    name = "scaling" if device.type == "cpu" else f"scaling_{device.type}"
    publish(name, ["network", "batch", "threads", "subdomains/s"], rows)
    return 0


def _scaled(name: str, **params: int) -> nn.Module:
    model = build_model(name, **params)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)
    return model


if __name__ == "__main__":
    sys.exit(run_cli(main))
