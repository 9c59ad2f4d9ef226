"""What users give, in every form that they give it in."""

import numpy as np
import pytest
import torch
from torch import nn

from lipschitz import (
    build_graph,
    certified_radius,
    jacobian_bounds,
    jvp_bounds,
    local_lipschitz,
    make_problem,
)
from lipschitz.arguments import fitted, pair_of, point_of, radius_of, tensor_of
from lipschitz.errors import InputError

POINT = torch.tensor([0.1, -0.4, 0.3, 0.25], dtype=torch.float64)

FORMS = {
    "array": lambda t: t.numpy(),
    "read-only array": lambda t: np.broadcast_to(t.numpy(), t.shape),
    "reversed array": lambda t: t.flip(0).numpy()[::-1],
    "big-endian array": lambda t: t.numpy().astype(">f8"),
    "list": lambda t: t.tolist(),
    "tuple of scalars": lambda t: tuple(t.numpy()),
    "parameter": nn.Parameter,
}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def model(request):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return layers.eval().to(request.param)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_numbers_gives_the_tensors_bounds(model, form):
    """In float64 to the last digit; a float32 network rounds all of them alike."""
    x, eps, low = POINT, POINT.abs() / 5, POINT - 0.2
    for bound in (
        lambda f: local_lipschitz(model, f(x), 0.1, engine="native").class_upper_bounds,
        lambda f: local_lipschitz(model, f(x), f(eps), engine="native").class_upper_bounds,
        lambda f: (
            local_lipschitz(
                model, f(x), x_lower=f(low), x_upper=f(low + 0.5), engine="native"
            ).class_upper_bounds
        ),
        lambda f: (
            local_lipschitz(
                model, f(x), 0.5, clip=(f(low), f(x)), engine="native"
            ).class_upper_bounds
        ),
        lambda f: jacobian_bounds(model, f(x), f(eps)).upper.tolist(),
        lambda f: jacobian_bounds(model, f(x), box=(f(low), f(x)), rows=[f(x[:3])]).lower.tolist(),
        lambda f: jvp_bounds(model, f(x), 0.1, f(low)).upper.tolist(),
        lambda f: certified_radius(model, f(x), _winner(model)).radius,
    ):
        assert bound(form) == bound(lambda t: t)


def _winner(model: nn.Module) -> int:
    with torch.no_grad():
        return int(model(POINT[None].to(model[0].weight)).argmax())


def test_a_precise_array_does_not_change_the_precision_of_the_network(model):
    result = local_lipschitz(model, POINT.numpy(), 0.1)
    assert result.dtype == str(model[0].weight.dtype).removeprefix("torch.")
    assert result.witness.dtype == model[0].weight.dtype


def test_whole_numbers_become_floats(model):
    whole = torch.tensor([1, 0, -2, 3])
    expected = local_lipschitz(model, whole.double(), 1.0, engine="native").upper_bound
    for x in (whole, whole.tolist(), whole.numpy(), whole.numpy().astype(np.int8)):
        assert local_lipschitz(model, x, 1, engine="native").upper_bound == expected


def test_plain_numbers_lose_nothing_on_their_way():
    """Ends that were rounded to float32 would make a smaller box than the one asked for."""
    torch.manual_seed(0)
    graph = build_graph(nn.Linear(2, 2).double().eval(), (2,))
    box = make_problem(graph, [0.2, 0.1], x_lower=0.1, x_upper=[0.3, 0.7], clip=(0.1, 0.7))
    assert box.lower.tolist() == [0.1, 0.1]
    assert box.upper.tolist() == [0.3, 0.7]
    assert make_problem(graph, [0.2, 0.1], 0.1).upper.tolist() == [0.2 + 0.1, 0.1 + 0.1]


@pytest.mark.parametrize(("text", "number"), [("2/255", 2 / 255), ("0.05", 0.05), ("1e-3", 1e-3)])
def test_a_radius_may_be_text(model, text, number):
    read = local_lipschitz(model, POINT, text, engine="native")
    assert read.upper_bound == local_lipschitz(model, POINT, number, engine="native").upper_bound
    assert float(radius_of(text)) == number


@pytest.mark.parametrize("text", ["2/0", "two", "", "1/2/3", "1e999/1", f"{10**400}/1"])
def test_text_that_is_no_radius_is_refused(text):
    with pytest.raises(InputError, match=r"eps .*expected a number such as 0\.05 or 2/255"):
        radius_of(text)


@pytest.mark.parametrize("one", [1, np.int64(1), torch.tensor(1), [1], np.array([1])])
def test_one_class_needs_no_list(model, one):
    result = local_lipschitz(model, POINT, 0.1, classes=one, engine="native")
    every = local_lipschitz(model, POINT, 0.1, engine="native")
    assert result.class_upper_bounds == (every.class_upper_bounds[1],)
    assert jacobian_bounds(model, POINT, 0.1, classes=one).row_names == ("1",)


def test_a_label_may_be_a_tensor(model):
    y = torch.tensor([2, 0])
    found = certified_radius(model, POINT, y[0])
    assert (type(found.label), found.label) == (int, 2)
    bounds = local_lipschitz(model, POINT, 0.1, margin_of=y[0], engine="native")
    assert bounds == _timeless(
        local_lipschitz(model, POINT, 0.1, margin_of=2, engine="native"), bounds
    )


def _timeless(result, other):
    from dataclasses import replace

    assert torch.equal(result.witness, other.witness)
    return replace(result, seconds=other.seconds, witness=other.witness)


def test_a_box_needs_no_point(model):
    low, high = POINT - 0.1, POINT + 0.3
    expected = local_lipschitz(
        model, POINT + 0.1, x_lower=low, x_upper=high, method="ibp"
    ).class_upper_bounds
    found = local_lipschitz(model, x_lower=low, x_upper=high, method="ibp")
    assert found.class_upper_bounds == expected
    batched = local_lipschitz(model, None, x_lower=low[None], x_upper=high[None], method="ibp")
    assert batched.class_upper_bounds == expected
    assert jacobian_bounds(model, box=(low, 1.0)).upper.shape == (3, 4)
    assert jvp_bounds(model, box=(-1, high.tolist()), directions=[1, 0, 0, 0]).upper.shape == (3, 1)


def test_the_middle_of_a_box_is_in_it():
    torch.manual_seed(0)
    graph = build_graph(nn.Linear(2, 2).eval(), (2,))
    problem = make_problem(graph, x_lower=[0.0, -3e38], x_upper=[1.0, 3e38])
    assert problem.centre.tolist() == [0.5, 0.0]
    cut = make_problem(graph, x_lower=-1, x_upper=1, clip=(0.5, [0.75, 2.0]))
    assert cut.centre.tolist() == [0.625, 0.75]
    point = make_problem(graph, x_lower=[0.1, 0.3], x_upper=[0.1, 0.3])
    assert torch.equal(point.centre, point.lower)


def test_a_radius_for_every_input(model):
    """0 leaves an input where it is; broadcasting is numpy's."""
    free = local_lipschitz(model, POINT, 0.4, method="ibp").upper_bound
    for eps in ([0.4, 0, 0.4, 0], np.array([[0.4, 0, 0.4, 0]]), torch.tensor([0.4, 0, 0.4, 0])):
        result = local_lipschitz(model, POINT, eps, method="ibp")
        assert result.upper_bound < free
        assert torch.equal(result.witness[[1, 3]], POINT[[1, 3]].to(result.witness))
    torch.manual_seed(0)
    images = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten()).double().eval()
    x, by_channel = torch.rand(2, 5, 5), torch.tensor([0.1, 0.3]).reshape(2, 1, 1)
    expected = local_lipschitz(images, x, by_channel.expand(2, 5, 5), method="ibp").upper_bound
    for given in (by_channel, by_channel.numpy(), by_channel[None], by_channel.tolist()):
        assert local_lipschitz(images, x[None], given, method="ibp").upper_bound == expected


def test_a_graph_is_as_good_as_its_network(model):
    graph = build_graph(model, [4])
    expected = local_lipschitz(model, POINT, 0.1, engine="native").class_upper_bounds
    assert local_lipschitz(graph, POINT, 0.1, engine="native").class_upper_bounds == expected
    whole = local_lipschitz(graph, x_lower=-1, x_upper=1, method="ibp")
    ends = {"x_lower": [-1] * 4, "x_upper": [1] * 4}
    assert (
        whole.class_upper_bounds == local_lipschitz(model, **ends, method="ibp").class_upper_bounds
    )


def test_tensors_keep_their_precision_and_the_rest_is_read_in_float64():
    assert tensor_of("x", torch.zeros(2, dtype=torch.float16)).dtype == torch.float16
    for value in (0.5, [1, 2], np.zeros(3, dtype=np.float32), [True, False]):
        assert tensor_of("x", value).dtype == torch.float64
    assert point_of("x", [[1, 2], [3, 4]]).shape == (2, 2)


def test_a_batch_dimension_of_one_is_left_out():
    like = torch.zeros(1, 3)
    assert fitted("eps", torch.ones(1, 1, 3), like).shape == (1, 3)
    assert fitted("eps", torch.ones(3), like).shape == (3,)
    with pytest.raises(InputError, match=r"eps has shape \(2, 1, 3\).*input's shape \(1, 3\)"):
        fitted("eps", torch.ones(2, 1, 3), like)


def test_a_pair_may_be_a_list_or_an_array():
    for pair in ((0, 1), [0, 1], np.array([0, 1])):
        assert tuple(pair_of("clip", pair)) == (0, 1)
