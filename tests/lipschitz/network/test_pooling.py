import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.pooling import Selection, comparisons
from lipschitz.network.tracing import build_graph
from tests.oracles import dense_matrix, jacobians


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x).flatten(1)


POOLS = [
    (nn.MaxPool2d(2), (2, 5, 5)),
    (nn.MaxPool2d(1), (1, 2, 2)),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 6, 5)),
    (nn.MaxPool2d((3, 2), (1, 2), (1, 0), (1, 2)), (2, 6, 7)),
    (nn.MaxPool1d(3, 2, 1), (2, 7)),
    (nn.MaxPool3d(2), (1, 2, 4, 4)),
    (nn.AdaptiveMaxPool1d(1), (2, 5)),
    (nn.AdaptiveMaxPool2d((2, 3)), (2, 5, 4)),
    (Function(lambda x: F.max_pool2d(x, 2, stride=1, padding=1)), (2, 4, 4)),
    (Function(lambda x: F.max_pool1d(x, kernel_size=2)), (2, 5)),
    (Function(lambda x: F.adaptive_max_pool2d(x, 2)), (1, 5, 4)),
]


@pytest.mark.parametrize(("pool", "shape"), POOLS, ids=lambda p: None)
def test_the_tree_is_torchs_maximum(pool, shape):
    model = nn.Sequential(pool, nn.Flatten()).double().eval()
    graph = build_graph(model, shape)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, *shape, generator=generator, dtype=torch.float64) - 3  # padding never wins
    assert torch.equal(graph.values(x)[-1].sign(), model(x).sign())
    torch.testing.assert_close(graph.values(x)[-1], model(x), rtol=1e-13, atol=1e-13)
    rows = torch.eye(graph.num_outputs, dtype=torch.float64)
    for point, jacobian in zip(x, jacobians(model, x), strict=True):
        found = graph.gradients(point.expand(len(rows), *shape), rows)
        assert torch.equal(found, jacobian)
    assert all(
        node.activation is None or node.activation == PiecewiseLinear() for node in graph.nodes
    )


@pytest.mark.parametrize("entries", [1, 2, 3, 5, 8])
def test_every_window_takes_one_comparison_less_than_it_has_entries(entries):
    windows = torch.arange(2 * entries).reshape(2, entries)
    windows[1, 1:] = -1  # all but one entry are padding
    levels = comparisons(windows, torch.Size((2 * entries,)), torch.Size((2,)))
    assert sum(level.difference.output_shape.numel() for level in levels) == entries - 1


def test_selection_and_its_adjoint():
    first, second = torch.tensor([0, 3, -1, 3]), torch.tensor([2, -1, 1, 0])
    selection = Selection([(1, first), (-1, second)], torch.Size((2, 2)), (4,))
    matrix = dense_matrix(selection.linear, (2, 2))
    expected = torch.tensor([[1, 0, -1, 0], [0, 0, 0, 1], [0, -1, 0, 0], [-1, 0, 0, 1]])
    assert torch.equal(matrix, expected.double())
    adjoint = dense_matrix(lambda c: selection.adjoint(c)[0], (4,))
    assert torch.equal(adjoint, matrix.T)
    assert torch.equal(dense_matrix(selection.magnitude().linear, (2, 2)), matrix.abs())
    for sign in (1, -1):
        part = dense_matrix(selection.of_sign(sign).linear, (2, 2))
        assert torch.equal(part, (sign * matrix).clamp(min=0))
    moved = selection.to("cpu", torch.float32)
    assert moved.linear(torch.ones(1, 2, 2)).dtype == torch.float32


def test_indices_are_refused():
    def with_indices(x: Tensor) -> Tensor:
        return x + F.max_pool1d(x, 1, return_indices=True)[0]

    with pytest.raises(NotImplementedError, match=r"not supported|not depend"):
        build_graph(Function(with_indices).eval(), (1, 4))
