import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipschitz.bounds.native.memory import windows
from lipschitz.bounds.native.memory.windows import (
    Window,
    adjoint,
    by_tiles,
    crop,
    linear_from,
)
from lipschitz.network.affine import Combination, Convolution, Linear, Reshape, Scale


def rows_in_a_box(shape, starts, sizes, seed=0):
    """Rows [2, 3, *shape] that are zero outside a spatial box."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(2, 3, *shape, dtype=torch.float64)
    box = (..., *(slice(a, a + n) for a, n in zip(starts, sizes, strict=True)))
    rows[box] = torch.randn(rows[box].shape, generator=generator, dtype=torch.float64)
    return rows


def apply(operation, rows):
    output = operation(rows.flatten(0, 1))
    return output.reshape(*rows.shape[:2], *output.shape[1:])


def convolution_of(module, shape):
    module = module.double()
    output = module(torch.zeros(1, *shape).double()).shape[1:]
    return Convolution(
        module.weight.detach(),
        module.bias.detach(),
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        torch.Size(shape),
        output,
    )


@settings(max_examples=80, deadline=None)
@given(
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    groups=st.sampled_from([1, 2]),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 1000),
)
def test_a_convolution_of_a_window_is_that_of_the_rows(
    stride, padding, dilation, kernel, groups, corner, seed
):
    shape = (2, 9, 8)
    torch.manual_seed(seed)
    module = nn.Conv2d(
        2, 4, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    affine = convolution_of(module, shape)
    for given_shape, operation, window_operation in (
        (shape, affine.linear, lambda w: linear_from(affine, 0, w)),
        (affine.output_shape, lambda v: affine.adjoint(v)[0], lambda w: adjoint(affine, w)[0]),
    ):
        space = given_shape[1:]
        starts = [int(c * (n - 1)) for c, n in zip(corner, space, strict=True)]
        sizes = [min(2, n - a) for a, n in zip(starts, space, strict=True)]
        rows = rows_in_a_box(given_shape, starts, sizes, seed)
        window = crop(rows)
        torch.testing.assert_close(window.full(), rows)
        torch.testing.assert_close(window_operation(window).full(), apply(operation, rows))


def test_windows_of_convolutions_stay_small():
    affine = convolution_of(nn.Conv2d(1, 2, 3), (1, 30, 30))
    rows = rows_in_a_box((1, 30, 30), (10, 12), (1, 2))
    assert linear_from(affine, 0, crop(rows)).sizes == (3, 4)
    rows = rows_in_a_box(affine.output_shape, (10, 12), (1, 2))
    assert adjoint(affine, crop(rows))[0].sizes == (3, 4)


def test_flattening_keeps_the_window_and_a_linear_layer_reads_it():
    shape, generator = torch.Size((2, 4, 5)), torch.Generator().manual_seed(0)
    weight = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    flatten = Reshape(shape, torch.Size((40,)))
    linear = Linear(weight, None, torch.Size((40,)))
    rows = rows_in_a_box(shape, (1, 2), (2, 2))
    flat = linear_from(flatten, 0, crop(rows))
    assert flat.sizes == (2, 2)
    torch.testing.assert_close(flat.full(), rows.flatten(2))
    torch.testing.assert_close(linear_from(linear, 0, flat).full(), rows.flatten(2) @ weight.T)
    torch.testing.assert_close(adjoint(flatten, flat)[0].full(), rows)


def test_scales_and_sums():
    shape = torch.Size((2, 4, 5))
    rows = rows_in_a_box(shape, (1, 2), (2, 2))
    for factor in (
        torch.rand(2, 1, 1).double(),
        torch.rand(()).double(),
        torch.rand(shape).double(),
    ):
        scale = Scale(factor, None, shape)
        torch.testing.assert_close(linear_from(scale, 0, crop(rows)).full(), rows * factor)
        torch.testing.assert_close(adjoint(scale, crop(rows))[0].full(), rows * factor)
    difference = Combination((1, -1), shape)
    torch.testing.assert_close(linear_from(difference, 1, crop(rows)).full(), -rows)
    plus, minus = adjoint(difference, crop(rows))
    torch.testing.assert_close(plus.full(), -minus.full())
    other = rows_in_a_box(shape, (0, 0), (3, 3), seed=1)
    torch.testing.assert_close((crop(rows) + crop(other)).full(), rows + other)
    torch.testing.assert_close((crop(rows) + crop(rows)).full(), 2 * rows)


def test_a_tensor_is_cut_where_the_window_is():
    shape = torch.Size((2, 4, 5))
    window = crop(rows_in_a_box(shape, (1, 2), (2, 3)))
    lines = torch.rand(7, 1, *shape)
    torch.testing.assert_close(window.cut(lines), lines[..., 1:3, 2:5])
    torch.testing.assert_close(window.cut_flat(lines.flatten(1)), lines[..., 1:3, 2:5].flatten(1))


def test_rows_of_zeros_and_rows_without_space():
    shape = torch.Size((2, 4, 5))
    zeros = torch.zeros(1, 1, *shape)
    torch.testing.assert_close(crop(zeros).full(), zeros)
    vector = torch.rand(1, 2, 6)
    assert crop(vector).is_whole
    torch.testing.assert_close(Window.whole(vector).full(), vector)


def test_tiles_keep_every_coordinate_and_bring_neighbours_together():
    shape = torch.Size((2, 9, 8))
    indices = torch.arange(144)[::3]
    ordered = by_tiles(indices, shape)
    assert sorted(ordered.tolist()) == indices.tolist()
    first = ordered[:8] % 72
    assert int((first // 8).max() - (first // 8).min()) < 4
    torch.testing.assert_close(by_tiles(indices, torch.Size((144,))), indices)


def test_a_window_one_pixel_too_small_is_caught(monkeypatch):
    """Negative control: the comparison above must notice a reach that is one short."""
    affine = convolution_of(nn.Conv2d(1, 2, 3), (1, 8, 8))
    rows = rows_in_a_box((1, 8, 8), (3, 3), (1, 1))
    right = windows.geometry
    monkeypatch.setattr(
        windows, "geometry", lambda a: [(s, p, reach - 1) for s, p, reach in right(a)]
    )
    with pytest.raises((AssertionError, RuntimeError)):
        torch.testing.assert_close(
            linear_from(affine, 0, crop(rows)).full(), apply(affine.linear, rows)
        )
