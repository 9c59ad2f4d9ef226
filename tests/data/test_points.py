import numpy as np
import pytest
import torch

from data.points import Choice, Points, coordinates, points_of_file
from lipschitz.errors import InputError

X = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 12
RADII = np.array([[0.0, 0.1], [0.2, 0.3]])


def load(folder, radius=None, choice=None, std=None, **arrays) -> Points:
    np.savez(folder / "points.npz", x=X, **arrays)
    return points_of_file(folder / "points.npz", radius, choice or Choice(count=3), std=std)


def test_one_radius_for_all(tmp_path):
    box = load(tmp_path, 0.1).box(2)
    assert torch.equal(box["eps"], torch.full((2, 2), 0.1, dtype=torch.float64))


def test_radii_of_every_coordinate_and_of_every_point(tmp_path):
    assert torch.equal(load(tmp_path, eps=RADII).box(1)["eps"], torch.tensor(RADII))
    each = np.stack([RADII, 2 * RADII, 3 * RADII])
    found = load(tmp_path, choice=Choice(1, 1), eps=each)
    assert torch.equal(found.box(0)["eps"], torch.tensor(2 * RADII))


def test_ends_of_boxes_follow_the_choice_of_points(tmp_path):
    found = load(tmp_path, choice=Choice(1, 2), x_L=X - 0.1, x_U=X[2] + 0.2)
    box = found.box(1)
    torch.testing.assert_close(box["x_lower"], torch.from_numpy(X[2] - 0.1).double())
    torch.testing.assert_close(box["x_upper"], torch.from_numpy(X[2] + 0.2).double())


def test_fixed_coordinates_keep_their_value(tmp_path):
    fixed = {"fixed": (0, 3)}
    box = Points(**{**vars(load(tmp_path, 0.1)), **fixed}).box(0)
    assert box["eps"].flatten().tolist() == [0, 0.1, 0.1, 0]
    box = Points(**{**vars(load(tmp_path, x_L=X - 1, x_U=X + 1)), **fixed}).box(0)
    width = (box["x_upper"] - box["x_lower"]).flatten()
    assert width.tolist() == pytest.approx([0, 2, 2, 0])


def test_coordinates():
    assert coordinates("--fixed", "3,5-7, 0", 8) == (0, 3, 5, 6, 7)
    assert coordinates("--fixed", None, 8) == ()
    for text in ("8", "a", "1-", "-1", "2-9", "1,"):
        with pytest.raises(InputError, match="--fixed"):
            coordinates("--fixed", text, 8)


@pytest.mark.parametrize(
    ("radius", "arrays", "message"),
    [
        (None, {}, "--eps is missing"),
        (0.1, {"eps": RADII}, "leave out --eps"),
        (0.1, {"x_L": X, "x_U": X}, "leave out --eps"),
        (None, {"x_L": X}, "expected eps, or x_L and x_U"),
        (None, {"x_L": X, "x_U": X, "eps": RADII}, "expected eps, or x_L and x_U"),
        (None, {"eps": RADII[0]}, r"eps is float64 of shape \(2,\)"),
        (None, {"eps": np.array("a")}, "expected numbers"),
    ],
)
def test_boxes_that_cannot_be_meant(tmp_path, radius, arrays, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, radius, **arrays)


def test_std_divides_eps_only(tmp_path):
    found = load(tmp_path, 0.1, std="0.5,0.25")
    assert found.radius.flatten().tolist() == pytest.approx([0.2, 0.4])
    assert found.unit.flatten().tolist() == [2, 4]
    with pytest.raises(InputError, match="--std divides --eps"):
        load(tmp_path, std="0.5", eps=RADII)


def test_without_a_box_the_file_s_is_not_looked_at(tmp_path):
    found = load(tmp_path, choice=Choice(needs_box=False), std="2", eps=RADII)
    assert found.box(0)["eps"].abs().max() == 0
    assert found.unit.tolist() == [[0.5]]
