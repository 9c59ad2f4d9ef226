"""Advice comes where a bound is far from the true gradient, and its command can be run."""

import shlex

import pytest

import main
from commands.advice import advice
from commands.options import check_options

ROW = {"upper_bound": 100.0, "lower_bound": 5.0, "status": "bound", "outputs": "each"}
BASE = ["--model", "own.py:make", "--input", "p.npz", "--eps", "0.1"]


def said(more: list[str], **changes) -> str | None:
    argv = [*BASE, *more]
    return advice(main.build_parser().parse_args(argv), argv, {**ROW, **changes}, "python main.py")


def test_a_tight_bound_needs_none():
    assert said([], upper_bound=49.9) is None
    assert said([], lower_bound=0.0) is None
    assert said([], upper_bound=None) is None


@pytest.mark.parametrize(
    ("more", "changes", "options"),
    [
        (["--method", "ibp", "--engine", "native"], {}, ["--method", "alpha"]),
        ([], {}, ["--bab", "--timeout", "60"]),
        (["--no-optimize"], {}, ["--bab", "--timeout", "60"]),
        (["--method=sdp", "--timeout", "5"], {}, ["--bab", "--timeout", "5"]),
        (["--bab", "--timeout", "5"], {"status": "timeout"}, ["--bab", "--timeout", "50"]),
    ],
)
def test_the_command_is_one_that_main_takes(more, changes, options):
    line = said(more, **changes)
    assert line.startswith("the bound is 20 times the true gradient found; ")
    command = shlex.split(line.rpartition(": ")[2])
    assert command == ["python", "main.py", *BASE, *options]
    parser = main.build_parser()
    check_options(parser.parse_args(command[2:]), parser.given(command[2:]))


@pytest.mark.parametrize(
    ("more", "changes", "options"),
    [
        ([], {}, ["--bab", "--timeout", "60"]),
        (["--norm", "2", "--no-optimize"], {}, ["--norm", "2", "--bab", "--timeout", "60"]),
        (["--bab", "--timeout", "5"], {"status": "timeout"}, ["--bab", "--timeout", "50"]),
    ],
)
def test_advice_on_curvature_is_of_its_own_search(more, changes, options):
    line = said(["--curvature", *more], **changes)
    assert line.startswith("the bound is 20 times the true Hessian found; ")
    command = shlex.split(line.rpartition(": ")[2])
    assert command == ["python", "main.py", *BASE, "--curvature", *options]
    parser = main.build_parser()
    check_options(parser.parse_args(command[2:]), parser.given(command[2:]))


def test_a_search_that_would_be_refused_is_no_advice():
    argv = [*BASE, "--curvature"]
    args = main.build_parser().parse_args(argv)
    line = advice(args, argv, ROW, "python main.py", can_search=False)
    assert line.endswith("take a smaller eps: there are too many inputs for branch and bound")


def test_where_no_command_helps_it_says_so():
    assert said(["--bab"], status="bound").endswith("has done what it can")
    assert "--outputs each" in said(["--norm", "2"], outputs="all")


@pytest.mark.parametrize("more", [[], ["--method", "joint"], ["--bab", "--timeout", "5"]])
def test_no_search_is_advised_where_it_gains_nothing(more):
    """Products of many inputs: only the box could be cut."""
    row = {"upper_bound": 50.0, "lower_bound": 2.5, "outputs": "each", "status": "timeout"}
    argv = [*BASE, *more]
    args = main.build_parser().parse_args(argv)
    line = advice(args, argv, row, "python main.py", can_search=False)
    assert "take a smaller eps: there are too many inputs for branch and bound" in line
    better = main.build_parser().parse_args([*BASE, "--method", "ibp"])
    line = advice(better, [*BASE, "--method", "ibp"], row, "python main.py", can_search=False)
    assert line.endswith("--method alpha")
