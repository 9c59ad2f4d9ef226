import pytest
import torch
from cases import CASES, mlp
from torch import nn

from lipschitz.bounds.global_norm import global_norm_bound
from lipschitz.network.tracing import build_graph


def test_product_of_layer_norms_of_an_mlp():
    torch.manual_seed(0)
    model = mlp(4, 6, 5, 3).double().eval()
    layers = [m.weight.detach() for m in model if isinstance(m, nn.Linear)]
    hidden = [w.abs().sum(1).max() for w in layers[:-1]]
    expected = layers[-1].abs().sum(1) * hidden[0] * hidden[1]
    bound = global_norm_bound(build_graph(model, (4,)), torch.eye(3).double())
    torch.testing.assert_close(bound, expected)


def test_branches_add_up():
    case = next(c for c in CASES if c.name == "residual_from_input")
    model = case.model()
    first, second = model.inner[0].weight.detach(), model.inner[2].weight.detach()
    # the last affine maps, x - 0.5 (W2 h + b), are joined with the row: 1 + 0.5 |W2 row| |W1|
    expected = 1 + 0.5 * second.abs().sum(1) * first.abs().sum(1).max()
    bound = global_norm_bound(build_graph(model, (4,)), torch.eye(4).double())
    torch.testing.assert_close(bound, expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolution_uses_the_operator_norm_not_that_of_the_kernel(stride, padding):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=stride, padding=padding), nn.ReLU(), nn.Flatten()
    )
    model = model.double().eval()
    graph = build_graph(model, (1, 5, 5))
    kernel_norm = model[0].weight.detach().abs().sum((1, 2, 3)).max()
    bound = global_norm_bound(graph, torch.eye(graph.num_outputs).double())
    torch.testing.assert_close(bound.max(), kernel_norm)  # some window lies wholly inside


def test_an_affine_network_is_exact():
    case = next(c for c in CASES if c.name == "affine")
    model = case.model()
    matrix = model[1].weight.detach() @ model[0].weight.detach()
    bound = global_norm_bound(build_graph(model, (3,)), torch.eye(2).double())
    torch.testing.assert_close(bound, matrix.abs().sum(1))
