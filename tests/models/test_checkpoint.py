"""Checkpoints come back whole; weights that do not fit are refused with what is wrong."""

from __future__ import annotations

import argparse
import pickle

import pytest
import torch
from torch import nn

from lipschitz.errors import InputError
from models import build_model
from models.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from utils import set_seed


@pytest.fixture
def model():
    set_seed(0)
    return build_model("simple_mlp_3layer", width=4)


def fresh():
    set_seed(1)
    return build_model("simple_mlp_3layer", width=4)


def same_weights(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(n == m and torch.equal(a, b) for (n, a), (m, b) in pairs)


def full_checkpoint(model):
    return Checkpoint(
        state_dict=model.state_dict(),
        model="simple_mlp_3layer",
        params={"width": 4, "in_dim": 16},
        data="simple",
        input_shape=(16,),
        classes=10,
        mean=(0.0,),
        std=(1.0,),
        seed=3,
        accuracy=0.75,
        epochs=2,
        versions={"torch": "2.x", "auto_LiRPA": None},
    )


def test_everything_known_comes_back(model, tmp_path):
    path = tmp_path / "new folder" / "a.pth"
    saved = full_checkpoint(model)
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    known = {key: value for key, value in vars(saved).items() if key != "state_dict"}
    assert {key: getattr(loaded, key) for key in known} == known
    assert loaded.description == "simple_mlp_3layer(width=4, in_dim=16)"
    other = fresh()
    assert not same_weights(model, other)
    load_weights(other, path)
    assert same_weights(model, other)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        lambda weights: {"state_dict": {f"_orig_mod.{n}": v for n, v in weights.items()}},
        lambda weights: {"model": weights, "optimizer": {"state": {}, "param_groups": [{}]}},
        lambda weights: {"epoch": 3, "model_state_dict": weights, "loss": torch.ones(1)},
        lambda weights: {"net": weights, "ema": None, "acc": 0.5},
    ],
    ids=["plain", "under state_dict", "DataParallel", "compiled", "model", "tutorial", "net"],
)
def test_anyones_state_dict_loads(model, tmp_path, wrap):
    path = tmp_path / "a.pth"
    torch.save(wrap(dict(model.state_dict())), path)
    other = fresh()
    checkpoint = load_weights(other, path)
    assert same_weights(model, other)
    assert checkpoint.model is None
    assert checkpoint.description is None


def test_a_prefix_that_not_all_keys_share_stays(model, tmp_path):
    path = tmp_path / "a.pth"
    weights = dict(model.state_dict())
    weights["module.extra"] = torch.zeros(1)
    torch.save(weights, path)
    with pytest.raises(InputError, match=r"unexpected module\.extra$"):
        load_weights(fresh(), path)


def test_float64_weights_make_a_float64_model(model, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({name: value.double() / 3 for name, value in model.state_dict().items()}, path)
    other = fresh()
    load_weights(other, path)
    assert other[1].weight.dtype == torch.float64
    assert torch.equal(other[1].weight, model[1].weight.double() / 3)


def test_missing_unexpected_and_misshapen_are_all_listed(model, tmp_path):
    weights = dict(model.state_dict())
    del weights["1.bias"]
    weights["extra"] = torch.zeros(1)
    weights["5.weight"] = torch.zeros(10, 5)
    path = tmp_path / "a.pth"
    torch.save(weights, path)
    other = fresh()
    with pytest.raises(InputError) as error:
        load_weights(other, path, asked_for="simple_mlp_3layer")
    assert str(error.value) == (
        f"{path} does not fit simple_mlp_3layer: missing 1.bias; unexpected extra; "
        "shape 5.weight is [10, 5] instead of [10, 4]"
    )
    assert same_weights(other, fresh())  # nothing was loaded half-way


def test_long_lists_are_cut(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({f"w{i}": torch.zeros(1) for i in range(10)}, path)
    with pytest.raises(InputError, match=r"unexpected w0, w1, w2, w3 and 6 more"):
        load_weights(nn.ReLU(), path)


def test_a_checkpoint_of_another_model_says_which(model, tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, full_checkpoint(model))
    with pytest.raises(InputError) as error:
        load_weights(build_model("simple_cnn_3layer"), path, asked_for="simple_cnn_3layer")
    assert "does not fit simple_cnn_3layer; it was saved from simple_mlp_3layer(width=4," in str(
        error.value
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(model, tmp_path, bad):
    model[3].bias.data[1] = bad
    path = tmp_path / "a.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(InputError, match=r"'3\.bias' contains NaN or infinity"):
        load_checkpoint(path)


def write_whole_model(path):
    torch.save(nn.Linear(2, 2), path)


def write_plain_pickle(path):
    path.write_bytes(pickle.dumps(nn.Linear(2, 2), protocol=2))


def write_cut_off(path):
    torch.save(build_model("simple_mlp_3layer").state_dict(), path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_text("hello, world"), "is not a checkpoint, or it is damaged"),
        (lambda path: path.write_bytes(b""), "is not a checkpoint, or it is damaged"),
        (write_cut_off, "is not a checkpoint, or it is damaged"),
        (write_whole_model, "holds pickled objects"),
        (write_plain_pickle, "holds pickled objects"),
        (lambda path: torch.save([1, 2], path), "holds no state dict"),
        (lambda path: torch.save({}, path), "holds no state dict"),
        (lambda path: torch.save({"state_dict": {"a": 1}}, path), "holds no state dict"),
        (
            lambda path: torch.save({"a": {"w": 1}, "optimizer": {}, 3: "x"}, path),
            "holds no state dict under its keys a, optimizer, 3; save",
        ),
        (
            lambda path: torch.save({"ema": {"w": torch.ones(1)}, "g": {"w": torch.ones(1)}}, path),
            "holds several state dicts, ema, g: save the one that is meant",
        ),
        (
            lambda path: torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, path),
            r"holds pickled objects \(argparse\.Namespace\)",
        ),
        (lambda path: torch.save(torch.zeros(2), path), "holds no state dict"),
        (lambda path: path.mkdir(), "there is no checkpoint .*: it is a folder"),
        (lambda path: None, "there is no checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, write, words):
    path = tmp_path / "a.pth"
    write(path)
    with pytest.raises(InputError, match=words) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
