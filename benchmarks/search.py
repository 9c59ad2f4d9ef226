"""Branch and bound on wide and narrow boxes: both engines, the same networks, one run.

Example: python -m benchmarks.search --timeout 60
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.networks import CIFAR_CNN_DEMO, MLP_16, MLP_32, MNIST_CNN, Network, trained_mlp
from benchmarks.tables import RESULTS, publish
from commands.progress import trace_to
from experiments.report import draw_traces
from lipschitz import BranchOptions, Prepared, make_problem
from utils import Parser, run_cli

CASES: list[tuple[Network, float]] = [
    (MLP_16, 0.05),
    (MLP_16, 0.2),
    (MLP_32, 0.05),
    (MLP_32, 0.2),
    (trained_mlp(64), 0.02),
    (trained_mlp(64), 0.05),
    (trained_mlp(64), 0.2),
    (trained_mlp(128), 0.05),
    (CIFAR_CNN_DEMO, 1 / 255 / 0.2009),
    (MNIST_CNN, 0.01),
    (MNIST_CNN, 0.05),
]
# Engine -> options of the search. That of auto_lirpa is the paper's: every subdomain is split at
# one neuron, chosen by the area score.
SEARCHES = {
    "native": BranchOptions(),
    "auto_lirpa": BranchOptions(heuristic="area", branch="relu"),
}


def main(argv: list[str] | None = None) -> int:
    """Search every case with both engines and publish the table and the traces."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--timeout", type=float, default=60, help="seconds each (default 60)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--engines", default="native,auto_lirpa", help="comma-separated")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = []
    traces: list[Path] = []
    for network, eps in CASES:
        model, point = network.load()
        for engine in args.engines.split(","):
            options = SEARCHES[engine].having(timeout=args.timeout)
            prepared = Prepared(model, point.shape, engine=engine, branching=options)
            trace = RESULTS / "traces" / f"{network.name}, eps {eps:.3g}, {engine}.jsonl"
            trace.unlink(missing_ok=True)
            result = prepared.bound(make_problem(prepared.graph, point, eps), watch=trace_to(trace))
            traces.append(trace)
            rows.append(
                [
                    network.name,
                    round(eps, 4),
                    engine,
                    f"{result.root_upper_bound:.3f}",
                    f"{result.upper_bound:.4f}",
                    f"{result.lower_bound:.4f}",
                    result.status,
                    result.seconds,
                    result.domains,
                    result.domains / result.seconds,
                    result.leaves_checked,
                ]
            )
            print(rows[-1], flush=True)
    head = "network,eps,engine,root bound,upper bound,lower bound,status,s,domains,domains/s,LPs"
    publish("search", head.split(","), rows)
    wide = [str(t) for t in traces if "64, seed 0, eps 0.2," in t.name or "width 128" in t.name]
    draw_traces(wide, RESULTS / "search.png")
    for trace in traces:
        trace.unlink()
    (RESULTS / "traces").rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
