"""Networks of torchvision by name, traced with weights that are given, never downloaded."""

import pytest
import torch

from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph
from models import build_model, model_spec
from models.checkpoint import load_weights


def test_a_resnet_is_traced():
    torch.manual_seed(0)
    model = build_model("torchvision:resnet18", num_classes=3)
    assert not model.training
    graph = build_graph(model, (3, 32, 32))  # compares the Jacobian with autograd's
    assert len(graph.activation_nodes) > 17  # those of max pooling among them


def test_weights_whose_layers_have_versions_load(tmp_path):
    torch.manual_seed(0)
    first = build_model("torchvision:mnasnet0_5", num_classes=2)
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    second = build_model("torchvision:mnasnet0_5", num_classes=2)
    load_weights(second, tmp_path / "weights.pth")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("torchvision:resnet19", {}, "no model 'resnet19': did you mean 'resnet1"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "from --load; nothing is downloaded"),
        ("torchvision:resnet18", {"width": 3}, "resnet18 failed: .*width"),
    ],
)
def test_what_cannot_be_had_is_said(name, params, words):
    with pytest.raises(InputError, match=words):
        model_spec(name, params).build()
