"""The digits bundled with scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from data import load_data


def test_split_is_a_partition_with_the_right_labels():
    images, labels = load_digits(return_X_y=True)
    known = {tuple(image / 16): label for image, label in zip(images, labels, strict=True)}
    train, test = (load_data("digits", train=part).examples.tensors for part in (True, False))
    assert (len(train[0]), len(test[0])) == (1437, 360)
    seen = []
    for x, y in (train, test):
        assert x.shape[1:] == (1, 8, 8)
        assert (x.min(), x.max()) == (0, 1)
        for image, label in zip(x.flatten(1).tolist(), y.tolist(), strict=True):
            assert known[tuple(image)] == label
            seen.append(tuple(image))
    assert len(set(seen)) == len(seen) == 1797


def test_classes_keep_their_proportions():
    train, test = (load_data("digits", train=part).examples.tensors[1] for part in (True, False))
    assert (train.bincount() - 4 * test.bincount()).abs().max() <= 4


def test_seed_decides_on_the_split():
    def test_labels(seed):
        return load_data("digits", train=False, seed=seed).examples.tensors[1]

    assert torch.equal(test_labels(0), test_labels(0))
    assert not torch.equal(test_labels(0), test_labels(1))
