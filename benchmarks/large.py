"""Root bounds of the paper's large convolutional networks, and of resnet18: seconds, peak memory.

Seconds and memory depend on the shapes and on how many neurons are open, not on what was learned,
so the weights are random. Example: python -m benchmarks.large --device cuda
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import nn

from benchmarks.tables import publish
from lipschitz import Prepared, make_problem
from lipschitz.bounds.native.crown import interval_bounds
from models import build_model
from models.torchvision_compat import import_torchvision
from utils import Parser, choose_device, run_cli

# name, input shape, eps in units of the normalised input
CASES = {
    "cnn_4layer_stride1_padding0": ((3, 32, 32), 1 / 255 / 0.2009),
    "cnn_6layer_stride1_padding0": ((3, 32, 32), 1 / 255 / 0.2009),
    "cnn_4layer_stride2_imagenet": ((3, 64, 64), 1 / 255 / 0.22),
    "cnn_6layer_stride2_imagenet": ((3, 64, 64), 1 / 255 / 0.22),
    "resnet18_32": ((3, 32, 32), 1 / 255 / 0.2009),
    "resnet18_64": ((3, 64, 64), 1 / 255 / 0.22),
}
HEAD = [
    "network",
    "outputs",
    "method",
    "largest bound",
    "of interval arithmetic",
    "s",
    "CPU s",
    "peak memory so far, GiB",
]


def network(name: str) -> nn.Module:
    """A network of :data:`CASES`, in eval mode; resnet18 is torchvision's, with ten outputs."""
    if name.startswith("resnet18"):
        return import_torchvision("models").resnet18(num_classes=10).eval()
    return build_model(name)


def main(argv: list[str] | None = None) -> int:
    """Bound every chosen network once and publish the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--networks", default=",".join(CASES), help="comma-separated names")
    parser.add_argument("--methods", default="crown,alpha", help="comma-separated")
    parser.add_argument("--table", help="name of the saved table (default large_DEVICE)")
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    rows = []
    for name in args.networks.split(","):
        shape, eps = CASES[name]
        torch.manual_seed(0)
        model = network(name).to(device)
        point = torch.rand(shape)
        for method in args.methods.split(","):
            prepared = Prepared(model, shape, method=method, engine="native")
            problem = make_problem(prepared.graph, point, eps)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begin, cpu = time.perf_counter(), time.process_time()
            bounds = prepared.upper_bounds(problem)
            if device.type == "cuda":
                torch.cuda.synchronize()
                memory = torch.cuda.max_memory_allocated() / 2**30
            else:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
            loosest = float(interval_bounds(problem).max())
            bound = float(bounds.max())
            rows.append([name, len(bounds), method, bound, loosest, seconds, cpu, memory])
            publish(args.table or f"large_{device.type}", HEAD, rows)  # what there is so far
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
