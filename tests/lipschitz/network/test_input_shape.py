"""One point or a batch: what two and three examples tell."""

import pytest
import torch
from cases import CASES
from torch import nn

from lipschitz import build_graph, jacobian_bounds, local_lipschitz
from lipschitz.errors import InputError
from lipschitz.network.input_shape import input_shape_of


class Calls(nn.Module):
    """A layer, and a function of its result."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def linear():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def flat(size):
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 5), nn.ReLU(), nn.Linear(5, 3))


def images(channels):
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))


def any_size(channels):
    return nn.Sequential(
        nn.Conv2d(channels, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def signal(channels):
    return nn.Sequential(nn.Conv1d(channels, channels, 2), nn.ReLU(), nn.Flatten())


def recorded_sequence():
    return Calls(nn.Linear(4, 3), lambda y: torch.relu(y).mean(1))


def last_of_sequence():
    return nn.Sequential(Calls(nn.Linear(4, 3), lambda y: torch.relu(y)[:, -1]), nn.Linear(3, 2))


def regressor():
    return Calls(linear(), lambda y: y[..., 0])


def normed():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


# Network, shape of x, shape of one input.
POINTS = {
    "vector": (linear(), (4,), (4,)),
    "vector with a batch dimension": (linear(), (1, 4), (4,)),
    "one number": (nn.Linear(1, 2), (1,), (1,)),
    "one number with a batch dimension": (nn.Linear(1, 2), (1, 1), (1,)),
    "any vector": (nn.ReLU(), (3,), (3,)),
    "any vector of one": (nn.ReLU(), (1,), (1,)),
    "flattened matrix": (flat(12), (3, 4), (3, 4)),
    "flattened matrix with a batch dimension": (flat(12), (1, 3, 4), (3, 4)),
    "image": (images(3), (3, 5, 5), (3, 5, 5)),
    "image of two channels": (images(2), (2, 5, 5), (2, 5, 5)),
    "image of one channel": (images(1), (1, 5, 5), (1, 5, 5)),
    "image with a batch dimension": (images(3), (1, 3, 5, 5), (3, 5, 5)),
    "image of any size": (any_size(3), (3, 6, 7), (3, 6, 7)),
    "image of any size of two channels": (any_size(2), (2, 6, 7), (2, 6, 7)),
    "signal of two channels": (signal(2), (2, 6), (2, 6)),
    "signal of three channels": (signal(3), (3, 6), (3, 6)),
    "sequence, averaged": (recorded_sequence(), (5, 4), (5, 4)),
    "sequence, averaged, with a batch dimension": (recorded_sequence(), (1, 5, 4), (5, 4)),
    "sequence, last": (last_of_sequence(), (5, 4), (5, 4)),
    "sequence of lists, said so": (linear(), (1, 5, 4), (5, 4)),
    "in place first": (nn.Sequential(nn.ReLU(inplace=True), linear()), (1, 4), (4,)),
}
BATCHES = {
    "vectors": (linear(), (3, 4)),
    "two vectors": (linear(), (2, 4)),
    "flattened matrices": (flat(12), (5, 3, 4)),
    "flattened vectors": (flat(4), (5, 4)),
    "images": (images(3), (4, 3, 5, 5)),
    "images of any size": (any_size(3), (3, 3, 6, 6)),
    "signals": (signal(2), (4, 2, 6)),
    "sequences": (last_of_sequence(), (2, 5, 4)),
    "of one output without a dimension": (regressor(), (3, 4)),
    "as many as inputs, normalised": (normed(), (4, 4)),
    "as many as channels": (images(3), (3, 3, 5, 5)),
    "layers that take any size": (nn.Sequential(nn.ReLU(), nn.Flatten()), (3, 4)),
}


@pytest.mark.parametrize(("model", "given", "expected"), POINTS.values(), ids=POINTS)
def test_one_point(model, given, expected):
    torch.manual_seed(0)
    x = torch.rand(given) - 0.5
    before = x.clone()
    assert input_shape_of(model.eval(), x) == expected
    assert torch.equal(x, before)


@pytest.mark.parametrize(("model", "given"), BATCHES.values(), ids=BATCHES)
def test_a_batch_is_refused(model, given):
    model, x = model.eval(), torch.rand(given)
    with pytest.raises(
        InputError, match=f"a batch of {len(x)} points.*one point per call"
    ) as error:
        input_shape_of(model, x)
    assert "\n" not in str(error.value)
    for point in x:  # what it tells to do
        assert input_shape_of(model, point) == given[1:]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_networks_of_all_promises(case):
    model, x = case.model(), case.point()
    for point in (x, x[None]):
        assert input_shape_of(model, point).numel() == x.numel()
    for count in (2, 3, len(x)):
        if count > 1:
            with pytest.raises(InputError, match=f"a batch of {count} points"):
                input_shape_of(model, x.expand(count, *x.shape))


def test_what_the_refusal_says_of_a_single_point_works():
    model, x = linear().eval(), torch.rand(3, 4)
    with pytest.raises(InputError, match=r"if it is one point of shape \(3, 4\).*x\[None\]"):
        jacobian_bounds(model, x, 0.1)
    assert jacobian_bounds(model, x[None], 0.1).upper.shape == (9, 3, 4)
    assert jacobian_bounds(build_graph(model, (3, 4)), x, 0.1).upper.shape == (9, 3, 4)
    with pytest.raises(InputError) as error:  # no such advice where the network takes no such point
        jacobian_bounds(flat(4).eval(), x, 0.1)
    assert "x[None]" not in str(error.value)


@pytest.mark.parametrize("make", [recorded_sequence, last_of_sequence])
def test_a_sequence_is_bounded_as_one_point(make):
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.rand(5, 4, dtype=torch.float64)
    bounds = jacobian_bounds(model, x, 0.1)
    true = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], x)
    assert bounds.upper.shape == true.shape
    assert (bounds.lower - 1e-9 <= true).all()
    assert (true <= bounds.upper + 1e-9).all()


def test_the_network_is_looked_at_before_it_is_run():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    before = model[1].running_mean.clone()
    with pytest.raises(InputError, match="training mode"):
        local_lipschitz(model, torch.rand(1, 4), 0.1)
    assert torch.equal(model[1].running_mean, before)


def test_the_shape_of_a_box_alone():
    model = linear().eval()
    assert input_shape_of(model, None, torch.zeros(4), 1.0) == (4,)
    assert input_shape_of(model, None, 0, [[1, 1, 1, 1]]) == (4,)
    with pytest.raises(InputError, match=r"the box has shape.*a batch of 3 points"):
        input_shape_of(model, None, torch.zeros(3, 4), torch.ones(3, 4))
    with pytest.raises(InputError, match="both ends of the box are numbers"):
        input_shape_of(model, None, 0, 1)
    with pytest.raises(InputError, match=r"shapes \(4,\) and \(3,\)"):
        input_shape_of(model, None, torch.zeros(4), torch.ones(3))
