"""The command from the manifest to its files, and what it does when something goes wrong."""

import json

import pytest

from benchmarks.others import __main__ as others
from benchmarks.others import process
from benchmarks.others.process import rows_of
from benchmarks.others.rows import ATTACK, Row, RowFile
from utils import run_cli


def arguments(nets, *more):
    return ["--nets", str(nets), "--output", str(nets / "out"), "--timeout", "0.5", *more]


def test_a_run_and_a_rerun(nets, capsys):
    argv = arguments(nets, "--only", "mlp", "--set", "wider", "--methods", "bab,crown")
    assert run_cli(others.main, argv) == 0
    text = (nets / "out" / "others.csv").read_text()
    rows = RowFile(nets / "out" / "others.csv").rows
    assert [row.method for row in rows] == ["crown", "bab", ATTACK]
    crown, bab, attack = rows
    assert attack.course[-1][1] == attack.lower > 0
    assert crown.upper >= bab.upper >= attack.lower * (1 - 1e-6)
    assert (nets / "out" / "others.png").stat().st_size > 1000
    markdown = (nets / "out" / "others.md").read_text()
    assert "| mlp | 1/100 |" in markdown
    exact = int("exact" in (crown.status, bab.status))
    assert f"exact: {exact} of 1" in markdown
    assert "Nothing was found." in markdown
    assert "geometric mean of the best ratio: " in capsys.readouterr().out

    # Nothing is left to measure: no process is needed, no row is added.
    def none(job):
        raise AssertionError(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(others, "rows_of", none)
        assert run_cli(others.main, argv) == 0
    assert (nets / "out" / "others.csv").read_text() == text


def test_an_unsound_bound_is_loud(nets, monkeypatch, capsys):
    """Negative control: a worker that claims half the truth."""

    def wrong(job):
        for method in job["methods"]:
            if method == ATTACK:
                yield {"method": method, "lower": 2.0, "status": "attack", "course": [(0.1, 2.0)]}
            else:
                yield {"method": method, "upper": 1.0, "lower": 1.0, "status": "exact"}

    monkeypatch.setattr(others, "rows_of", wrong)
    argv = arguments(nets, "--only", "cnn", "--methods", "alpha")
    assert run_cli(others.main, argv) == 1
    said = capsys.readouterr()
    assert "WRONG" in said.err
    assert "UNSOUND: alpha 1 is below an attacked gradient of 2" in said.err
    assert "UNSOUND" in (nets / "out" / "others.md").read_text()


def test_a_contradicted_published_value_is_loud(nets, monkeypatch, capsys):
    path = nets / "manifest.json"
    entries = json.loads(path.read_text())
    entries[0]["published"] = {"norm": 2, "region": "R^n", "value": 5.0}
    path.write_text(json.dumps(entries))

    def answers(job):
        for method in job["methods"]:
            cells = {"upper": None} if method == ATTACK else {"upper": 3.0}
            yield {"method": method, "lower": 2.9, "status": "bound", **cells}

    monkeypatch.setattr(others, "rows_of", answers)
    argv = arguments(nets, "--only", "mlp", "--methods", "alpha")
    assert run_cli(others.main, argv) == 1
    assert "CONTRADICTION: a bound everywhere is smaller" in capsys.readouterr().err


def test_ctrl_c_keeps_the_rows(nets, monkeypatch):
    def interrupted(job):
        yield {"method": job["methods"][0], "lower": 2.0, "status": "bound"}
        raise KeyboardInterrupt

    monkeypatch.setattr(others, "rows_of", interrupted)
    assert run_cli(others.main, arguments(nets)) == 130
    (row,) = RowFile(nets / "out" / "others.csv").rows
    assert (row.network, row.method, row.lower) == ("mlp", "ibp", 2.0)


def test_a_report_of_what_is_there(nets, capsys):
    file = RowFile(nets / "out" / "others.csv")
    argv = arguments(nets, "--report-only", "--methods", "alpha")
    assert run_cli(others.main, argv) == 2
    assert "has no rows of these boxes" in capsys.readouterr().err
    file.add(Row("table", "mlp", "0.5", "alpha", 0.5, 3.0, 2.0, "bound", 0.5))
    assert run_cli(others.main, argv) == 0
    assert "| mlp | 0.5 |" in (nets / "out" / "others.md").read_text()
    assert "| cnn |" not in (nets / "out" / "others.md").read_text()


def test_too_little_memory_ends_in_rows(nets):
    entry = json.loads((nets / "manifest.json").read_text())[0]
    job = {
        "kind": "attack",
        "methods": [ATTACK],
        "entry": entry,
        "eps": "0.5",
        "folder": str(nets),
        "seconds": 1,
        "threads": 1,
        "memory": 0.001,
        "seed": 0,
    }
    (row,) = list(rows_of(job))
    assert row["method"] == ATTACK
    assert row["status"] in ("out of memory", "crashed")


def test_after_a_crash_the_other_methods_go_on(monkeypatch):
    def one_process(job):
        first = job["methods"][0]
        if first != "sdp":
            yield {"method": first, "status": "bound"}
        yield {"status": "crashed", "note": "signal 11"}

    monkeypatch.setattr(process, "_one_process", one_process)
    rows = list(rows_of({"methods": ["alpha", "sdp", "bab"]}))
    assert [(row["method"], row["status"]) for row in rows] == [
        ("alpha", "bound"),
        ("sdp", "crashed"),
        ("bab", "bound"),
    ]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "others.csv"
    file = RowFile(path)
    file.add(Row("table", "net", "0.1", "alpha", 1.0, 3.0, 2.0, "bound", 0.5, 0.4, "a, b"))
    whole = path.read_text()
    path.write_text(whole + "table,net,0.1,ba")
    again = RowFile(path)
    assert path.read_text() == whole
    assert again.rows == file.rows
    assert again.has(("net", "0.1", "alpha", 1.0))
    assert not again.has(("net", "0.1", "alpha", 2.0))


def test_what_crashed_is_tried_again(tmp_path):
    file = RowFile(tmp_path / "others.csv")
    file.add(Row("table", "net", "0.1", "alpha", 1.0, status="crashed"))
    assert not file.has(("net", "0.1", "alpha", 1.0))


def test_an_attack_that_was_shorter_than_a_method_is_made_again(tmp_path):
    file = RowFile(tmp_path / "others.csv")
    file.add(Row("table", "net", "0.1", ATTACK, 60.0, None, 2.0, "attack", 5.0))
    assert file.has(("net", "0.1", ATTACK, 60.0), 5.2)
    assert not file.has(("net", "0.1", ATTACK, 60.0), 60.0)


def test_another_csv_is_refused(nets, capsys):
    out = nets / "out"
    out.mkdir()
    (out / "others.csv").write_text("a,b\n1,2\n")
    assert run_cli(others.main, arguments(nets)) == 2
    assert "other columns" in capsys.readouterr().err
