"""Runs jobs on a Slurm cluster: each Slurm job takes a share of them to its node.

On the node the share is run as on any machine (:mod:`experiments.workers`), so a crash there costs
one attempt of one job. A share that Slurm ends early is submitted again, less what it has finished.
The folder of the results has to be on a file system that the nodes share. Needs submitit, which
also has a cluster named ``local`` that needs no Slurm.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.jobs import CRASHED, Job, write_part
from experiments.workers import Patience, run_here, slots_of, visible_gpus
from lipschitz.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
# Seconds between two looks at the jobs of the cluster. A choice.
_POLL_SECONDS = 1.0
# Parts that a node's work is cut into, so that a slow one does not keep the others waiting long. A
# choice.
_SHARES_PER_NODE = 4
# Options that submitit knows under the same name for every cluster.
_COMMON = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "name")


def run_share(jobs: list[Job], parts: Path, patience: Patience) -> None:
    """What a node does: run its jobs, a worker per GPU or one."""
    gpus = visible_gpus()
    run_here(jobs, parts, slots_of(max(1, len(gpus)), gpus), patience, lambda: None)


def make_executor(folder: Path, options: dict[str, Any], at_once: int) -> Any:
    """The submitit executor for the options of ``--slurm``.

    Args:
        folder: For Slurm's scripts and logs.
        options: ``cluster`` (default slurm), submitit's common options, or Slurm's own, such as
            ``partition``.
        at_once: Slurm jobs that may run at the same time.

    Raises:
        InputError: No submitit, no Slurm, or an option that submitit does not take.
    """
    if importlib.util.find_spec("submitit") is None:
        raise InputError("--slurm needs submitit: ./setup.sh --extra")
    import submitit  # optional: only here

    options = dict(options)
    cluster = str(options.pop("cluster", "slurm"))
    named = {key if key in _COMMON else f"{cluster}_{key}": v for key, v in options.items()}
    if cluster == "slurm":
        named["slurm_array_parallelism"] = at_once
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "lipschitz", "timeout_min": 24 * 60, **named})
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise InputError(f"--slurm: {error}") from error
    return executor


def shares_of(jobs: list[Job], count: int) -> list[list[Job]]:
    """The jobs in at most ``count`` shares, those of one group together."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, []).append(job)
    shares: list[list[Job]] = [[] for _ in range(min(count, len(groups)))]
    for number, group in enumerate(groups.values()):
        shares[number % len(shares)] += group
    return shares


def run_on_cluster(
    jobs: list[Job],
    parts: Path,
    executor: Any,
    at_once: int,
    patience: Patience,
    watch: Callable[[], object],
    has: Callable[[Job], bool],
) -> None:
    """Run the jobs on the cluster; each leaves a part file, as with :func:`run_here`.

    Args:
        jobs: What to run.
        parts: Folder of the part files.
        executor: As :func:`make_executor`.
        at_once: Slurm jobs that may run at the same time.
        patience: When to give up, also on a share that Slurm ends again and again.
        watch: Called about once a second; collects parts.
        has: Whether a job's part has been collected.
    """
    # The nodes import this package from here, wherever submitit is.
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    said = "ended without a result"
    for _ in range(patience.retries + 1):
        shares = shares_of(jobs, at_once * _SHARES_PER_NODE)
        with executor.batch():
            running = [executor.submit(run_share, s, parts.resolve(), patience) for s in shares]
        submitted = list(running)
        try:
            while running:
                time.sleep(_POLL_SECONDS)
                running = [job for job in running if not job.done()]
                watch()
        except BaseException:
            for job in submitted:
                job.cancel(check=False)
            raise
        states = {job.state for job in submitted if job.exception() is not None}
        said = ", ".join(sorted(states)) or said
        jobs = [job for job in jobs if not has(job)]
        if not jobs:
            return
    for job in jobs:
        reason = f"its Slurm job {said} ({patience.retries + 1} attempts)"
        write_part(parts, job, kind=CRASHED, reason=reason)
    watch()
