"""Files that users give to the command line, and everything that can be wrong with them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import ROOT
from main_calls import refused, rows, run
from torch import nn

OWN = """
import torch
from torch import nn

def make(size=5):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(size, 6), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).eval()
"""
IMAGES = "nn.Conv2d(1, 2, 8), nn.Flatten(), nn.Linear(2, 6)"
X = np.random.default_rng(0).random((3, 5))
POINTS = ["--input", "x.npy", "--eps", "0.1"]
OWN_MODEL = ["--model", "own.py:make", "--method", "ibp"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    np.save("x.npy", X)


def upper(*argv: str) -> list[float]:
    return [row["upper_bound"] for row in rows(*argv)]


def test_points_of_npy_and_csv_are_those_of_npz():
    np.savez("x.npz", x=X, y=[0, 1, 2])
    np.savetxt("x.csv", np.c_[X, [0, 1, 2]], delimiter=",", header="a,b,c,d,e,y", comments="")
    common = [*OWN_MODEL, "--eps", "0.1", "--num-examples", "3"]
    bounds = {name: rows(*common, "--input", name) for name in ("x.npz", "x.npy", "x.csv")}
    values = [[row["upper_bound"] for row in found] for found in bounds.values()]
    assert values[0] == values[1]
    assert values[2] == pytest.approx(values[0])
    assert [row["label"] for row in bounds["x.csv"]] == [0, 1, 2]
    assert [row["label"] for row in bounds["x.npy"]] == [None] * 3


def test_points_take_the_shape_of_the_network_in_the_file():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(1, 2, (1, 2))
            self.linear = nn.Linear(8, 3)

        def forward(self, x):
            return self.linear(torch.relu(self.convolution(x)).flatten(1))

    torch.manual_seed(0)
    program = torch.export.export(Reader().eval(), (torch.rand(1, 1, 1, 5),))
    torch.export.save(program, "net.pt2")
    common = ["--load", "net.pt2", "--method", "ibp", "--eps", "0.1", "--num-examples", "3"]
    np.save("shaped.npy", X.reshape(3, 1, 1, 5))
    expected = upper(*common, "--input", "shaped.npy")
    assert upper(*common, "--input", "x.npy") == expected
    np.save("one.npy", X[0])
    assert upper(*common[:-2], "--input", "one.npy") == expected[:1]


def test_points_take_the_shape_of_the_data():
    x = np.random.default_rng(1).random((2, 64))
    np.save("x.npy", x)
    np.save("shaped.npy", x.reshape(2, 1, 8, 8))
    Path("own.py").write_text(OWN.replace("nn.Flatten(), nn.Linear(size, 6)", IMAGES))
    common = [*OWN_MODEL, "--eps", "0.1", "--data", "digits"]
    assert upper(*common, "--input", "x.npy") == upper(*common, "--input", "shaped.npy")


def test_a_radius_for_every_input():
    np.save("eps.npy", [0.3, 0, 0.1, 0.2, 0])
    np.savez("x.npz", x=X, eps=[0.3, 0, 0.1, 0.2, 0])
    typed = rows(*OWN_MODEL, "--input", "x.npy", "--eps", "0.3,0,1/10,0.2,0")
    of_file = rows(*OWN_MODEL, "--input", "x.npy", "--eps", "eps.npy")
    expected = rows(*OWN_MODEL, "--input", "x.npz")
    assert {found[0]["upper_bound"] for found in (typed, of_file, expected)} == {
        expected[0]["upper_bound"]
    }
    assert typed[0]["eps"] == "0.3,0,1/10,0.2,0"
    assert of_file[0]["eps"].startswith("eps.npy:")


@pytest.mark.parametrize("form", ["numbers", "npz", "npy", "csv"])
def test_a_box_instead_of_points(form):
    lower, upper_end = X[0] - 0.1, X[0] + [0.1, 0.2, 0.3, 0.4, 0.5]
    np.savez("x.npz", x=(lower + upper_end)[None] / 2, x_L=lower, x_U=upper_end)
    expected = upper(*OWN_MODEL, "--input", "x.npz", "--dtype", "float64")
    np.savez("box.npz", x_L=lower, x_U=upper_end)
    np.save("box.npy", [lower, upper_end])
    table = np.c_[lower, upper_end]
    np.savetxt("box.csv", table, delimiter=",", header="lower,upper", comments="")
    pairs = ";".join(f"{lo!r},{hi!r}" for lo, hi in table.tolist())
    box = pairs if form == "numbers" else f"box.{form}"
    (row,) = rows(*OWN_MODEL, "--box", box, "--dtype", "float64")
    assert row["upper_bound"] == pytest.approx(expected[0], rel=1e-12)
    assert row["label"] is None
    assert row["data"].startswith(f"box {box}")
    assert 0 < row["lower_bound"] <= row["upper_bound"]


def test_one_interval_for_all_inputs_of_a_network_file():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(1, 4),)), "net.pt2")
    np.savez("x.npz", x=np.zeros((1, 4)))
    common = ["--load", "net.pt2", "--bab"]
    assert upper(*common, "--box", "-1,1") == upper(*common, "--input", "x.npz", "--eps", "1")


def test_a_box_that_does_not_go_with_the_network(capsys):
    message = refused(capsys, *OWN_MODEL, "--box", "0,1")
    assert "a --box with an interval per input" in message
    assert "inputs of shape (2,)" in refused(capsys, *OWN_MODEL, "--box", "0,1;0,1")
    torch.save({"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}, "weights.pth")
    mlp = ["--model", "mlp", "--model-params", "sizes=4-3", "--load", "weights.pth"]
    message = refused(capsys, *mlp, "--box", "0,1;0,1")
    assert "--box 0,1;0,1 is for 2 inputs; expected 1 number or 4, one per input" in message


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(Path("x.npy").read_bytes()[:140]), "is damaged"),
        (lambda path: path.write_text("hello"), "is not a numpy .npz file"),
        (lambda path: path.mkdir(), "is a folder: name a file"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_input_that_cannot_be_read(write, words, capsys):
    write(Path("points"))
    message = refused(capsys, *OWN_MODEL, "--input", "points", "--eps", "0.1")
    assert message.startswith("error: --input points")
    assert words in message


def test_std_is_shown_as_it_was_typed(capsys):
    message = refused(capsys, *OWN_MODEL, *POINTS, "--std", "0")
    assert message == "error: --std 0: expected 1 or 5 positive numbers, one per channel\n"


@pytest.mark.parametrize("label", [-5, 3])
def test_labels_that_no_output_has(label, capsys):
    np.savez("x.npz", x=X, y=[0, 1, label])
    message = refused(capsys, *OWN_MODEL, "--input", "x.npz", "--eps", "0.1", "--num-examples", "3")
    assert f"label {label}" in message


def test_complex_points(capsys):
    np.save("x.npy", X + 1j)
    assert "complex128: expected real numbers" in refused(capsys, *OWN_MODEL, *POINTS)


def test_fewer_points_and_pixels_that_were_not_scaled_are_warnings(capsys):
    np.save("x.npy", np.array([[0, 255, 3, 17, 80]], dtype=np.uint8))
    argv = [*OWN_MODEL, "--input", "x.npy", "--eps", "1/255", "--num-examples", "2"]
    assert run(*argv) == 0
    captured = capsys.readouterr()
    pixels, fewer = captured.err.splitlines()
    assert "the points are whole numbers 0 to 255, eps is 0.00392" in pixels
    assert fewer == "warning: --num-examples 2: x.npy holds 1"
    assert captured.out.count("example") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\nsys.exit(0)\n", "cannot import bad.py: it calls sys.exit(0)"),
        ("import sys\ndef make():\n    sys.exit()\n", "bad.py:make failed: it calls sys.exit()"),
        ("raise RuntimeError('two\\nlines')\n", "cannot import bad.py: RuntimeError: two lines"),
        ("def make():\n    return lambda x: x\n", "bad.py:make returned function; it must return"),
    ],
)
def test_model_files_that_make_no_network(text, words, capsys):
    Path("bad.py").write_text(text)
    assert words in refused(capsys, "--model", "bad.py:make", *POINTS)


def test_what_a_model_file_prints_is_no_result(capsys):
    Path("own.py").write_text(f"print('imported')\n{OWN}\nprint('done')\n")
    assert run(*OWN_MODEL, *POINTS) == 0
    captured = capsys.readouterr()
    assert captured.err == "imported\ndone\n"
    assert captured.out.startswith("example 0")


def test_a_model_file_between_modules_called_as_ours():
    for name in ("utils", "data", "main", "bab", "commands", "train_model"):
        Path(f"{name}.py").write_text(f"NAME = 'their {name}'\n")
    Path("models").mkdir()
    Path("models/net.py").write_text(OWN)
    Path("user.py").write_text(
        "import utils, data, main, bab, commands, train_model\n"
        "from models.net import make\n"
        "assert utils.NAME == 'their utils' and data.NAME == 'their data'\n"
    )
    command = [sys.executable, str(ROOT / "main.py"), "--model", "user.py:make", *POINTS, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("example 0 label - upper ")


def test_checkpoints_of_others(capsys):
    from models import build_model

    weights = build_model("own.py:make").state_dict()
    torch.save({"model": weights, "optimizer": {"state": {}}, "epoch": 3}, "nested.pth")
    torch.save({"ema": weights, "model": weights}, "several.pth")
    torch.save({"epoch": 3, "lr": 0.1}, "none.pth")
    own = upper(*OWN_MODEL, *POINTS)
    assert upper(*OWN_MODEL, *POINTS, "--load", "nested.pth") == own
    message = refused(capsys, *OWN_MODEL, *POINTS, "--load", "several.pth")
    assert "holds several state dicts, ema, model" in message
    message = refused(capsys, *OWN_MODEL, *POINTS, "--load", "none.pth")
    assert "holds no state dict under its keys epoch, lr" in message


def test_a_damaged_program_is_one_line(capsys):
    torch.export.save(torch.export.export(nn.Linear(5, 2), (torch.rand(1, 5),)), "net.pt2")
    Path("net.pt2").write_bytes(Path("net.pt2").read_bytes()[:500])
    message = refused(capsys, "--load", "net.pt2", *POINTS)
    assert "net.pt2 is not a program of torch.export.save, or it is damaged" in message
