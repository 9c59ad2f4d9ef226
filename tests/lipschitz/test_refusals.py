"""One list of mistakes, every public call: each ends in one line that says what to do."""

import numpy as np
import pytest
import torch
from torch import nn

from lipschitz import (
    BranchOptions,
    Prepared,
    build_graph,
    certified_radius,
    jacobian_bounds,
    jvp_bounds,
    local_lipschitz,
    make_problem,
)
from lipschitz.errors import InputError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


MODEL = network()
GRAPH = build_graph(MODEL, (4,))
X = torch.tensor([0.1, -0.4, 0.3, 0.25])
V = torch.ones(4)


def problem_of(model, x, *, box=None, **options):
    ends = {} if box is None else dict(zip(("x_lower", "x_upper"), box, strict=True))
    return make_problem(Prepared(model, (4,), method="ibp").graph, x, **ends, **options)


def lipschitz_of(model, x, *, box=None, **options):
    ends = {} if box is None else dict(zip(("x_lower", "x_upper"), box, strict=True))
    return local_lipschitz(model, x, method="ibp", **ends, **options)


# Calls of a point and a box.
BOX_CALLS = {
    "local_lipschitz": lipschitz_of,
    "jacobian_bounds": jacobian_bounds,
    "jvp_bounds": lambda model, x, **options: jvp_bounds(model, x, directions=V, **options),
    "make_problem": problem_of,
}
# Calls of a point.
CALLS = {
    **{name: lambda m, x, call=call: call(m, x, eps=0.1) for name, call in BOX_CALLS.items()},
    "certified_radius": lambda model, x: certified_radius(model, x, 1),
}

POINTS = {
    "a batch": (torch.rand(3, 4), r"batch of 3 points.*give one point per call and loop"),
    "a batch as a list": ([[0.1, 0.2, 0.3, 0.4]] * 2, "batch of 2 points.*one point per call"),
    "a batch as an array": (np.zeros((5, 4)), "batch of 5 points.*one point per call"),
    "nothing": (None, "^x (is missing|None)"),
    "text": ("0.1", "^x '0.1': expected numbers"),
    "texts": (["a", "b", "c", "d"], "^x of type list does not hold numbers"),
    "ragged": ([[1, 2], [3]], "^x of type list is no array"),
    "tensors of two lengths": ([torch.zeros(2), torch.zeros(1)], "^x of type list is no array"),
    "a dictionary": ({"x": 1}, "^x of type dict does not hold numbers"),
    "an object": (object(), "^x of type object does not hold numbers"),
    "complex": (X.to(torch.complex64), "^x is complex"),
    "complex numpy": (X.numpy() * 1j, "^x is complex"),
    "sparse": (X.to_sparse(), "^x is sparse"),
    "NaN": (X / 0 * 0, "NaN or infinity"),
    "empty": (X[:0], r"^x is empty, of shape \(0,\)"),
    "no points": (torch.zeros(0, 4), r"^x is empty, of shape \(0, 4\)"),
    "another length": (X[:3], r"\(3,\)"),
    "a number": (0.5, r"\(\)"),
}
MODELS = {
    "a function": (lambda x: x, r"^model of type function: expected a torch\.nn\.Module.*forward"),
    "a class": (nn.ReLU, "^model of the class ReLU itself.*make one of the class first"),
    "a path": ("net.onnx", r"^model 'net.onnx'.*lipschitz\.load_model"),
    "nothing": (None, r"^model None: expected a torch\.nn\.Module"),
    "weights": (MODEL.state_dict(), r"^model of type OrderedDict: expected a torch\.nn\.Module"),
    "TorchScript": (
        torch.jit.trace(MODEL, X[None]),
        "^model is TorchScript.*give the torch.nn.Mod",
    ),
    "no weights yet": (nn.LazyLinear(3).eval(), "^the weights 'weight' have no values yet"),
    "weights nowhere": (nn.Linear(4, 3, device="meta").eval(), "have no values yet: load them"),
    "a prepared network": (Prepared(GRAPH, method="ibp"), "^model of type Prepared"),
}
# Arguments beside the point; where one is not meant for a call, it is left out of its row.
BOXES = {
    "no box": ({}, "give either eps"),
    "two boxes": ({"eps": 0.1, "box": (X, X)}, "give either eps"),
    "half a box": ({"box": (X, None)}, "give either eps.*both"),
    "negative eps": ({"eps": -0.1}, "^eps is -0.1: it must be a finite number, 0 or larger"),
    "NaN eps": ({"eps": float("nan")}, "^eps is nan: it must be a finite number"),
    "a negative radius": (
        {"eps": [0.1, -1e-3, 0, 0]},
        "^1 of the 4 radii in eps are negative, NaN or infinite, the first is -0.001: give finite",
    ),
    "infinite radii": (
        {"eps": torch.tensor([0.1, torch.inf, torch.nan, 0])},
        "^2 of the 4 radii in eps are negative, NaN or infinite, the first is inf",
    ),
    "radii of another input": (
        {"eps": [0.1, 0.2, 0.3]},
        r"^eps has shape \(3,\): expected a number, or numbers that broadcast.*\(4,\)",
    ),
    "radii of a batch": ({"eps": torch.ones(2, 4)}, r"^eps has shape \(2, 4\).*\(4,\)"),
    "eps of letters": ({"eps": "big"}, "^eps 'big': expected a number such as 0.05 or 2/255"),
    "eps True": ({"eps": True}, "^eps True: expected numbers"),
    "complex eps": ({"eps": 1j}, "^eps is complex"),
    "eps of a dictionary": ({"eps": {}}, "^eps of type dict"),
    "an end of another shape": ({"box": (X[:3], X)}, r"lower end of the box has shape \(3,\)"),
    "ends crossed": ({"box": (X, X - 1)}, "the box is empty"),
    "an end of text": ({"box": (X, "1")}, "the upper end of the box '1': expected numbers"),
    "an infinite end": ({"box": (X, torch.inf)}, "the box holds NaN or infinity"),
    "x outside": ({"box": (X + 1, X + 2)}, "x lies outside the box"),
    "one clip": ({"eps": 0.1, "clip": 1.0}, r"^clip 1\.0: expected a pair"),
    "three clips": ({"eps": 0.1, "clip": (0, 1, 2)}, "^clip of type tuple: expected a pair"),
    "clips crossed": ({"eps": 0.1, "clip": (1, 0)}, "^clip holds NaN, or a smallest value above"),
    "NaN clip": ({"eps": 0.1, "clip": (float("nan"), 1)}, "^clip holds NaN"),
    "half a clip": ({"eps": 0.1, "clip": (None, 1)}, "^clip None: expected numbers"),
    "clip of another shape": ({"eps": 0.1, "clip": (X[:3], 1)}, r"^clip has shape \(3,\)"),
    "outside clip": ({"eps": 0.1, "clip": (2, 3)}, "outside the data range"),
    "a box outside clip": ({"box": (-1, 1), "clip": (2, 3)}, "the box lies outside clip"),
    "no such class": ({"eps": 0.1, "classes": [3]}, "class 3 does not exist.*3 outputs, 0 to 2"),
    "a negative class": ({"eps": 0.1, "classes": -1}, "class -1 does not exist"),
    "half a class": ({"eps": 0.1, "classes": [0.5]}, "^class 0.5: expected a whole number"),
    "class of letters": ({"eps": 0.1, "classes": "cat"}, "^class 'cat': expected a whole number"),
}
# Arguments of single calls.
OTHERS = {
    "label below 0": (lambda: certified_radius(MODEL, X, -5), "^label -5 does not exist.*0 to 2"),
    "label beyond": (lambda: certified_radius(MODEL, X, 3), "^label 3 does not exist.*0 to 2"),
    "half a label": (
        lambda: certified_radius(MODEL, X, 1.5),
        "^label 1.5: expected a whole number",
    ),
    "no label": (lambda: certified_radius(MODEL, X, None), "^label None: expected a whole number"),
    "labels": (lambda: certified_radius(MODEL, X, [0, 1]), "^label of type list: expected a whole"),
    "options": (
        lambda: certified_radius(MODEL, X, 1, options=3),
        r"expected CertifyOptions\(\.\.\.\)",
    ),
    "margin below 0": (
        lambda: local_lipschitz(MODEL, X, 0.1, margin_of=-5),
        "^label -5 does not exist.*3 outputs, 0 to 2",
    ),
    "margin beyond": (lambda: make_problem(GRAPH, X, 0.1, margin_of=3), "^label 3 does not exist"),
    "a batch for a graph": (
        lambda: make_problem(GRAPH, X.expand(2, 4), 0.1),
        r"takes \(4,\); give one",
    ),
    "no graph": (lambda: make_problem(MODEL, X, 0.1), r"^graph of type Sequential.*build_graph"),
    "a box without any shape": (
        lambda: local_lipschitz(MODEL, x_lower=0, x_upper=1),
        "both ends of the box are numbers: give one of the three",
    ),
    "eps without a point": (
        lambda: local_lipschitz(MODEL, eps=0.1),
        "x is missing: eps is a radius",
    ),
    "searching is True": (
        lambda: local_lipschitz(MODEL, X, 0.1, branching=True),
        r"^branching True: expected branching=BranchOptions\(\)",
    ),
    "certifying is True": (
        lambda: certified_radius(MODEL, X, 1, branching=True),
        r"^branching True: expected branching=BranchOptions\(\)",
    ),
    "the class of options": (
        lambda: local_lipschitz(MODEL, X, 0.1, branching=BranchOptions),
        r"^branching of the class BranchOptions itself: expected branching=BranchOptions\(\)",
    ),
    "dtype of letters": (
        lambda: local_lipschitz(MODEL, X, 0.1, dtype="float64"),
        "^dtype 'float64'",
    ),
    "half precision": (
        lambda: jacobian_bounds(MODEL, X, 0.1, dtype=torch.half),
        "^dtype torch.float16",
    ),
    "dtype of a radius": (lambda: certified_radius(MODEL, X, 1, dtype=int), "^dtype <class 'int'>"),
    "tolerance": (lambda: local_lipschitz(MODEL, X, 0.1, tolerance=-1), "^tolerance -1: expected"),
    "seed": (
        lambda: local_lipschitz(MODEL, X, 0.1, seed="a"),
        "^seed 'a': expected a whole number",
    ),
    "optimize": (
        lambda: local_lipschitz(MODEL, X, 0.1, optimize="no"),
        "^optimize 'no': expected True",
    ),
    "method": (lambda: local_lipschitz(MODEL, X, 0.1, method=5), "^unknown method 5"),
    "engine": (
        lambda: jacobian_bounds(MODEL, X, 0.1, engine=5),
        "^unknown engine 5; use native or",
    ),
    "engines": (
        lambda: local_lipschitz(MODEL, X, 0.1, engine=["native"]),
        "does not run on engine",
    ),
    "a radius of samples": (
        lambda: certified_radius(MODEL, X, 1, method="sampling"),
        "a radius needs upper bounds",
    ),
    "box of one": (lambda: jacobian_bounds(MODEL, X, box=0.1), r"^box 0\.1: expected a pair"),
    "directions": (lambda: jvp_bounds(MODEL, X, 0.1), "^directions are missing"),
    "short directions": (
        lambda: jvp_bounds(MODEL, X, 0.1, V[:2]),
        r"^directions have shape \(2,\)",
    ),
    "directions of text": (lambda: jvp_bounds(MODEL, X, 0.1, "up"), "^directions 'up': expected"),
    "rows": (lambda: jacobian_bounds(MODEL, X, 0.1, rows=[1, 0, 0]), r"^rows have shape \(3,\)"),
    "shape of a number": (
        lambda: build_graph(MODEL, 4),
        r"^input_shape 4.*such as \(4,\) or x.shape",
    ),
    "shape of nothing": (lambda: Prepared(MODEL), "^input_shape None: expected the shape of one"),
    "a point for a shape": (lambda: build_graph(MODEL, X), "^input_shape of type Tensor"),
    "a negative shape": (lambda: Prepared(MODEL, (-4,)), r"^input_shape \(-4,\): expected whole"),
    "half a shape": (lambda: build_graph(MODEL, (4.5,)), r"^input_shape \(4.5,\): expected whole"),
}


def refused(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_point_is_taken(call):
    """Control: the calls refuse none of this."""
    for x in (X, X[None], X.tolist(), X.numpy()):
        for model in (MODEL, GRAPH):
            call(model, x)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("x", "words"), POINTS.values(), ids=POINTS)
def test_wrong_points(call, x, words):
    refused(lambda: call(MODEL, x), words)
    refused(lambda: call(GRAPH, x), words)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("model", "words"), MODELS.values(), ids=MODELS)
def test_wrong_models(call, model, words):
    refused(lambda: call(model, X), words)


@pytest.mark.parametrize(("model", "words"), MODELS.values(), ids=MODELS)
def test_wrong_models_in_the_making(model, words):
    refused(lambda: build_graph(model, (4,)), words)
    refused(lambda: Prepared(model, (4,)), words)


@pytest.mark.parametrize("call", BOX_CALLS.values(), ids=BOX_CALLS)
@pytest.mark.parametrize(("box", "words"), BOXES.values(), ids=BOXES)
def test_wrong_boxes(call, box, words):
    refused(lambda: call(MODEL, X, **box), words)
    refused(lambda: call(GRAPH, X, **box), words)


@pytest.mark.parametrize(("call", "words"), OTHERS.values(), ids=OTHERS)
def test_wrong_arguments_of_single_calls(call, words):
    refused(call, words)


@pytest.mark.parametrize("pixels", [np.array([3, 0, 255, 9], np.uint8), torch.ones(4).byte()])
def test_pixels_that_were_not_scaled_bring_a_warning(pixels):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    with pytest.warns(UserWarning, match=r"^x is uint8.*x\.float\(\) / 255.*eps in the same"):
        found = local_lipschitz(model, pixels, 1 / 255, method="ibp")
    as_floats = torch.as_tensor(pixels).float()
    assert found.upper_bound == local_lipschitz(model, as_floats, 1 / 255, method="ibp").upper_bound


PREPARED = {
    "options": ({"options": 3}, "^options 3: expected MethodOptions"),
    "dtype": ({"dtype": "float64"}, "^dtype 'float64'"),
}
BOUNDED = {
    "a point": ((X,), {}, "^problem of type Tensor: expected a problem, of make_problem"),
    "tolerance": ((), {"tolerance": float("nan")}, "^tolerance nan"),
    "sampling": ((), {"sampling": 3}, "^sampling 3: expected Sampling"),
}


@pytest.mark.parametrize("name", PREPARED)
def test_a_network_is_prepared_with_what_fits(name):
    arguments, words = PREPARED[name]
    with pytest.raises(InputError, match=words):
        Prepared(nn.Linear(4, 2).eval(), (4,), **arguments)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_prepared_network_is_asked_what_fits(name):
    given, options, words = BOUNDED[name]
    prepared = Prepared(nn.Linear(4, 2).eval(), (4,), method="ibp")
    given = given or (make_problem(prepared.graph, X, 0.1),)
    with pytest.raises(InputError, match=words):
        prepared.bound(*given, **options)
