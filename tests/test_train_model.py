"""Training end to end on bundled and generated data, its checkpoints, and bad command lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import real_formats
import torch
from cases import ROOT
from torch import nn

import train_model
from commands import training
from data import load_data
from models import build_model
from models.checkpoint import load_checkpoint, load_weights
from utils import run_cli


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Runs in an empty folder, with a data folder in it, off the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIPSCHITZ_DATA", str(tmp_path / "data_folder"))
    monkeypatch.setenv("LIPSCHITZ_OFFLINE", "1")


def run(*argv):
    return run_cli(train_model.main, [*argv, "--quiet", "--device", "cpu"])


CNN = ("--data", "digits", "--model", "simple_cnn_3layer", "--width", "2")


def test_trained_network_comes_back_with_its_accuracy(capsys):
    assert run(*CNN, "--lr", "0.02", "--batch-size", "64", "--num-epochs", "4", "--seed", "5") == 0
    path = Path("models_pretrained/digits_simple_cnn_3layer_width2.pth")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"saved {path}"
    assert len(lines) == 5
    assert lines[0].startswith("epoch 1/4 loss ")
    checkpoint = load_checkpoint(path)
    assert checkpoint.accuracy > 0.75  # ten classes: 0.1 by chance
    assert f"test_acc {checkpoint.accuracy:.4f}" in lines[3]
    assert checkpoint.params == {"width": 2}
    assert (checkpoint.data, checkpoint.input_shape, checkpoint.classes) == (
        "digits",
        (1, 8, 8),
        10,
    )
    assert (checkpoint.mean, checkpoint.std, checkpoint.seed) == ((0.0,), (1.0,), 5)
    assert checkpoint.epochs == 4
    assert checkpoint.versions["torch"] == str(torch.__version__)

    model = build_model(checkpoint.model, **checkpoint.params)
    load_weights(model, path)
    x, y = load_data("digits", train=False).take(0, 1000)
    assert (model(x).argmax(1) == y).double().mean().item() == pytest.approx(checkpoint.accuracy)


def test_same_seed_same_network():
    def weights(seed, output):
        assert run(*CNN, "--num-epochs", "1", "--seed", seed, "--output", output) == 0
        return load_checkpoint(output).state_dict["0.weight"]

    assert torch.equal(weights("1", "a.pth"), weights("1", "b.pth"))
    assert not torch.equal(weights("1", "a.pth"), weights("2", "c.pth"))


def test_load_continues_and_zero_epochs_only_evaluates(capsys):
    assert run(*CNN, "--num-epochs", "1", "--output", "a.pth") == 0
    assert run(*CNN, "--num-epochs", "0", "--load", "a.pth", "--output", "b.pth") == 0
    first, second = load_checkpoint("a.pth"), load_checkpoint("b.pth")
    assert first.accuracy == second.accuracy
    assert torch.equal(first.state_dict["0.weight"], second.state_dict["0.weight"])
    assert capsys.readouterr().out.splitlines()[-2] == f"test_acc {first.accuracy:.4f}"


def test_float64_weights_can_be_trained_further():
    model = build_model("simple_cnn_3layer", width=2).double()
    torch.save(model.state_dict(), "double.pth")
    assert run(*CNN, "--num-epochs", "1", "--load", "double.pth", "--output", "a.pth") == 0
    weights = load_checkpoint("a.pth").state_dict["0.weight"]
    assert weights.dtype == torch.float64
    assert not torch.equal(weights, model[0].weight)


def test_cnn_to_mlp_saves_the_same_function():
    assert run(*CNN, "--num-epochs", "1", "--cnn-to-mlp", "--output", "a.pth") == 0
    mlp_checkpoint = load_checkpoint("a_mlp.pth")
    assert mlp_checkpoint.description == "mlp(sizes=64-72-32-10)"
    assert mlp_checkpoint.input_shape == (64,)
    cnn, mlp = build_model("simple_cnn_3layer", width=2), build_model("simple_cnn_3layer_2")
    load_weights(cnn, "a.pth")
    load_weights(mlp, "a_mlp.pth")
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(mlp(x.flatten(1)), cnn(x))


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--data", "simple", "--model", "simple_mlp_3layer"], "simple_simple_mlp_3layer.pth"),
        (
            ["--data", "simpleData", "--model", "simple_mlp_width32", "--depth", "3"],
            "simple_simple_mlp_width32_depth3.pth",
        ),
        (["--data", "simpleCNN", "--model", "simple_cnn_3layer"], "simple_simple_cnn_3layer.pth"),
        (["--data", "simple", "--model", "simple_cnn_3layer_2"], "simple_simple_cnn_3layer_2.pth"),
        (
            ["--data", "digits", "--model", "simple_mlp_3layer", "--model-params", "width=8"],
            "digits_simple_mlp_3layer_width8.pth",
        ),
    ],
)
def test_other_networks_train_and_their_names_are_derived(argv, name):
    assert run(*argv, "--num-epochs", "1", "--save-dir", "there") == 0
    assert [path.name for path in Path("there").iterdir()] == [name]


def test_adult_and_mnist_from_files(tmp_path):
    real_formats.write_adult(tmp_path / "data_folder")
    real_formats.write_mnist(tmp_path / "elsewhere")
    real_formats.unpack_mnist(tmp_path / "elsewhere")
    assert run("--data", "Adult", "--model", "adult_mlp", "--width", "4", "--num-epochs", "1") == 0
    argv = ["--data", "mnist", "--model", "mnist_mlp_3layer", "--num-epochs", "1"]
    assert run(*argv, "--data-root", "elsewhere") == 0
    names = sorted(path.name for path in Path("models_pretrained").iterdir())
    assert names == ["MNIST_mnist_mlp_3layer.pth", "adult_adult_mlp_width4.pth"]


NET = """
from torch import nn
def make(hidden=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.Tanh(),
                         nn.Dropout(), nn.Linear(hidden, 10))
def empty():
    return nn.Flatten()
def three_outputs():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""


def test_own_network_is_evaluated_in_eval_mode_and_converted():
    Path("net.py").write_text(NET)
    argv = ["--data", "digits", "--model", "net.py:make", "--model-params", "hidden=5"]
    assert run(*argv, "--num-epochs", "2", "--cnn-to-mlp") == 0
    checkpoint = load_checkpoint("models_pretrained/digits_net_make_hidden5.pth")
    assert checkpoint.description == "net.py:make(hidden=5)"
    model = build_model("net.py:make", hidden=5).eval()
    model.load_state_dict(checkpoint.state_dict)
    x, y = load_data("digits", train=False).take(0, 1000)
    assert (model(x).argmax(1) == y).double().mean().item() == pytest.approx(checkpoint.accuracy)
    mlp = load_checkpoint("models_pretrained/digits_net_make_hidden5_mlp.pth")
    assert mlp.model is None  # tanh: no network of the registry
    rebuilt = nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))
    rebuilt.load_state_dict(mlp.state_dict)
    torch.testing.assert_close(rebuilt(x.flatten(1)), model(x), rtol=1e-4, atol=1e-5)


def test_interrupt_keeps_the_last_epoch(monkeypatch, capsys):
    right = training.train_epoch

    def interrupted_in_epoch_3(model, optimizer, data, options, epoch):
        if epoch == 3:
            nn.init.zeros_(model[0].weight)
            raise KeyboardInterrupt
        return right(model, optimizer, data, options, epoch)

    monkeypatch.setattr(training, "train_epoch", interrupted_in_epoch_3)
    assert run(*CNN, "--output", "a.pth") == 130
    assert capsys.readouterr().err == "error: interrupted; epoch 2 is kept in a.pth\n"
    kept = load_checkpoint("a.pth")
    assert kept.epochs == 2
    assert kept.state_dict["0.weight"].abs().min() > 0


def test_interrupt_before_the_first_epoch_ends(monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_epoch", interrupted)
    assert run(*CNN, "--output", "a.pth") == 130
    assert capsys.readouterr().err == "error: interrupted; nothing is saved\n"
    assert not Path("a.pth").exists()


def test_lists_go_to_stdout(capsys):
    assert run("--list-models", "--list-data") == 0
    out = capsys.readouterr().out
    assert "simple_cnn_3layer(width=16): " in out
    assert "tinyimagenet (3x64x64, 200 classes): " in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "mlp"], "--data is missing"),
        (["--data", "digits"], "--model is missing"),
        (["--data", "digts", "--model", "mlp"], "did you mean 'digits'?"),
        (["--data", "digits", "--model", "simple_cnn"], "did you mean 'simple_cnn_3layer'?"),
        (["--data", "digits", "--model", "mnist_cnn_4layer"], "the data has 1x8x8"),
        (["--data", "digits", "--model", "net.py:empty"], "net.py:empty has no weights to train"),
        (["--data", "digits", "--model", "net.py:three_outputs"], "has 3 outputs, digits 10"),
        (["--data", "MNIST", "--model", "mnist_mlp_3layer"], "MNIST not found"),
        ([*CNN, "--depth", "3"], "simple_cnn_3layer has no argument 'depth'; it takes: width"),
        ([*CNN, "--model-params", "width=3"], "'width' is given twice"),
        ([*CNN, "--num-epochs", "-1"], "--num-epochs -1: expected 0 or more"),
        ([*CNN, "--lr", "nan"], "--lr nan: expected a positive number"),
        ([*CNN, "--batch-size", "0"], "--batch-size 0: expected at least 1"),
        ([*CNN, "--seed", "-1"], "seed -1: expected 0 to"),
        ([*CNN, "--load", "none.pth"], "there is no checkpoint none.pth"),
        ([*CNN, "--load", "net.py"], "net.py is not a checkpoint"),
        ([*CNN, "--lr", "1e30"], "lower --lr"),
        ([*CNN, "--output", "net.py/a.pth", "--num-epochs", "0"], "net.py"),
        ([*CNN, "--epochs", "3"], "did you mean '--num-epochs'?"),
    ],
)
def test_bad_command_lines_give_one_line(argv, words, capsys):
    Path("net.py").write_text(NET)
    try:
        code = run(*argv)
    except SystemExit as exit_:  # argparse leaves this way
        code = exit_.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_cuda_asked_for_but_absent(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_cli(train_model.main, [*CNN, "--device", "cuda"]) == 2
    assert capsys.readouterr().err.count("no CUDA GPU; use --device cpu") == 1


def test_checkpoint_of_another_network(capsys):
    assert run(*CNN, "--num-epochs", "0", "--output", "a.pth") == 0
    argv = ["--data", "digits", "--model", "simple_cnn_3layer", "--width", "3", "--load", "a.pth"]
    assert run(*argv) == 2
    err = capsys.readouterr().err
    assert (
        "a.pth does not fit simple_cnn_3layer; it was saved from simple_cnn_3layer(width=2)" in err
    )
    assert "shape 0.weight is [2, 1, 3, 3] instead of [3, 1, 3, 3]" in err


def test_as_a_command(tmp_path):
    """The script itself: exit code, one error line, progress bar on stderr only."""
    command = [sys.executable, str(ROOT / "train_model.py"), *CNN, "--num-epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "epoch 1:" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("saved models_pretrained")
    failed = subprocess.run(
        [*command, "--data", "digts"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: unknown data set 'digts'")
    assert failed.stderr.count("\n") == 1
