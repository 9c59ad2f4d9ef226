"""The points of .npz, .npy and .csv files, brought into the shape of a network's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data import data_spec
from data.boxes import read_box, read_radius
from data.point_files import PointFile, read_points
from data.points import Choice, check_labels, points_of_box, points_of_data, points_of_file
from lipschitz.errors import InputError

X = np.random.default_rng(0).random((3, 6))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def npy(x) -> PointFile:
    np.save("x.npy", x)
    return read_points(Path("x.npy"))


def npz(**arrays) -> PointFile:
    np.savez("x.npz", **arrays)
    return read_points(Path("x.npz"))


def table(text: str) -> PointFile:
    Path("x.csv").write_text(text)
    return read_points(Path("x.csv"))


def taken(given, eps=0.1, shape=None, choice=None, **options):
    choice = choice or Choice(count=len(given.x))
    return points_of_file(given, eps, choice, input_shape=shape, **options)


def test_points_of_every_kind_of_file_are_the_same():
    lines = "\n".join(",".join(map(repr, map(float, row))) for row in X)
    given = [npz(x=X), npy(X), table(lines), table(f"a,b,c,d,e,f\n{lines}")]
    for one in given:
        assert one.input_shape == (6,)
        for shape in (None, (1, 2, 3), (6,), (1, 1, 6)):
            points = taken(one, shape=shape)
            assert torch.equal(points.x, torch.from_numpy(X).reshape(3, *(shape or (6,))))
            assert points.labels is None
    assert len({one.source for one in given}) == 4


@pytest.mark.parametrize(
    ("given", "wanted", "count"),
    [
        ((5,), (1, 1, 5), 1),
        ((5,), (5,), 1),
        ((5,), (1,), 5),
        ((5, 1), (1,), 5),
        ((2, 5), (1, 1, 5), 2),
        ((2, 28, 28), (1, 28, 28), 2),
        ((2, 28, 28, 1), (1, 28, 28), 2),
        ((28, 28), (28, 28), 1),
        ((1, 28, 28), (1, 28, 28), 1),
        ((3, 4, 4), (3, 4, 4), 1),
        ((7, 3, 4, 4), (48,), 7),
    ],
)
def test_points_take_the_shape_of_the_network(given, wanted, count):
    x = np.arange(float(np.prod(given))).reshape(given)
    points = taken(npy(x), shape=wanted, choice=Choice(count=count))
    assert points.x.shape == (count, *wanted)
    assert points.x.flatten().tolist() == x.ravel().tolist()


@pytest.mark.parametrize(
    ("given", "wanted", "words"),
    [
        ((2, 4, 4, 3), (3, 4, 4), r"2 points of shape \(4, 4, 3\).*move the channels first"),
        ((2, 5), (4,), r"2 points of shape \(5,\); the network takes inputs of shape \(4,\)"),
        ((5,), (4,), "1 point of 5 numbers; the network takes"),
        ((2, 6, 2), (3, 4), r"2 points of shape \(6, 2\)"),
    ],
)
def test_other_shapes_are_refused(given, wanted, words):
    with pytest.raises(InputError, match=rf"^--input x\.npy holds {words}"):
        taken(npy(np.ones(given)), shape=wanted)


def test_labels_in_a_column():
    for head in ("a,b,y", "a,b,Label"):
        points = taken(table(f"{head}\n0.5,1,2\n0.25,0,0\n"))
        assert points.x.tolist() == [[0.5, 1], [0.25, 0]]
        assert points.labels.tolist() == [2, 0]
    points = taken(table("y,a,b\n2,0.5,1\n"), shape=(1, 2))
    assert (points.x.tolist(), points.labels.tolist()) == ([[[0.5, 1]]], [2])
    with pytest.raises(InputError, match="a header line that names it y"):
        taken(table("2,0.5,1\n"), shape=(2,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,y\n0.5,0.25\n", "y is float64 .* if the column is no label, give it another name"),
        ("a,y\n0.5,-1\n", "y holds the label -1 at point 0"),
        ("a,y,label\n1,2,3\n", "has 2 columns of labels"),
        (",a\n0,0.5\n", "column 1 has no name.*index=False"),
        ("y\n1\n", "x is float64 of shape"),
        ("a,b\nnan,1\n", "x holds NaN or infinity"),
    ],
)
def test_tables_that_are_no_points(text, words):
    with pytest.raises(InputError, match=rf"^--input x\.csv.*{words}"):
        table(text)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X + 1j}, "x is complex128: expected real numbers"),
        ({"x": np.array([["a"]])}, "x is <U1 of shape .1, 1.: expected numbers"),
        ({"x": np.zeros((0, 4))}, "x is float64 of shape .0, 4."),
        ({"x": np.array(1.0)}, "the batch dimension first"),
        ({"a": X}, r"holds \['a'\]: expected an array 'x'"),
        ({"x": X, "y": np.array([0, 1, -5])}, "y holds the label -5 at point 2"),
        ({"x": X, "y": np.array([0, 1])}, "expected whole numbers of shape"),
        ({"x": X, "y": np.array([0.0, 1, 2])}, "expected whole numbers of shape"),
    ],
)
def test_arrays_that_are_no_points(arrays, words):
    with pytest.raises(InputError, match=rf"^--input x\.npz.*{words}"):
        npz(**arrays)


def test_labels_that_the_network_has_no_output_for():
    points = taken(npz(x=X, y=np.array([0, 9, 2])), choice=Choice(1, 2))
    check_labels(points, 10)
    with pytest.raises(InputError, match=r"x\.npz: point 1 has the label 9; the network has 9"):
        check_labels(points, 9)
    check_labels(taken(npy(X)), 1)  # without labels


def test_a_radius_for_every_input_or_channel_follows_the_shape():
    points = taken(npy(X), read_radius("0,1,2,3,4,5"), (1, 2, 3))
    assert points.box(1)["eps"].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    points = taken(npy(X), read_radius("0.5,1"), (2, 3, 1))
    assert points.box(1)["eps"].flatten().tolist() == [0.5] * 3 + [1] * 3
    np.save("eps.npy", X)
    points = taken(npy(X), read_radius("eps.npy"), (1, 2, 3), Choice(1, 2))
    assert points.box(1)["eps"].flatten().tolist() == X[2].tolist()
    with pytest.raises(InputError, match=r"^--eps 1,2 is for 2 inputs; expected 1 number or 6"):
        taken(npy(X), read_radius("1,2"))


def test_boxes_in_the_file_follow_the_shape():
    points = taken(npz(x=X, x_L=X - 1, x_U=X[0] + 1), None, (1, 2, 3), Choice(1, 2))
    box = points.box(1)
    assert box["x_lower"].shape == (1, 2, 3)
    assert box["x_lower"].flatten().tolist() == (X[2] - 1).tolist()
    assert box["x_upper"].flatten().tolist() == (X[0] + 1).tolist()


def test_the_box_itself_is_one_example():
    points = points_of_box(read_box("-1,1;0,3;2,2"), (1, 3))
    assert points.x.tolist() == [[[0, 1.5, 2]]]
    box = points.box(0)
    assert box["x_lower"].tolist() == [[-1, 0, 2]]
    assert box["x_upper"].tolist() == [[1, 3, 2]]
    points = points_of_box(read_box("-1,3"), (2, 2))
    assert points.x.tolist() == [[[1, 1], [1, 1]]]
    assert points.box(0)["x_upper"].tolist() == [[3, 3], [3, 3]]
    with pytest.raises(InputError, match=r"^--box 0,1;0,1 is .* expected 1 number or 3, one per"):
        points_of_box(read_box("0,1;0,1"), (3,))


def test_std_is_shown_as_it_was_typed():
    for std in ("0", "0.5,-1", "nan", "1,2"):
        with pytest.raises(InputError, match=rf"^--std {std}: expected 1 or 6 positive numbers"):
            taken(npy(X), std=std)


def test_fewer_points_than_asked_for_are_said(capsys):
    taken(npy(X), choice=Choice(0, 3))
    assert capsys.readouterr().err == ""
    assert len(taken(npy(X), choice=Choice(1, 5)).x) == 2
    said = "warning: --num-examples 5: x.npy holds 2 from point 1 on\n"
    assert capsys.readouterr().err == said
    points_of_data(data_spec("simple"), (4,), 0.1, Choice(0, 2), None)
    assert capsys.readouterr().err == "warning: --num-examples 2: simple holds 1\n"


PIXELS = np.array([[0, 17, 255]])


@pytest.mark.parametrize(
    ("x", "eps", "warned"),
    [
        (PIXELS.astype(np.uint8), 1 / 255, True),
        (PIXELS.astype(np.float32), read_radius("0.1,0.2,0"), True),
        (PIXELS // 2, 0.5, False),  # 127: may be counts
        ((PIXELS // 2).astype(np.uint8), 0.5, True),
        (PIXELS, 2, False),
        (PIXELS, 0, False),
        (PIXELS + 0.5, 1 / 255, False),
        (PIXELS - 1, 1 / 255, False),
        (np.array([[0, 1, 1]], dtype=np.uint8), 1 / 255, False),
    ],
)
def test_images_that_were_not_scaled_are_said(x, eps, warned, capsys):
    taken(npy(x), eps)
    said = capsys.readouterr().err
    assert ("points are whole numbers 0 to" in said) == warned
    assert said.count("\n") == warned
