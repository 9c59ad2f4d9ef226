"""Affine forms carried forward, against the values of every term at points of the box."""

import math
from itertools import pairwise

import pytest
import torch
from curved import ACTIVATIONS, NAMES, SMOOTH, curved_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipschitz.bounds.native.terms.forward import forward_forms, norm_upper_bound
from lipschitz.bounds.native.terms.gradient import GradientTerms
from lipschitz.bounds.native.terms.intervals import term_intervals
from lipschitz.network.derivative import Term, Terms
from lipschitz.network.tracing import build_graph
from lipschitz.norms import Measure
from lipschitz.rounding import guard

KINKED = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.1), "hardtanh": nn.Hardtanh()}
KINDS = [ACTIVATIONS[name] for name in SMOOTH] + list(KINKED.values())


def mlp(activation: nn.Module, inputs: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Linear(inputs, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 2)
    return nn.Sequential(*layers).eval()


NETWORKS = (*NAMES, *KINKED)


def graph_of(name: str, dtype: torch.dtype):
    if name in KINKED:
        return build_graph(mlp(KINKED[name]), (3,)).to("cpu", dtype)
    return curved_graph(name, dtype)


def boxes(graph, eps: float, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, *graph.input_shape)
    centre = torch.randn(shape, generator=generator, dtype=torch.float64).to(graph.dtype)
    radius = eps * torch.rand(shape, generator=generator, dtype=torch.float64).to(graph.dtype)
    return centre - radius, centre + radius


def points_of(lower, upper, count: int = 200):
    """Corners and points inside, as u in [-1, 1]^D and as x: [B, count, *shape]."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(count, *lower.shape[1:], generator=generator, dtype=torch.float64)
    share[: count // 2] = share[: count // 2].round()
    u = (2 * share - 1).expand(len(lower), *share.shape)
    lower, upper = lower.double().unsqueeze(1), upper.double().unsqueeze(1)
    return u, lower + (u + 1) / 2 * (upper - lower)


def at(columns: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Affine functions [B, 1 or 1 + D, *shape] at points u: [B, count, *shape]."""
    columns = columns.double()
    found = columns[:, :1].expand(len(columns), u.shape[1], *columns.shape[2:])
    if columns.shape[1] > 1:
        flat = u.flatten(2).to(columns)
        found = found + torch.einsum("bpd,bd...->bp...", flat, columns[:, 1:])
    return found


def forms_and_values(name: str, eps: float, dtype: torch.dtype):
    graph = graph_of(name, dtype)
    source = GradientTerms(graph)
    lower, upper = boxes(graph, eps)
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(len(lower), graph.num_outputs, generator=generator).to(dtype)
    kept = tuple(range(len(source.terms.terms)))
    intervals, forms = forward_forms(source.terms, lower, upper, {source.row: rows}, {}, kept)
    u, x = points_of(lower, upper)
    exact = GradientTerms(graph.double)
    batch, count = x.shape[:2]
    constants = {exact.row: rows.double().repeat_interleave(count, 0)}
    values = exact.terms.values(x.flatten(0, 1), constants)
    values = [value.unflatten(0, (batch, count)) for value in values]
    return source, intervals, forms, values, u, (lower, upper, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_lies_within_its_form_and_its_interval(name, dtype):
    for eps in (1e-6, 1e-2, 0.5, 20.0):
        _, intervals, forms, values, u, _ = forms_and_values(name, eps, dtype)
        for index, value in enumerate(values):
            slack = 4 * guard(dtype) * forms[index].size().double().unsqueeze(1)
            off = (value - at(forms[index].middle, u)).abs()
            assert (off <= at(forms[index].gap, u) + slack).all(), index
            lower, upper = (end.double().unsqueeze(1) for end in intervals.bounds[index])
            assert (lower <= value + slack).all(), index
            assert (value - slack <= upper).all(), index


@pytest.mark.parametrize("name", ["sigmoid", "gelu", "relu", "residual"])
def test_negative_control_a_gap_smaller_by_a_tenth_is_caught(name):
    source, _, forms, values, u, _ = forms_and_values(name, 0.5, torch.float64)
    caught = []
    for index, term in enumerate(source.terms.terms):
        if term.function is not None:
            off = (values[index] - at(forms[index].middle, u)).abs()
            caught.append(bool((off > 0.9 * at(forms[index].gap, u) + 1e-9).any()))
    assert any(caught)


@pytest.mark.parametrize("name", NETWORKS)
def test_intervals_are_never_wider_than_those_of_interval_arithmetic(name):
    source, intervals, _, _, _, (lower, upper, rows) = forms_and_values(name, 0.5, torch.float64)
    plain = term_intervals(source.terms, lower, upper, {source.row: rows}, {})
    for found, simple in zip(intervals.bounds, plain.bounds, strict=True):
        rounding = 1e-12 * (1 + simple.upper.abs() + simple.lower.abs())
        assert (found.lower >= simple.lower - rounding).all()
        assert (found.upper <= simple.upper + rounding).all()


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_bound_of_the_norm_holds_and_gains_on_the_entries(name, norm):
    measure = Measure(norm)
    for eps in (1e-3, 0.3):
        source, intervals, forms, values, _, _ = forms_and_values(name, eps, torch.float64)
        entries = intervals.bounds[source.gradient]
        bound = norm_upper_bound(forms[source.gradient], entries, measure)
        true = measure.of_rows(values[source.gradient].flatten(2)).amax(1)
        assert (true <= bound).all()
        assert (bound <= measure.upper_bound(*entries)).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_the_excess_shrinks_like_the_square_of_the_radius(name):
    excess = []
    radii = [1e-1, 1e-2, 1e-3, 1e-4]
    for eps in radii:
        source, intervals, forms, values, _, _ = forms_and_values(name, eps, torch.float64)
        gradient = source.gradient
        bound = norm_upper_bound(forms[gradient], intervals.bounds[gradient], Measure())
        true = values[gradient].flatten(2).abs().sum(2).amax(1)
        # The true norm is largest at a corner, which are among the points, or within O(eps^2).
        excess.append(float((bound - true).max()))
    slopes = [math.log10(a / b) for a, b in pairwise(excess)]
    assert all(1.7 < slope < 2.3 for slope in slopes), slopes


def test_a_product_of_a_value_with_itself_is_exact():
    graph = build_graph(nn.Sequential(nn.Linear(2, 1)).eval(), (2,)).to("cpu", torch.float64)
    terms = Terms(graph)
    product = terms.add(Term((terms.output, terms.output), torch.Size((1,)), is_product=True))
    weight = graph.nodes[1].affine.adjoint(torch.ones(1, 1, dtype=torch.float64))[0]
    # A box around a point where the value is 0: the square runs from 0 to its largest.
    bias = float(graph.nodes[1].affine.bias)
    centre = -bias * weight / weight.square().sum()
    _, forms = forward_forms(terms, centre - 0.1, centre + 0.1, {}, {}, (product,))
    lower, upper = forms[product].interval()
    most = (0.1 * weight.abs().sum()) ** 2
    assert float(lower) == pytest.approx(0.0, abs=1e-12)
    assert float(upper) == pytest.approx(float(most), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    inputs=st.integers(1, 4),
    eps=st.floats(1e-5, 5.0),
    kind=st.sampled_from(KINDS),
)
def test_random_networks(seed, inputs, eps, kind):
    graph = build_graph(mlp(kind, inputs, seed), (inputs,)).to("cpu", torch.float64)
    source = GradientTerms(graph)
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, inputs, generator=generator, dtype=torch.float64)
    rows = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    lower, upper = centre - eps, centre + eps
    gradient = source.gradient
    intervals, forms = forward_forms(
        source.terms, lower, upper, {source.row: rows}, {}, (gradient,)
    )
    _, x = points_of(lower, upper, 100)
    true = graph.gradients(x[0], rows.expand(100, -1)).abs().sum(1).max()
    assert true <= norm_upper_bound(forms[gradient], intervals.bounds[gradient], Measure())[0]
