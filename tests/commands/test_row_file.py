"""Files of rows: readers and writers, and the one file of a run in all that may happen to it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from cases import ROOT

from commands.row_file import RowFile, append_row, latest, read_rows
from lipschitz.errors import InputError
from utils import run_cli

SETTINGS = {"method": "crown", "eps": 0.1, "search": {"timeout": 60.0}}


def row(example: int, status: str = "bound", **changes) -> dict:
    return {"example": example, **SETTINGS, "status": status, "upper_bound": 2.0, **changes}


def text(*rows: dict) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def full_disk():
    """Files cannot grow beyond a number of bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def at(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield at
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_rows_come_back(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, {"example": 0, "bounds": torch.tensor([1.5, 2.0])})
    append_row(path, {"example": np.int64(1), "bounds": None})
    rows = [{"example": 0, "bounds": [1.5, 2.0]}, {"example": 1, "bounds": None}]
    assert read_rows(path) == rows
    assert path.read_bytes().count(b"\n") == 2


def test_a_row_cut_off_by_a_crash_spoils_only_itself(tmp_path):
    path = tmp_path / "rows.jsonl"
    for example in (0, 1):
        append_row(path, {"example": example, "text": "é"})
    whole = path.read_bytes()
    for cut in range(len(whole) - len(whole.splitlines()[1]) + 1, len(whole) + 1):
        path.write_bytes(whole[:cut])
        append_row(path, {"example": 2})
        examples = [row["example"] for row in read_rows(path)]
        # The row survives if only its line end is missing.
        assert examples == ([0, 1, 2] if cut >= len(whole) - 1 else [0, 2])


@pytest.mark.parametrize("read", [read_rows, lambda path: RowFile(path).__enter__()])
def test_other_files_are_refused_and_left_alone(tmp_path, read):
    path = tmp_path / "README.md"
    path.write_text('{"example": \n# Title\n')
    with pytest.raises(InputError, match="line 2 is not a result row"):
        read(path)
    assert path.read_text() == '{"example": \n# Title\n'
    assert os.listdir(tmp_path) == ["README.md"]


def test_rows_refuse_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_row(tmp_path / "rows.jsonl", {"upper_bound": float("nan")})
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_run_finds_its_complete_rows_of_the_same_settings(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as file:
        file.append(row(0))
        file.append(row(1, "interrupted"))
        file.append(row(2, "error"))
        file.append(row(3, eps=0.2))
        file.append(row(4, search={"timeout": 1.0}))
        assert list(file.done(SETTINGS)) == [0]
    with RowFile(path) as file:
        assert file.done(SETTINGS) == {0: row(0)}
    assert len(read_rows(path)) == 5
    assert os.listdir(tmp_path) == ["rows.jsonl"]  # no lock is left behind


@pytest.mark.parametrize("status", ["interrupted", "error"])
def test_a_later_row_replaces_an_interrupted_one(tmp_path, status):
    path = tmp_path / "rows.jsonl"
    path.write_text(text(row(0, status), row(1)))
    with RowFile(path) as file:
        file.append(row(0, "exact"))
    assert read_rows(path) == [row(1), row(0, "exact")]


def test_rows_twice_in_an_old_file_are_there_once_after_the_next_run(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(text(row(0, "interrupted"), row(0, upper_bound=1.5), row(1), row(1, eps=9)))
    path.chmod(0o640)
    with RowFile(path):
        pass
    assert read_rows(path) == [row(0, upper_bound=1.5), row(1), row(1, eps=9)]
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_error_replaces_no_bounds():
    """Nor does an interrupted search replace one that was not."""
    rows = [row(0, "interrupted"), row(0, "error"), row(1), row(1, "interrupted")]
    assert latest(rows) == [rows[0], rows[2]]


def test_settings_that_nobody_knows_make_other_rows():
    rows = [row(0, new_option=1), row(0, new_option=2), row(0, new_option=None), row(0)]
    assert latest(rows) == [rows[0], rows[1], rows[3]]


@pytest.mark.parametrize("broken", ['{"example": 1, "upp', "\0\0\0\0", '{"example": 1\0\0'])
def test_a_broken_last_line_is_moved_aside(tmp_path, capsys, broken):
    path = tmp_path / "rows.jsonl"
    path.write_text(text(row(0)) + broken)
    with RowFile(path) as file:
        file.append(row(1))
    assert [r["example"] for r in read_rows(path)] == [0, 1]
    assert list(pd.read_json(path, lines=True)["example"]) == [0, 1]
    assert (tmp_path / "rows.jsonl.broken").read_text() == broken + "\n"
    said = capsys.readouterr().err
    assert said == f"{path}: 1 broken line moved to {path}.broken\n"


def test_a_row_that_lacks_only_its_line_end_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(text(row(0)).rstrip())
    with RowFile(path) as file:
        file.append(row(1))
    assert read_rows(path) == [row(0), row(1)]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_second_run_on_the_file_is_told_who_has_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    (tmp_path / "link.jsonl").symlink_to(path)
    with RowFile(path) as file:
        for name in ("rows.jsonl", "link.jsonl"):
            with pytest.raises(InputError, match=f"process {os.getpid()} on .* writes there"):
                RowFile(tmp_path / name).__enter__()
        file.append(row(0))
    with RowFile(path) as file:
        assert 0 in file.done(SETTINGS)


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys, time; from commands.row_file import RowFile\n"
        "with RowFile(sys.argv[1]) as file: file.append({'example': 0}); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not read_rows(path):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(InputError, match=f"process {process.pid} "):
        RowFile(path).__enter__()
    process.kill()
    process.wait()
    with RowFile(path) as file:
        file.append({"example": 1})
    assert len(read_rows(path)) == 2


def test_of_two_runs_that_start_at_once_one_writes(tmp_path):
    """Each appends ten rows if it gets the file; none is there twice."""
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys, time; from commands.row_file import RowFile\n"
        "from lipschitz.errors import InputError\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "try:\n"
        "  with RowFile(sys.argv[1]) as file:\n"
        "    for i in range(10):\n"
        "      if i not in file.done({}): file.append({'example': i})\n"
        "    time.sleep(0.5)\n"
        "except InputError as error: sys.exit(3)\n"
    )
    start = str(time.time() + 1.5)
    command = [sys.executable, "-c", code, str(path), start]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    codes = sorted(process.wait() for process in processes)
    assert codes[0] == 0
    assert set(codes) <= {0, 3}  # on a slow machine one may come after another
    assert [r["example"] for r in read_rows(path)] == list(range(10))


def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, capsys, full_disk):
    path = tmp_path / "rows.jsonl"

    def run(_):
        with RowFile(path) as file:
            file.append(row(0))
            full_disk(path.stat().st_size + 20)  # the next row fits in part
            file.append(row(1))

    assert run_cli(run) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"error: {path}: File too large; what was there is kept")
    assert path.read_text() == text(row(0))
    with pytest.raises(OSError, match="File too large"):
        append_row(path, row(1))
    assert path.read_text() == text(row(0))


def test_no_space_to_tidy_leaves_both_rows_and_says_so(tmp_path, capsys, full_disk):
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as file:
        file.append(row(0, "interrupted"))
        file.append(row(0))
        full_disk(10)
    assert latest(read_rows(path)) == [row(0)]
    assert len(read_rows(path)) == 2
    assert "warning: " in capsys.readouterr().err


def test_devices_are_written_to_and_never_read(tmp_path, capsys):
    """Of /dev/full a reader gets zeros without end."""

    def run(_):
        with RowFile("/dev/full") as file:
            file.append(row(0))

    assert run_cli(run) == 2
    assert capsys.readouterr().err == "error: /dev/full: No space left on device\n"
    with RowFile("/dev/null") as file:
        assert file.done(SETTINGS) == {}
        file.append(row(0))
    with pytest.raises(InputError, match="not a regular file"):
        read_rows("/dev/full")


def test_a_pipe_gets_the_rows_and_one_without_reader_is_refused(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        RowFile(path).__enter__()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with RowFile(path) as file:
        file.append(row(0))
        assert json.loads(os.read(reader, 10_000)) == row(0)
    os.close(reader)
    with pytest.raises(InputError, match="is a folder"):
        RowFile(tmp_path).__enter__()


def test_a_file_deleted_in_the_middle_is_made_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as file:
        file.append(row(0))
        path.unlink()
        file.append(row(1))
    assert read_rows(path) == [row(1)]
