"""What a result was computed on, in one line."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path


def processors() -> int:
    """CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


@functools.lru_cache(maxsize=2)
def describe(device: str = "cpu") -> str:
    """Processor, memory, threads and system; the GPU too where the work was done on one.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    import torch  # here: workers import this file before they need torch

    parts = [f"{_cpu_name()}, {processors()} CPUs, {torch.get_num_threads()} threads used"]
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        parts.append(f"{memory / 2**30:.0f} GiB")
    if device == "cuda":
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, platform.system()])
