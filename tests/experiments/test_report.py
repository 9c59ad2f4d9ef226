import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import report
from utils import run_cli


def row(**changes) -> dict:
    base = {
        "data": "digits",
        "model": "net",
        "model_params": {"width": 4},
        "weights": "abc",
        "method": "crown",
        "engine": "auto_lirpa",
        "optimize": True,
        "eps": 0.1,
        "example": 0,
        "upper_bound": 3.0,
        "lower_bound": 2.0,
        "status": "bound",
        "seconds": 1.0,
    }
    return {**base, **changes}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_table_holds_the_means(tmp_path):
    rows = [
        row(),
        row(example=1, upper_bound=5.0, lower_bound=5.0, status="exact", seconds=3.0),
        row(eps=0.2, upper_bound=7.0),
    ]
    table = report.summarise(report.load_rows([write(tmp_path / "rows.jsonl", rows)]))
    assert list(table["examples"]) == [2, 1]
    first = table.iloc[0]
    assert (first["upper_bound"], first["lower_bound"], first["seconds"]) == (4.0, 3.5, 2.0)
    assert first["exact"] == 1
    assert first["ratio"] == pytest.approx(4.0 / 3.5)
    assert first["network"] == "net(width=4)"


def test_a_method_without_upper_bound_gets_a_dash(tmp_path):
    rows = [row(), row(method="sampling", upper_bound=None, status="lower_bound_only")]
    table = report.summarise(report.load_rows([write(tmp_path / "rows.jsonl", rows)]))
    assert "| sampling | 0.1 | 1 | - | 2.000 | - | 0 | 1.00 |" in report.to_markdown(table)
    report.draw(table, tmp_path / "bounds.png")
    assert (tmp_path / "bounds.png").is_file()


def test_a_row_written_twice_counts_once(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row(upper_bound=9.0), row()])
    table = report.summarise(report.load_rows([path]))
    assert (table["examples"][0], table["upper_bound"][0]) == (1, 3.0)


def test_script_writes_table_and_picture(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row(), row(eps=0.2), row(model="other", method="ibp")])
    script = Path(report.__file__)
    command = [sys.executable, str(script), path, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| digits | net(width=4) | crown | 0.1 | 1 | 3.000 | 2.000 | 1.500 | 0 | 1.00 |" in (
        done.stdout
    )
    assert (tmp_path / "out/table.md").read_text() in done.stdout
    assert (tmp_path / "out/bounds.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "out/table.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("content", [None, ""])
def test_no_rows_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    assert run_cli(report.main, [str(path), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_traces_become_a_picture(tmp_path, capsys):
    states = [
        {"example": 0, "seconds": s, "upper_bound": 9.0 - s, "lower_bound": 2.0} for s in range(3)
    ]
    path = write(tmp_path / "trace.jsonl", states)
    assert run_cli(report.main, ["--trace", path, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    missing = str(tmp_path / "none.jsonl")
    assert run_cli(report.main, ["--trace", missing, "--output", str(tmp_path)]) == 2
    assert "there is no such trace" in capsys.readouterr().err
