"""A CNN and its MLP are the same function; what cannot be converted is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipschitz.errors import InputError
from models import build_model, conversion
from models.conversion import cnn_to_mlp
from utils import set_seed


def batch_norm(channels: int, kind=nn.BatchNorm2d) -> nn.Module:
    layer = kind(channels)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    nn.init.normal_(layer.weight)
    return layer


def many_convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False),
        batch_norm(4),
        nn.LeakyReLU(0.1),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Dropout(0.5), nn.Tanh()),
        nn.Conv2d(6, 6, 2, padding=1, padding_mode="circular"),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.ReLU(),
        nn.Identity(),
        nn.Flatten(),
        nn.GELU(),
        nn.LazyLinear(5),
        batch_norm(5, nn.BatchNorm1d),
    )


MODELS = {
    "many convolutions": (many_convolutions, (2, 7, 5), 4),
    "adaptive pool": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(2), nn.ReLU()),
        (1, 6, 6),
        1,
    ),
    "one-dimensional": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten()),
        (2, 8),
        2,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 3, 3)),
            nn.ConvTranspose2d(2, 1, 3, stride=2),
            nn.ReLU(),
            nn.ZeroPad2d(1),
            nn.Flatten(),
        ),
        (18,),
        2,
    ),
    "linear on the last axis": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)),
        (2, 4),
        2,
    ),
    "activation first": (lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), (2, 2), 0),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_function(name, dtype):
    set_seed(0)
    make, input_shape, num_linear = MODELS[name]
    model = make().to(dtype).eval()
    x = torch.randn(16, *input_shape, dtype=dtype)
    expected = model(x).flatten(1)
    mlp = cnn_to_mlp(model, input_shape)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(mlp(x.flatten(1)), expected, rtol=tolerance, atol=tolerance)
    kinds = [type(layer) for layer in mlp]
    assert kinds.count(nn.Linear) == num_linear
    assert not set(kinds) & {nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Dropout}


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_the_mlp_forms_of_the_registry(width):
    """The converted weights load strictly into the form that the paper's code names."""
    set_seed(1)
    model = build_model("simple_cnn_3layer", width=width)
    form = build_model(f"simple_cnn_3layer_{width}")
    form.load_state_dict(cnn_to_mlp(model, (1, 8, 8)).state_dict())
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(form(x.flatten(1)), model(x))


def test_zeros_stay_zeros():
    mlp = cnn_to_mlp(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten()).eval(), (1, 3, 3))
    assert int((mlp[0].weight != 0).sum()) == 9


def test_the_caller_is_left_alone():
    model = many_convolutions().eval()
    model(torch.zeros(2, 2, 7, 5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    mlp = cnn_to_mlp(model, (2, 7, 5))
    nn.init.zeros_(mlp[0].weight)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)


class Squared(nn.Linear):
    def forward(self, x):
        return super().forward(x) ** 2


@pytest.mark.parametrize(
    ("model", "input_shape", "words"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 1, 2), nn.MaxPool2d(2)).eval(),
            (1, 5, 5),
            r"'1' \(MaxPool2d\)",
        ),
        (nn.Sequential(nn.Sequential(Squared(2, 2))).eval(), (2,), r"'0.0' \(Squared\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)).eval(), (2,), "Softmax"),
        (nn.Bilinear(2, 2, 2).eval(), (2,), "cannot convert Bilinear"),
        (nn.Sequential(nn.BatchNorm1d(2)), (2,), r"\(BatchNorm1d\) is in training mode"),
        (nn.Sequential(nn.Dropout()), (2,), r"\(Dropout\) is in training mode"),
        (
            nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)).eval(),
            (2,),
            "no running statistics",
        ),
        (nn.Sequential(nn.Linear(3, 2)).eval(), (2,), "does not take inputs of shape 2"),
    ],
)
def test_refused_by_name(model, input_shape, words):
    with pytest.raises(InputError, match=words):
        cnn_to_mlp(model, input_shape)


def test_the_check_catches_a_wrong_conversion(monkeypatch):
    """Negative control: a conversion that is off by 0.1 % must not get through."""
    right = conversion._linear_of

    def slightly_wrong(run, shape):
        linear, output_shape = right(run, shape)
        for layer in linear:
            layer.weight.data *= 1.001
        return linear, output_shape

    model = build_model("simple_cnn_3layer", width=2)
    cnn_to_mlp(model, (1, 8, 8))
    monkeypatch.setattr(conversion, "_linear_of", slightly_wrong)
    with pytest.raises(InputError, match="differs from the model"):
        cnn_to_mlp(model, (1, 8, 8))
