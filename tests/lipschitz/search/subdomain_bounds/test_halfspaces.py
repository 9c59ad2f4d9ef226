"""Largest values under linear constraints against linear programs."""

import pytest
import torch
from scipy.optimize import linprog

from lipschitz.search.subdomain_bounds.halfspaces import (
    HalfSpaces,
    largest_values,
    smaller_boxes,
)


def random_spaces(inputs: int, count: int, seed: int) -> HalfSpaces:
    """Constraints that the origin satisfies, and some rows of zeros."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(6, count, inputs, generator=generator, dtype=torch.float64)
    constant = 0.5 * torch.rand(6, count, generator=generator, dtype=torch.float64)
    matrix[:, 0], constant[:, 0] = 0, 0
    return HalfSpaces(matrix, constant)


def by_program(function, matrix, constant) -> float:
    bounds = [(-1, 1)] * len(function)
    return -linprog(-function, A_ub=-matrix, b_ub=constant, bounds=bounds).fun


@pytest.mark.parametrize(("inputs", "count"), [(1, 3), (2, 2), (2, 5), (5, 4)])
def test_never_below_the_linear_program(inputs, count):
    spaces = random_spaces(inputs, count, inputs)
    functions = torch.randn(6, 7, inputs, generator=torch.Generator().manual_seed(9)).double()
    found = {sweeps: largest_values(functions, spaces, sweeps) for sweeps in (1, 3)}
    over_box = functions.abs().sum(2)
    for b in range(6):
        for r in range(7):
            best = by_program(
                functions[b, r].numpy(), spaces.matrix[b].numpy(), spaces.constant[b].numpy()
            )
            for values in found.values():
                assert float(values[b, r]) >= best - 1e-9
                assert float(values[b, r]) <= float(over_box[b, r]) * (1 + 1e-12)
            if count == 2:  # one constraint, beside the row of zeros: the best multiplier is found
                assert float(found[1][b, r]) <= best + 1e-9
    assert (found[3] <= found[1] + 1e-12).all()


def test_control_constraints_that_say_too_much_cut_the_program_off():
    """Negative control: the comparison above notices constraints of too small a constant."""
    spaces = random_spaces(5, 4, 5)
    functions = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(9)).double()
    found = largest_values(functions, HalfSpaces(spaces.matrix, spaces.constant / 2), 3)
    below = [
        float(found[b, r])
        < by_program(*(t.numpy() for t in (functions[b, r], spaces.matrix[b], spaces.constant[b])))
        - 1e-9
        for b in range(6)
        for r in range(7)
    ]
    assert any(below)


def test_boxes_of_a_pass_in_single_precision_keep_its_rounding():
    """Middle and radius of a box far from 0 are rounded there by more than float64 allows for."""
    lower = torch.tensor([[1000.0 + 1 / 3, 0.0]]).double()
    upper = lower + torch.tensor([[0.1, 1.0]]).double()
    single = [end.float().double() for end in (lower, upper)]
    centre, radius = (single[0] + single[1]) / 2, (single[1] - single[0]) / 2
    edge = lower[:, 0] + 0.07  # x_0 >= edge, written with the rounded middle and radius
    matrix = torch.stack([radius[:, 0], torch.zeros_like(edge)], 1)[:, None]
    spaces = HalfSpaces(matrix, (centre[:, 0] - edge)[:, None])
    kept, _ = smaller_boxes(lower, upper, spaces, torch.float32)
    cut, _ = smaller_boxes(lower, upper, spaces, torch.float64)
    assert kept.lower[0, 0] <= edge[0]
    assert cut.lower[0, 0] > edge[0]  # the control: with the margin of float64 a part is lost


def test_boxes_shrink_to_what_is_left():
    lower, upper = torch.zeros(2, 2).double(), torch.full((2, 2), 2.0).double()
    # In [-1, 1]^2: u_0 >= 0.5 in the first box; u_0 >= 0.5 and u_0 <= 0 in the second.
    matrix = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]]).double()
    constant = torch.tensor([[-0.5, 0.0], [-0.5, 0.0]]).double()
    box, empty = smaller_boxes(lower, upper, HalfSpaces(matrix, constant), lower.dtype)
    assert empty.tolist() == [False, True]
    assert abs(float(box.lower[0, 0]) - 1.5) < 1e-12
    assert box.lower[0, 0] <= 1.5
    assert box.upper[0].tolist() == [2.0, 2.0]
