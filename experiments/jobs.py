"""One job: one call of main.py on one example, in a process that has main.py loaded.

A file of jobs has one line each, three fields with a tab between: the name of the method and of
the network, as tables show them, and the arguments of main.py.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.row_file import read_rows
from lipschitz.errors import InputError
from utils import atomic_write_bytes, run_cli

# Why there is no row: main.py said no, the worker died or the code failed again and again, the
# job took longer than it may.
REFUSED, CRASHED, TOO_LONG = "refused", "crashed", "too_long"

# Options in which the jobs of one group may differ: where a job writes, which example it takes.
_NOT_OF_THE_GROUP = ("--start", "--trace")
_NOT_OF_THE_RESULT = ("--trace",)
_OURS = ("--output", "--csv")
_FILES = ("--load", "--input")


@dataclass(frozen=True)
class Job:
    """One call of main.py.

    Attributes:
        run: Name of the method with its options.
        network: Name of the network.
        argv: Arguments of main.py, without where the result goes.
        id: Another one for other arguments, or files of other content.
    """

    run: str
    network: str
    argv: tuple[str, ...]
    id: str

    @property
    def group(self) -> tuple[str, ...]:
        """What the job has in common with those of the other examples."""
        return (self.run, *without(self.argv, _NOT_OF_THE_GROUP))

    def value(self, option: str) -> str | None:
        """Value of an option of main.py, None if it is not given."""
        places = [i for i, word in enumerate(self.argv[:-1]) if word == option]
        return self.argv[places[-1] + 1] if places else None


def without(argv: tuple[str, ...], options: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments less some options and their values."""
    return tuple(
        word
        for before, word in zip(("", *argv), argv, strict=False)
        if word not in options and before not in options
    )


@functools.lru_cache(maxsize=1024)
def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "missing"  # main.py will say so


def make_job(run: str, network: str, argv: tuple[str, ...]) -> Job:
    """The job with its id.

    Raises:
        InputError: Options that this module sets itself, or several examples.
    """
    job = Job(run, network, argv, "")
    for option in _OURS:
        if option in argv:
            raise InputError(f"{option} in a job: leave it out, results go to the --output folder")
    if job.value("--num-examples") not in (None, "1"):
        raise InputError("--num-examples in a job: one job is one example, named by --start")
    files = [_digest(job.value(option)) for option in _FILES if job.value(option)]
    key = "\n".join([run, network, *without(argv, _NOT_OF_THE_RESULT), *files])
    return Job(run, network, argv, hashlib.sha256(key.encode()).hexdigest()[:16])


def read_jobs(path: str | os.PathLike[str]) -> list[Job]:
    """The jobs of a file, each once.

    Raises:
        InputError: No such file, or a line of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file of jobs")
    _digest.cache_clear()  # files may have changed since another list was read
    jobs: dict[str, Job] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != 3:
            raise InputError(
                f"{path} line {number}: expected method, network and arguments of main.py with "
                "tabs between"
            )
        job = make_job(fields[0], fields[1], tuple(shlex.split(fields[2])))
        jobs.setdefault(job.id, job)
    return list(jobs.values())


def warm_up() -> int:
    """Use every method once, so that the first job of a worker takes no longer than the others.

    Returns:
        The worker's process id.
    """
    import torch

    import main  # noqa: F401
    from lipschitz import METHODS, BranchOptions, local_lipschitz

    tiny = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    how = [{"method": name} for name in METHODS]
    how += [{"branching": BranchOptions(timeout=1), "engine": e} for e in ("native", "auto_lirpa")]
    for arguments in how:
        with contextlib.suppress(InputError):  # a method whose package is not installed
            local_lipschitz(tiny.eval(), torch.zeros(2), 0.1, **arguments)
    return os.getpid()


def run_job(job: Job, parts: str | os.PathLike[str]) -> str | None:
    """Call main.py; the part file of the job gets its row, or why there is none.

    Args:
        job: What to run.
        parts: Folder of the part files.

    Returns:
        None if there is a row, else what main.py said against it.
    """
    import main  # here: the process that hands out the jobs does without

    is_signs = "--mono" in job.argv
    if job.value("--trace"):  # of an attempt that failed
        Path(job.value("--trace")).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        file = os.path.join(scratch, "found")
        argv = [*job.argv, "--quiet", "--csv" if is_signs else "--output", file]
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            try:
                code = run_cli(main.main, argv)
            except SystemExit as exit_:  # argparse's own errors
                code = exit_.code
        if code != 0:
            said = errors.getvalue().strip().splitlines()
            reason = said[-1].removeprefix("error: ") if said else f"main.py ended with {code}"
            write_part(parts, job, kind=REFUSED, reason=reason)
            return reason
        row = _signs_row(job, file) if is_signs else read_rows(file)[-1]
    from experiments.machine import describe

    tags = {"job": job.id, "run": job.run, "network": job.network}
    write_part(parts, job, row={**row, **tags, "machine": describe(row["device"])})
    return None


def _signs_row(job: Job, file: str) -> dict[str, Any]:
    """The row of a ``--mono`` job: the signs of all features."""
    import torch

    from utils import versions

    with open(file, newline="", encoding="utf-8") as lines:
        signs = list(csv.DictReader(lines))
    for sign in signs:
        sign |= {key: float(sign[key]) for key in ("lower", "upper", "seconds")}
        sign |= {key: int(sign[key]) for key in ("example", "feature", "domains")}
    asked = job.value("--device") or "auto"
    on_gpu = asked != "cpu" and torch.cuda.is_available()
    return {
        "example": signs[0]["example"],
        "signs": signs,
        "seconds": sum(sign["seconds"] for sign in signs),
        "device": "cuda" if on_gpu else "cpu",
        "versions": versions(),
    }


def part_path(parts: str | os.PathLike[str], job: Job) -> Path:
    """Where a job leaves its result."""
    return Path(parts) / f"{job.id}.json"


def write_part(
    parts: str | os.PathLike[str],
    job: Job,
    *,
    row: dict[str, Any] | None = None,
    kind: str | None = None,
    reason: str | None = None,
) -> None:
    """Leave a job's row, or a note on why there is none: a whole file or nothing.

    Args:
        parts: Folder of the part files.
        job: The job.
        row: Its row.
        kind: Else ``refused``, ``crashed`` or ``too_long``.
        reason: One line for the reader of the table.
    """
    note = None
    if row is None:
        note = {
            "job": job.id,
            "run": job.run,
            "network": job.network,
            "eps": job.value("--eps"),
            "example": int(job.value("--start") or 0),
            "kind": kind,
            "reason": reason,
        }
    content = json.dumps({"row": row, "note": note}, default=lambda value: value.tolist())
    atomic_write_bytes(part_path(parts, job), content.encode())
