import pytest
import torch
from cases import CASES
from oracles import jacobian
from torch import nn

from lipschitz.graph import Graph
from lipschitz.tracing import build_graph, check_jacobian
from utils import InputError


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graph_has_autograds_output_and_jacobian(case, dtype):
    model = case.model(dtype)
    graph = build_graph(model, case.input_shape)
    assert graph.dtype == dtype
    x = case.point(dtype)
    rows = torch.eye(graph.num_outputs, dtype=dtype)
    ours = graph.gradients(x.expand(len(rows), *x.shape), rows)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(ours, jacobian(model, x), **tolerance)
    torch.testing.assert_close(graph.values(x[None])[-1], model(x[None]), **tolerance)


def test_input_that_skips_the_network_keeps_its_identity():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return x + torch.relu(self.inner(x))

    model = Skip().double().eval()
    with torch.no_grad():
        model.inner.weight.zero_()
    graph = build_graph(model, (3,))
    gradients = graph.gradients(torch.rand(3, 3, dtype=torch.float64), torch.eye(3).double())
    assert torch.equal(gradients, torch.eye(3).double())


def unsupported(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2)).eval()


class Product(nn.Module):
    def forward(self, x):
        return x * x.flip(1)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class MovesBatch(nn.Module):
    def forward(self, x):
        return x.reshape(-1)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.Softmax(dim=1), "'1' of type Softmax"),
        (nn.Threshold(0.1, 20.0), "Threshold"),
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.Softplus(threshold=2.0), "Softplus.*jumps"),
        (Product(), "flip|mul"),
        (MovesBatch(), "batch dimension"),
        (Detached(), "detach"),
        (Branching(), "traced"),
        (nn.TransformerEncoderLayer(4, 1), "traced|Transformer"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_unsupported_layer_is_refused_by_name(layer, named):
    with pytest.raises((NotImplementedError, InputError), match=named):
        build_graph(unsupported(layer), (4,))


def test_subclass_with_its_own_forward_is_not_taken_for_its_base():
    class Squashed(nn.Linear):
        def forward(self, x):
            return torch.exp(super().forward(x))

    with pytest.raises(NotImplementedError, match="exp"):
        build_graph(nn.Sequential(Squashed(4, 2)).eval(), (4,))


def test_forward_hook_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(NotImplementedError, match="hook"):
        build_graph(model, (4,))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_layer_in_training_mode_is_refused(layer):
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"'1' is in training mode.*eval\(\)"):
        build_graph(model, (4,))
    build_graph(model.eval(), (4,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad):
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].bias[1] = bad
    with pytest.raises(InputError, match=r"0\.bias"):
        build_graph(model, (4,))


def test_half_precision_and_mixed_weights_are_refused():
    with pytest.raises(InputError, match="float16"):
        build_graph(nn.Linear(4, 2).half().eval(), (4,))
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).double()).eval()
    with pytest.raises(InputError, match=r"float32, float64|float64"):
        build_graph(mixed, (4,))


def test_wrong_input_shape_is_refused():
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        build_graph(nn.Sequential(nn.Linear(4, 2)).eval(), (5,))


def test_padding_mode_is_refused():
    model = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten()
    ).eval()
    with pytest.raises(NotImplementedError, match="reflect"):
        build_graph(model, (1, 4, 4))


def test_check_catches_a_wrong_slope():
    """Negative control: a rule off by 0.1 % must not pass the check."""
    model = CASES[1].model()
    graph = build_graph(model, CASES[1].input_shape)
    check_jacobian(graph, model)
    nodes = list(graph.nodes)
    broken = nodes[2].affine.to("cpu", torch.float64)
    broken.weight = broken.weight * 1.001
    nodes[2] = type(nodes[2])(nodes[2].name, nodes[2].parents, nodes[2].shape, broken)
    with pytest.raises(InputError, match="differs"):
        check_jacobian(Graph(nodes, graph.device, graph.dtype), model)
