"""Affine expressions carried through a graph equal the network where its pattern is fixed."""

import pytest
import torch
from cases import CASES

from lipschitz import build_graph
from lipschitz.bounds.baselines.expressions import (
    Expression,
    backward_expression,
    forward_expressions,
    input_expression,
)


def slopes_at(graph, x):
    values = graph.values(x[None])
    return {
        i: graph.nodes[i].activation.slope(values[graph.nodes[i].parents[0]]).flatten()
        for i in graph.activation_nodes
    }


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_values_and_gradients_of_one_linear_piece(case):
    graph = build_graph(case.model(), case.input_shape)
    x, radius = case.point(), torch.full_like(case.point(), 1e-7)
    slopes = slopes_at(graph, x)
    start = input_expression(x, radius)
    found = forward_expressions(graph, start, lambda i, z: z * slopes[i])
    units = torch.linspace(-1, 1, x.numel(), dtype=x.dtype)
    moved = x + radius * units.reshape(x.shape)
    for index, value in enumerate(graph.values(moved[None])):
        if index not in found:  # the output does not read it
            continue
        expression = found[index].flat()
        computed = units @ expression.padded(x.numel()) + expression.constant[0]
        assert torch.allclose(computed, value.flatten(), rtol=1e-12, atol=1e-14)
    row = torch.zeros(1, graph.num_outputs, dtype=x.dtype)
    row[0, 0] = 1
    gradient = backward_expression(graph, row, lambda i, g: g * slopes[i])
    assert torch.allclose(gradient.constant, graph.gradients(x[None], row).flatten(1))
    assert not bool(gradient.coefficients.any())


def test_arithmetic_pads_missing_variables():
    first = Expression(torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 6.0]]))
    second = Expression(torch.tensor([[1.0, 1.0], [3.0, 4.0]]), torch.tensor([[0.5, 0.5]]))
    difference = first - second
    assert difference.coefficients.tolist() == [[0.0, 1.0], [-3.0, -4.0]]
    assert difference.constant.tolist() == [[4.5, 5.5]]
    placed = first.put(torch.tensor([1]), second.take(torch.tensor([0])))
    assert placed.coefficients.tolist() == [[1.0, 1.0], [0.0, 3.0]]
    assert placed.constant.tolist() == [[5.0, 0.5]]


def test_a_wrong_slope_is_seen():
    """Negative control."""
    case = CASES[1]
    graph = build_graph(case.model(), case.input_shape)
    x = case.point()
    row = torch.eye(graph.num_outputs, dtype=x.dtype)[:1]
    slopes = slopes_at(graph, x)
    gradient = backward_expression(graph, row, lambda i, g: g * (slopes[i] + 1e-3))
    assert not torch.allclose(gradient.constant, graph.gradients(x[None], row).flatten(1))
