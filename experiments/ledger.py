"""The results of one folder: rows, notes on what has no row, and parts that workers left.

Workers write part files, a whole file per job or nothing. One process, which holds the folder's
lock, moves them into ``rows.jsonl`` and ``notes.jsonl``; whatever is killed at whatever moment,
each job's row is there once after the next merge.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands.row_file import append_row, read_rows
from experiments.jobs import REFUSED, Job
from lipschitz.errors import InputError
from utils import atomic_write_bytes


class Ledger:
    """Rows and notes of a folder, read at the start and kept up to date by :meth:`merge`.

    Made by :func:`open_ledger`, whose lock it needs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows_path, self.notes_path = self.folder / "rows.jsonl", self.folder / "notes.jsonl"
        self.parts = self.folder / "parts"
        self.parts.mkdir(parents=True, exist_ok=True)
        self.rows = _read_once_each(self.rows_path)
        self.notes = _read_once_each(self.notes_path)

    def open_jobs(self, jobs: list[Job], *, again: bool = False) -> list[Job]:
        """The jobs to run: those without a row, less those given up earlier.

        What main.py refused is tried again, since that costs little and a package may have been
        installed; what crashed or took too long only on demand.

        Args:
            jobs: All jobs.
            again: Try those given up too.
        """
        given_up = {
            job for job, note in self.notes.items() if note["kind"] != REFUSED and not again
        }
        wanted = [job for job in jobs if job.id not in self.rows and job.id not in given_up]
        retried = {job.id for job in wanted} & self.notes.keys()
        if retried:
            self.notes = {job: note for job, note in self.notes.items() if job not in retried}
            _rewrite(self.notes_path, list(self.notes.values()))
        return wanted

    def merge(self) -> list[dict[str, Any]]:
        """Move what workers have left into the rows and notes.

        Returns:
            The rows and notes that are new.
        """
        new = []
        for path in sorted(self.parts.glob("*.json"), key=lambda p: p.stat().st_mtime):
            try:
                part = json.loads(path.read_bytes())
            except ValueError:  # not ours: parts are written whole
                path.unlink()
                continue
            entry = part["row"] or part["note"]
            known, file = (
                (self.rows, self.rows_path) if part["row"] else (self.notes, self.notes_path)
            )
            if entry["job"] not in known and entry["job"] not in self.rows:
                append_row(file, entry)
                known[entry["job"]] = entry
                new.append(entry)
            path.unlink()
        return new

    def has(self, job: Job) -> bool:
        """Whether there is a row of the job, or a note on why there is none."""
        return job.id in self.rows or job.id in self.notes


@contextlib.contextmanager
def open_ledger(folder: str | os.PathLike[str]) -> Iterator[Ledger]:
    """The results of a folder, which is made if missing; other processes are kept out meanwhile.

    Raises:
        InputError: Another process is at it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{folder}: another run writes there; wait for it or name another folder"
            ) from None
        ledger = Ledger(folder)
        ledger.merge()
        yield ledger


def _read_once_each(path: Path) -> dict[str, dict[str, Any]]:
    """Entries by job; the file is rewritten if it holds an entry twice or a line cut off."""
    entries = {entry["job"]: entry for entry in read_rows(path) if "job" in entry}
    if path.exists() and len(path.read_bytes().splitlines()) != len(entries):
        _rewrite(path, list(entries.values()))
    return entries


def _rewrite(path: Path, entries: list[dict[str, Any]]) -> None:
    atomic_write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
