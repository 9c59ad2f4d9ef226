"""``main.py --curvature`` as a user calls it, against the library and true Hessians."""

import itertools
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import ROOT
from main_calls import refused, rows, run

from commands import curvature as command
from lipschitz import local_curvature
from lipschitz.search import curvature

OWN = """
import torch
from torch import nn

def mlp(activation, inputs=3):
    torch.manual_seed(0)
    layers = nn.Linear(inputs, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 2)
    return nn.Sequential(*layers).double().eval()

def tanh(): return mlp(nn.Tanh())
def wide(): return mlp(nn.Tanh(), 80)
def relu(): return mlp(nn.ReLU())
def kinked(): return mlp(nn.ELU(2.0))
def jumps(): return mlp(nn.Hardswish())
def affine(): return mlp(nn.Identity())

def tiny():
    model = mlp(nn.Tanh())
    model[-1].weight.data *= 1e-9
    return model

def pooled():
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Tanh(), nn.MaxPool1d(2), nn.Flatten()).eval()

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)
    def forward(self, x):
        return torch.tanh(self.one(x)) * torch.sigmoid(self.other(x))

def gate():
    torch.manual_seed(0)
    return Gate().double().eval()

class Square(nn.Module):
    def forward(self, x):
        return x.square()

def overflows():
    return nn.Sequential(nn.Linear(3, 2), Square(), nn.Linear(2, 2), Square()).eval()
"""
X = np.random.default_rng(0).uniform(-1, 1, (3, 3))
EPS = 0.2
ARGV = ["--model", "own.py:tanh", "--input", "points.npz", "--eps", str(EPS), "--curvature"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    np.savez("points.npz", x=X, y=np.array([0, 1, 0]))
    np.savez("wide.npz", x=np.zeros((1, 80)))


def model(name: str) -> torch.nn.Module:
    scope: dict = {}
    exec(OWN, scope)
    return scope[name]()


def true_norms(name: str, x: np.ndarray, eps: float, norm: str) -> torch.Tensor:
    """The largest norm of every output's Hessian at points of the box, by brute force, [C]."""
    network, centre = model(name), torch.from_numpy(x)
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(200, 3, generator=generator, dtype=torch.float64) * 2 - 1
    share[:100] = share[:100].sign()
    points = centre + eps * share
    hessian = torch.func.vmap(torch.func.hessian(lambda z: network(z[None])[0]))
    found = hessian(points).detach()  # [P, C, D, D]
    if norm == "2":
        return torch.linalg.matrix_norm(found, ord=2).amax(0)
    if norm == "1":
        return found.abs().amax((0, 2, 3))
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=3))).to(found)
    return (found @ signs.T).abs().sum(2).amax((0, 2))


def check_true(row: dict, true: torch.Tensor) -> None:
    """Raises unless the row's bounds hold for these norms at points of the box."""
    assert len(row["class_upper_bounds"]) == len(true)
    assert bool((torch.tensor(row["class_upper_bounds"]).double() >= true * (1 - 1e-12)).all())
    assert float(true.max()) <= row["upper_bound"] * (1 + 1e-12)
    assert 0.9 * float(true.max()) <= row["lower_bound"] <= row["upper_bound"]


# --- what is bounded ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_rows_hold_for_true_hessians_and_are_those_of_the_library(norm, capsys):
    first, second = rows(*ARGV, "--norm", norm, "--num-examples", "2")
    for row, x in zip((first, second), X, strict=False):
        check_true(row, true_norms("tanh", x, EPS, norm))
        expected = local_curvature(model("tanh"), x, EPS, norm, search=False)
        assert row["upper_bound"] == pytest.approx(expected.upper_bound, rel=1e-9)
        assert row["class_upper_bounds"] == pytest.approx(expected.class_upper_bounds, rel=1e-9)
    assert first["upper_bound"] == first["root_upper_bound"] == max(first["class_upper_bounds"])
    said = {
        "method": "curvature",
        "engine": "native",
        "search": {},
        "norm": norm,
        "outputs": "each",
        "kind": "local, upper bound",
        "status": "bound",
        "domains": 0,
        "branch": None,
        "eps": EPS,
        "label": 0,
        "dtype": "float64",
        "optimize": True,
        "ob_iteration": None,
    }
    assert said.items() <= first.items()
    mean = (first["upper_bound"] + second["upper_bound"]) / 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"example 0 label 0 upper {first['upper_bound']:.6g} lower ")
    assert lines[-1].startswith(f"avg_curvature {mean:.6g} avg_time ")


def test_a_bound_that_is_too_low_is_caught():
    """Negative control."""
    (row,) = rows(*ARGV)
    low = {**row, "class_upper_bounds": [0.9 * b for b in row["class_upper_bounds"]]}
    with pytest.raises(AssertionError):
        check_true(low, true_norms("tanh", X[0], EPS, "inf"))


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_bab_cuts_the_box_until_the_bounds_meet(norm):
    argv = [*ARGV, "--norm", norm, "--bab", "--timeout", "60", "--tolerance", "1e-3"]
    (row,) = rows(*argv, "--trace", "trace.jsonl")
    assert row["status"] == "exact"
    assert row["upper_bound"] <= row["lower_bound"] * (1 + 1e-3)
    assert row["upper_bound"] < row["root_upper_bound"]
    check_true(row, true_norms("tanh", X[0], EPS, norm))
    assert (row["method"], row["branch"], row["kind"]) == (
        *("curvature", "input", "local, exact given time"),
    )
    assert row["domains"] > 0
    expected = {"timeout": 60, "branch": "input", "batch_size": None, "max_domains": None}
    assert row["search"] == expected
    states = [json.loads(line) for line in Path("trace.jsonl").read_text().splitlines()]
    uppers = [state["upper_bound"] for state in states]
    assert uppers == sorted(uppers, reverse=True)
    assert uppers[-1] == pytest.approx(row["upper_bound"])


def test_options_of_the_search():
    argv = [*ARGV, "--bab", "--batch-size", "4", "--max-domains", "2", "--memory-budget", "1"]
    (row,) = rows(*argv, "--timeout", "30", "--no-optimize", "--eps", "1")
    assert row["status"] == "domain_limit"
    assert row["search"]["max_domains"] == 2
    assert row["optimize"] is False
    check_true(row, true_norms("tanh", X[0], 1.0, "inf"))


def test_outputs_margins_boxes_and_fixed_inputs():
    one = true_norms("tanh", X[0], EPS, "inf")
    (row,) = rows(*ARGV, "--classes", "1")
    check_true(row, one[1:])
    (row,) = rows(*ARGV, "--norm", "2", "--margins", "--outputs", "each")
    assert len(row["class_upper_bounds"]) == 1
    assert row["margins"] == "label"
    free = [a for a in ARGV if a not in ("--eps", str(EPS), "--input", "points.npz")]
    ends = ";".join(f"{c - EPS!r},{c + EPS!r}" for c in map(float, X[0]))
    (row,) = rows(*free, "--box", ends)
    check_true(row, one)
    (whole,), (less,) = rows(*ARGV), rows(*ARGV, "--fixed", "0,2")
    assert less["upper_bound"] < whole["upper_bound"]
    (unequal,) = rows(*ARGV[:4], "--eps", f"0,{EPS},0", "--curvature")
    assert unequal["upper_bound"] == pytest.approx(less["upper_bound"], rel=1e-9)


def test_products_of_two_values_are_bounded():
    (row,) = rows("--model", "own.py:gate", *ARGV[2:])
    check_true(row, true_norms("gate", X[0], EPS, "inf"))


def test_an_affine_network_has_none():
    (row,) = rows("--model", "own.py:affine", *ARGV[2:], "--bab")
    assert (row["status"], row["upper_bound"], row["lower_bound"]) == ("exact", 0.0, 0.0)


def test_tiny_numbers_are_printed_as_they_are(capsys):
    (row,) = rows("--model", "own.py:tiny", *ARGV[2:])
    assert 0 < row["lower_bound"] <= row["upper_bound"] < 1e-6
    out = capsys.readouterr().out
    assert f" upper {row['upper_bound']:.6g} " in out
    assert f"avg_curvature {row['upper_bound']:.6g} " in out
    assert "0.0000" not in out


def read(terminal: int) -> str:
    try:
        return os.read(terminal, 2**16).decode()
    except OSError:  # Linux: the other side is closed
        return ""


def test_as_a_process_with_its_progress_on_stderr():
    command = [sys.executable, str(ROOT / "main.py"), *ARGV, "--norm", "2", "--bab"]
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    here, there = os.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))  # its width
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=there, text=True) as process:
        os.close(there)
        progress = "".join(iter(lambda: read(here), ""))
        os.close(here)
        out, _ = process.communicate()
    assert process.returncode == 0, progress
    line, summary = out.splitlines()
    assert line.startswith("example 0 label 0 upper ")
    assert summary.startswith("avg_curvature ")
    assert "examples" in progress
    assert " upper 0.0" in progress  # of the search, while it goes on
    assert " open " in progress
    assert "Traceback" not in progress


# --- time and Ctrl-C ----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--bab"]])
def test_a_time_limit_is_kept_by_the_first_example_too(more):
    Path("own.py").write_text(OWN.replace("(inputs, 6)", "(inputs, 64)").replace("(6,", "(64,"))
    argv = [*ARGV, *more, "--timeout", "0.5", "--tolerance", "1e-9", "--num-examples", "2"]
    for row in rows(*argv, "--eps", "3"):
        assert row["seconds"] < 0.5 * 1.1 + 0.3  # what else the machine does
        assert row["search"]["timeout"] == 0.5
        assert row["status"] in (("timeout",) if more else ("timeout", "bound"))
        assert 0 < row["lower_bound"] <= row["upper_bound"] <= row["root_upper_bound"]


def test_hardly_any_time_still_gives_bounds():
    (row,) = rows(*ARGV, "--timeout", "1e-6")
    assert row["status"] == "timeout"
    assert row["not_reached"]
    assert float(true_norms("tanh", X[0], EPS, "inf").max()) <= row["upper_bound"] < float("inf")


@pytest.mark.parametrize("more", [[], ["--bab"]])
def test_ctrl_c_keeps_what_is_certified(more, monkeypatch, capsys):
    calls, where = [], "children" if more else "root"
    owner = curvature.DirectionSearch if more else curvature._Curvature
    real = getattr(owner, where)

    def interrupted(self, *args):
        calls.append(self)
        if len({id(each) for each in calls}) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    argv = [*ARGV, *more, "--num-examples", "3", "--tolerance", "1e-2"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, interrupted)
        first, second = rows(*argv, code=130)
    assert first["status"] in ("bound", "exact")
    assert second["status"] == "interrupted"
    for row, x in ((first, X[0]), (second, X[1])):
        true = true_norms("tanh", x, EPS, "inf")
        assert float(true.max()) <= row["upper_bound"] < float("inf")
    captured = capsys.readouterr()
    assert "avg_curvature" in captured.out
    assert captured.err == "error: interrupted; the bounds of 2 examples are certified\n"
    assert run(*argv, "--output", "rows.jsonl") == 0
    again = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [row["example"] for row in again] == [0, 1, 2]
    assert "interrupted" not in {row["status"] for row in again}


# --- rows that are there ------------------------------------------------------------------------


def test_rows_of_curvature_are_never_taken_for_others(capsys):
    plain = [a for a in ARGV if a != "--curvature"]
    questions = [
        [*plain, "--engine", "native"],
        ARGV,
        [*ARGV, "--timeout", "60"],
        [*ARGV, "--bab", "--tolerance", "1e-2"],
        [*ARGV, "--tolerance", "1e-2"],
        [*ARGV, "--bab", "--tolerance", "1e-2", "--timeout", "50"],
        [*ARGV, "--norm", "2"],
        [*ARGV, "--no-optimize"],
    ]
    for _ in range(2):  # the second time nothing is computed
        capsys.readouterr()
        for argv in questions:
            assert run(*argv, "--output", "all.jsonl", "--csv", "all.csv") == 0
    assert "example" not in capsys.readouterr().out
    found = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert len(found) == len(questions) == len(Path("all.csv").read_text().splitlines()) - 1
    assert [row["method"] for row in found] == ["crown"] + ["curvature"] * (len(questions) - 1)


# --- what is refused ----------------------------------------------------------------------------

NONE = {
    "relu": "ReLU ('_1') is made of straight pieces",
    "kinked": "the slope of ELU",
    "jumps": "the slope of Hardswish ('_1') jumps",
    "pooled": "max pooling",
}


@pytest.mark.parametrize("name", NONE)
def test_a_network_without_curvature_is_one_line_and_costs_no_rows(name, capsys, monkeypatch):
    plain = ["--model", f"own.py:{name}", *(a for a in ARGV[2:] if a != "--curvature")]
    assert run(*plain, "--output", "rows.jsonl", "--method", "ibp", "--engine", "native") == 0
    before = Path("rows.jsonl").read_bytes()
    monkeypatch.setattr(command, "bound_curvature", None)  # nothing is bounded
    said = refused(capsys, *plain, "--curvature", "--output", "rows.jsonl", "--num-examples", "2")
    assert NONE[name] in said
    assert Path("rows.jsonl").read_bytes() == before


REFUSED = {
    "a method": (["--method", "alpha"], "without --method: it is a method of its own; --bab"),
    "the default method": (["--method", "crown"], "without --method"),
    "an engine": (["--engine", "auto_lirpa"], "--engine auto_lirpa: it runs on native only"),
    "no engine at all": (["--engine", "nativ"], "--engine nativ: it runs on native only"),
    "radii": (["--certify"], "without --certify: ask for one of them"),
    "signs": (["--mono", "--features", "0"], "without --mono, --features: ask for one of them"),
    "all outputs": (["--norm", "2", "--outputs", "all"], "without --outputs all: it takes outputs"),
    "free inputs": (["--inputs", "free", "--fixed", "0"], "without --inputs free: all inputs"),
    "splits": (["--bab", "--branch", "input"], "without --branch: its --bab cuts the box"),
    "heuristics": (
        ["--bab", "--heuristic", "slope", "--sdp", "never", "--refresh", "on", "--beta-steps", "2"],
        "without --heuristic, --refresh, --beta-steps, --sdp: its --bab cuts the box",
    ),
    "steps": (["--ob-iteration", "3"], "without --ob-iteration: it chooses"),
    "pictures": (["--picture", "a.png"], "without --picture: that shows entries of the Jacobian"),
    "a trace of nothing": (
        ["--trace", "t.jsonl"],
        "--trace has no effect here: it goes with --bab",
    ),
    "batches of nothing": (["--batch-size", "4"], "--batch-size has no effect here"),
    "few domains of nothing": (["--max-domains", "4"], "--max-domains has no effect here"),
    "no time": (["--timeout", "0"], "--timeout 0.0: expected a positive number"),
    "a norm": (["--norm", "3"], "expected inf, 1, 2"),
    "no such output": (["--classes", "2"], "class 2 does not exist: the network has 2 outputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name, capsys, monkeypatch):
    monkeypatch.setattr(command, "bound_curvature", None)  # nothing is bounded
    more, words = REFUSED[name]
    assert words in refused(capsys, *ARGV, *more)


def test_too_many_inputs_for_a_search_are_said_before_it(capsys):
    argv = ["--model", "own.py:wide", "--input", "wide.npz", "--eps", "0.1", "--curvature"]
    assert run(*argv) == 0
    said = refused(capsys, *argv, "--bab")
    assert "up to 64 inputs, this one has 80: leave out --bab" in said


def test_the_old_options_know_of_it(capsys):
    plain = [a for a in ARGV if a != "--curvature"]
    said = refused(capsys, *plain, "--method", "curvature")
    assert said == "error: --method curvature: leave out --method and give --curvature\n"
    said = refused(capsys, *plain, "--method", "ibp", "--timeout", "5")
    assert "--timeout has no effect here: it goes with --bab, --mono, --curvature and" in said


def test_values_that_overflow_are_an_error_of_their_example(capsys):
    argv = ["--model", "own.py:overflows", *ARGV[2:]]
    (row,) = rows(*argv, "--eps", "1e30", code=2)
    assert row["status"] == "error"
    assert row["error"].startswith("the bound is not a finite number")
    assert row["traceback"] is None
    assert capsys.readouterr().err == f"error: example 0: {row['error']}\n"
