"""Every network by name: layer layouts of the paper's code, arguments, input shapes, errors."""

from __future__ import annotations

import math

import pytest
import torch

import models
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph
from models import build_model, list_models, model_spec
from utils import set_seed

# name, arguments, {position of a layer in the Sequential: shape of its weight}, input shape
LAYOUTS = [
    ("simple_mlp_3layer", {}, {1: (16, 16), 3: (16, 16), 5: (10, 16)}, (16,)),
    ("simple_mlp_3layer", {"width": 32}, {1: (32, 16), 3: (32, 32), 5: (10, 32)}, (16,)),
    ("simple_mlp_width32", {"depth": 1}, {1: (10, 16)}, (16,)),
    ("simple_mlp_width32", {}, {1: (32, 16), 3: (10, 32)}, (16,)),
    ("simple_mlp_width32", {"depth": 3}, {1: (32, 16), 3: (32, 32), 5: (10, 32)}, (16,)),
    (
        "simple_cnn_3layer",
        {"width": 4},
        {0: (4, 1, 3, 3), 2: (4, 4, 3, 3), 5: (10, 64)},
        (1, 8, 8),
    ),
    ("simple_cnn_3layer_2", {}, {0: (72, 64), 2: (32, 72), 4: (10, 32)}, (64,)),
    ("simple_cnn_3layer_4", {}, {0: (144, 64), 2: (64, 144), 4: (10, 64)}, (64,)),
    ("simple_cnn_3layer_8", {}, {0: (288, 64), 2: (128, 288), 4: (10, 128)}, (64,)),
    ("simple_cnn_3layer_16", {}, {0: (576, 64), 2: (256, 576), 4: (10, 256)}, (64,)),
    ("mnist_mlp_3layer", {}, {1: (20, 784), 3: (20, 20), 5: (10, 20)}, (1, 28, 28)),
    (
        "mnist_cnn_4layer",
        {},
        {0: (8, 1, 4, 4), 2: (8, 8, 4, 4), 5: (100, 3872), 7: (10, 100)},
        (1, 28, 28),
    ),
    (
        "mnist_cnn_4layer_8",
        {},
        {0: (5000, 784), 2: (3872, 5000), 4: (100, 3872), 6: (10, 100)},
        (784,),
    ),
    (
        "cnn_4layer_stride1_padding0",
        {"width": 8},
        {0: (8, 3, 3, 3), 2: (8, 8, 3, 3), 5: (256, 8 * 28 * 28), 7: (10, 256)},
        (3, 32, 32),
    ),
    (
        "cnn_4layer_stride1_padding0_demo",
        {},
        {0: (4, 3, 3, 3), 2: (4, 4, 3, 3), 5: (32, 4 * 28 * 28), 7: (10, 32)},
        (3, 32, 32),
    ),
    (
        "cnn_6layer_stride1_padding0",
        {"width": 4, "linear_size": 16},
        {
            0: (4, 3, 3, 3),
            2: (4, 4, 3, 3),
            4: (4, 4, 3, 3),
            6: (4, 4, 3, 3),
            9: (16, 4 * 24 * 24),
            11: (10, 16),
        },
        (3, 32, 32),
    ),
    (
        "cnn_4layer_stride2_imagenet",
        {},
        {0: (32, 3, 3, 3), 2: (32, 32, 3, 3), 5: (256, 32 * 16 * 16), 7: (200, 256)},
        (3, 64, 64),
    ),
    (
        "cnn_6layer_stride2_imagenet",
        {},
        {
            0: (32, 3, 3, 3),
            2: (32, 32, 3, 3),
            4: (32, 32, 3, 3),
            6: (32, 32, 3, 3),
            9: (256, 32 * 4 * 4),
            11: (200, 256),
        },
        (3, 64, 64),
    ),
    ("adult_mlp", {}, {0: (512, 108), 2: (512, 512), 4: (512, 512), 6: (2, 512)}, (108,)),
    ("mlp", {"sizes": "5-4-3"}, {0: (4, 5), 2: (3, 4)}, (5,)),
]
IDS = [f"{name}-{params}" for name, params, _, _ in LAYOUTS]


@pytest.mark.parametrize(("name", "params", "weights", "input_shape"), LAYOUTS, ids=IDS)
def test_layout_and_output(name, params, weights, input_shape):
    spec = model_spec(name, params)
    model = spec.build()
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    expected = {f"{index}.weight": shape for index, shape in weights.items()}
    expected |= {f"{index}.bias": shape[:1] for index, shape in weights.items()}
    assert found == expected
    assert spec.input_shape == input_shape
    last = list(weights.values())[-1]
    assert spec.count_classes(model) == last[0]
    assert not model.training


RESIDUAL = {  # at VNN-COMP's widths: ReLUs of the stem, of each block (two layers) and of the head
    "resnet2b": ({"width": 8}, 8 * 16**2 + 4 * 16 * 8**2 + 100),
    "resnet4b": ({"width": 16}, 16 * 16**2 + 4 * 32 * (8**2 + 4**2) + 100),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_networks_have_the_layout_of_vnn_comp(name):
    params, neurons = RESIDUAL[name]
    spec = model_spec(name, params, (3, 32, 32))
    model = spec.build()
    assert spec.input_shape == (3, 32, 32)
    assert spec.count_classes(model) == 10
    graph = build_graph(model, spec.input_shape)
    sizes = [graph.nodes[i].shape.numel() for i in graph.activation_nodes]
    assert sum(sizes) == neurons
    small = model_spec(name, {"width": 2, "in_ch": 1, "in_dim": 9, "linear_size": 4})
    assert small.count_classes(small.build()) == 10
    with pytest.raises(InputError, match="too small"):
        build_model(name, in_dim=2)


def test_every_model_of_the_registry_has_a_layout_above():
    assert {entry.name for entry in list_models()} == {*RESIDUAL, *(name for name, *_ in LAYOUTS)}


def test_convolutions_have_the_papers_stride_and_padding():
    def geometry(name):
        model = build_model(name)
        return [(m.stride, m.padding) for m in model if isinstance(m, torch.nn.Conv2d)]

    assert geometry("cnn_6layer_stride1_padding0") == [((1, 1), (0, 0))] * 4
    assert geometry("cnn_6layer_stride2_imagenet") == [((2, 2), (1, 1))] * 4


def test_help_lines_name_arguments_with_defaults():
    lines = [str(entry) for entry in list_models()]
    assert any(line.startswith("simple_mlp_3layer(width=16, in_dim=16): MLP") for line in lines)
    assert all("\n" not in line and line.endswith(".") for line in lines)


def test_same_seed_same_weights():
    def weights(seed):
        set_seed(seed)
        return build_model("simple_mlp_3layer", width=4)[1].weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("name", "data_shape", "params", "input_shape"),
    [
        ("simple_mlp_3layer", (1, 8, 8), {"in_dim": 64}, (1, 8, 8)),
        ("mnist_mlp_3layer", (1, 28, 28), {}, (1, 28, 28)),
        ("mnist_cnn_4layer_8", (1, 28, 28), {}, (784,)),
        ("simple_cnn_3layer_4", (1, 8, 8), {}, (64,)),
        ("cnn_4layer_stride1_padding0", (1, 28, 28), {"in_ch": 1, "in_dim": 28}, (1, 28, 28)),
        ("adult_mlp", (13,), {"in_dim": 13}, (13,)),
    ],
)
def test_arguments_follow_the_data(name, data_shape, params, input_shape):
    spec = model_spec(name, {}, data_shape)
    assert params.items() <= spec.params.items()
    assert spec.input_shape == input_shape
    assert math.prod(input_shape) == math.prod(data_shape)
    spec.count_classes(spec.build())


@pytest.mark.parametrize(
    ("name", "params", "data_shape", "words"),
    [
        ("simple_mlp_3layr", {}, None, "unknown model .* did you mean 'simple_mlp_3layer'"),
        ("transformer", {}, None, "unknown model 'transformer'; see --list-models"),
        ("mnist_cnn_4layer", {"width": 3}, None, "no argument 'width'; it takes: no arguments"),
        ("simple_mlp_3layer", {"depth": 3}, None, "no argument 'depth'; it takes: width, in_dim"),
        ("simple_cnn_3layer_4", {"width": 4}, None, "no argument 'width'"),
        ("simple_mlp_3layer", {"width": 2.5}, None, "width=2.5 is not a whole number"),
        ("simple_mlp_3layer", {"width": True}, None, "width=True is not a whole number"),
        ("simple_mlp_3layer", {"width": 0}, None, "width=0 must be at least 1"),
        ("mlp", {"sizes": 5}, None, "sizes=5 is not text"),
        ("mlp", {"sizes": "5-x"}, None, "is not of the form 64-144-10"),
        ("mlp", {"sizes": "5-0-2"}, None, "is not of the form 64-144-10"),
        ("mnist_mlp_3layer", {}, (1, 8, 8), "takes inputs of shape 1x28x28, the data has 1x8x8"),
        ("simple_mlp_3layer", {"in_dim": 5}, (16,), "takes inputs of shape 5, the data has 16"),
        ("cnn_4layer_stride1_padding0", {}, (16,), "takes inputs of shape 3x32x32"),
    ],
)
def test_bad_input_is_named(name, params, data_shape, words):
    with pytest.raises(InputError, match=words):
        model_spec(name, params, data_shape)


def test_an_image_too_small_for_the_convolutions():
    with pytest.raises(InputError, match="in_dim=8 is too small"):
        model_spec("cnn_6layer_stride1_padding0", {}, (1, 8, 8)).build()


def test_public_names():
    assert all(hasattr(models, name) for name in models.__all__)
