"""A user's file whose neighbours have the names of our modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import data
import models
import utils
from lipschitz.errors import InputError
from models import build_model, load_factory
from models.neighbours import OURS

NET = """
import utils
from data import WIDTH
from models.net import Net
import main
assert utils.__file__ == {folder!r} + "/utils.py"

def make():
    from utils import scale
    import bab
    return Net(WIDTH, scale * bab.FACTOR)

class Direct(Net):
    def __init__(self, width=2):
        super().__init__(width, utils.scale)
"""
CLASS = """
import torch
from torch import nn
from . import constants
import utils

class Net(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.layer = nn.Linear(width, constants.OUTPUTS)
        torch.nn.init.constant_(self.layer.weight, scale)
    def forward(self, x):
        return self.layer(x) * utils.scale
"""


def write(folder: Path, scale: float = 3.0) -> str:
    """A network whose files are called as ours; ``models`` has no __init__.py, as many have."""
    files = {
        "net.py": NET.format(folder=str(folder)),
        "utils.py": f"scale = {scale}\n",
        "main.py": "print('their main')\n",
        "bab.py": "FACTOR = 2\n",
        "data/__init__.py": "WIDTH = 4\n",
        "models/net.py": CLASS,
        "models/constants.py": "OUTPUTS = 2\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder / "net.py")


def loaded() -> dict[str, object]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] in OURS}


def test_a_file_gets_its_own_neighbours_and_we_keep_ours(tmp_path, capsys):
    before = loaded(), list(sys.path), list(sys.meta_path)
    model = build_model(f"{write(tmp_path)}:make")
    assert model.layer.weight.shape == (2, 4)
    assert model.layer.weight.unique().tolist() == [6.0]
    assert model(torch.ones(1, 4)).shape == (1, 2)
    assert (loaded(), list(sys.path), list(sys.meta_path)) == before
    import bab

    assert Path(bab.__file__).parent == Path(utils.__file__).parent
    assert sys.modules["models"] is models
    assert sys.modules["data"] is data
    captured = capsys.readouterr()
    assert captured.out == ""  # where the results go
    assert captured.err.startswith("their main")


def test_two_files_do_not_share_their_neighbours(tmp_path):
    for scale in (3.0, 5.0):
        name = write(tmp_path / str(scale), scale)
        assert build_model(f"{name}:make").layer.weight.unique().tolist() == [2 * scale]
        assert build_model(f"{name}:Direct", width=3).layer.weight.unique().tolist() == [scale]


def test_ours_are_there_for_a_file_without_such_neighbours(tmp_path):
    (tmp_path / "net.py").write_text(
        "from models.simple import simple_mlp_3layer\nimport utils\n"
        "def make():\n    return simple_mlp_3layer(width=3)\ndef ours():\n    return utils\n"
    )
    assert build_model(f"{tmp_path / 'net.py'}:make")[1].out_features == 3
    assert load_factory(f"{tmp_path / 'net.py'}:ours")() is utils


def test_a_failure_leaves_nothing_behind(tmp_path):
    write(tmp_path)
    (tmp_path / "net.py").write_text("import utils, models.net\nraise ValueError('no')\n")
    before = loaded(), list(sys.path), list(sys.meta_path)
    with pytest.raises(InputError, match=r"cannot import .*net\.py: ValueError: no"):
        load_factory(f"{tmp_path / 'net.py'}:make")
    assert (loaded(), list(sys.path), list(sys.meta_path)) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\nsys.exit()\n", r"cannot import .*net\.py: it calls sys\.exit\(\)"),
        ("import sys\nsys.exit('done')\n", r"calls sys\.exit\('done'\); put what runs as a script"),
        ("import sys\ndef make():\n    sys.exit(0)\n", r"failed: it calls sys\.exit\(0\)"),
        ("def make():\n    print('hi')\n    return [1]\n", "returned list; it must return a torch"),
    ],
)
def test_files_that_leave_or_return_something_else(tmp_path, text, words):
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(InputError, match=words):
        build_model(f"{tmp_path / 'net.py'}:make")
