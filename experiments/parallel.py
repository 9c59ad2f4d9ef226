"""Runs a list of main.py calls on the CPUs and GPUs of this machine, or on a Slurm cluster.

Example: python experiments/parallel.py jobs.txt --output output/mine --jobs 4
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.jobs import read_jobs
from experiments.ledger import open_ledger
from experiments.rows import radius_of, radius_text
from experiments.slurm import make_executor, run_on_cluster
from experiments.workers import Patience, run_here, slots_of, visible_gpus
from lipschitz.errors import InputError
from utils import Parser, duration, parse_params, run_cli, significant


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "file", metavar="JOBS.txt", help="a job per line: method, network, main.py arguments; tabs"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="rows.jsonl, notes.jsonl")
    parser.add_argument(
        "--jobs", type=int, help="workers at a time (default: one per GPU, or one); GPUs in turn"
    )
    parser.add_argument(
        "--slurm",
        metavar="NAME=VALUE,...",
        help="on a cluster through submitit, --jobs then being Slurm jobs at a time: partition, "
        "timeout_min, gpus_per_node, ...; cluster=local tries it without Slurm",
    )
    parser.add_argument(
        "--limit", type=float, default=300, help="seconds for one job, then it is given up (300)"
    )
    parser.add_argument(
        "--retries", type=int, default=2, help="further attempts after a worker died (default 2)"
    )
    parser.add_argument(
        "--again", action="store_true", help="try what crashed or took too long in an earlier run"
    )
    return parser


def line_of(entry: dict[str, Any]) -> str:
    """The line printed for a new row or note."""
    what = f"{entry['run']}, {entry['network']}, example {entry['example']}"
    if entry.get("eps") is not None:
        radius = radius_text(radius_of(entry["eps"]))
        what += f", {radius or entry['eps']}"
    if "reason" in entry:
        return f"{what}: none, {entry['reason']}"
    seconds = duration(entry["seconds"])
    if "signs" in entry:
        return f"{what}: {len(entry['signs'])} signs, {seconds} s"
    upper = entry["upper_bound"]
    shown = "-" if upper is None else significant(upper)
    lower = significant(entry["lower_bound"])
    return f"{what}: upper {shown} lower {lower} {entry['status']} {seconds} s"


def main(argv: list[str] | None = None) -> int:
    """Reads the jobs, runs those without a result, merges what they find.

    Returns:
        The exit code, 0; a job without a row is no error but a note.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, with a message that says how to go on.
    """
    args = build_parser().parse_args(argv)
    gpus = visible_gpus()
    at_once = args.jobs if args.jobs is not None else max(1, len(gpus))
    for option, value, least in (("jobs", at_once, 1), ("retries", args.retries, 0)):
        if value < least:
            raise InputError(f"--{option} {value}: expected at least {least}")
    if not args.limit > 0:
        raise InputError(f"--limit {args.limit}: expected a positive number of seconds")
    jobs = read_jobs(args.file)
    patience = Patience(args.limit, args.retries)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems end jobs with it
    with open_ledger(args.output) as ledger:
        todo = ledger.open_jobs(jobs, again=args.again)
        with tqdm(total=len(todo), desc="jobs", disable=None) as bar:

            def collect() -> None:
                for entry in ledger.merge():
                    bar.update()
                    tqdm.write(line_of(entry), file=sys.stdout)
                    sys.stdout.flush()

            try:
                if args.slurm is not None and todo:
                    options = parse_params(args.slurm)
                    executor = make_executor(ledger.folder / "slurm", options, at_once)
                    run_on_cluster(
                        todo, ledger.parts, executor, at_once, patience, collect, ledger.has
                    )
                elif todo:
                    slots = slots_of(min(at_once, len(todo)), gpus)
                    run_here(todo, ledger.parts, slots, patience, collect)
            except KeyboardInterrupt:
                collect()
                left = sum(not ledger.has(job) for job in jobs)
                raise KeyboardInterrupt(
                    f"interrupted; {left} of {len(jobs)} jobs are left, the same command goes on"
                ) from None
    rows = sum(job.id in ledger.rows for job in jobs)
    print(f"{rows} results in {ledger.rows_path}", end="")
    missing = len(jobs) - rows
    print(f"; {missing} have none, reasons in {ledger.notes_path}" if missing else "")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
