"""The table of a row's names against rows that main.py writes."""

import json

import pytest
from cases import REFERENCE

import main
from commands import examples
from commands.row_schema import FAILED, KINDS, ROW_SCHEMA, kind_of_row, schema_table
from utils import run_cli

WEIGHTS = str(REFERENCE / "simple_mlp_3layer_16.pth")
ARGV = ["--data", "simple", "--model", "simple_mlp_3layer", "--width", "16", "--load", WEIGHTS]
ARGV += ["--quiet", "--output", "rows.jsonl"]


@pytest.fixture
def rows_by_kind(tmp_path, monkeypatch) -> dict[str, dict]:
    """A real row of each kind."""
    monkeypatch.chdir(tmp_path)
    assert run_cli(main.main, [*ARGV, "--eps", "0.05", "--method", "ibp"]) == 0
    assert run_cli(main.main, [*ARGV, "--certify", "--method", "ibp"]) == 0

    def fails(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(examples, "bound_example", fails)
    assert run_cli(main.main, [*ARGV, "--eps", "0.1"]) == 2
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    return {kind_of_row(row): row for row in rows}


def test_every_name_of_a_row_is_described_and_the_other_way_round(rows_by_kind):
    assert rows_by_kind.keys() == set(KINDS)
    for kind, row in rows_by_kind.items():
        described = {name for name, column in ROW_SCHEMA.items() if kind in column.kinds}
        assert row.keys() == described


def test_what_is_never_null_is_not(rows_by_kind):
    for row in rows_by_kind.values():
        never = {name for name in row if not ROW_SCHEMA[name].absent}
        assert [name for name in never if row[name] is None] == []


def test_the_table_for_the_docs_has_a_line_per_name():
    lines = schema_table().splitlines()
    assert len(lines) == 2 + len(ROW_SCHEMA)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    (error,) = [line for line in lines if line.startswith("| `error` |")]
    assert f"(rows of {FAILED})" in error
