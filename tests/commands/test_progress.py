"""The trace of a search, also where it cannot be written."""

import pytest

from commands.progress import trace_to
from commands.row_file import read_rows
from lipschitz.search.interface import Progress


def states(count: int) -> list[Progress]:
    fields = {"lower_bound": 1.0, "domains": 1, "open_domains": 1, "finished": False}
    return [Progress(seconds=float(2 * i), upper_bound=9.0 - i, **fields) for i in range(count)]


def test_every_change_is_a_row(tmp_path):
    path = tmp_path / "trace.jsonl"
    watch = trace_to(path, 3)
    for state in states(3):
        watch(state)
    assert [(row["example"], row["upper_bound"]) for row in read_rows(path)] == [
        (3, 9.0),
        (3, 8.0),
        (3, 7.0),
    ]


@pytest.mark.parametrize("example", [None, 4])
def test_a_full_disk_ends_the_trace_with_one_line_and_not_the_search(capsys, example):
    watch = trace_to("/dev/full", example)
    for state in states(3):
        watch(state)
    said = capsys.readouterr().err
    assert said.startswith("warning: --trace /dev/full: No space left on device; the trace ")
    assert said.count("\n") == 1
    assert ("of example 4 " in said) == (example is not None)
