"""``main.py`` called as a user does, in this process and the current folder."""

from __future__ import annotations

import json
from pathlib import Path

import main
from utils import run_cli


def run(*argv: object) -> int:
    """Its exit code."""
    try:
        return run_cli(main.main, [*map(str, argv), "--quiet"])
    except SystemExit as exit_:  # argparse's own errors
        return exit_.code


def rows(*argv: object, code: int = 0) -> list[dict]:
    """The rows of a run."""
    Path("rows.jsonl").unlink(missing_ok=True)
    assert run(*argv, "--output", "rows.jsonl") == code
    return [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]


def refused(capsys, *argv: object) -> str:
    """The only line of a run that is refused."""
    capsys.readouterr()
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err
