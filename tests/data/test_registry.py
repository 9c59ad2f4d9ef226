"""Data sets by name, their facts, and the points at which bounds are computed."""

from __future__ import annotations

import pytest
import torch

from data import data_spec, evaluation_examples, list_data, load_data
from lipschitz.errors import InputError

FACTS = {
    "simple": ((16,), 10, (0.0,), (1.0,)),
    "digits": ((1, 8, 8), 10, (0.0,), (1.0,)),
    "MNIST": ((1, 28, 28), 10, (0.0,), (1.0,)),
    "CIFAR": ((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2009,) * 3),
    "tinyimagenet": ((3, 64, 64), 200, (0.4802, 0.4481, 0.3975), (0.22,) * 3),
    "adult": ((108,), 2, (0.0,), (1.0,)),
    "cancer": ((30,), 2, (0.0,), (1.0,)),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_the_paper(name):
    spec = data_spec(name)
    assert (spec.input_shape, spec.classes, spec.mean, spec.std) == FACTS[name]
    assert spec.pixel_range == (0.0, 1.0)
    assert spec.name == name


def test_every_data_set_has_facts_above_and_a_line_of_help():
    assert [spec.name for spec in list_data()] == list(FACTS)
    for spec in list_data():
        assert "Source: " in str(spec)
        assert "\n" not in str(spec)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("mnist", "MNIST"),
        ("Cifar", "CIFAR"),
        ("TinyImageNet", "tinyimagenet"),
        ("simpleData", "simple"),
        ("simpleCNN", "simple"),
    ],
)
def test_names_in_any_case_and_the_papers_names(given, name):
    assert data_spec(given).name == name


def test_unknown_name_gets_the_closest():
    with pytest.raises(InputError, match="unknown data set 'minst': did you mean 'MNIST'"):
        load_data("minst", train=True)
    with pytest.raises(InputError, match="unknown data set 'xyz'; see --list-data"):
        data_spec("xyz")


def test_shape_follows_the_model():
    assert data_spec("digits", (64,)).input_shape == (64,)
    assert data_spec("simple", (1, 8, 8)).input_shape == (1, 8, 8)
    with pytest.raises(InputError, match="inputs of shape 16 asked for, digits has 1x8x8"):
        data_spec("digits", (16,))


def test_normalisation_per_input_value_survives_flattening():
    mean, std = data_spec("CIFAR").normalisation()
    assert mean.shape == std.shape == (3, 32, 32)
    assert mean[:, 5, 7].tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    flat, _ = data_spec("CIFAR", (3072,)).normalisation(torch.float64)
    assert flat.dtype == torch.float64
    assert torch.allclose(flat.float(), mean.flatten())
    mean, std = data_spec("adult").normalisation()
    assert (mean.shape, mean.sum(), std.sum()) == ((108,), 0, 108)


def test_simple_is_evaluated_at_the_centre():
    x, y = evaluation_examples("simple", start=3, count=5, model_input_shape=(1, 8, 8))
    assert x.shape == (1, 1, 8, 8)
    assert (x == 0.5).all()
    assert y is None


def test_other_data_is_evaluated_at_test_examples():
    x, y = evaluation_examples("digits", start=2, count=3, model_input_shape=(64,))
    test = load_data("digits", train=False)
    assert x.shape == (3, 64)
    for row in range(3):
        assert torch.equal(x[row], test.examples[2 + row][0].flatten())
        assert y[row] == test.examples[2 + row][1]


def test_take_stops_at_the_end_and_refuses_what_is_not_there():
    data = load_data("digits", train=False)
    assert len(data.take(len(data) - 2, 5)[1]) == 2
    for start, count in ((len(data), 1), (-1, 1), (0, 0)):
        with pytest.raises(InputError, match=f"it has the examples 0 to {len(data) - 1}"):
            data.take(start, count)


def test_batches_cover_every_example_once_in_a_seeded_order():
    data = load_data("digits", train=False, model_input_shape=(64,))

    def rows(**options):
        batches = list(data.batches(100, **options))
        assert [len(y) for _, y in batches] == [100, 100, 100, 60]
        return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    x, y = rows()
    assert torch.equal(x, data.take(0, len(data))[0])
    shuffled_x, shuffled_y = rows(shuffle_seed=1)
    assert not torch.equal(shuffled_y, y)
    assert torch.equal(shuffled_y.bincount(), y.bincount())
    assert torch.equal(rows(shuffle_seed=1)[0], shuffled_x)
    assert not torch.equal(rows(shuffle_seed=2)[1], shuffled_y)
