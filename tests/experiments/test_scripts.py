"""The shell scripts: what they queue, with a stand-in for Python, and one real smoke run."""

import contextlib
import csv
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from commands.options import check_options
from lipschitz.bounds.methods import is_installed
from main import build_parser

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
PARTS = [EXPERIMENTS / "common.sh", EXPERIMENTS / "forward.sh"]
SCRIPTS = sorted(path for path in EXPERIMENTS.glob("*.sh") if path not in PARTS)
SINGLE = [path for path in SCRIPTS if path.stem not in ("smoke", "offline")]
# Notes its arguments, and leaves the files that training would.
STUB = """#!/usr/bin/env bash
[[ "$1" == - ]] && exit 0
echo "$*" >>"$STUB_LOG"
while (($#)); do
    [[ "$1" != --output && "$1" != --checkpoint && "$1" != --points ]] || file="$2"
    [[ "$1" != --checkpoint && "$1" != --points && "${file:-}" != *.partial ]] || touch "$file"
    shift
done
[[ -z "${STUB_FAILS:-}" ]]
"""


@pytest.fixture
def stubbed(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    (tmp_path / "models").mkdir()
    for folder in ("epochs3", "epochs10", "stand_in"):
        (tmp_path / "models" / folder).mkdir()

    def run(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        env = {"STUB_LOG": str(tmp_path / "log"), "MODELS": str(tmp_path / "models"), **env}
        return subprocess.run(
            [str(EXPERIMENTS / f"{script}.sh"), "--output", str(tmp_path / "out"), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHON": str(stub), **env},
        )

    run.folder = tmp_path
    return run


def jobs(folder: Path) -> list[tuple[str, str, list[str]]]:
    lines = [line.split("\t") for line in (folder / "jobs.txt").read_text().splitlines()]
    return [(run, network, shlex.split(args)) for run, network, args in lines]


@pytest.mark.parametrize("script", [*SCRIPTS, *PARTS], ids=lambda p: p.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    if script not in PARTS:
        assert "set -euo pipefail" in script.read_text()
        assert os.access(script, os.X_OK)


def test_smoke_runs_every_script():
    listed = (EXPERIMENTS / "smoke.sh").read_text()
    assert all(path.stem in listed for path in SINGLE)


def test_a_script_queues_every_network_radius_and_method(stubbed):
    done = stubbed("synthetic_mlp_width", "--sizes", "4 6", "--eps", "0.1 2/255", "--methods",
                   "ibp crown bab", "--timeout", "7", "--jobs", "3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    queued = jobs(stubbed.folder / "out/synthetic_mlp_width")
    assert [(run, network) for run, network, _ in queued[:7]] == [
        *[("ibp", "MLP, width 4"), ("crown", "MLP, width 4"), ("bab", "MLP, width 4")] * 2,
        ("ibp", "MLP, width 6"),
    ]
    assert len(queued) == 2 * 2 * 3
    arguments = queued[5][2]
    assert arguments[: arguments.index("--bab")] == ["--load", arguments[1]]
    assert "width-4" in arguments[1]
    assert " ".join(arguments[2:]).startswith("--bab --eps 2/255 --timeout 7 --start 0 --trace ")
    traced = [run for run, _, args in queued if "--trace" in args]
    assert traced == ["bab", "bab"]  # the widest box of each network
    calls = (stubbed.folder / "log").read_text().splitlines()
    assert [call.split()[0].rpartition("/")[2] for call in calls] == [
        "train_model.py",
        "train_model.py",
        "parallel.py",
        "report.py",
    ]
    assert "--num-epochs 10" in calls[0]
    assert calls[2].endswith("--limit 45 --jobs 3")


def test_trained_networks_are_not_trained_again_and_broken_training_leaves_none(stubbed):
    arguments = ("synthetic_mlp_depth", "--sizes", "2")
    assert stubbed(*arguments, STUB_FAILS="yes").returncode != 0
    assert not list((stubbed.folder / "models").glob("**/*.pth"))
    for _ in range(2):
        assert stubbed(*arguments).returncode == 0
    calls = (stubbed.folder / "log").read_text()
    assert calls.count("train_model.py") == 2  # the one that failed, and once more


def test_smoke_uses_stand_ins_and_says_so(stubbed):
    assert stubbed("tinyimagenet", "--smoke", "--slurm", "partition=x").returncode == 0
    queued = jobs(stubbed.folder / "out/tinyimagenet")
    assert all("stand-in for TinyImageNet" in network for _, network, _ in queued)
    assert all("--input" in args for _, _, args in queued)
    calls = (stubbed.folder / "log").read_text()
    assert "train_model.py" not in calls
    assert "--slurm partition=x" in calls


def test_real_data_is_used_without_smoke(stubbed):
    assert stubbed("cifar", "--examples", "1").returncode == 0
    queued = jobs(stubbed.folder / "out/cifar")
    networks = {network for _, network, _ in queued}
    assert networks == {"CIFAR-10 CNN, 4 layers", "CIFAR-10 CNN, 6 layers"}
    assert "--data CIFAR" in (stubbed.folder / "log").read_text()


@pytest.mark.parametrize("smoke", [(), ("--smoke",)], ids=["full", "smoke"])
@pytest.mark.parametrize("script", SINGLE, ids=lambda path: path.stem)
def test_main_takes_every_option_that_is_queued(stubbed, script, smoke):
    """It refuses options that have no effect, such as a time limit of interval arithmetic."""
    widths = () if script.stem in ("cifar", "tinyimagenet", "digits") else ("--sizes", "4")
    done = stubbed(script.stem, *smoke, "--examples", "1", *widths)
    assert done.returncode == 0, done.stderr
    queued = jobs(stubbed.folder / "out" / script.stem)
    parser = build_parser()
    for _, _, arguments in queued:
        needs_lirpa = "auto_lirpa" in arguments or "--no-optimize" in arguments
        if is_installed("auto_lirpa") or not needs_lirpa:
            check_options(parser.parse_args(arguments), parser.given(arguments))
    limited = {run for run, _, arguments in queued if "--timeout" in arguments}
    if script.stem == "digits":
        assert limited == {"lipsdp", "alpha", "sdp", "lipmip", "lipbab", "bab_paper", "bab"}


def wait_for(happened: Callable[[], object], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants(process: int) -> dict[int, str]:
    """Processes that a process has started, and those that they have, with their commands."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_text()
            if state != "Z":
                parents[int(folder.name)] = int(parent)
                commands[int(folder.name)] = command
    found = {process}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: commands[pid] for pid in found - {process}}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_sigterm_to_a_script_ends_its_workers(tmp_path):
    """A batch system knows the script's process alone."""
    arguments = ["--smoke", "--output", str(tmp_path), "--sizes", "64", "--eps", "0.5"]
    arguments += ["--examples", "1", "--methods", "bab_paper", "--timeout", "60", "--epochs", "1"]
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "",
        "MODELS": str(tmp_path),
    }
    script = subprocess.Popen(
        [str(EXPERIMENTS / "synthetic_mlp_width.sh"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        wait_for(lambda: list(tmp_path.glob("**/traces/*.jsonl")))  # the search is under way
        started = descendants(script.pid)
        assert any("popen_loky" in command for command in started.values())
        script.terminate()
        assert script.wait(timeout=60) == 143
        wait_for(lambda: not any(map(is_running, started)), 30)
        assert "1 of 1 jobs are left, the same command goes on" in script.stderr.read()
    finally:
        script.kill()
        for stream in (script.stdout, script.stderr):
            stream.close()


@pytest.mark.parametrize("name", ["smoke", "offline"])
def test_sigterm_to_a_script_of_scripts_ends_all_of_them(stubbed, name):
    """With a stand-in for Python that sleeps."""
    (stubbed.folder / "python").write_text('#!/usr/bin/env bash\n[[ "$1" == - ]] || exec sleep 77')
    env = {"PYTHON": str(stubbed.folder / "python"), "MODELS": str(stubbed.folder / "models")}
    script = subprocess.Popen(
        [str(EXPERIMENTS / f"{name}.sh"), "--output", str(stubbed.folder / "out")],
        stdout=subprocess.DEVNULL,
        env={**os.environ, **env, "RESULTS": str(stubbed.folder / "out")},
    )
    sleeping = {"smoke": 2, "offline": 1}[name]

    def are_asleep() -> bool:
        return sum("sleep\x0077" in c for c in descendants(script.pid).values()) == sleeping

    wait_for(are_asleep)
    started = descendants(script.pid)
    script.terminate()
    assert script.wait(timeout=30) == 143
    wait_for(lambda: not any(map(is_running, started)), 30)


@pytest.mark.parametrize(
    ("program", "code"), [("true", 0), ("exit 3", 3), ("kill -TERM $PPID; exec sleep 9", 143)]
)
def test_the_exit_status_of_what_is_run(program, code):
    line = 'set -euo pipefail; source "$1"; forward bash -c "$2"; echo went on'
    command = ["bash", "-c", line, "test", str(EXPERIMENTS / "forward.sh"), program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=8)
    assert done.returncode == code
    assert done.stdout == ("went on\n" if code == 0 else "")


@pytest.mark.parametrize("arguments", [("--no-such", "1"), ("--eps",), ("word",)])
def test_a_bad_argument_is_one_line(stubbed, arguments):
    done = stubbed("mnist", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_real_smoke_run_ends_with_tables_and_resumes(tmp_path):
    """Two of three methods run; the other becomes a dash with its reason."""
    arguments = ["--smoke", "--output", str(tmp_path), "--sizes", "8"]
    arguments += ["--methods", "ibp sampling no_such"]
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "",
        "MODELS": str(tmp_path),
    }
    script = str(EXPERIMENTS / "synthetic_mlp_width.sh")

    def run() -> str:
        done = subprocess.run([script, *arguments], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    assert "4 results in" in first
    out = tmp_path / "synthetic_mlp_width"
    document = (out / "table.md").read_text()
    assert "- no_such on MLP, width 8, eps 0.05, 0.2: unknown method 'no_such'" in document
    assert "| simple | MLP, width 8 | no_such | 0.2 | - | - | - | - | - | - | - |" in document
    assert "Computed on" in document
    with open(out / "table.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6
    assert sum(float(line["upper_bound"] or 0) > 0 for line in table) == 2
    assert (out / "bounds.png").read_bytes().startswith(b"\x89PNG")
    rows = (out / "rows.jsonl").read_bytes()
    second = run()
    assert "upper " not in second.split("| network")[0]  # nothing was computed again
    assert (out / "rows.jsonl").read_bytes() == rows
