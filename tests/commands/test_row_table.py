"""Rows as CSV and as a frame."""

import json
import resource
import signal

import pandas as pd
import pytest

from commands.output_files import open_outputs
from commands.row_file import append_row
from commands.row_table import COLUMNS, RowTable, frame
from lipschitz.errors import InputError

SETTINGS = {"method": "crown", "norm": "inf", "eps": 0.1, "search": {"timeout": 60.0}}


def row(example: int, status: str = "bound", **changes) -> dict:
    found = {"label": None, "upper_bound": 2.5, "class_upper_bounds": [2.5, 1.0], "seconds": 0.25}
    return {"schema": 1, "example": example, **SETTINGS, **found, "status": status, **changes}


def test_pandas_reads_the_table(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    with RowTable(path) as table:
        table.append(row(0, load='a "b", c\nd.pth', cnn_to_mlp=False))
        table.append(row(1, "error", upper_bound=None, error="RuntimeError: x", traceback="a\nb"))
    found = pd.read_csv(path)
    assert tuple(found.columns) == COLUMNS
    assert found["upper_bound"].iloc[0] == 2.5
    assert pd.isna(found["upper_bound"].iloc[1])
    assert json.loads(found["class_upper_bounds"].iloc[0]) == [2.5, 1.0]
    assert json.loads(found["search"].iloc[0]) == {"timeout": 60.0}
    assert found["load"].iloc[0] == 'a "b", c d.pth'
    assert list(found["cnn_to_mlp"].iloc[:1]) == [False]
    assert not {"versions", "traceback"} & set(found.columns)


def test_a_table_alone_resumes(tmp_path):
    path = str(tmp_path / "rows.csv")
    for round_ in range(2):
        with open_outputs(None, path) as files:
            done = files.done(SETTINGS, range(3))
            assert list(done) == ([] if round_ == 0 else [0])
            for example in set(range(3)) - done.keys():
                files.append(row(example, "interrupted" if round_ == 0 and example else "bound"))
    assert (done[0]["upper_bound"], done[0]["seconds"], done[0]["status"]) == (2.5, 0.25, "bound")
    table = pd.read_csv(path)
    assert list(table["example"]) == [0, 1, 2]
    assert list(table["status"]) == ["bound"] * 3
    with open_outputs(None, path) as files:
        assert files.done({**SETTINGS, "eps": 0.2}, range(3)) == {}


def test_a_resumed_run_completes_its_table(tmp_path, capsys):
    """Of the rows that are there, the table gets what it lacks."""
    output, path = str(tmp_path / "rows.jsonl"), str(tmp_path / "rows.csv")
    with open_outputs(output, None) as files:
        files.append(row(0))
        files.append(row(1))
    for examples, said in ((range(3), "2 of 3 examples already"), (range(2), "nothing to compute")):
        with open_outputs(output, path) as files:
            assert list(files.done(SETTINGS, examples)) == [0, 1]
        assert said in capsys.readouterr().err
        assert list(pd.read_csv(path)["example"]) == [0, 1]


def test_nothing_is_said_of_a_first_run(tmp_path, capsys):
    with open_outputs(str(tmp_path / "rows.jsonl"), str(tmp_path / "rows.csv")) as files:
        assert files.done(SETTINGS, range(2)) == {}
    with open_outputs(None, None) as files:
        assert files.done(SETTINGS, range(2)) == {}
        files.append(row(0))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("whole", [True, False])
def test_a_line_cut_off_is_moved_aside(tmp_path, capsys, whole):
    path = tmp_path / "rows.csv"
    with RowTable(path) as table:
        table.append(row(0))
        table.append(row(1))
    content = path.read_bytes()
    cut = content[: -1 if whole else -30]
    path.write_bytes(cut)
    with RowTable(path) as table:
        assert list(table.done(SETTINGS)) == [0]
        table.append(row(1))
    assert path.read_bytes() == content
    assert (tmp_path / "rows.csv.broken").read_bytes() == cut.splitlines()[-1] + b"\n"
    assert "1 broken line moved to" in capsys.readouterr().err
    path.write_bytes(content[:20])  # of the header
    with RowTable(path):
        pass
    assert path.read_bytes() == content.splitlines(keepends=True)[0]


def test_another_table_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "signs.csv"
    path.write_text("example,feature,verdict\n0,1,increasing\n")
    with pytest.raises(InputError, match="has other columns than rows have"):
        RowTable(path).__enter__()
    assert path.read_text().startswith("example,feature")
    with (
        pytest.raises(InputError, match="name two files"),
        open_outputs(str(path), str(path)),
    ):
        pass


def test_two_runs_do_not_share_a_table(tmp_path):
    path = tmp_path / "rows.csv"
    with RowTable(path), pytest.raises(InputError, match=r"--csv .*rows\.csv: process"):
        RowTable(path).__enter__()


def test_no_space_for_the_header_frees_the_lock(tmp_path):
    path = tmp_path / "rows.csv"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(OSError, match="File too large"):
            RowTable(path).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    with RowTable(path) as table:
        table.append(row(0))
    assert len(pd.read_csv(path)) == 1


def test_a_frame_has_the_latest_rows_and_flat_names(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    append_row(one, row(0, "interrupted"))
    append_row(one, row(0, upper_bound=1.5, norm="2", weights="12e456789012"))
    append_row(one, row(0, upper_bound=1.0))
    append_row(two, row(1))
    found = frame(one, two)
    assert list(found["upper_bound"]) == [1.5, 1.0, 2.5]
    assert list(found["search.timeout"]) == [60.0] * 3
    assert found["weights"].iloc[0] == "12e456789012"  # not a number
    assert list(found["norm"]) == ["2", "inf", "inf"]
    with pytest.raises(InputError, match="no such file"):
        frame(tmp_path / "none.jsonl")
