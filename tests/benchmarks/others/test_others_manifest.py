"""Manifests: what is read from them, and what is refused."""

import json

import numpy as np
import pytest

from benchmarks.others.__main__ import main
from benchmarks.others.box import centre_of, radius_of
from benchmarks.others.manifest import boxes_of, read_manifest
from utils import run_cli


def changed(nets, **changes):
    path = nets / "manifest.json"
    entries = json.loads(path.read_text())
    entries[0].update(changes)
    path.write_text(json.dumps(entries))


def test_boxes_of_a_set(nets):
    entries = read_manifest(nets)
    named = [(box.name, box.eps, box.group) for box in boxes_of(entries, "wider")]
    assert named == [("mlp", "1/100", "wider"), ("cnn", "0.1", "wider")]
    assert len(boxes_of(entries, "all")) == 3
    assert [box.name for box in boxes_of(entries, "all", "cnn")] == ["cnn"]


def test_centres_and_radii_are_in_the_units_of_the_network(nets):
    mlp, cnn = read_manifest(nets)
    assert centre_of(mlp, nets).tolist() == [0.0, 0.5]
    assert radius_of(mlp, "1/100").tolist() == pytest.approx([0.01, 0.01])
    assert centre_of(cnn, nets).shape == (1, 4, 4)
    assert centre_of(cnn, nets).flatten()[[0, 15]].tolist() == [-2, 2]
    assert np.allclose(radius_of(cnn, 0.1), 0.4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file": "none.npz"}, "there is no file"),
        ({"file": "mlp.bin"}, "expected .onnx"),
        ({"input_shape": [0]}, "whole numbers above 0"),
        ({"centre": {"values": [1]}}, "1 numbers for the input shape [2]"),
        ({"centre": {}}, "expected array, values, or low and high"),
        ({"centre": {"values": [1, float("nan")]}}, "expected finite numbers"),
        ({"boxes": [{"eps": "x", "set": "table"}]}, "eps 'x'"),
        ({"boxes": [{"eps": -1, "set": "table"}]}, "a number above 0"),
        ({"boxes": [{"eps": 1, "set": "other"}]}, "expected table or wider"),
        ({"boxes": [{"eps": 1}]}, "set"),
        ({"sha256": "0"}, "sha256 differs"),
        ({"layers": ["softplus"]}, "layer 'softplus'"),
        ({"name": "cnn"}, "two networks of this name"),
        ({"std": [1, 2, 3]}, "for 2 channels"),
        ({"published": {"norm": 3, "value": 1, "region": "R^n"}}, "expected 1, 2 or inf"),
        ({"published": {"norm": 2, "value": -1, "region": "R^n"}}, "a number above 0"),
        ({"published": {"norm": 2, "value": 1, "region": "[0, 1]"}}, "expected R^n"),
    ],
)
def test_a_bad_entry_ends_in_one_line_that_names_it(nets, changes, said, capsys):
    changed(nets, **changes)
    assert run_cli(main, ["--nets", str(nets), "--output", str(nets / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "manifest.json" in line
    assert said in line
    assert not (nets / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[1]"])
def test_a_file_that_is_no_manifest(nets, text, capsys):
    (nets / "manifest.json").write_text(text)
    assert run_cli(main, ["--nets", str(nets)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["--nets", "nowhere"],
        ["--only", "none"],
        ["--methods", "none"],
        ["--timeout", "0"],
        ["--set", "none"],
        ["--output", "FILE"],
        ["--only", "cnn", "--set", "table"],
    ],
)
def test_bad_arguments_end_in_one_line(nets, argv, capsys):
    argv = [str(nets / "mlp.npz") if part == "FILE" else part for part in argv]
    given = argv if "--nets" in argv else ["--nets", str(nets), *argv]
    try:
        code = run_cli(main, given)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
