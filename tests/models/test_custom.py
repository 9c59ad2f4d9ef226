"""A user's own file:factory, and everything that can be wrong with it."""

from __future__ import annotations

import pytest
import torch

from lipschitz.errors import InputError
from models import build_model, load_factory, model_spec

GOOD = """
from torch import nn
from neighbour_of_net import HIDDEN

def make_net(width=HIDDEN, bias=True):
    return nn.Sequential(nn.Linear(3, width, bias=bias), nn.ReLU(), nn.Linear(width, 2))

def not_a_module():
    return 5

def crashes(width):
    raise ZeroDivisionError("division by zero")

def per_point():
    return nn.Flatten(0)

def anything(**options):
    return nn.Linear(options["inputs"], 2)
"""


@pytest.fixture
def net_file(tmp_path):
    (tmp_path / "neighbour_of_net.py").write_text("HIDDEN = 7\n")
    (tmp_path / "net.py").write_text(GOOD)
    return tmp_path / "net.py"


def test_factory_is_found_and_gets_its_arguments(net_file):
    model = build_model(f"{net_file}:make_net", width=5, bias=False)
    assert model[0].weight.shape == (5, 3)
    assert model[0].bias is None
    assert build_model(f"{net_file}:make_net")[0].weight.shape == (7, 3)
    assert build_model(f"{net_file}:anything", inputs=4).in_features == 4


def test_classes_come_from_a_forward_pass(net_file):
    spec = model_spec(f"{net_file}:make_net", {}, (3,))
    model = spec.build().double()
    assert spec.input_shape == (3,)
    assert spec.count_classes(model) == 2
    assert model[0].weight.dtype == torch.float64


def test_importing_leaves_the_search_path_alone(net_file):
    import sys

    before = list(sys.path)
    load_factory(f"{net_file}:make_net")
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("net.py", "expected path/to/file.py:factory"),
        ("nowhere.py:make", "there is no file nowhere.py"),
        ("net.txt:make", "expected path/to/file.py:factory"),
        ("net.py:make net", "expected path/to/file.py:factory"),
    ],
)
def test_names_that_lead_nowhere(name, words):
    with pytest.raises(InputError, match=words):
        load_factory(name)


def test_unknown_function_names_the_closest(net_file):
    with pytest.raises(InputError, match="no function 'make_nett': did you mean 'make_net'"):
        load_factory(f"{net_file}:make_nett")


def test_file_that_does_not_import(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def make(:\n")
    with pytest.raises(InputError, match=r"cannot import .*broken.py: SyntaxError"):
        load_factory(f"{path}:make")


@pytest.mark.parametrize(
    ("function", "params", "words"),
    [
        ("not_a_module", {}, "returned int; it must return a torch.nn.Module"),
        ("crashes", {"width": 1}, "failed: ZeroDivisionError: division by zero"),
        ("crashes", {}, "failed: TypeError"),
        ("make_net", {"depth": 1}, "no argument 'depth'; it takes: width, bias"),
    ],
)
def test_factories_that_do_not_deliver(net_file, function, params, words):
    with pytest.raises(InputError, match=words):
        build_model(f"{net_file}:{function}", **params)


def test_inputs_that_the_network_does_not_take(net_file):
    spec = model_spec(f"{net_file}:make_net", {}, (4,))
    with pytest.raises(InputError, match="does not take inputs of shape 4"):
        spec.count_classes(spec.build())
    spec = model_spec(f"{net_file}:per_point", {}, (4,))
    with pytest.raises(InputError, match=r"to shape \[8\]; expected \[2, classes\]"):
        spec.count_classes(spec.build())
    spec = model_spec(f"{net_file}:make_net")
    with pytest.raises(InputError, match=r"input shape of .* is unknown"):
        spec.count_classes(spec.build())


def test_looking_at_the_outputs_leaves_every_layer_in_its_mode(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n"
        "    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(), nn.Dropout()).eval()\n"
        "    model[1].train()\n    return model\n"
    )
    spec = model_spec(f"{tmp_path / 'net.py'}:make", {}, (3,))
    model = spec.build()
    assert spec.count_classes(model) == 2
    assert [module.training for module in model] == [False, True, False]


def test_shape_of_an_input_where_points_are_given(net_file):
    spec = model_spec(f"{net_file}:make_net", {}, (1, 1, 3))
    model = spec.build()
    assert spec.shape_for(model, None) == (1, 1, 3)
    assert spec.shape_for(model, (3,)) == (3,)  # the network takes them as they are
    assert spec.shape_for(model, (5,)) == (1, 1, 3)
    unknown = model_spec(f"{net_file}:make_net")
    assert unknown.shape_for(model, (3,)) == (3,)
    assert unknown.shape_for(model, None) is None
    known = model_spec("simple_mlp_3layer")
    assert known.shape_for(known.build(), (4, 4)) == (16,)
