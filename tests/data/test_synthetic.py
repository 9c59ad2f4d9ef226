"""The random k-cluster data: its definition, seeds, split and cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data import load_data, synthetic


def test_labels_are_those_of_the_nearest_leader():
    """Against the definition written as loops, with the same random draws."""
    num_points, dimension, seed = 300, 4, 5
    points, labels = synthetic.generate(dimension, seed, num_points)
    rng = np.random.default_rng(seed)
    assert np.array_equal(rng.random((num_points, dimension), dtype=np.float32), points)
    leaders = rng.choice(num_points, size=5 * dimension, replace=False)
    leader_labels = rng.integers(10, size=5 * dimension)
    for point, label in zip(points, labels, strict=True):
        distances = [np.linalg.norm(point - points[leader]) for leader in leaders]
        assert label == leader_labels[int(np.argmin(distances))]
    assert labels[leaders].tolist() == leader_labels.tolist()


@pytest.mark.parametrize("shape", [(16,), (64,), (1, 8, 8)])
def test_sizes_of_the_paper(shape):
    train = load_data("simpleData", train=True, model_input_shape=shape)
    test = load_data("simpleData", train=False, model_input_shape=shape)
    assert (len(train), len(test)) == (7000, 3000)
    x, y = train.examples.tensors
    assert x.shape == (7000, *shape)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert 0 <= x.min() < 0.001
    assert 0.999 < x.max() <= 1
    assert set(y.tolist()) == set(range(10))


def test_shapes_of_one_dimension_share_the_points():
    flat = load_data("simple", train=False, model_input_shape=(64,)).examples.tensors
    image = load_data("simple", train=False, model_input_shape=(1, 8, 8)).examples.tensors
    assert torch.equal(flat[0], image[0].flatten(1))
    assert torch.equal(flat[1], image[1])


def test_seed_decides():
    first, again, other = (
        load_data("simple", train=True, seed=seed).examples.tensors[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_second_load_reads_the_cache(data_folder, monkeypatch):
    first = load_data("simple", train=True).examples.tensors
    assert [path.name for path in (data_folder / "synthetic").iterdir()] == [
        "dimension16_seed0.npz"
    ]

    def not_again(dimension, seed):
        raise AssertionError("generated again")

    monkeypatch.setattr(synthetic, "generate", not_again)
    second = load_data("simple", train=True).examples.tensors
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_cache_is_replaced(data_folder, content):
    first = load_data("simple", train=True).examples.tensors
    path = data_folder / "synthetic" / "dimension16_seed0.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] if content is None else content)
    second = load_data("simple", train=True).examples.tensors
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(path.read_bytes()) == len(whole)


def test_a_place_that_cannot_be_written_to(tmp_path):
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")
    assert len(load_data("simple", train=False, root=not_a_folder)) == 3000
