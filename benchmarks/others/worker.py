"""The other side of :mod:`benchmarks.others.process`: one job, told on stdin as JSON.

Every line of its stdout is a row as JSON. An attack imports nothing of the library.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.others.box import centre_of, radius_of


def box_of(job: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and radius; ``all_within`` is half the side of a box that stands for all inputs."""
    entry = job["entry"]
    if "all_within" in job:
        shape = tuple(entry["input_shape"])
        centre = np.zeros(shape, dtype=np.float32)
        return centre, np.full(shape, job["all_within"], dtype=np.float32)
    return centre_of(entry, Path(job["folder"])), radius_of(entry, job["eps"])


def attacked(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row of the attack."""
    from benchmarks.others.attack import Attack
    from benchmarks.others.evaluator import load_network

    begin = time.process_time()
    entry, folder = job["entry"], Path(job["folder"])
    try:
        network = load_network(entry, folder)
        norm = job.get("norm", "inf")
        found = Attack(network, *box_of(job), norm, job["seed"]).run(job["seconds"])
    except ValueError as error:
        yield {"method": job["methods"][0], "status": "refused", "note": str(error)[:300]}
        return
    yield {
        "method": job["methods"][0],
        "lower": found.value,
        "status": "attack",
        "seconds": job["seconds"],
        "cpu": time.process_time() - begin,
        "course": thinned(found.course),
    }


def thinned(course: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A course without what is hardly more than before; its end is kept."""
    kept: list[tuple[float, float]] = []
    for place, (seconds, norm) in enumerate(course):
        if not kept or norm > kept[-1][1] * 1.001 or place + 1 == len(course):
            kept.append((seconds, norm))
    return kept


def bounded(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the library's methods."""
    from benchmarks.others.library import bounds

    centre, radius = map(torch.tensor, box_of(job))
    place = job["entry"], Path(job["folder"]), centre, radius
    norm, precise = job.get("norm", "inf"), bool(job.get("precise"))
    yield from bounds(*place, job["methods"], job["seconds"], norm, precise)


def limit_memory(gibibytes: float) -> None:
    """Let this process hold no more than so much, where the system can be told."""
    try:
        import resource
    except ImportError:  # Windows
        return
    size = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def main() -> int:
    """Run one job."""
    # Rows alone go to where stdout was: libraries may print what they like.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.read())
    torch.set_num_threads(job["threads"])
    limit_memory(job["memory"])
    for row in attacked(job) if job["kind"] == "attack" else bounded(job):
        print(json.dumps(row), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
