"""The picture of an image's bounds, checked through its numbers; and what is no image."""

import numpy as np
import pytest
import torch
from torch import nn

from commands.picture import draw, entry_bounds, image_shape, path_of
from lipschitz import Prepared, make_problem
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()


def bounded(norm: str = "inf"):
    graph = build_graph(small_cnn(), (1, 6, 6))
    problem = make_problem(graph, torch.rand(1, 6, 6), 0.1, norm=norm)
    return problem, Prepared(graph, method="alpha").bound(problem)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_no_true_gradient_in_the_box_beats_a_pixels_bound(norm):
    problem, result = bounded(norm)
    name, bounds = entry_bounds(problem, result)
    points = problem.lower + (problem.upper - problem.lower) * torch.rand(500, 1, 6, 6)
    row = problem.rows[[problem.row_names.index(name)]].expand(500, -1)
    gradients = problem.graph.gradients(points, row).abs().amax(0)
    assert bool((gradients <= bounds * (1 + 1e-5)).all())
    # Negative control: half the bound is beaten, so the check can fail.
    assert not bool((gradients <= bounds / 2).all())


def test_the_output_is_the_one_with_the_largest_bound():
    problem, result = bounded()
    name, bounds = entry_bounds(problem, result)
    assert name == problem.row_names[int(np.argmax(result.class_upper_bounds))]
    assert result.lower_bound <= float(bounds.sum()) <= 1.2 * result.upper_bound


def test_a_file_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "picture.png"
    draw(path, *bounded(), example=3, label=7)
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match=r"--picture .*\.abc"):
        draw(tmp_path / "picture.abc", *bounded(), example=3, label=None)


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((1, 8, 6), (1, 8, 6)),
        ((3, 4, 4), (3, 4, 4)),
        ((8, 6), (1, 8, 6)),
        ((64,), (1, 8, 8)),
        ((3072,), (3, 32, 32)),
    ],
)
def test_images_are_known_by_their_shape(shape, image):
    assert image_shape(shape) == image


@pytest.mark.parametrize("shape", [(5,), (2, 8, 8), (1, 1, 8, 8), (1,)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(InputError, match="--picture draws images"):
        image_shape(shape)


def test_each_example_has_its_file():
    assert path_of("a/b.png", 4, several=True).as_posix() == "a/b_4.png"
    assert path_of("a/b.png", 4, several=False).as_posix() == "a/b.png"
