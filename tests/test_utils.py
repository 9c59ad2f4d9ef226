"""One-line errors, argument reading, seeds, device, precision, files and rows."""

from __future__ import annotations

import errno
import json
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

import utils
from lipschitz.errors import InputError


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("eps -1: expected\n  0 or more"), 2, "eps -1: expected 0 or more"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npz"),
            2,
            "a.npz: No such",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (OSError("disk on fire"), 2, "disk on fire"),
        (NotImplementedError("norm 2 comes later"), 2, "norm 2 comes later"),
        (NotImplementedError(), 2, "NotImplementedError"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), 2, "--batch-size"),
        (MemoryError(), 2, "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "--batch-size"),
    ],
)
def test_run_cli_turns_expected_failures_into_one_line(error, code, words, capsys):
    def main(argv):
        raise error

    assert utils.run_cli(main, []) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), KeyError("x"), ValueError("v")])
def test_run_cli_does_not_hide_programming_errors(error):
    def main(argv):
        raise error

    with pytest.raises(type(error)):
        utils.run_cli(main)


def test_run_cli_passes_arguments_and_code():
    assert utils.run_cli(lambda argv: len(argv), ["a", "b", "c"]) == 3


@pytest.fixture
def parser():
    parser = utils.Parser()
    parser.add_argument("--num-epochs", type=int, default=10)
    parser.add_argument("--data-root")
    return parser


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--num-epoch", "3"], "did you mean '--num-epochs'?"),  # abbreviations are not taken
        (["--data", "x"], "unknown argument '--data'"),
        (["--num-epochs", "three"], "invalid int value: 'three'"),
        (["stray"], "unknown argument 'stray'"),
    ],
)
def test_parser_errors_are_one_line(parser, argv, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(argv)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_parser_accepts_what_it_knows(parser):
    assert parser.parse_args(["--num-epochs", "3"]).num_epochs == 3


def test_parse_params_reads_types():
    params = utils.parse_params("width=32, lr=1e-3,flag=True,name=a-b", depth=4, size=None)
    assert params == {"width": 32, "lr": 1e-3, "flag": True, "name": "a-b", "depth": 4}
    assert [type(params[key]) for key in ("width", "lr", "flag")] == [int, float, bool]
    assert utils.parse_params(None) == utils.parse_params("") == {}


@pytest.mark.parametrize("text", ["width", "width=", "=3", "a b=3"])
def test_parse_params_refuses_what_is_no_assignment(text):
    with pytest.raises(InputError, match="expected name=value"):
        utils.parse_params(text)


def test_parse_params_refuses_a_name_given_twice():
    with pytest.raises(InputError, match="'width' is given twice"):
        utils.parse_params("width=3", width=4)


def test_set_seed_repeats_all_three_generators():
    def draws(seed):
        utils.set_seed(seed)
        numpy_draw = np.random.rand()  # noqa: NPY002 (the global generator is what is seeded)
        return random.random(), numpy_draw, torch.rand(1).item()

    first, again, other = draws(7), draws(7), draws(8)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_set_seed_refuses_what_numpy_cannot_take(seed):
    with pytest.raises(InputError, match="expected 0 to"):
        utils.set_seed(seed)


def test_choose_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert utils.choose_device("auto").type == utils.choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="no CUDA GPU; use --device cpu"):
        utils.choose_device("cuda")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        utils.choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert utils.choose_device("auto").type == utils.choose_device("cuda").type == "cuda"
    assert utils.choose_device("cpu").type == "cpu"


def test_choose_dtype_keeps_a_float64_model():
    model = nn.Linear(2, 2)
    assert utils.choose_dtype("auto") == utils.choose_dtype("auto", model) == torch.float32
    assert utils.choose_dtype("auto", model.double()) == torch.float64
    assert utils.choose_dtype("float32", model) == torch.float32
    constants = nn.Module()
    constants.register_buffer("matrix", torch.eye(2, dtype=torch.float64))
    assert utils.choose_dtype("auto", constants) == torch.float64
    with pytest.raises(InputError, match="unknown dtype 'half'"):
        utils.choose_dtype("half")


def test_versions_are_plain_text():
    versions = utils.versions()
    assert set(versions) == {"python", "torch", "auto_LiRPA", "numpy", "tool"}
    assert versions["numpy"] == np.__version__
    assert versions["tool"].startswith(utils.__version__)
    assert json.loads(json.dumps(versions)) == versions


def test_versions_survive_a_missing_package(monkeypatch):
    def not_installed(package):
        raise utils.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(utils.metadata, "version", not_installed)
    assert utils.versions()["auto_LiRPA"] is None


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.bin"
    utils.atomic_write_bytes(path, b"old")
    utils.atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["b.bin"]


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "b.bin"
    utils.atomic_write_bytes(path, b"old")

    def no_space(file_descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        utils.atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b.bin"]


def test_torch_save_atomic(tmp_path):
    path = tmp_path / "x.pt"
    utils.torch_save_atomic({"x": torch.arange(3)}, path)
    assert torch.load(path, weights_only=True)["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("size", "set_by_user", "expected"), [(10, None, 1), (10**6, None, 3), (10, "3", 3)]
)
def test_threads_only_where_they_pay(monkeypatch, size, set_by_user, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        utils.use_threads_that_pay(size)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
