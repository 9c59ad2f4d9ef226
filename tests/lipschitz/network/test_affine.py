import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dense_matrix
from torch import nn

from lipschitz.network.affine import Convolution
from lipschitz.network.tracing import build_graph

MAPS = [
    pytest.param(node.affine, id=f"{case.name}-{node.name}")
    for case in CASES
    for node in build_graph(case.model(), case.input_shape).nodes
    if node.affine is not None
]


def matrices(affine_map, function):
    """Dense matrix of a function of all inputs, one per input."""
    return [
        dense_matrix(lambda x, i=i: function(i, x), shape)
        for i, shape in enumerate(affine_map.input_shapes)
    ]


@pytest.mark.parametrize("affine_map", MAPS)
def test_adjoint_is_the_transpose_and_magnitude_the_absolute_value(affine_map):
    forward = matrices(affine_map, affine_map.linear_from)
    backward = [
        dense_matrix(lambda g, i=i: affine_map.adjoint(g)[i], affine_map.output_shape)
        for i in range(len(forward))
    ]
    absolute = matrices(affine_map, affine_map.magnitude().linear_from)
    for m, transposed, magnitude in zip(forward, backward, absolute, strict=True):
        torch.testing.assert_close(transposed, m.T)
        torch.testing.assert_close(magnitude, m.abs())


@pytest.mark.parametrize("affine_map", MAPS)
def test_interval_is_the_image_of_the_box(affine_map):
    generator = torch.Generator().manual_seed(0)
    lower = [torch.randn(1, *s, generator=generator).double() for s in affine_map.input_shapes]
    upper = [b + torch.rand(b.shape, generator=generator).double() for b in lower]
    ours = affine_map.interval(*zip(lower, upper, strict=True))
    zeros = [torch.zeros_like(b) for b in lower]
    constant = affine_map.forward(*zeros).flatten()
    expected_lower, expected_upper = constant.clone(), constant.clone()
    for i, m in enumerate(matrices(affine_map, affine_map.linear_from)):
        low, high = lower[i].flatten(), upper[i].flatten()
        expected_lower += m.clamp(min=0) @ low + m.clamp(max=0) @ high
        expected_upper += m.clamp(min=0) @ high + m.clamp(max=0) @ low
    torch.testing.assert_close(ours[0].flatten(), expected_lower)
    torch.testing.assert_close(ours[1].flatten(), expected_upper)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2]),
)
def test_any_convolution_has_a_true_adjoint(size, kernel, stride, padding, dilation, groups):
    if any(
        d * (k - 1) >= s + 2 * p for d, k, s, p in zip(dilation, kernel, size, padding, strict=True)
    ):
        return
    layer = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups, bias=False).double()
    shape = torch.Size((2, *size))
    output_shape = layer(torch.zeros(1, *shape).double()).shape[1:]
    ours = Convolution(
        layer.weight.detach(), None, stride, padding, dilation, groups, shape, output_shape
    )
    m = dense_matrix(lambda x: layer(x).detach(), shape)
    transposed = dense_matrix(lambda g: ours.adjoint(g)[0], output_shape)
    torch.testing.assert_close(transposed, m.T)


def test_adjoint_is_differentiable_in_the_cotangent():
    for parameter in MAPS:
        affine_map = parameter.values[0]
        g = torch.rand(2, *affine_map.output_shape).double().requires_grad_()
        total = sum(part.sum() for part in affine_map.adjoint(g))
        assert torch.autograd.grad(total, g)[0].shape == g.shape
