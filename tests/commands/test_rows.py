"""What is printed of rows, also where a method certifies nothing above."""

from commands.rows import line_of, summary_of

ROW = {"example": 3, "label": None, "lower_bound": 2.0, "status": "bound", "seconds": 0.5}


def test_a_certified_row():
    row = {**ROW, "label": 7, "upper_bound": 2.5}
    line = "example 3 label 7 upper 2.5000 lower 2.0000 status bound seconds 1.25"
    assert line_of(row, 1.25) == line
    assert summary_of([row, {**row, "upper_bound": 3.5}]) == "avg_lip 3.00 avg_time 0.50"


def test_a_lower_bound_alone_is_marked():
    row = {**ROW, "upper_bound": None}
    assert line_of(row, 1.25).startswith("example 3 label - upper - lower 2.0000")
    assert summary_of([{**row, "upper_bound": 2.5}, row]) == "avg_lip >=2.00 avg_time 0.50"
