"""Jobs on this machine: crashes, limits, groups, and what is left behind."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from experiments.jobs import CRASHED, REFUSED, TOO_LONG, make_job, part_path
from experiments.ledger import open_ledger
from experiments.workers import Patience, Task, run_here, slots_of
from lipschitz.errors import InputError


def job(kind: str, example: int = 0):
    return make_job(kind, "net", ("--eps", "0.1", "--start", str(example)))


def task(log: Path) -> Task:
    # Nested, so that the workers get the functions themselves and need not import this file.
    def prepare():
        return None

    def work(job, parts):
        import os
        import signal
        import time

        from experiments.jobs import write_part

        example = int(job.value("--start"))
        with open(log, "a") as file:
            file.write(f"{job.run} {example} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        if job.run == "dies" or (job.run == "dies once" and log.read_text().count(job.run) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.run == "sleeps":
            time.sleep(60)
        if job.run == "fails":
            raise KeyError("what")
        if job.run == "refuses":
            write_part(parts, job, kind="refused", reason="not this one")
            return "not this one"
        write_part(parts, job, row={"job": job.id, "run": job.run, "example": example})
        return None

    return Task(prepare, work)


def run(folder: Path, jobs: list, slots=None, **patience) -> tuple[dict, dict, list[str]]:
    log = folder / "log"
    with open_ledger(folder / "out") as ledger:
        patience = Patience(**{"seconds": 30.0, "retries": 1, **patience})
        slots = slots or [{}]
        run_here(ledger.open_jobs(jobs), ledger.parts, slots, patience, ledger.merge, task(log))
        assert not list(ledger.parts.glob("*"))
        return ledger.rows, ledger.notes, log.read_text().splitlines()


def test_every_failure_becomes_a_note_and_the_others_go_on(tmp_path):
    jobs = [job(kind) for kind in ("fine", "dies", "sleeps", "dies once", "refuses", "fails")]
    rows, notes, log = run(tmp_path, [*jobs, job("fine", 1)], seconds=1.0)
    assert [row["run"] for row in rows.values()] == ["fine", "dies once", "fine"]
    found = {note["run"]: (note["kind"], note["reason"]) for note in notes.values()}
    assert found["dies"][0] == CRASHED
    assert "died" in found["dies"][1]
    assert "(2 attempts)" in found["dies"][1]
    assert found["sleeps"] == (TOO_LONG, "stopped after 1 s")
    assert found["refuses"] == (REFUSED, "not this one")
    assert found["fails"] == (CRASHED, "KeyError: 'what' (2 attempts)")
    attempts = [line.rsplit(" ", 2)[0] for line in log]
    assert [attempts.count(kind) for kind in ("dies", "sleeps", "dies once")] == [2, 1, 2]


def test_other_examples_of_a_group_given_up_are_not_tried(tmp_path):
    jobs = [job("refuses", example) for example in range(3)] + [job("fine")]
    rows, notes, log = run(tmp_path, jobs)
    assert len(rows) == 1
    assert [note["reason"] for note in notes.values()] == ["not this one"] * 3
    assert len(log) == 2


def test_workers_share_the_jobs_and_each_has_its_gpu(tmp_path):
    jobs = [job("fine", example) for example in range(12)]
    rows, _, log = run(tmp_path, jobs, slots_of(2, ["4", "7"]))
    assert sorted(row["example"] for row in rows.values()) == list(range(12))
    assert {line.split()[-1] for line in log} == {"4", "7"}


def test_slots_take_gpus_in_turn_and_share_the_cpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    slots = slots_of(3, ["0", "1"])
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1", "0"]
    assert all(int(slot["OMP_NUM_THREADS"]) >= 1 for slot in slots)
    assert slots_of(1, []) == [{}]


def test_an_interrupt_ends_the_workers_and_keeps_what_is_there(tmp_path):
    started = []

    def interrupt():
        log = tmp_path / "log"
        if log.exists() and "sleeps" in log.read_text():
            started.append(time.monotonic())
            raise KeyboardInterrupt

    with open_ledger(tmp_path / "out") as ledger:
        jobs = [job("fine"), job("sleeps")]
        with pytest.raises(KeyboardInterrupt):
            run_here(jobs, ledger.parts, [{}], Patience(), interrupt, task(tmp_path / "log"))
        assert time.monotonic() - started[0] < 20
        ledger.merge()
        assert [row["run"] for row in ledger.rows.values()] == ["fine"]
        assert not ledger.notes


def test_a_relaunch_tries_refusals_again_but_not_crashes(tmp_path):
    jobs = [job("refuses"), job("dies")]
    run(tmp_path, jobs, retries=0)
    with open_ledger(tmp_path / "out") as ledger:
        assert ledger.open_jobs(jobs) == jobs[:1]
        assert [note["run"] for note in ledger.notes.values()] == ["dies"]
    with open_ledger(tmp_path / "out") as ledger:
        assert ledger.open_jobs(jobs, again=True) == jobs


def test_duplicates_and_lines_cut_off_are_repaired(tmp_path):
    done, half = job("fine"), job("fine", 1)
    row = json.dumps({"job": done.id, "run": "fine", "example": 0})
    (tmp_path / "rows.jsonl").write_text(f'{row}\n{row}\n{{"job": "{half.id}", "ru')
    with open_ledger(tmp_path) as ledger:
        assert ledger.open_jobs([done, half]) == [half]
    assert (tmp_path / "rows.jsonl").read_text() == row + "\n"


def test_a_part_left_by_a_killed_run_is_merged_once(tmp_path):
    done = job("fine")
    with open_ledger(tmp_path) as ledger:
        parts = ledger.parts
    for _ in range(2):  # the second time as if killed between the row and the part's removal
        content = {"row": {"job": done.id, "run": "fine", "example": 0}, "note": None}
        part_path(parts, done).write_text(json.dumps(content))
        with open_ledger(tmp_path) as ledger:
            assert ledger.has(done)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1
    assert not list(parts.iterdir())


def test_one_process_at_a_time_per_folder(tmp_path):
    refused = pytest.raises(InputError, match="another run writes there")
    with open_ledger(tmp_path), refused, open_ledger(tmp_path):
        pass


def test_a_worker_ignores_ctrl_c(tmp_path):
    """The terminal sends it to the whole group; only the parent reacts."""

    def work(job, parts):
        import os
        import signal

        from experiments.jobs import write_part

        os.kill(os.getpid(), signal.SIGINT)
        write_part(parts, job, row={"job": job.id, "run": job.run, "example": 0})

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    try:
        with open_ledger(tmp_path) as ledger:
            chosen = Task(os.getpid, work)
            run_here([job("fine")], ledger.parts, [{}], Patience(), ledger.merge, chosen)
            assert len(ledger.rows) == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
