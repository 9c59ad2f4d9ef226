"""The table bundled with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import real_formats
import torch
from sklearn.datasets import load_breast_cancer

from data import continuous_features, load_data, tabular
from lipschitz.errors import InputError


def parts(seed=0):
    return [load_data("cancer", train=part, seed=seed).examples.tensors for part in (True, False)]


def test_split_is_a_partition_with_the_right_labels():
    (train_x, train_y), (test_x, test_y) = parts()
    assert (train_x.shape, test_x.shape) == ((455, 30), (114, 30))
    values, labels = load_breast_cancer(return_X_y=True)
    # Scaling keeps the order of a feature's values, so ranks identify examples.
    x, y = torch.cat([train_x, test_x]).numpy(), torch.cat([train_y, test_y]).numpy()
    order, true_order = np.lexsort(x.T[:2]), np.lexsort(values.T[:2])
    assert (y[order] == labels[true_order]).all()
    scaled = (x[order] - x.min(0)) / np.ptp(x, axis=0)
    expected = (values[true_order] - values.min(0)) / np.ptp(values, axis=0)
    assert np.allclose(scaled, expected, atol=1e-5)


def test_scaled_by_the_training_part_alone():
    (train_x, _), (test_x, _) = parts()
    assert torch.equal(train_x.amin(0), torch.zeros(30))
    assert torch.equal(train_x.amax(0), torch.ones(30))
    assert test_x.min() < 0 or test_x.max() > 1  # negative control: not scaled by itself
    assert test_x.abs().max() < 3


def test_classes_keep_their_proportions():
    (_, train_y), (_, test_y) = parts()
    assert (train_y.bincount() - 4 * test_y.bincount()).abs().max() <= 4


def test_seed_decides_on_the_split():
    assert torch.equal(parts(0)[1][1], parts(0)[1][1])
    assert not torch.equal(parts(0)[1][0], parts(1)[1][0])


def test_feature_names():
    names = tabular.feature_names()
    assert len(names) == len(set(names)) == 30
    assert names[0] == "mean radius"


def test_continuous_features_of_tables(data_folder):
    assert continuous_features("cancer") == dict(enumerate(tabular.feature_names()))
    real_formats.write_adult(data_folder)
    found = continuous_features("Adult")
    assert list(found) == [0, 10, 27, 63, 64, 65]
    assert (found[0], found[65]) == ("age", "hours-per-week")
    with pytest.raises(InputError, match="digits is not a table"):
        continuous_features("digits")
