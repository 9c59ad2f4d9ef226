"""The run over examples: boxes, counts, CSV, mistakes."""

from __future__ import annotations

import csv

import pytest
import torch
from cases import REFERENCES, mlp
from oracles import jacobian, points_in_box
from sign_checks import contradictions, line_problem

from lipschitz.applications.monotonicity import (
    MonotonicityOptions,
    count_signs,
    run_monotonicity,
    table,
)
from lipschitz.applications.sign_search import SignLimits
from lipschitz.applications.signs import INCREASING
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph

QUICK = SignLimits(timeout=3)


def options(**changes):
    return MonotonicityOptions(**{"features": {0: "first", 3: "last"}, "limits": QUICK, **changes})


def test_run_over_examples(tmp_path):
    torch.manual_seed(0)
    model = mlp(4, 8, 8, 2).eval()
    graph, points = build_graph(model, (4,)), torch.rand(3, 4)
    path, seen = tmp_path / "folder" / "signs.csv", []
    signs = run_monotonicity(graph, points, options(csv=path, start=7), seen.append)
    assert [s.example for s in signs] == [7] * 4 + [8] * 4 + [9] * 4
    assert sum(seen, []) == signs  # noqa: RUF017
    for index, x in enumerate(points):
        for sign in signs[4 * index : 4 * index + 4]:
            problem = line_problem(graph, x, sign.feature)
            line = points_in_box(problem.lower, problem.upper, 100)
            assert not contradictions(model, problem, [sign], line)
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 12
    assert [row["verdict"] for row in rows] == [s.verdict for s in signs]
    assert (rows[0]["name"], rows[2]["name"], rows[1]["output"]) == ("first", "last", "1")
    assert float(rows[5]["upper"]) == signs[5].upper
    counts = count_signs(signs)
    assert list(counts) == [(0, "0"), (0, "1"), (3, "0"), (3, "1")]
    assert all(sum(count.values()) == 3 for count in counts.values())
    lines = table(signs, {0: "first", 3: "last"}).splitlines()
    assert len(lines) == 6
    assert lines[2].startswith("| first | 0 | ")


def test_run_in_other_boxes_and_directions():
    reference = REFERENCES[1]
    graph, x = build_graph(reference.model(), (16,)), reference.point()[None]
    small = run_monotonicity(graph, x, options(eps=0.001, classes=[4]))
    assert {s.row for s in small} == {"4"}
    truth = jacobian(reference.model(), x[0])[4, [0, 3]]
    assert [s.verdict == INCREASING for s in small] == [bool(t > 0) for t in truth]
    margins = run_monotonicity(graph, x, options(eps=0.001, margin_of=4))
    assert len(margins) == 18
    assert margins[0].row == "4-0"
    narrow = run_monotonicity(graph, x, options(interval=(0.49, 0.51)))
    wide = run_monotonicity(graph, x, options(interval=(-1.0, torch.full((16,), 2.0))))
    assert all(
        n.lower >= w.lower - 1e-9 and n.upper <= w.upper + 1e-9
        for n, w in zip(narrow, wide, strict=True)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {4: "x"}}, "feature 4 does not exist: there are 0 to 3"),
        ({"features": {-1: "x"}}, "feature -1 does not exist"),
        ({"features": {}}, "no feature"),
        ({"features": {}, "eps": 0.1}, "no feature"),
        ({"interval": (1.0, 0.0)}, "is empty"),
        ({"interval": (0.0, float("inf"))}, "finite"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"classes": [2]}, "0 to 1"),
    ],
)
def test_mistakes_are_told(changes, message):
    graph = build_graph(mlp(4, 3, 2).eval(), (4,))
    with pytest.raises(InputError, match=message) as error:
        run_monotonicity(graph, torch.rand(1, 4), options(**changes))
    assert "\n" not in str(error.value)


def test_whole_numbers_and_lists_are_points_too():
    """The range of the free feature is not cut off to whole numbers with them."""
    torch.manual_seed(0)
    graph = build_graph(mlp(4, 3, 2).eval(), (4,))
    points = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]])
    asked = options(features={0: "a", 2: "b"}, interval=(0.25, 0.75))
    expected = run_monotonicity(graph, points.float(), asked)
    for given in (points, points.tolist(), points.numpy()):
        found = run_monotonicity(graph, given, asked)
        assert [(s.lower, s.upper) for s in found] == [(s.lower, s.upper) for s in expected]


def test_options_that_make_no_sense_are_refused_when_they_are_made():
    for changes, words in (
        ({"interval": 0.5}, "^interval 0.5: expected a pair"),
        ({"start": -1}, "^start -1: expected a whole number, 0 or larger"),
    ):
        with pytest.raises(InputError, match=words):
            options(**changes)


def test_examples_of_another_shape_are_told():
    graph = build_graph(mlp(4, 3, 2).eval(), (4,))
    with pytest.raises(InputError, match=r"points have shape \(4,\): expected a batch"):
        run_monotonicity(graph, torch.rand(4), options())
    with pytest.raises(InputError, match=r"^feature 0.5: expected a whole number"):
        run_monotonicity(graph, torch.rand(1, 4), options(features={0.5: "half"}))
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        run_monotonicity(graph, torch.rand(1, 5), options())
