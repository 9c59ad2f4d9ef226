"""Entries of the Jacobian and directional derivatives."""

from __future__ import annotations

import doctest

import pytest
import torch
from cases import CASES, REFERENCES, mlp
from oracles import jacobian, jacobians, points_in_box
from shared import graph_of, sampled_jacobians
from torch import nn

import lipschitz.applications.jacobian
from lipschitz import build_graph, jacobian_bounds, jvp_bounds
from lipschitz.errors import InputError
from lipschitz.network.affine import Linear

EPS = [0.0, 1e-3, 0.1, 1.0, 30.0]


def sampled(model, x, eps, count=150):
    return jacobians(model, points_in_box(x - eps, x + eps, count))


def holds(bounds, values, slack):
    """Whether sampled values [P, ...] lie in the bounds, up to the rounding of the samples."""
    return bool(((values >= bounds.lower - slack) & (values <= bounds.upper + slack)).all())


def scale(values):
    return 1e-10 * (1 + float(values.abs().max()))


def test_docstring_examples():
    found = doctest.testmod(lipschitz.applications.jacobian)
    assert found.attempted > 10
    assert found.failed == 0


@pytest.mark.parametrize("engine", ["native", "auto_lirpa"])
@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_sampled_jacobians_stay_inside(case, optimize, engine):
    graph, x = graph_of(case), case.point()
    for eps in EPS if engine == "native" else [0.1]:
        bounds = jacobian_bounds(graph, x, eps, optimize=optimize, engine=engine)
        values = sampled_jacobians(case, eps, count=150)
        assert bounds.lower.shape == values.shape[1:]
        assert holds(bounds, values, scale(values))


@pytest.mark.parametrize("engine", ["native", "auto_lirpa"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_sampled_directional_derivatives_stay_inside(case, engine):
    graph, x = graph_of(case), case.point()
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(4, *case.input_shape, generator=generator, dtype=torch.float64)
    for eps in (0.0, 0.1, 1.0) if engine == "native" else (0.1,):
        bounds = jvp_bounds(graph, x, eps, directions, engine=engine)
        values = sampled_jacobians(case, eps, count=150).flatten(2) @ directions.flatten(1).T
        assert bounds.lower.shape == values.shape[1:]
        assert holds(bounds, values, scale(values))


def test_bounds_off_by_a_thousandth_are_caught():
    """Negative control of the soundness checks: on a point box nothing is loose."""
    case = CASES[1]
    model, x = case.model(), case.point()
    values = sampled(model, x, 0.0)
    bounds = jacobian_bounds(model, x, 0.0)
    shrunk = lipschitz.applications.jacobian.JacobianBounds(
        bounds.lower * 0.999, bounds.upper * 0.999, bounds.row_names
    )
    assert holds(bounds, values, scale(values))
    assert not holds(shrunk, values, scale(values))


# auto_LiRPA's line below a stable negative neuron is loose for slopes above 1.
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name != "steep_leaky_relu"], ids=lambda c: c.name
)
def test_engines_agree_without_alpha(case):
    graph, x = graph_of(case), case.point()
    directions = torch.ones(1, *case.input_shape, dtype=torch.float64)

    def both(engine, eps):
        options = {"engine": engine, "optimize": False}
        entries = jacobian_bounds(graph, x, eps, **options)
        products = jvp_bounds(graph, x, eps, directions, **options)
        return entries.lower, entries.upper, products.lower, products.upper

    for eps in (0.01, 0.5):
        for ours, theirs in zip(both("native", eps), both("auto_lirpa", eps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_radius_zero_is_the_gradient(case):
    model, x = case.model(), case.point()
    bounds, truth = jacobian_bounds(graph_of(case), x, 0.0), jacobian(model, x)
    torch.testing.assert_close(bounds.lower, truth, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(bounds.upper, truth, rtol=1e-9, atol=1e-12)


def test_optimised_slopes_are_never_looser_and_bounds_are_tight_on_small_boxes():
    reference = REFERENCES[1]
    model, x = reference.model(), reference.point()
    plain = jacobian_bounds(model, x, 0.05, optimize=False)
    tight = jacobian_bounds(model, x, 0.05)
    assert (tight.lower >= plain.lower - 1e-9).all()
    assert (tight.upper <= plain.upper + 1e-9).all()
    small = jacobian_bounds(model, x, 0.01)
    values = sampled(model, x, 0.01, 2000)
    missed = (small.upper - small.lower).sum() - (values.amax(0) - values.amin(0)).sum()
    assert missed < 0.05 * small.upper.abs().sum()


def test_a_product_is_never_looser_than_its_entries_and_a_unit_vector_is_an_entry():
    reference = REFERENCES[1]
    model, x = reference.model(), reference.point()
    entries = jacobian_bounds(model, x, 0.1)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(16, generator=generator, dtype=torch.float64)
    product = jvp_bounds(model, x, 0.1, v)
    assert product.upper.shape == (10, 1)
    summed = entries.upper @ v.clamp(min=0) + entries.lower @ v.clamp(max=0)
    assert (product.upper[:, 0] <= summed + 1e-9).all()
    assert (product.upper[:, 0] < summed - 1e-3).any()
    unit = jvp_bounds(model, x, 0.1, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(unit.upper, entries.upper, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(unit.lower, entries.lower, rtol=1e-9, atol=1e-12)


def test_classes_rows_box_and_clip():
    reference = REFERENCES[1]
    model, x = reference.model(), reference.point()
    every = jacobian_bounds(model, x, 0.05)
    some = jacobian_bounds(model, x, 0.05, classes=[7, 2])
    assert some.row_names == ("7", "2")
    torch.testing.assert_close(some.upper, every.upper[[7, 2]])
    rows = torch.eye(10, dtype=torch.float64)[[7, 2]]
    by_rows = jacobian_bounds(model, x, 0.05, rows=rows)
    torch.testing.assert_close(by_rows.upper, some.upper)
    negated = jacobian_bounds(model, x, 0.05, rows=-rows)
    torch.testing.assert_close(negated.lower, -some.upper)
    boxed = jacobian_bounds(model, x, box=(x - 0.05, x + 0.05))
    torch.testing.assert_close(boxed.upper, every.upper)
    # One coordinate free, the others fixed.
    low, high = x.clone(), x.clone()
    low[3], high[3] = 0.0, 1.0
    line = jacobian_bounds(model, x, box=(low, high))
    values = jacobians(model, points_in_box(low, high, 200))
    assert holds(line, values, scale(values))
    clipped = jacobian_bounds(model, x, 0.8, clip=(0.0, 1.0))
    whole = jacobian_bounds(model, x, box=(0.0, 1.0))
    torch.testing.assert_close(clipped.upper, whole.upper)
    cut = jacobian_bounds(model, x, box=(-3.0, 3.0), clip=(0.0, 1.0))
    torch.testing.assert_close(cut.upper, whole.upper)


def test_dtype_batch_dimension_and_a_graph():
    reference = REFERENCES[1]
    model, x = reference.model(torch.float32), reference.point(torch.float32)
    single = jacobian_bounds(model, x, 0.05)
    double = jacobian_bounds(model, x[None], 0.05, dtype=torch.float64)
    assert (single.lower.dtype, double.lower.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.lower.double(), double.lower, rtol=1e-3, atol=1e-3)
    graph = build_graph(model, (16,))
    assert torch.equal(jacobian_bounds(graph, x, 0.05).lower, single.lower)


def test_a_sign_fixed_by_the_structure_needs_no_margin():
    """Weights that are never negative: no entry may be bounded below 0, at any scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.abs() if parameter.dim() > 1 else parameter)
    x = torch.rand(5)
    for eps in (0.0, 0.3, 100.0):
        bounds = jacobian_bounds(model.eval(), x, eps)
        assert (bounds.lower >= 0).all()
        assert (jvp_bounds(model, x, eps, torch.ones(5)).lower >= 0).all()
        assert (jvp_bounds(model, x, eps, -torch.ones(5)).upper <= 0).all()
    with torch.no_grad():  # negative control: one path of the other sign
        model[4].weight[0, 0] = -1.0
    assert (jacobian_bounds(model, x, 100.0).lower < 0).any()


def test_an_output_that_ignores_the_input_has_zero_derivatives():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 2)

        def forward(self, x):
            return self.lin(x * 0.0)

    bounds = jacobian_bounds(Constant().eval(), torch.rand(3), 0.5)
    assert (bounds.lower == 0).all()
    assert (bounds.upper == 0).all()


X = torch.full((16,), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(15), "eps": 0.1}, r"shape \(15,\)"),
        ({"eps": -1.0}, "eps is -1"),
        ({}, "either eps"),
        ({"eps": 0.1, "box": (0, 1)}, "either eps"),
        ({"box": (1.0, 0.0)}, "box is empty"),
        ({"box": (0.6, 1.0)}, "x lies outside"),
        ({"box": (torch.zeros(3), 1.0)}, r"the lower end of the box has shape \(3,\)"),
        ({"box": (0.0, float("inf"))}, "finite ends"),
        ({"eps": 0.1, "classes": [10]}, "0 to 9"),
        ({"eps": 0.1, "classes": [1], "rows": torch.eye(10)}, "either classes or rows"),
        ({"eps": 0.1, "rows": torch.eye(9)}, r"expected \[R, 10\]"),
        ({"eps": 0.1, "rows": torch.full((1, 10), float("nan"))}, "finite numbers"),
        ({"eps": 0.1, "engine": "natve"}, "did you mean 'native'"),
    ],
)
def test_mistakes_are_told(arguments, message):
    model = REFERENCES[1].model()
    with pytest.raises(InputError, match=message) as error:
        jacobian_bounds(**{"model": model, "x": X, **arguments})
    assert "\n" not in str(error.value)


def test_an_overflow_is_told():
    graph = build_graph(mlp(2, 2, 1).eval(), (2,))
    for node in graph.nodes:
        if isinstance(node.affine, Linear):
            node.affine.weight = torch.full_like(node.affine.weight, 1e30)
    with pytest.raises(InputError, match="not a finite number"):
        jacobian_bounds(graph, torch.ones(2), 0.1)


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        (None, "directions are missing"),
        (torch.zeros(15), "directions have shape"),
        (torch.zeros(0, 16), "directions have shape"),
        (torch.full((16,), float("inf")), "finite numbers"),
    ],
)
def test_wrong_directions_are_told(directions, message):
    with pytest.raises(InputError, match=message):
        jvp_bounds(REFERENCES[1].model(), X, 0.1, directions)
