"""The command line as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import REFERENCE, REFERENCES, ROOT
from main_calls import run
from torch import nn

import main
from commands import examples
from commands.row_file import RowFile
from data import points
from models.checkpoint import Checkpoint, save_checkpoint
from utils import run_cli

WEIGHTS = str(REFERENCE / "simple_mlp_3layer_16.pth")
SIMPLE = ["--data", "simple", "--model", "simple_mlp_3layer", "--width", "16", "--load", WEIGHTS]
OWN = """
import torch
from torch import nn
def make(hidden=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3)).eval()
class Constant(nn.Module):
    def forward(self, x):
        return x[:, :3] * 2
def no_weights():
    return Constant().eval()
def in_training():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
def dropped():
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 3))
def jumps():
    return nn.Sequential(nn.Linear(4, 6), nn.Threshold(0.1, 20.0), nn.Linear(6, 3)).eval()
class Product(nn.Module):
    def forward(self, x):
        return x[:, :1] * x
def product():
    return Product()
def normed():
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).eval()
def poisoned():
    model = make()
    model[0].weight.data[0, 0] = float("nan")
    return model
def fails():
    raise RuntimeError("no weights today")
def number():
    return 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    x = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    np.savez("points.npz", x=x, y=np.array([0, 1, 2]))
    np.savez("unlabelled.npz", x=x)
    return tmp_path


def rows(path: str = "rows.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_as_a_process():
    command = [sys.executable, str(ROOT / "main.py"), *SIMPLE, "--eps", "0.05", "--no-optimize"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("example 0 label - upper 23.2958 lower 21.8")
    assert lines[-1].startswith("avg_lip 23.2958 avg_time ")
    assert "Traceback" not in done.stderr


def test_a_whole_network_from_a_file(folder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(1, 4),)), "net.pt2")
    torch.save(model.state_dict(), "weights.pth")
    common = ["--input", "points.npz", "--eps", "0.1", "--output"]
    assert run("--load", "net.pt2", *common, "file.jsonl") == 0
    own = ["--model", "own.py:make", "--load", "weights.pth"]
    assert run(*own, *common, "own.jsonl") == 0
    (row,), (expected,) = rows("file.jsonl"), rows("own.jsonl")
    assert row["model"] == "net.pt2"
    assert row["upper_bound"] == pytest.approx(expected["upper_bound"], rel=1e-5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--load", "net.onnx"], "there is no file net.onnx"),
        (["--load", "net.pt2"], "net.pt2 is not a program of torch.export.save"),
        (["--load", "net.pt2", "--model", "own.py:make"], "--model own.py:make: leave it out"),
        (["--load", "net.keras"], "net.keras: .keras files are not read"),
        (["--model", "torchvision:resnet19"], "torchvision has no model 'resnet19'"),
        (["--model", "own.py:jumps"], "layer '1' of type Threshold"),
        (
            ["--model", "own.py:product", "--method", "global"],
            "method 'global' does not bound products of two values",
        ),
        (
            ["--model", "own.py:normed", "--method", "lipbab"],
            "'_1' is one (attention, gates and",
        ),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_networks_that_cannot_be_read_or_bounded(argv, words, capsys):
    Path("net.pt2").write_text("no program")
    assert run(*argv, "--input", "points.npz", "--eps", "0.1") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert words in message
    assert message.count("\n") == 1


def test_an_error_as_a_process_is_one_line_on_stderr():
    command = [sys.executable, str(ROOT / "main.py"), *SIMPLE, "--eps", "-1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: --eps -1: expected a finite number, 0 or larger\n"


@pytest.mark.parametrize("reference", REFERENCES[:6], ids=lambda r: f"{r.file}@{r.eps}")
def test_row_of_a_reference_network(reference, capsys):
    width = reference.file.split("_")[-1]
    argv = ["--data", "simpleData", "--model", "simple_mlp_3layer", "--width", width]
    argv += ["--load", str(REFERENCE / f"{reference.file}.pth"), "--eps", str(reference.eps)]
    assert run(*argv, "--no-optimize", "--dtype", "float64", "--output", "rows.jsonl") == 0
    (row,) = rows()
    assert row["upper_bound"] == pytest.approx(reference.crown_root, rel=1e-6)
    assert row["upper_bound"] == max(row["class_upper_bounds"]) == row["root_upper_bound"]
    assert 0 < row["lower_bound"] <= (reference.exact or row["upper_bound"]) * (1 + 1e-9)
    expected = {
        "schema": 1,
        "example": 0,
        "label": None,
        "data": "simple",
        "model": "simple_mlp_3layer",
        "method": "crown",
        "engine": "auto_lirpa",
        "norm": "inf",
        "eps": reference.eps,
        "status": "bound",
        "domains": 0,
        "leaves_checked": 0,
        "device": "cpu",
        "dtype": "float64",
        "seed": 0,
    }
    assert expected.items() <= row.items()
    assert {"seconds", "versions", "load"} <= row.keys()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"avg_lip {row['upper_bound']:.6g} avg_time {row['seconds']:.3g}"


def test_own_network_and_own_points(capsys):
    argv = ["--model", "own.py:make", "--model-params", "hidden=5", "--input", "points.npz"]
    assert run(*argv, "--eps", "0.1", "--num-examples", "3", "--output", "rows.jsonl") == 0
    assert [r["example"] for r in rows()] == [0, 1, 2]
    assert [r["label"] for r in rows()] == [0, 1, 2]
    assert all(0 < r["lower_bound"] <= r["upper_bound"] for r in rows())
    assert "example 2 label 2" in capsys.readouterr().out


def test_std_divides_eps():
    argv = ["--model", "own.py:make", "--input", "unlabelled.npz", "--method", "ibp"]
    assert run(*argv, "--eps", "0.1", "--std", "0.5", "--output", "a.jsonl") == 0
    assert run(*argv, "--eps", "0.2", "--output", "b.jsonl") == 0
    assert rows("a.jsonl")[0]["upper_bound"] == pytest.approx(rows("b.jsonl")[0]["upper_bound"])
    assert rows("a.jsonl")[0]["label"] is None


def test_eps_is_in_pixels_and_divided_by_the_channels_std(monkeypatch):
    """CIFAR-10: 2/255 in pixels is 2/255/0.2009 for the network, cut to pixels [-1, 2]."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    torch.save(model.state_dict(), "linear.pth")
    Path("linear.py").write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()\n"
    )
    pixel = torch.rand(1, 3, 32, 32)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    normalised = (pixel - mean) / 0.2009
    monkeypatch.setattr(
        points, "evaluation_examples", lambda *a, **k: (normalised, torch.tensor([3]))
    )
    problems = []
    real = examples.make_problem
    monkeypatch.setattr(
        examples, "make_problem", lambda *a, **k: problems.append(real(*a, **k)) or problems[-1]
    )
    argv = ["--data", "CIFAR", "--model", "linear.py:make", "--load", "linear.pth"]
    assert run(*argv, "--eps", "2/255", "--method", "global") == 0
    assert run(*argv, "--eps", "2/255", "--method", "global", "--input-clipping") == 0
    radius = 2 / 255 / 0.2009
    torch.testing.assert_close(problems[0].upper, normalised[0] + radius, rtol=0, atol=1e-5)
    in_pixels = problems[1].upper * 0.2009 + mean
    torch.testing.assert_close(in_pixels, (pixel[0] + 2 / 255).clamp(max=1), rtol=0, atol=1e-5)


def test_a_relaunch_skips_the_rows_already_there(capsys):
    argv = ["--model", "own.py:make", "--input", "points.npz", "--eps", "0.1"]
    assert run(*argv, "--num-examples", "2", "--output", "rows.jsonl") == 0
    before = Path("rows.jsonl").read_text()
    capsys.readouterr()
    assert run(*argv, "--num-examples", "3", "--output", "rows.jsonl") == 0
    assert Path("rows.jsonl").read_text().startswith(before)
    assert len(rows()) == 3
    out = capsys.readouterr().out
    assert "example 2" in out
    assert "example 0" not in out
    assert f"avg_lip {sum(r['upper_bound'] for r in rows()) / 3:.6g}" in out
    for changed in (["--eps", "0.2"], ["--seed", "1"], ["--method", "ibp"], ["--no-optimize"]):
        assert run(*argv, *changed, "--output", "rows.jsonl") == 0
    assert len(rows()) == 7


def test_other_weights_are_not_taken_for_the_same(capsys):
    argv = ["--model", "own.py:make", "--input", "points.npz", "--eps", "0.1"]
    assert run(*argv, "--output", "rows.jsonl") == 0
    Path("own.py").write_text(OWN.replace("manual_seed(0)", "manual_seed(1)"))
    assert run(*argv, "--output", "rows.jsonl") == 0
    assert len({r["upper_bound"] for r in rows()}) == 2


def test_rows_written_before_a_failure_are_kept(monkeypatch):
    argv = ["--model", "own.py:make", "--input", "points.npz", "--eps", "0.1"]
    real = examples.bound_example

    def interrupted(run, index, seen=None):
        if index == 1:
            raise KeyboardInterrupt
        return real(run, index, seen)

    monkeypatch.setattr(examples, "bound_example", interrupted)
    assert run(*argv, "--num-examples", "3", "--output", "rows.jsonl") == 130
    assert len(rows()) == 1


def test_checkpoint_alone_is_enough():
    state = torch.load(WEIGHTS, weights_only=True)
    checkpoint = Checkpoint(
        state, model="simple_mlp_3layer", params={"width": 16, "in_dim": 16}, data="simple"
    )
    save_checkpoint("known.pth", checkpoint)
    assert run("--load", "known.pth", "--eps", "0.05", "--output", "rows.jsonl") == 0
    assert rows()[0]["upper_bound"] == pytest.approx(23.2958, abs=1e-3)


def test_classes_and_margins():
    argv = ["--model", "own.py:make", "--input", "points.npz", "--eps", "0.1"]
    assert run(*argv, "--classes", "2,0", "--output", "some.jsonl") == 0
    assert run(*argv, "--output", "all.jsonl") == 0
    every = rows("all.jsonl")[0]["class_upper_bounds"]
    some = rows("some.jsonl")[0]["class_upper_bounds"]
    assert some == pytest.approx([every[2], every[0]], rel=1e-6)
    assert run(*argv, "--margins", "--output", "margins.jsonl") == 0
    assert len(rows("margins.jsonl")[0]["class_upper_bounds"]) == 2


def test_batch_size_changes_nothing():
    argv = [*SIMPLE, "--eps", "0.05", "--no-optimize", "--dtype", "float64"]
    assert run(*argv, "--batch-size", "3", "--output", "a.jsonl") == 0
    assert run(*argv, "--output", "b.jsonl") == 0
    a, b = (rows(p)[0]["class_upper_bounds"] for p in ("a.jsonl", "b.jsonl"))
    assert a == pytest.approx(b, rel=1e-9)


@pytest.mark.parametrize("extra", [["--engine", "native"], ["--method", "alpha"], ["--bab"]])
def test_memory_budget_changes_nothing(extra):
    argv = [*SIMPLE, "--eps", "0.05", "--dtype", "float64", *extra]
    assert run(*argv, "--memory-budget", "1", "--output", "a.jsonl") == 0
    assert run(*argv, "--output", "b.jsonl") == 0
    a, b = (rows(p)[0] for p in ("a.jsonl", "b.jsonl"))
    assert a["upper_bound"] == pytest.approx(b["upper_bound"], rel=1e-4)
    assert (a["engine"], a["status"]) == ("native", b["status"])


def test_cnn_to_mlp_gives_the_same_bound():
    weights = str(REFERENCE / "simple_cnn_3layer_4.pth")
    argv = ["--data", "simple", "--model", "simple_cnn_3layer", "--width", "4", "--load", weights]
    argv += ["--eps", "0.02", "--no-optimize", "--dtype", "float64"]
    assert run(*argv, "--output", "cnn.jsonl") == 0
    assert run(*argv, "--cnn-to-mlp", "--output", "mlp.jsonl") == 0
    cnn, mlp = (rows(p)[0]["upper_bound"] for p in ("cnn.jsonl", "mlp.jsonl"))
    assert mlp == pytest.approx(cnn, rel=1e-6)


@pytest.mark.parametrize("engine", ["native", "auto_lirpa"])
@pytest.mark.parametrize(
    "reference", [r for r in REFERENCES if r.exact], ids=lambda r: f"{r.file}@{r.eps}"
)
def test_branch_and_bound_is_exact_on_the_reference_networks(reference, engine):
    argv = ["--data", "simple", "--model", "simple_mlp_3layer", "--width"]
    argv += [reference.file.split("_")[-1], "--load", str(REFERENCE / f"{reference.file}.pth")]
    argv += ["--eps", str(reference.eps), "--bab", "--engine", engine, "--output", "rows.jsonl"]
    assert run(*argv, "--dtype", "float64", "--trace", "trace.jsonl") == 0
    (row,) = rows()
    assert row["status"] == "exact"
    assert row["upper_bound"] == pytest.approx(reference.exact, rel=1.01e-4)
    assert row["lower_bound"] <= reference.exact * (1 + 1e-8)
    assert row["upper_bound"] >= reference.exact * (1 - 1e-8)
    assert (row["method"], row["engine"], row["branch"]) == ("bab", engine, "relu")
    assert row["domains"] > 0
    trace = rows("trace.jsonl")
    assert trace[-1]["upper_bound"] == pytest.approx(row["upper_bound"])
    uppers = [state["upper_bound"] for state in trace]
    assert uppers == sorted(uppers, reverse=True)


def test_sampling_gives_no_upper_bound(capsys):
    assert run(*SIMPLE, "--eps", "0.05", "--method", "sampling", "--output", "rows.jsonl") == 0
    (row,) = rows()
    assert row["upper_bound"] is None
    assert row["class_upper_bounds"] == [None] * 10
    assert 20 < row["lower_bound"] <= 22.664308989
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("example 0 label - upper - lower ")
    assert out[-1].startswith("avg_lip >=2")


@pytest.mark.parametrize("method", ["lipmip", "lipbab"])
def test_exact_baselines_from_the_command_line(method):
    argv = [*SIMPLE, "--eps", "0.02", "--method", method, "--timeout", "100"]
    assert run(*argv, "--classes", "7", "--output", "rows.jsonl") == 0
    (row,) = rows()
    assert row["status"] == "exact"
    assert row["search"] == {"timeout": 100}
    assert row["kind"] == "local, exact given time"
    assert row["upper_bound"] == pytest.approx(21.627609905, rel=2e-4)


def test_an_interrupted_row_is_done_again():
    argv = [*SIMPLE, "--eps", "0.05", "--bab", "--output", "rows.jsonl"]
    assert run(*argv) == 0
    (row,) = rows()
    Path("rows.jsonl").write_text(json.dumps({**row, "status": "interrupted"}) + "\n")
    assert run(*argv) == 0
    assert [r["status"] for r in rows()] == ["exact"]


def test_a_timeout_leaves_certified_bounds():
    weights = str(REFERENCE / "simple_mlp_3layer_32.pth")
    argv = [*SIMPLE[:4], "--width", "32", "--load", weights, "--eps", "0.2", "--bab"]
    assert run(*argv, "--timeout", "0.05", "--output", "rows.jsonl") == 0
    (row,) = rows()
    assert row["status"] == "timeout"
    assert row["lower_bound"] <= 32.984185 * (1 + 1e-6)
    assert 32.984185 <= row["upper_bound"] <= row["root_upper_bound"] < 74


def test_interrupting_a_search_keeps_its_row_and_stops(monkeypatch, capsys):
    from lipschitz.search.engines.neurons import NeuronSearch

    calls = []
    real = NeuronSearch.children

    def children(self, parents):
        calls.append(len(parents))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, parents)

    monkeypatch.setattr(NeuronSearch, "children", children)
    weights = str(REFERENCE / "simple_mlp_3layer_32.pth")
    argv = [*SIMPLE[:4], "--width", "32", "--load", weights, "--eps", "0.2", "--bab"]
    assert run(*argv, "--output", "rows.jsonl") == 130
    (row,) = rows()
    assert row["status"] == "interrupted"
    assert 32.984185 <= row["upper_bound"] < row["root_upper_bound"] * (1 + 1e-6)
    captured = capsys.readouterr()
    assert "avg_lip" in captured.out
    assert captured.err.count("\n") == 1


def test_norms_and_outputs_are_in_the_row_and_in_the_key():
    argv = ["--model", "own.py:make", "--input", "points.npz", "--eps", "0.1", "--method", "alpha"]
    argv += ["--output", "rows.jsonl"]
    assert run(*argv, "--norm", "2") == 0
    assert run(*argv, "--norm", "L2", "--outputs", "all") == 0  # the same: nothing is added
    assert run(*argv, "--norm", "2", "--outputs", "each") == 0
    assert run(*argv, "--norm", "1", "--inputs", "free", "--fixed", "0,2-3") == 0
    assert run(*argv, "--margins", "all", "--norm", "2") == 0
    whole, each, free, pairs = rows()
    assert [r["norm"] for r in rows()] == ["2", "2", "1", "2"]
    assert [r["outputs"] for r in rows()] == ["all", "each", "all", "each"]
    assert len(whole["class_upper_bounds"]) == 1
    assert len(each["class_upper_bounds"]) == len(pairs["class_upper_bounds"]) == 3
    assert each["upper_bound"] < whole["upper_bound"]
    assert (free["inputs"], free["fixed"]) == ("free", "0,2-3")
    jacobian = torch.autograd.functional.jacobian(
        lambda x: own_network()(x), torch.from_numpy(np.load("points.npz")["x"][0])
    )
    assert whole["upper_bound"] >= float(torch.linalg.matrix_norm(jacobian, ord=2))
    assert free["upper_bound"] >= float(jacobian[:, 1].abs().sum())


def own_network():
    scope = {}
    exec(OWN, scope)
    return scope["make"]()


def test_the_search_is_exact_in_every_norm():
    argv = ["--model", "own.py:make", "--input", "points.npz", "--eps", "0.5", "--bab"]
    for norm in ("1", "2"):
        assert run(*argv, "--norm", norm, "--outputs", "each", "--output", "rows.jsonl") == 0
    assert [r["status"] for r in rows()] == ["exact", "exact"]


def test_boxes_from_the_file():
    x = np.load("points.npz")["x"]
    argv = ["--model", "own.py:make", "--method", "alpha", "--num-examples", "2"]
    radii = np.array([0.1, 0.0, 0.2, 0.0])
    np.savez("eps.npz", x=x, eps=radii)
    np.savez("each.npz", x=x, eps=np.broadcast_to(radii, x.shape))
    np.savez("ends.npz", x=x, x_L=x.astype(float) - radii, x_U=x.astype(float) + radii)
    for name in ("eps", "each", "ends"):
        assert run(*argv, "--input", f"{name}.npz", "--output", f"{name}.jsonl") == 0
    bounds = [[r["upper_bound"] for r in rows(f"{n}.jsonl")] for n in ("eps", "each", "ends")]
    assert bounds[0] == bounds[1] == pytest.approx(bounds[2], rel=1e-5)
    fixed = ["--input", "points.npz", "--eps", "0.2", "--output", "fixed.jsonl"]
    assert run(*argv, *fixed, "--fixed", "1,3") == 0
    assert bounds[0][0] <= rows("fixed.jsonl")[0]["upper_bound"]
    assert run(*argv, *fixed) == 0
    assert rows("fixed.jsonl")[0]["upper_bound"] <= rows("fixed.jsonl")[2]["upper_bound"]


def test_certified_radii(capsys):
    x = np.load("points.npz")["x"]
    predicted = int(own_network()(torch.from_numpy(x[:1])).argmax())
    labels = np.array([predicted, 0, 1, 2][: len(x)])
    labels[1] = (int(own_network()(torch.from_numpy(x[1:2])).argmax()) + 1) % 3
    np.savez("labelled.npz", x=x, y=labels)
    argv = ["--model", "own.py:make", "--input", "labelled.npz", "--certify", "--method", "alpha"]
    argv += ["--num-examples", "2", "--output", "rows.jsonl"]
    assert run(*argv, "--norm", "2") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("certified 1/2 avg_radius ")
    right, wrong = rows()
    assert (right["status"], wrong["status"]) == ("certified", "misclassified")
    assert right["radius"] > 0
    assert right["margin"] > 0
    assert wrong["radius"] == 0
    assert wrong["margin"] < 0
    assert run(*argv, "--norm", "2") == 0  # resumes
    assert len(rows()) == 2
    assert run(*argv, "--norm", "2", "--std", "0.5") == 0
    assert rows()[2]["radius"] == pytest.approx(right["radius"] / 2)  # of pixels, now


def test_signs_of_features_are_certified(capsys):
    argv = ["--model", "own.py:make", "--input", "points.npz", "--num-examples", "2", "--mono"]
    assert run(*argv, "--features", "0-2", "--csv", "signs.csv", "--timeout", "5") == 0
    assert "increasing" in capsys.readouterr().out
    lines = Path("signs.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3 * 3  # examples, features, outputs
    assert {line.split(",")[4] for line in lines[1:]} <= {"increasing", "decreasing", "neither"}


def test_clean_accuracy(capsys):
    assert run("--model", "own.py:make", "--input", "points.npz", "--clean") == 0
    assert capsys.readouterr().out.startswith("clean_acc ")
    assert run("--model", "own.py:no_weights", "--input", "points.npz", "--clean") == 0
    assert capsys.readouterr().out.startswith("clean_acc ")
    assert run("--data", "digits", "--model", "simple_cnn_3layer", "--clean") == 2
    assert run(*SIMPLE, "--clean") == 0
    accuracy = float(capsys.readouterr().out.split()[1])
    assert 0 <= accuracy <= 1


def test_lists(capsys):
    assert run("--list-models", "--list-data") == 0
    out = capsys.readouterr().out
    assert "cnn_6layer_stride2_imagenet(" in out
    assert "tinyimagenet" in out.lower()


MISTAKES = {
    "no eps": ([*SIMPLE], "--eps is missing"),
    "negative eps": ([*SIMPLE, "--eps", "-0.1"], "--eps -0.1: expected a finite number"),
    "nan eps": ([*SIMPLE, "--eps", "nan"], "--eps nan"),
    "eps of letters": ([*SIMPLE, "--eps", "big"], "--eps big: expected a number"),
    "no data": (["--eps", "0.1", "--model", "simple_mlp_3layer"], "--data is missing"),
    "no model": (["--eps", "0.1", "--data", "simple"], "--model is missing"),
    "no weights": (["--eps", "0.1", "--data", "simple", "--model", "simple_mlp_3layer"], "--load"),
    "unknown model": (
        ["--eps", "0.1", "--data", "simple", "--model", "simple_mlp_3layr", "--load", WEIGHTS],
        "did you mean 'simple_mlp_3layer'",
    ),
    "unknown data": (["--eps", "0.1", "--data", "digit"], "did you mean 'digits'"),
    "unknown method": ([*SIMPLE, "--eps", "0.1", "--method", "corwn"], "did you mean 'crown'"),
    "unknown engine": ([*SIMPLE, "--eps", "0.1", "--engine", "x"], "does not run on engine 'x'"),
    "unknown option": ([*SIMPLE, "--eps", "0.1", "--epsilom", "1"], "unknown argument"),
    "missing file": (
        ["--eps", "0.1", "--data", "simple", "--model", "simple_mlp_3layer", "--load", "no.pth"],
        "there is no checkpoint no.pth",
    ),
    "wrong width": (
        [*SIMPLE[:5], "17", *SIMPLE[6:], "--eps", "0.1"],
        "1.weight is [16, 16] instead of [17, 16]",
    ),
    "wrong architecture": (
        ["--eps", "0.1", "--data", "simple", "--model", "simple_cnn_3layer", "--load", WEIGHTS],
        "missing",
    ),
    "norm": ([*SIMPLE, "--eps", "0.1", "--norm", "3"], "expected inf, 1, 2"),
    "norm of an engine": (
        [*SIMPLE, "--eps", "0.1", "--norm", "2", "--engine", "auto_lirpa"],
        "'auto_lirpa' does not bound norm 2",
    ),
    "norm of a method": (
        [*SIMPLE, "--eps", "0.1", "--norm", "2", "--method", "lipmip"],
        "'lipmip' does not bound norm 2",
    ),
    "bab of all outputs": (
        [*SIMPLE, "--eps", "0.1", "--norm", "2", "--bab"],
        "searches single outputs in norm 2",
    ),
    "fixed": (
        [*SIMPLE, "--eps", "0.1", "--fixed", "3,99"],
        "numbered 0 to 15",
    ),
    "fixed that is no list": (
        [*SIMPLE, "--eps", "0.1", "--fixed", "a-b"],
        "expected input numbers",
    ),
    "certify with eps": ([*SIMPLE, "--eps", "0.1", "--certify"], "--certify finds eps itself"),
    "trace without bab": (
        [*SIMPLE, "--eps", "0.1", "--trace", "t"],
        "--trace has no effect here",
    ),
    "bab of ibp": ([*SIMPLE, "--eps", "0.1", "--bab", "--method", "ibp"], "not --method ibp"),
    "heuristic": (
        [*SIMPLE, "--eps", "0.1", "--bab", "--heuristic", "aera"],
        "did you mean 'area'",
    ),
    "heuristic of the other engine": (
        [*SIMPLE, "--eps", "0.1", "--bab", "--heuristic", "sign", "--engine", "auto_lirpa"],
        "use slope, area or babsr",
    ),
    "branch": ([*SIMPLE, "--eps", "0.1", "--bab", "--branch", "both"], "relu, input, auto"),
    "branch of the other engine": (
        [*SIMPLE, "--eps", "0.1", "--bab", "--branch", "input", "--engine", "auto_lirpa"],
        "use native",
    ),
    "refresh": ([*SIMPLE, "--eps", "0.1", "--bab", "--refresh", "maybe"], "on, off, auto"),
    "max domains": ([*SIMPLE, "--eps", "0.1", "--bab", "--max-domains", "0"], "at least 1"),
    "timeout": ([*SIMPLE, "--eps", "0.1", "--bab", "--timeout", "-1"], "expected a positive"),
    "engine of bab": ([*SIMPLE, "--eps", "0.1", "--bab", "--engine", "x"], "unknown engine 'x'"),
    "mono with bab": ([*SIMPLE, "--eps", "0.1", "--mono", "--bab"], "--mono goes without --bab"),
    "features without mono": (
        [*SIMPLE, "--eps", "0.1", "--features", "0"],
        "it goes with --mono",
    ),
    "no such class": ([*SIMPLE, "--eps", "0.1", "--classes", "10"], "class 10 does not exist"),
    "classes of letters": ([*SIMPLE, "--eps", "0.1", "--classes", "a"], "--classes a: expected"),
    "no examples": ([*SIMPLE, "--eps", "0.1", "--num-examples", "0"], "--num-examples 0"),
    "batch size": ([*SIMPLE, "--eps", "0.1", "--batch-size", "0"], "--batch-size 0"),
    "memory budget": ([*SIMPLE, "--eps", "0.1", "--memory-budget", "0"], "--memory-budget 0"),
    "beta steps": ([*SIMPLE, "--eps", "0.1", "--bab", "--beta-steps", "-1"], "beta steps -1"),
    "dtype": ([*SIMPLE, "--eps", "0.1", "--dtype", "float16"], "float32, float64 or auto"),
    "seed": ([*SIMPLE, "--eps", "0.1", "--seed", "-1"], "seed -1"),
    "std without input": (
        [*SIMPLE, "--eps", "0.1", "--std", "1"],
        "it goes with --input",
    ),
}
OWN_MISTAKES = {
    "no npz": (["--input", "no.npz"], "there is no such file"),
    "not an npz": (["--input", "own.py"], "is not a numpy .npz file"),
    "no x": (["--input", "no_x.npz"], "expected an array 'x'"),
    "batch-less": (["--input", "batchless.npz"], "the batch dimension first"),
    "wrong shape": (["--input", "wide.npz"], "does not accept inputs of shape (5,)"),
    "text": (["--input", "text.npz"], "expected numbers"),
    "not the data's shape": (["--data", "digits"], "inputs of shape 4 asked for, digits has 1x8x8"),
    "labels": (["--input", "labels.npz"], "expected whole numbers of shape"),
    "nan": (["--input", "nan.npz"], "x holds NaN or infinity"),
    "start": (["--start", "3"], "holds the points 0 to 2"),
    "std": (["--std", "1,2"], "expected 1 or 4 positive numbers"),
    "zero std": (["--std", "0"], "positive numbers"),
    "clipping": (["--input-clipping"], "name the --data"),
    "batch norm": (["--model", "own.py:in_training"], "BatchNorm1d '1' is in training mode"),
    "dropout": (["--model", "own.py:dropped"], "Dropout '1' is in training mode"),
    "unsupported": (["--model", "own.py:jumps"], "'1' of type Threshold is not supported"),
    "nan weights": (["--model", "own.py:poisoned"], "NaN or infinity in '0.weight'"),
    "failing factory": (["--model", "own.py:fails"], "no weights today"),
    "no module": (["--model", "own.py:number"], "must return a torch.nn.Module"),
    "no factory": (["--model", "own.py:mak"], "did you mean 'make'"),
    "no model file": (["--model", "other.py:make"], "there is no file other.py"),
    "unknown argument": (["--model-params", "hiden=3"], "has no argument 'hiden'"),
}


def refused(argv: list[str], message: str, capsys) -> None:
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, capsys):
    refused(*MISTAKES[name], capsys)


@pytest.mark.parametrize("name", OWN_MISTAKES)
def test_a_mistake_with_own_network_or_points_is_one_line(name, capsys):
    x = np.random.default_rng(0).random((3, 4))
    np.savez("no_x.npz", points=x)
    np.savez("batchless.npz", x=x[0, 0])
    np.savez("wide.npz", x=np.ones((2, 5)))
    np.savez("text.npz", x=np.full((2, 4), "a"))
    np.savez("labels.npz", x=x, y=np.ones((3, 4)))
    np.savez("nan.npz", x=x * np.nan)
    argv, message = OWN_MISTAKES[name]
    base = ["--model", "own.py:make", "--input", "points.npz", "--eps", "0.1"]
    refused([*base, *argv], message, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there_is_refused(capsys):
    refused([*SIMPLE, "--eps", "0.1", "--device", "cuda"], "--device cpu", capsys)


def test_nan_weights_in_a_checkpoint_are_refused(capsys):
    state = torch.load(WEIGHTS, weights_only=True)
    state["3.bias"][0] = float("nan")
    torch.save(state, "nan.pth")
    refused([*SIMPLE[:-1], "nan.pth", "--eps", "0.1"], "'3.bias' contains NaN", capsys)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}])
def test_plain_and_wrapped_state_dicts_load(wrap):
    torch.save(wrap(torch.load(WEIGHTS, weights_only=True)), "weights.pth")
    assert run(*SIMPLE[:-1], "weights.pth", "--eps", "0.05", "--output", "rows.jsonl") == 0


def test_no_memory_is_told_with_the_option_to_lower(monkeypatch, capsys):
    def exhausted(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(examples, "bound_example", exhausted)
    refused([*SIMPLE, "--eps", "0.1"], "lower --batch-size", capsys)


def test_called_without_arguments_it_says_what_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert run_cli(main.main, []) == 0
    out = capsys.readouterr().out
    commands = [line for line in out.splitlines() if line.startswith("  python ")]
    assert len(commands) == 3
    parser = main.build_parser()
    for command in commands[1:]:
        parser.parse_args(command.split()[2:])  # no unknown option


@pytest.mark.parametrize("argv", [[], ["--help"], ["--eps", "x", "--norm", "7"]])
def test_what_needs_no_torch_does_not_wait_for_it(argv):
    code = "import sys, main, utils\ntry: utils.run_cli(main.main, sys.argv[1:])\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["main.py", "train_model.py"])
def test_ctrl_c_while_torch_is_imported_is_one_line(script, folder):
    """A module of the name torch that is interrupted while it is imported."""
    Path("torch.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    )
    argv = ["--data", "simple", "--model", "simple_mlp_3layer"]
    argv += ["--eps", "0.1"] if script == "main.py" else []
    # A shell that runs in the background hands down an ignored Ctrl-C.
    code = "import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"sys.argv[0] = {script!r}; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=15)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


OWN_RUN = ["--model", "own.py:make", "--input", "points.npz", "--eps", "0.1"]
NO_EFFECT = {
    "heuristic": ["--heuristic", "slope"],
    "branch": ["--branch", "relu"],
    "sdp": ["--sdp", "never"],
    "max domains": ["--max-domains", "10"],
    "beta steps": ["--beta-steps", "3"],
    "no optimize": ["--no-optimize", "--engine", "native"],
    "no optimize of alpha": ["--no-optimize", "--method", "alpha"],
    "slope steps": ["--ob-iteration", "3", "--bab"],
    "timeout of global": ["--timeout", "5", "--method", "global"],
    "timeout of ibp": ["--timeout", "5", "--method", "ibp"],
    "batch size": ["--batch-size", "5", "--engine", "native"],
    "memory budget": ["--memory-budget", "5", "--method", "global"],
    "tolerance": ["--tolerance", "0.1", "--certify"],
}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_an_option_without_effect_is_refused(name, capsys):
    argv = [a for a in OWN_RUN if name != "tolerance" or a not in ("--eps", "0.1")]
    refused([*argv, *NO_EFFECT[name]], "has no effect here: it goes with", capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["--heuristic", "slope", "--bab", "--timeout", "5"],
        ["--no-optimize", "--ob-lr", "0.1"],
        ["--timeout", "5", "--method", "sdp"],
        ["--timeout", "50", "--engine", "native"],
        ["--timeout", "50", "--engine", "auto_lirpa"],
        ["--batch-size", "5"],
        ["--memory-budget", "5", "--method", "alpha", "--tolerance", "0.1"],
    ],
)
def test_options_with_an_effect_are_not(argv):
    assert run(*OWN_RUN, *argv) == 0


def test_signs_refuse_options_of_bounds(capsys):
    argv = [*OWN_RUN[:4], "--mono", "--features", "0"]
    for more in (["--method", "ibp"], ["--engine", "native"], ["--norm", "2"]):
        refused([*argv, *more], f"--mono goes without {more[0]}", capsys)


@pytest.mark.parametrize("error", [RuntimeError("min(): Expected reduction dim"), MemoryError()])
def test_an_error_in_one_example_does_not_end_the_others(error, monkeypatch, capsys):
    real = examples.bound_example

    def fails_once(run, index, seen=None):
        if index == 1:
            raise error
        return real(run, index, seen)

    argv = [*OWN_RUN, "--num-examples", "3", "--output", "rows.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(examples, "bound_example", fails_once)
        assert run(*argv) == 1
    captured = capsys.readouterr()
    good = [r for r in rows() if r["status"] != "error"]
    bad = next(r for r in rows() if r["status"] == "error")
    assert [r["example"] for r in good] == [0, 2]
    assert bad["example"] == 1
    assert captured.err == f"error: example 1: {bad['error']}\n"
    if isinstance(error, RuntimeError):
        assert bad["error"] == "RuntimeError: min(): Expected reduction dim"
        assert "fails_once" in bad["traceback"]
    assert f"avg_lip {sum(r['upper_bound'] for r in good) / 2:.6g}" in captured.out
    assert run(*argv) == 0  # the example that failed is done again


def test_if_every_example_fails_the_exit_code_is_2(monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(examples, "bound_example", fails)
    assert run(*OWN_RUN, "--num-examples", "2", "--output", "rows.jsonl") == 2
    assert [r["status"] for r in rows()] == ["error", "error"]
    assert capsys.readouterr().out == ""


def test_advice_and_pictures_come_beside_the_bounds(capsys):
    Path("image.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    deep = [m for _ in range(6) for m in (nn.Linear(16, 16), nn.ReLU())]\n"
        "    return nn.Sequential(nn.Flatten(), *deep, nn.Linear(16, 2)).eval()\n"
    )
    pytest.importorskip("matplotlib")
    np.savez("images.npz", x=np.random.default_rng(0).random((2, 1, 4, 4)))
    argv = ["--model", "image.py:make", "--input", "images.npz", "--eps", "1", "--method", "ibp"]
    assert run_cli(main.main, [*argv, "--num-examples", "2", "--picture", "maps.png"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("example ") == 2
    hints = [line for line in captured.err.splitlines() if line.startswith("hint: ")]
    assert len(hints) == 1
    assert "--method alpha" in hints[0]
    assert sorted(path.name for path in Path().glob("*.png")) == ["maps_0.png", "maps_1.png"]


def test_rows_as_a_table_which_resumes(capsys):
    argv = [*OWN_RUN, "--csv", "rows.csv"]
    assert run(*argv, "--num-examples", "2") == 0
    assert run(*argv, "--num-examples", "3", "--output", "rows.jsonl") == 0
    header, *lines = Path("rows.csv").read_text().splitlines()
    assert header.startswith("example,label,status,upper_bound,lower_bound")
    assert [line.split(",")[0] for line in lines] == ["0", "1", "2"]
    assert len(rows()) == 3
    capsys.readouterr()
    assert run(*argv, "--num-examples", "3") == 0
    assert "nothing to compute" in capsys.readouterr().err


def test_a_file_in_use_is_refused_by_name(capsys):
    with RowFile("rows.jsonl"):
        refused([*OWN_RUN, "--output", "rows.jsonl"], f"{os.getpid()}", capsys)
    assert run(*OWN_RUN, "--output", "rows.jsonl") == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_the_bound_is_printed(capsys):
    assert run(*OWN_RUN, "--output", "/dev/full") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
