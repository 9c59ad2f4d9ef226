"""Pasado's code in a checkout, beside our bounds; the checkout is a small one written here."""

import sys

import pytest
import torch

from benchmarks import smooth, tables
from benchmarks.pasado import LINES, load_pasado
from lipschitz.errors import InputError
from tests.benchmarks.test_smooth import arguments
from utils import run_cli

# The names that are used of Pasado's. A value is where it is for the smallest and the largest t,
# with the same fault in its negation; a network's derivative is bounded by magnitudes alone.
MODULES = {
    "forward_mode_tensorized_src/Duals.py": """
import torch
torch.set_default_dtype(torch.float64)
class DualIntervalTensor:
    def __init__(self, real_l, real_u):
        self.real_l, self.real_u = real_l, real_u
        self.e1_l, self.e1_u = torch.zeros(1), torch.zeros(1)
""",
    "forward_mode_tensorized_src/SimpleZono.py": """
class Line:
    def __init__(self, centre, radius, slope):
        self.centre, self.radius, self.slope = centre, radius, slope
    def __mul__(self, factor):
        return Line(self.centre * factor, self.radius * factor, self.slope * factor)
    def __add__(self, other):
        if not isinstance(other, Line):
            return Line(self.centre + other, self.radius, self.slope)
        return Line(*(getattr(self, n) + getattr(other, n) for n in ("centre", "radius", "slope")))
    def __rsub__(self, other):
        return Line(other - self.centre, self.radius, -self.slope)
def HyperDualIntervalToDualZonotope(t):
    return Line((t.real_l + t.real_u) / 2, (t.real_u - t.real_l) / 2, t.e1_u)
""",
    "Section_5_4/model.py": "class Normalization: pass\n",
    "Section_5_4/cnn_helper.py": """
import sys
sys.path.insert(0, "../forward_mode_tensorized_src")
from types import SimpleNamespace
import torch
from torch import nn
from model import Normalization
from SimpleZono import *
inputs = []
def ConvPasado(net, x, shape):
    inputs.append(x)
    slope = None
    for layer in net.layers.children():
        if isinstance(layer, nn.Sigmoid):
            slope = slope / 4
        elif slope is None:
            slope = (layer.weight @ x.slope).abs()
        else:
            slope = layer.weight.abs() @ slope
    return SimpleNamespace(dual=SimpleNamespace(get_lb=lambda: -slope, get_ub=lambda: slope / 2))
""",
}


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "Pasado"
    for name, text in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_its_rows_stand_in_the_same_table(mlp_files, checkout, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", mlp_files)
    threads = torch.get_num_threads()
    argv = arguments(mlp_files, eps="0.01", count=2, pasado=checkout)
    assert run_cli(smooth.main, argv) == 0
    torch.set_num_threads(threads)
    rows = (mlp_files / "smooth_mlp.md").read_text().splitlines()[2:-2]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1] for row in cells] == [*LINES, *smooth.METHODS]
    layers = smooth.stored_layers(mlp_files / "mlp.pth")
    images = smooth.flat_images(mlp_files / "images.npy", 2)
    bounds, true = [], []
    for image in images:
        slope = (layers[0][0] @ (1 - image)).abs() / 4
        bounds.append(float((layers[1][0].abs() @ slope).max()))
        true.append(smooth.truth(smooth.on_line(layers, image), 0.01))
    for row in cells[: len(LINES)]:
        assert float(row[2]) == pytest.approx(sum(bounds) / sum(true), abs=1e-5)


def test_importing_it_leaves_no_trace(checkout):
    before = list(sys.path), torch.get_default_dtype()
    load_pasado(checkout)
    assert before == (list(sys.path), torch.get_default_dtype())
    assert not {"model", "cnn_helper", "Duals", "SimpleZono"} & set(sys.modules)


def test_only_one_of_the_lines_is_the_line(mlp_files, checkout):
    pasado = load_pasado(checkout)
    layers = smooth.stored_layers(mlp_files / "mlp.pth")
    image = smooth.flat_images(mlp_files / "images.npy", 2)[1]
    for line in LINES.values():
        pasado.bound(layers, image, 0.5, line)
    script, right = pasado.network.__globals__["inputs"]
    assert torch.allclose(right.centre - right.radius, image)
    assert torch.allclose(right.centre + right.radius, image + 0.5 * (1 - image))
    assert torch.allclose(script.centre, right.centre)
    assert torch.allclose(script.radius, 0.25 * (1 + image))
    assert torch.equal(script.slope, right.slope)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (None, None),
        ("Section_5_4/cnn_helper.py", None),
        ("Section_5_4/cnn_helper.py", "import no_such_package\n"),
        ("Section_5_4/cnn_helper.py", "def ConvPasado(:\n"),
        ("Section_5_4/cnn_helper.py", "def ConvPasado(x): return x\n"),
        ("forward_mode_tensorized_src/Duals.py", ""),
    ],
)
def test_another_folder_ends_in_one_line(mlp_files, checkout, capsys, name, text):
    if name is None:
        checkout = checkout / "none"
    elif text is None:
        (checkout / name).unlink()
    else:
        (checkout / name).write_text(text)
    assert run_cli(smooth.main, arguments(mlp_files, eps="0.1", count=1, pasado=checkout)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "--pasado" in lines[0]


def test_a_half_of_a_checkout_is_refused(checkout):
    for path in (checkout / "forward_mode_tensorized_src").iterdir():
        path.unlink()
    (checkout / "forward_mode_tensorized_src").rmdir()
    with pytest.raises(InputError, match="forward_mode_tensorized_src"):
        load_pasado(checkout)
