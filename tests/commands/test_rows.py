"""What is printed of rows, also where a method certifies nothing above."""

import pytest

from commands.certify import certify_line, certify_summary
from commands.rows import line_of, summary_of

ROW = {"example": 3, "label": None, "lower_bound": 2.0, "status": "bound", "seconds": 0.5}


def test_a_certified_row():
    row = {**ROW, "label": 7, "upper_bound": 2.5}
    line = "example 3 label 7 upper 2.5 lower 2 status bound seconds 0.5"
    assert line_of(row) == line
    assert summary_of([row, {**row, "upper_bound": 3.5}]) == "avg_lip 3 avg_time 0.5"


def test_a_lower_bound_alone_is_marked():
    row = {**ROW, "upper_bound": None}
    assert line_of(row).startswith("example 3 label - upper - lower 2")
    assert summary_of([{**row, "upper_bound": 2.5}, row]) == "avg_lip >=2 avg_time 0.5"


@pytest.mark.parametrize(
    ("bound", "shown"),
    [(2.26644e-5, "2.26644e-05"), (1.5e12, "1.5e+12"), (109.5159, "109.516"), (0.5, "0.5")],
)
def test_digits_are_significant_whatever_the_size(bound, shown):
    row = {**ROW, "upper_bound": bound, "lower_bound": bound, "seconds": 0.0004}
    assert f"upper {shown} lower {shown} " in line_of(row)
    assert summary_of([row]) == f"avg_lip {shown} avg_time 0.0004"
    radius = {**ROW, "radius": bound, "margin": bound, "nearest": 1, "status": "certified"}
    assert f"radius {shown} margin {shown} " in certify_line(radius)
    assert f"avg_radius {shown} " in certify_summary([radius])


def test_what_was_not_reached_is_on_the_line():
    row = {**ROW, "upper_bound": 3.0, "not_reached": ["slope optimisation", "programs"]}
    assert line_of(row).endswith("not reached: slope optimisation, programs")
