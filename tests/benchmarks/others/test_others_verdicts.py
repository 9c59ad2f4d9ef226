"""What the scoreboard says of rows: ratios, means, and every kind of wrong."""

import pytest

from benchmarks.others.rows import ATTACK, Row
from benchmarks.others.verdicts import check_published, summary, verdict

LADDER = ("ibp", "crown", "alpha", "bab")


def row(method, upper=None, lower=None, status="bound", seconds=1.0, **more):
    return Row("table", "net", "0.1", method, 10.0, upper, lower, status, seconds, **more)


def attack(norm, at=0.5):
    return row(ATTACK, None, norm, "attack", 10.0, course=((at, norm),))


def test_ratios_and_the_best_method():
    found = verdict([attack(2.0), row("crown", 4.0, 1.97), row("alpha", 3.0, 1.98)], LADDER)
    assert found.best == "alpha"
    assert (found.ratio("crown"), found.ratio("alpha"), found.ratio("bab")) == (2, 1.5, None)
    assert found.truth == found.attack == 2
    assert not found.wrong
    assert not found.exact
    assert not found.near


def test_the_truth_is_the_larger_of_both_sides():
    found = verdict([attack(2.0), row("alpha", 3.0, 2.5)], LADDER)
    assert found.truth == 2.5
    assert found.ratio("alpha") == pytest.approx(1.2)


def test_an_upper_bound_below_an_attacked_gradient_is_unsound():
    found = verdict([attack(2.0), row("alpha", 1.99, 1.99, "exact")], LADDER)
    assert any("UNSOUND: alpha" in line for line in found.wrong)


def test_rounding_alone_is_not_unsound():
    assert not verdict([attack(2.0), row("alpha", 2 - 1e-7, 2 - 1e-7)], LADDER).wrong


def test_a_lower_bound_above_another_upper_bound_is_unsound():
    found = verdict([row("crown", 2.0, 1.0), row("alpha", 5.0, 4.0)], ("alpha", "crown"))
    assert any("UNSOUND: alpha's lower bound" in line for line in found.wrong)


def test_a_method_above_a_cheaper_one():
    rows = [row("crown", 2.0, 2.0), row("alpha", 2.1, 2.0)]
    assert verdict(rows, LADDER).wrong == ("alpha 2.1 is above crown 2",)


def test_a_method_above_a_cheaper_one_that_took_longer_is_let_be():
    assert not verdict([row("crown", 2.0, 2.0, seconds=3), row("alpha", 2.1, 2.0)], LADDER).wrong


def test_no_bound_where_a_cheaper_method_has_one():
    rows = [row("crown", 2.0, 2.0), row("bab", status="out of memory", seconds=2)]
    assert verdict(rows, LADDER).wrong == ("bab has no bound (out of memory), crown has",)
    refused = [row("crown", 2.0, 2.0), row("bab", status="refused", seconds=2)]
    assert not verdict(refused, LADDER).wrong


def test_a_weak_lower_bound_in_equal_time():
    weak = row("bab", 3.0, 1.9)
    assert "0.950" in verdict([attack(2.0), weak], LADDER).wrong[0]
    assert not verdict([attack(2.0, at=1.5), weak], LADDER).wrong  # found later


def test_a_method_past_its_limit():
    rows = [row("crown", 2.0, 2.0), row("bab", 2.0, 2.0, seconds=11.5)]
    assert verdict(rows, LADDER).late == ("bab",)


def test_the_last_row_of_a_method_counts():
    rows = [row("alpha", status="crashed"), row("alpha", 3.0, 3.0, "exact")]
    assert verdict(rows, LADDER).exact


def test_no_gradient_at_all():
    flat = verdict([attack(0.0), row("alpha", 0.0, 0.0, "exact")], LADDER)
    assert flat.ratio("alpha") == 1
    open_box = verdict([attack(0.0), row("alpha", 1.0, 0.0)], LADDER)
    assert open_box.ratio("alpha") is None
    assert summary([open_box], LADDER).mean is None


def test_means_and_counts():
    one = verdict([attack(1.0), row("alpha", 4.0, 1.0), row("bab", 1.0005, 1.0)], LADDER)
    two = verdict([attack(1.0), row("alpha", 9.0, 1.0), row("bab", 1.0, 1.0, "exact")], LADDER)
    lost = verdict([attack(1.0), row("alpha", status="crashed")], LADDER)
    found = summary([one, two, lost], LADDER)
    assert (found.boxes, found.compared, found.exact, found.near) == (3, 2, 1, 2)
    assert found.means["alpha"] == (pytest.approx(6), 2)
    assert found.mean == pytest.approx(1.0005**0.5)


def published(value):
    return {"published": {"norm": 2, "region": "R^n", "value": value}}


@pytest.mark.parametrize(
    ("value", "word", "wrong"),
    [
        (2.0, "agrees", False),
        (2.5, "not contradicted", False),
        (1.9, "CONTRADICTION: a true gradient", True),
        (4.0, "CONTRADICTION: a bound everywhere", True),
        (None, "not available", False),
    ],
)
def test_published_values(value, word, wrong):
    rows = [row("global", 3.0, 0.5), row("bab", 2.001, 2.0)]
    text, contradicted = check_published(published(value), rows)
    assert text.startswith(word)
    assert contradicted is wrong


def test_a_published_value_without_bounds_is_not_available():
    assert check_published(published(2.0), []) == ("not measured yet", False)
    refused = [row("global", status="refused"), row("bab", status="crashed")]
    assert check_published(published(2.0), refused)[0].startswith("not available")
