"""--eps and --box as text and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.boxes import fits, per_input, read_box, read_radius
from lipschitz.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_one_radius():
    assert read_radius("0.05").setting == 0.05
    assert read_radius("2/255").setting == 2 / 255
    assert per_input("--eps", read_radius("1e-3").values, (2, 3)).tolist() == 1e-3


def test_radii_by_coordinate_and_by_channel():
    radius = read_radius("1/4, 0,0.5")
    assert radius.setting == "1/4, 0,0.5"
    flat = per_input("--eps", radius.values, (3,), by_channel=True)
    assert flat.tolist() == [0.25, 0, 0.5]
    assert torch.equal(per_input("--eps", radius.values, (1, 1, 3)), flat.reshape(1, 1, 3))
    channels = per_input("--eps", radius.values, (3, 2, 2), by_channel=True).expand(3, 2, 2)
    assert channels[:, 1, 0].tolist() == [0.25, 0, 0.5]
    assert (channels == channels[:, :1, :1]).all()


@pytest.mark.parametrize("ending", [".npy", ".csv"])
def test_radii_of_files(ending):
    numbers = np.array([0.25, 0, 0.5])
    for shaped in (numbers, numbers[:, None]):
        if ending == ".npy":
            np.save("eps.npy", shaped)
        else:
            np.savetxt("eps.csv", np.atleast_2d(shaped), delimiter=",")
        radius = read_radius(f"eps{ending}")
        assert per_input("--eps", radius.values, (3,)).tolist() == numbers.tolist()
        assert radius.setting.startswith(f"eps{ending}:")
    each = np.arange(6.0).reshape(2, 3)
    np.save("eps.npy", each)
    found = per_input("--eps", read_radius("eps.npy").values, (1, 3), count=2)
    assert torch.equal(found, torch.from_numpy(each).reshape(2, 1, 3))


def test_the_setting_follows_what_is_in_the_file():
    np.save("eps.npy", np.ones(2))
    before = read_radius("eps.npy").setting
    np.save("eps.npy", np.zeros(2))
    assert read_radius("eps.npy").setting != before


def crossed():
    np.savez("box.npz", x_L=np.ones(2), x_U=np.array([2.0, 0.0]))
    return "box.npz"


def saved(**arrays):
    np.savez("box.npz", **arrays)
    return "box.npz"


def array(values):
    np.save("box.npy", np.array(values))
    return "box.npy"


def table(text):
    Path("box.csv").write_text(text)
    return "box.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "expected a number such as 0.05 or 2/255"),
        ("0.1,,0.2", "expected a number such as"),
        ("1/0", "expected a number such as"),
        ("-1", "expected a finite number, 0 or larger"),
        ("0.1,-1", "expected finite numbers, 0 or larger"),
        ("nan", "expected a finite number"),
        ("absent.npy", "there is no such file"),
        (".", "is a folder"),
    ],
)
def test_radii_that_are_none(text, words):
    with pytest.raises(InputError, match=f"^--eps .*{words}"):
        read_radius(text)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: array([0.1, np.nan]), "NaN or infinity"),
        (lambda: array([0.1, -1]), "0 or larger"),
        (lambda: array([1j]), "complex128: expected real numbers"),
        (lambda: array(["a"]), "expected numbers"),
        (lambda: saved(eps=np.ones(2)), r"is a \.npz file: expected one array"),
    ],
)
def test_files_of_radii_that_are_none(make, words):
    with pytest.raises(InputError, match=words):
        read_radius(make())


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: "-1,1;0,1/2;-3,-2", (3,)),
        (lambda: saved(x_L=np.array([-1, 0, -3]), x_U=np.array([1, 0.5, -2])), (3,)),
        (lambda: array([[-1, 0, -3], [1, 0.5, -2]]), (3,)),
        (lambda: array([[[-1, 0, -3]], [[1, 0.5, -2]]]), (1, 3)),
        (lambda: table("lower,upper\n-1,1\n0,0.5\n-3,-2\n"), (3,)),
        (lambda: table("Upper;Lower\n1;-1\n0.5;0\n-2;-3\n"), (3,)),
        (lambda: table("-1,1\n0,0.5\n-3,-2\n"), (3,)),
    ],
)
def test_boxes_of_several_intervals(make, shape):
    box = read_box(make())
    assert box.input_shape == shape
    assert box.lower.ravel().tolist() == [-1, 0, -3]
    assert box.upper.ravel().tolist() == [1, 0.5, -2]


def test_one_interval_for_inputs_of_any_shape():
    box = read_box("-1/2,1")
    assert (float(box.lower), float(box.upper), box.input_shape) == (-0.5, 1, None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "1", "expected LO,HI such as -1,1"),
        (lambda: "0,1;2", "expected LO,HI"),
        (lambda: "0,a", "expected LO,HI"),
        (lambda: "0,1;3,2", "the lower end 3 of input 1 is above its upper end 2"),
        (lambda: "0,inf", "expected finite ends"),
        (lambda: "absent.npz", "there is no such file"),
        (lambda: ".", "is a folder"),
        (crossed, "the lower end 1 of input 1 is above its upper end 0"),
        (lambda: saved(a=np.ones(2), x_L=np.ones(2)), "holds a, x_L: expected x_L and x_U"),
        (lambda: saved(x_L=np.ones(2), x_U=np.ones(3)), r"shapes \(2,\) and \(3,\)"),
        (lambda: saved(x_L=np.ones(2), x_U=np.ones(2) * 1j), "complex128: expected real"),
        (lambda: array(np.ones((3, 2))), r"has shape \(3, 2\): expected \[2, \*input shape\]"),
        (lambda: table("low,mid,high\n1,2,3\n"), "has low, mid, high: expected the columns"),
        (lambda: table("a,b\n1,2\n"), "has a, b: expected the columns lower and upper"),
        (lambda: table("1,2,3\n"), "has 3 columns: expected the columns"),
    ],
)
def test_boxes_that_are_none(make, words):
    with pytest.raises(InputError, match=f"^--box .*{words}"):
        read_box(make())


def test_shapes_that_can_be_meant_for_each_other():
    assert fits((5,), (1, 1, 5))
    assert fits((784,), (1, 28, 28))
    assert fits((28, 28), (1, 28, 28))
    assert fits((28, 28, 1), (1, 28, 28))
    assert fits((3, 2, 2), (12,))
    assert not fits((32, 32, 3), (3, 32, 32))  # channels last is another order
    assert not fits((2, 6), (3, 4))
    assert not fits((4,), (5,))


def test_numbers_that_do_not_fit_the_inputs():
    for shape, words in (((4,), "1 number or 4"), ((3, 2, 2), "1 number, 3, one per channel, or")):
        with pytest.raises(InputError, match=rf"^--eps 1,2 is .* expected {words}"):
            per_input("--eps 1,2", np.array([1.0, 2.0]), shape, by_channel=True)
