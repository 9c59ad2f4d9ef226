"""A job in a process of its own, so that a crash or too much memory ends no more than a row."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
# A method that is not over after so many times its limit, and so many seconds, is ended.
_PATIENCE, _MORE_SECONDS = 3, 60.0


def rows_of(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a job as they come, one a method; what a process leaves out is tried in another.

    Args:
        job: What :mod:`benchmarks.others.worker` is told: ``kind`` (``attack`` or ``bounds``),
            ``methods``, ``seconds`` each, ``threads``, ``memory`` in GiB, and the box.

    Yields:
        Rows with at least ``method`` and ``status``: ``killed``, ``crashed`` or ``out of memory``
        where the process did not come back with one.
    """
    waiting = list(job["methods"])
    while waiting:
        failure = None
        for row in _one_process({**job, "methods": waiting}):
            if "method" in row:
                waiting.remove(row["method"])
                yield row
            else:
                failure = row
        if waiting:
            yield {"method": waiting.pop(0), **(failure or {"status": "crashed"})}


def _one_process(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of one process, and one without a method if it does not end well."""
    command = [sys.executable, "-m", "benchmarks.others.worker"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    late = threading.Event()
    timer = _started_timer(process, late, job["seconds"])
    begin = time.perf_counter()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job))
            process.stdin.close()
        for line in process.stdout:
            timer.cancel()
            yield json.loads(line)
            begin, timer = time.perf_counter(), _started_timer(process, late, job["seconds"])
        code = process.wait()
    finally:
        timer.cancel()
        _end(process)
    reader.join(5)
    if code:
        yield {**_failure(code, errors, late), "seconds": time.perf_counter() - begin}


def _started_timer(
    process: subprocess.Popen[str], late: threading.Event, seconds: float
) -> threading.Timer:
    def stop() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(_PATIENCE * seconds + _MORE_SECONDS, stop)
    timer.daemon = True
    timer.start()
    return timer


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(code: int, errors: list[str], late: threading.Event) -> dict[str, Any]:
    last = next((line.strip() for line in reversed(errors) if line.strip()), "")[:300]
    if late.is_set():
        return {"status": "killed", "note": "not over in time"}
    if "MemoryError" in last or "allocate memory" in last or "bad_alloc" in last:
        return {"status": "out of memory", "note": last}
    if code < 0:
        return {"status": "crashed", "note": f"signal {-code} {last}".strip()}
    return {"status": "crashed", "note": last}
