import doctest

import pytest
import torch
from cases import CASES, REFERENCES
from oracles import jacobian, jacobians, points_in_box
from torch import nn

import lipschitz.api
from lipschitz import Prepared, jacobian_bounds, local_lipschitz, make_problem
from lipschitz.errors import InputError

REFERENCE = REFERENCES[1]


def test_docstring_example():
    found = doctest.testmod(lipschitz.api)
    assert found.attempted > 5
    assert found.failed == 0


def test_result_fields():
    result = local_lipschitz(REFERENCE.model(), REFERENCE.point(), REFERENCE.eps)
    assert result.method == "crown"
    assert result.engine == "auto_lirpa"
    assert result.status == "bound"
    assert result.dtype == "float64"
    assert len(result.class_upper_bounds) == 10
    assert result.root_upper_bound == result.upper_bound
    true_norm = jacobian(REFERENCE.model(), result.witness).abs().sum(1).max()
    assert result.lower_bound == pytest.approx(float(true_norm))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_radius_zero_is_exact(case):
    model, x = case.model(), case.point()
    result = local_lipschitz(model, x, 0.0)
    assert result.status == "exact"
    expected = float(jacobian(model, x).abs().flatten(1).sum(1).max())
    assert result.upper_bound == pytest.approx(expected, rel=1e-9)
    assert result.lower_bound == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 1, 8, 8)])
def test_with_and_without_batch_dimension(shape):
    reference = REFERENCES[-1]
    result = local_lipschitz(
        reference.model(), reference.point().reshape(shape), reference.eps, optimize=False
    )
    assert result.upper_bound == pytest.approx(reference.crown_root, rel=1e-5)


def test_a_float64_model_stays_float64_and_a_float32_bound_says_so():
    reference = REFERENCES[1]
    x = reference.point(torch.float32)
    assert local_lipschitz(reference.model(), x, 0.05).dtype == "float64"
    assert local_lipschitz(reference.model(torch.float32), x, 0.05).dtype == "float32"
    asked = local_lipschitz(reference.model(torch.float32), x, 0.05, dtype=torch.float64)
    assert asked.dtype == "float64"


class Constants(nn.Module):
    """A convolution in float64 whose kernel is no parameter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.ones(1, 1, 2, 2, dtype=torch.float64) / 3)

    def forward(self, x):
        return torch.relu(torch.conv2d(x, self.kernel)).flatten(1)


def test_a_network_of_buffers_alone():
    result = local_lipschitz(Constants().eval(), torch.rand(1, 1, 3, 3), 0.0)
    assert result.dtype == "float64"
    assert abs(result.upper_bound - 4 / 3) < 1e-9  # a third in float32 is further off


@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 1, 3, 3)])
def test_a_convolution_takes_one_example_without_a_batch_dimension_too(shape):
    result = local_lipschitz(Constants().eval(), torch.rand(shape), 0.1, engine="native")
    assert abs(result.upper_bound - 4 / 3) < 1e-9
    assert jacobian_bounds(Constants().eval(), torch.rand(shape), 0.1).upper.shape == (4, 1, 3, 3)


@pytest.mark.parametrize(("method", "engine"), [("crown", "auto_lirpa"), ("alpha", "native")])
def test_nothing_is_kept_from_one_problem_to_the_next(method, engine):
    """Nor from one class to another: no bound may use what holds elsewhere."""
    case = next(case for case in CASES if case.name == "residual_convolution")
    model, x = case.model(), case.point()
    one = Prepared(model, case.input_shape, method=method, engine=engine)
    graph = one.graph
    problems = [
        make_problem(graph, x, 0.01, classes=[0]),
        make_problem(graph, -x, 0.5, classes=[1, 2]),
        make_problem(graph, x, 0.5, margin_of=1),
        make_problem(graph, x, 0.01),
    ]
    together = [one.upper_bounds(problem) for problem in problems]
    for problem, bounds in zip(problems, together, strict=True):
        fresh = Prepared(model, case.input_shape, method=method, engine=engine)
        torch.testing.assert_close(bounds, fresh.upper_bounds(problem), rtol=1e-9, atol=1e-12)
        points = points_in_box(problem.lower, problem.upper, 100)
        gradients = problem.rows @ jacobians(model, points).flatten(2)
        assert (gradients.abs().sum(2).amax(0) <= bounds * (1 + 1e-9)).all()


def test_classes_and_margins():
    model, x = REFERENCE.model(), REFERENCE.point()
    every = local_lipschitz(model, x, 0.05, method="ibp").class_upper_bounds
    some = local_lipschitz(model, x, 0.05, method="ibp", classes=[7, 2]).class_upper_bounds
    assert some == pytest.approx((every[7], every[2]))
    margins = local_lipschitz(model, x, 0.05, margin_of=7)
    assert len(margins.class_upper_bounds) == 9
    j = jacobian(model, x)
    true_margins = [(j[7] - j[c]).abs().sum() for c in range(10) if c != 7]
    assert all(b >= t for b, t in zip(margins.class_upper_bounds, true_margins, strict=True))
    assert margins.upper_bound <= max(every) * 2


def test_clipping_shrinks_the_box_and_the_bound():
    model, x = REFERENCE.model(), torch.full((16,), 0.95, dtype=torch.float64)
    free = local_lipschitz(model, x, 0.3)
    clipped = local_lipschitz(model, x, 0.3, clip=(0.0, 1.0))
    assert clipped.upper_bound < free.upper_bound
    assert (clipped.witness <= 1.0).all()


def test_mistakes_are_told():
    model = REFERENCE.model()
    for arguments, message in (
        ({"x": torch.zeros(15)}, r"shape \(15,\)"),
        ({"eps": -1.0}, "eps"),
        ({"method": "crowm"}, "did you mean 'crown'"),
        ({"engine": "gpu"}, "does not run on engine"),
        ({"classes": [10]}, "0 to 9"),
    ):
        with pytest.raises(InputError, match=message):
            local_lipschitz(**{"model": model, "x": torch.zeros(16), "eps": 0.1, **arguments})


def test_a_point_box_at_a_kink_has_every_clarke_slope():
    """relu(x) at 0, eps 0: autograd says 0, the Clarke derivative reaches 1."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    for method in ("crown", "ibp"):
        assert local_lipschitz(model, torch.zeros(1), 0.0, method=method).upper_bound >= 1.0
