"""Runs jobs on this machine: one worker process per slot, each watched by a thread.

A worker that dies takes only its own job with it; the job is tried again in a fresh worker, a
bounded number of times. A job past its time is killed and given up. Where one example fails, the
others of the same network, method and radius are given up with it. The processes are loky's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from experiments.jobs import (
    CRASHED,
    REFUSED,
    TOO_LONG,
    Job,
    part_path,
    run_job,
    warm_up,
    write_part,
)
from experiments.machine import processors

# Seconds between two looks at the workers: a request to stop is seen within them. A choice.
_POLL_SECONDS = 0.1
# Seconds that a worker may take to import torch and the rest. A choice, generous for slow disks.
_STARTING_SECONDS = 300.0


@dataclass(frozen=True)
class Task:
    """What worker processes do.

    Attributes:
        prepare: Called first in each process.
        work: Runs a job, given the folder of parts; returns None if there is a row, else why not.
    """

    prepare: Callable[[], object] = warm_up
    work: Callable[[Job, Path], str | None] = run_job


@dataclass(frozen=True)
class Patience:
    """When to give up a job.

    Attributes:
        seconds: Longest time that one attempt may take.
        retries: Further attempts after a worker has died.
    """

    seconds: float = 300.0
    retries: int = 2


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as $CUDA_VISIBLE_DEVICES takes them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    import torch  # here: a worker starts much sooner without

    return [str(number) for number in range(torch.cuda.device_count())]


def slots_of(count: int, gpus: list[str]) -> list[dict[str, str]]:
    """Environment of each worker: its GPU, in turn, and its share of the CPU.

    Args:
        count: Number of workers.
        gpus: As :func:`visible_gpus`.
    """
    slots = []
    for number in range(count):
        env = {}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        if count > 1 and "OMP_NUM_THREADS" not in os.environ:
            env["OMP_NUM_THREADS"] = str(max(1, processors() // count))
        slots.append(env)
    return slots


def run_here(
    jobs: list[Job],
    parts: Path,
    slots: list[dict[str, str]],
    patience: Patience,
    watch: Callable[[], object],
    task: Task | None = None,
) -> None:
    """Run the jobs; each leaves a part file with its row or the reason why there is none.

    Args:
        jobs: What to run, in this order.
        parts: Folder of the part files.
        slots: Environment of each worker.
        patience: When to give up.
        watch: Called several times a second, by this thread.
        task: How a job is run; by main.py unless said otherwise.

    Raises:
        KeyboardInterrupt: Ctrl-C; the workers have been ended, finished parts are kept.
    """
    queue = _Queue(jobs, parts)
    with ThreadPoolExecutor(len(slots)) as threads:
        running = {
            threads.submit(
                _serve, queue, _Worker(env, queue.stopped, task or Task()), parts, patience
            )
            for env in slots
        }
        try:
            while running:
                done, running = wait(running, _POLL_SECONDS, FIRST_EXCEPTION)
                for thread in done:
                    thread.result()
                watch()
        finally:
            queue.stopped.set()
    watch()


class _Queue:
    """The jobs not yet handed out, and the groups given up."""

    def __init__(self, jobs: list[Job], parts: Path) -> None:
        self.stopped = threading.Event()
        self._jobs, self._parts, self._lock = deque(jobs), parts, threading.Lock()
        self._given_up: dict[tuple[str, ...], tuple[str, str]] = {}

    def take(self) -> Job | None:
        """The next job, None if there is none; those of groups given up get their notes."""
        with self._lock:
            while self._jobs and not self.stopped.is_set():
                job = self._jobs.popleft()
                if job.group not in self._given_up:
                    return job
                kind, reason = self._given_up[job.group]
                write_part(self._parts, job, kind=kind, reason=reason)
        return None

    def give_up(self, job: Job, kind: str, reason: str) -> None:
        """No result for this job and, from now on, for those of its group."""
        with self._lock:
            self._given_up[job.group] = kind, reason
        if not part_path(self._parts, job).exists():
            write_part(self._parts, job, kind=kind, reason=reason)


def _serve(queue: _Queue, worker: _Worker, parts: Path, patience: Patience) -> None:
    """Run jobs in a worker until there are none left."""
    with contextlib.closing(worker):
        while (job := queue.take()) is not None:
            attempts = 0
            while attempts <= patience.retries:
                attempts += 1
                kind, reason = worker.run(job, parts, patience.seconds)
                if queue.stopped.is_set():
                    return
                if kind != CRASHED or part_path(parts, job).exists():
                    break
            if kind == CRASHED:
                reason += f" ({attempts} attempts)"
            if kind is not None:
                queue.give_up(job, kind, reason)


class _Overrun(Exception):
    """A job's time is over, or everybody's."""


class _Worker:
    """One process, started when needed and again after a death."""

    def __init__(self, env: dict[str, str], stopped: threading.Event, task: Task) -> None:
        self._env, self._stopped, self._task = env, stopped, task
        self._pool: ProcessPoolExecutor | None = None

    def run(self, job: Job, parts: Path, seconds: float) -> tuple[str | None, str]:
        """Run one job.

        Returns:
            None and '' if it left a row, else why there is none.
        """
        try:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, env=self._env, initializer=_ignore_ctrl_c)
                self._wait(self._pool.submit(self._task.prepare), _STARTING_SECONDS)
            refusal = self._wait(self._pool.submit(self._task.work, job, parts), seconds)
            return (None, "") if refusal is None else (REFUSED, refusal)
        except BrokenProcessPool:
            self.kill()
            return CRASHED, "the worker process died, for example for lack of memory"
        except _Overrun:
            self.kill()
            return TOO_LONG, f"stopped after {seconds:g} s"
        except Exception as error:  # a fault of the code, or of the GPU's driver
            self.kill()
            first = (str(error).splitlines() or [""])[0]
            return CRASHED, f"{type(error).__name__}: {first}"

    def _wait(self, future: Future[Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not future.done():
            if self._stopped.is_set() or time.monotonic() > deadline:
                raise _Overrun
            wait([future], _POLL_SECONDS)
        return future.result()

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=True)
            self._pool = None

    def close(self) -> None:
        """End the process, which has nothing left to do."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def _ignore_ctrl_c() -> None:
    # The terminal sends it to all processes; the one that hands out the jobs ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
