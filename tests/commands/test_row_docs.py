"""The page on rows shows the table that the rows are held against."""

from pathlib import Path

from commands.row_schema import ROW_SCHEMA, schema_table

PAGE = Path(__file__).parents[2] / "docs/rows.md"


def test_page_has_the_present_table():
    page = PAGE.read_text()
    missing = [line for line in schema_table().splitlines() if line not in page.splitlines()]
    assert not missing, f"docs/rows.md: put the output of schema_table() there; it lacks {missing}"


def test_page_has_no_name_that_rows_lack():
    names = [line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert names == list(ROW_SCHEMA)
