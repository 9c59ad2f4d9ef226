"""Matrix products of values go backward as matrix products: the same bounds as number by number."""

import pytest
import torch
from products import network

from lipschitz.bounds.native.terms import relaxations
from lipschitz.bounds.native.terms.contractions import contracted, contractions_of
from lipschitz.bounds.native.terms.gradient import GradientTerms
from lipschitz.bounds.native.terms.linear import ONE_PASS, LinearBounds
from lipschitz.bounds.native.terms.relaxations import Relaxations
from lipschitz.network.tracing import build_graph

CASES = ["matmul", "bmm", "einsum", "attention", "attention_causal", "multihead", "bilinear"]


def setup(name):
    module, x = network(name)
    source = GradientTerms(build_graph(module, x.shape[1:]))
    rows = torch.eye(source.graph.num_outputs, dtype=torch.float64)[:3]
    lower, upper = x[:1] - 0.1, x[:1] + 0.1
    constants = {source.row: rows}
    intervals = source.narrowing.intervals(lower, upper, constants, {}, 2**20)
    return source, constants, lower, upper, intervals


@pytest.mark.parametrize("name", CASES)
def test_bounds_are_those_of_the_products_one_by_one(name):
    source, constants, lower, upper, intervals = setup(name)
    found = contractions_of(source.terms)
    assert found
    generator = torch.Generator().manual_seed(0)
    shape = (3, 5, *source.graph.input_shape)
    coefficients = torch.randn(shape, generator=generator, dtype=torch.float64)
    bounds = []
    for contractions in (found, {}):
        relaxed = Relaxations(source.terms, intervals, contractions)
        linear = LinearBounds(relaxed, constants, lower, upper, 2**20)
        bounds.append(linear.upper_bounds(source.gradient, coefficients, ONE_PASS))
    torch.testing.assert_close(*bounds, rtol=1e-10, atol=1e-10)


def test_a_wrong_gap_is_noticed(monkeypatch):
    """Negative control of the test above."""
    source, constants, lower, upper, intervals = setup("attention")
    coefficients = torch.ones(3, 1, *source.graph.input_shape, dtype=torch.float64)

    def bound():
        relaxed = Relaxations(source.terms, intervals)
        linear = LinearBounds(relaxed, constants, lower, upper, 2**20)
        return linear.upper_bounds(source.gradient, coefficients, ONE_PASS)

    right = bound()
    monkeypatch.setattr(relaxations, "contracted", lambda *args: 0.9 * contracted(*args))
    assert not torch.allclose(right, bound(), rtol=1e-6)


def test_steps_that_jump_keep_their_chords():
    module, x = network("encoder_layer")  # with ReLU
    terms = GradientTerms(build_graph(module, x.shape[1:])).terms
    for contraction in contractions_of(terms).values():
        first = terms.terms[contraction.product].parents[0]
        assert "'" not in str(terms.terms[first].function)


@pytest.mark.parametrize(
    ("first", "second", "shape", "full"),
    [
        ((3, 4, 1), (3, 1, 5), (3, 4, 5), (3, 4, 5)),
        ((3, 4, 5), (3, 1, 5), (3, 4, 1), (3, 4, 5)),
        ((1, 4, 5), (1, 4, 5), (1, 1, 1), (1, 4, 5)),
        ((3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 4, 5)),
        ((3, 1, 1), (1, 4, 1), (3, 4, 5), (3, 4, 5)),
    ],
)
@pytest.mark.parametrize("batches", [((2, 6), (2, 1)), ((2, 6), (1, 1)), ((1, 6), (2, 1))])
def test_contracted_is_the_sum_of_products(first, second, shape, full, batches):
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(*batch, *size, generator=generator, dtype=torch.float64)
        for batch, size in zip(batches, (first, second), strict=True)
    )
    product = a * b * torch.ones(full, dtype=torch.float64)
    dims = [d + 2 for d, size in enumerate(shape) if size == 1 and full[d] > 1]
    expected = product.sum(dims, keepdim=True) if dims else product
    torch.testing.assert_close(contracted(a, b, torch.Size(shape), torch.Size(full)), expected)
