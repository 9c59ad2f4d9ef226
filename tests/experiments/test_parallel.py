"""experiments/parallel.py as a user calls it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cases import REFERENCE, ROOT

from experiments import parallel
from experiments.jobs import make_job, read_jobs, run_job
from experiments.slurm import shares_of
from lipschitz.errors import InputError
from utils import run_cli

SIMPLE = f"--data simple --model simple_mlp_3layer --width 32 --load {REFERENCE}/"
WIDTH_32 = SIMPLE + "simple_mlp_3layer_32.pth"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """The process that hands out the jobs need not import torch to count GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def write_jobs(path: Path, lines: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{run}\tMLP, width 32\t{args}\n" for run, args in lines))
    return path


def command(jobs: Path, out: Path, *more: str) -> list[str]:
    script = str(ROOT / "experiments" / "parallel.py")
    return [sys.executable, script, str(jobs), "--output", str(out), *more]


def rows(out: Path, name: str = "rows.jsonl") -> list[dict]:
    path = out / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def workers_of(process: int) -> list[int]:
    """Process ids of the workers that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_text()
        except OSError:
            continue
        if parent == process and "popen_loky" in words:
            found.append(int(folder.name))
    return found


def test_a_worker_killed_in_the_middle_costs_no_row(tmp_path, capsys):
    """Two workers search for a second; one is killed while it does."""
    search = "--bab --heuristic area --branch relu --timeout 1"
    lines = [
        ("bab", f"{WIDTH_32} --eps {eps} {search} --trace {tmp_path}/trace{i}.jsonl")
        for i, eps in enumerate(("0.3", "0.4"))
    ]
    lines.append(("ibp", f"{WIDTH_32} --eps 0.2 --method ibp"))
    jobs = write_jobs(tmp_path / "jobs.txt", lines)
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(jobs, out, "--jobs", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not all((tmp_path / f"trace{i}.jsonl").exists() for i in range(2)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victims = workers_of(process.pid)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert "3 results in" in stdout
    found = rows(out)
    assert sorted((row["run"], row["eps"]) for row in found) == [
        ("bab", 0.3),
        ("bab", 0.4),
        ("ibp", 0.2),
    ]
    assert {row["job"] for row in found} == {job.id for job in read_jobs(jobs)}
    assert all(row["lower_bound"] <= row["upper_bound"] for row in found)
    assert not rows(out, "notes.jsonl")
    assert {"machine", "versions", "network"} <= found[0].keys()

    assert run_cli(parallel.main, [str(jobs), "--output", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"3 results in {out}/rows.jsonl"]
    assert rows(out) == found


def test_what_main_refuses_becomes_a_note(tmp_path, capsys, monkeypatch):
    """In this process: what processes add is tested above and with the workers."""

    def run_in_turn(jobs, parts, slots, patience, watch):
        for job in jobs:
            run_job(job, parts)
        watch()

    monkeypatch.setattr(parallel, "run_here", run_in_turn)
    mono = f"{WIDTH_32} --mono --features 0,3 --timeout 1"
    lines = [("nonsense", f"{WIDTH_32} --eps 0.1 --method nonsense"), ("signs", mono)]
    lines.append(("unknown option", f"{WIDTH_32} --no-such-option"))
    jobs = write_jobs(tmp_path / "jobs.txt", lines)
    assert run_cli(parallel.main, [str(jobs), "--output", str(tmp_path)]) == 0
    assert "1 results in" in capsys.readouterr().out
    reasons = {note["run"]: note["reason"] for note in rows(tmp_path, "notes.jsonl")}
    assert reasons["nonsense"].startswith("unknown method 'nonsense'")
    assert reasons["unknown option"].startswith("unknown argument '--no-such-option'")
    (signs,) = rows(tmp_path)
    assert [sign["feature"] for sign in signs["signs"][::10]] == [0, 3]


def test_slurm_jobs_run_with_submitits_local_cluster(tmp_path, monkeypatch):
    """Two jobs of one group, which are one share; from a folder where nothing is to import."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    np.savez("points.npz", x=np.full((2, 16), 0.5), y=np.zeros(2, dtype=int))
    asked = f"{WIDTH_32} --input {tmp_path}/points.npz --eps 0.1 --method ibp"
    lines = [("ibp", f"{asked} --start {example}") for example in range(2)]
    jobs = write_jobs(tmp_path / "jobs.txt", lines)
    options = ["--slurm", "cluster=local,timeout_min=2", "--jobs", "1"]
    assert run_cli(parallel.main, [str(jobs), "--output", "out", *options]) == 0
    assert sorted(row["example"] for row in rows(tmp_path / "out")) == [0, 1]


def test_shares_keep_groups_together():
    jobs = [
        make_job("crown", "net", ("--eps", str(eps), "--start", str(example)))
        for example in range(3)
        for eps in (0.1, 0.2, 0.3)
    ]
    shares = shares_of(jobs, 2)
    assert [len(share) for share in shares] == [6, 3]
    assert not {job.group for job in shares[0]} & {job.group for job in shares[1]}
    assert {job.id for share in shares for job in share} == {job.id for job in jobs}
    assert [len(share) for share in shares_of(jobs, 8)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("crown\t--eps 0.1", "line 1: expected method, network and arguments"),
        ("crown\tnet\t--output rows.jsonl", "--output in a job: leave it out"),
        ("crown\tnet\t--num-examples 3", "one job is one example"),
    ],
)
def test_a_bad_list_of_jobs_is_one_line(tmp_path, capsys, line, said):
    (tmp_path / "jobs.txt").write_text(line + "\n")
    argv = [str(tmp_path / "jobs.txt"), "--output", str(tmp_path)]
    assert run_cli(parallel.main, argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--jobs", "0"), ("--retries", "-1"), ("--limit", "nan")]
)
def test_a_bad_option_is_one_line(tmp_path, capsys, option, value):
    (tmp_path / "jobs.txt").touch()
    argv = [str(tmp_path / "jobs.txt"), "--output", str(tmp_path), option, value]
    assert run_cli(parallel.main, argv) == 2
    assert f"{option} {value}" in capsys.readouterr().err


def test_a_job_is_known_by_all_that_its_result_depends_on(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"1")
    (tmp_path / "jobs.txt").write_text(f"crown\tnet\t--load {weights} --eps 0.1\n" * 2)
    (job,) = read_jobs(tmp_path / "jobs.txt")
    other = make_job("crown", "net", (*job.argv, "--trace", "t.jsonl", "--start", "1"))
    assert other.group == job.group
    assert other.id != job.id
    assert make_job("crown", "net", (*job.argv, "--trace", "t.jsonl")).id == job.id
    weights.write_bytes(b"2")
    assert read_jobs(tmp_path / "jobs.txt")[0].id != job.id
    with pytest.raises(InputError, match="no such file of jobs"):
        read_jobs(tmp_path / "none.txt")
