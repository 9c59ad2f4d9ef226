"""Every layer: the graph is the network, |M| is exact, and both engines bound its gradients."""

import pytest
import torch
from layers import LAYERS
from oracles import dense_matrix, jacobian, jacobians, points_in_box

from lipschitz import MethodOptions, Prepared, make_problem
from lipschitz.native.interval import forward_intervals
from lipschitz.tracing import build_graph

PLAIN = MethodOptions(optimize=False)


def by_name(case):
    return case.name


@pytest.mark.parametrize("case", LAYERS, ids=by_name)
def test_layer_is_what_torch_computes(case):
    model, x = case.model(), case.point()
    graph = build_graph(model, case.input_shape)
    rows = torch.eye(graph.num_outputs, dtype=torch.float64)
    ours = graph.gradients(x.expand(len(rows), *x.shape), rows)
    expected = jacobian(lambda p: model(p).reshape(len(p), -1), x)
    torch.testing.assert_close(ours, expected)
    for node in graph.nodes[1:]:
        if node.affine is not None:
            check_map(node.affine)
    single = build_graph(case.model(torch.float32), case.input_shape)
    assert single.values(x[None].float())[-1].dtype == torch.float32
    torch.testing.assert_close(
        single.double.values(x[None])[-1], graph.values(x[None])[-1], rtol=1e-4, atol=1e-5
    )


def check_map(affine_map):
    """The adjoint is the transpose, the magnitude the absolute value, of the map's matrices."""
    magnitude = affine_map.magnitude()
    for i, shape in enumerate(affine_map.input_shapes):
        matrix = dense_matrix(lambda x, i=i: affine_map.linear_from(i, x), shape)
        transposed = dense_matrix(lambda g, i=i: affine_map.adjoint(g)[i], affine_map.output_shape)
        absolute = dense_matrix(lambda x, i=i: magnitude.linear_from(i, x), shape)
        torch.testing.assert_close(transposed, matrix.T)
        torch.testing.assert_close(absolute, matrix.abs())


def test_a_sign_that_is_missed_is_caught():
    """Negative control: a map with a negative coefficient that calls itself positive."""
    case = next(case for case in LAYERS if case.name == "avg_pool_1d")
    graph = build_graph(case.model(), case.input_shape)
    (pool,) = [n.affine for n in graph.nodes if type(n.affine).__name__ == "Positive"]
    operation = pool.operation
    pool.operation = lambda x: operation(x) - 0.01 * operation(x.flip(2))
    with pytest.raises(AssertionError):
        check_map(pool)


@pytest.mark.parametrize("case", LAYERS, ids=by_name)
def test_both_engines_bound_every_gradient(case):
    model, x = case.model(), case.point()
    flat = torch.nn.Sequential(model, torch.nn.Flatten(0 if case.name == "one_output" else 1))
    native = Prepared(model, case.input_shape, method="crown", engine="native", options=PLAIN)
    graph = native.graph
    problem = make_problem(graph, x, 0.2)
    points = points_in_box(problem.lower, problem.upper, 40)
    norms = jacobians(lambda p: flat(p).reshape(len(p), -1), points).abs().flatten(2).sum(2)
    largest = norms.amax(0)
    bound = native.bound(problem)
    theirs = Prepared(
        model, case.input_shape, method="crown", engine="auto_lirpa", options=PLAIN
    ).bound(problem)
    interval = Prepared(model, case.input_shape, method="ibp").bound(problem)
    for result in (bound, theirs, interval):
        assert (torch.tensor(result.class_upper_bounds) >= largest.float() * (1 - 1e-6)).all()
    assert theirs.upper_bound == pytest.approx(bound.upper_bound, rel=1e-5)
    assert bound.upper_bound <= interval.upper_bound * (1 + 1e-9)
    values = graph.values(points)
    for box, value in zip(
        forward_intervals(graph, problem.lower[None], problem.upper[None]).bounds,
        values,
        strict=True,
    ):
        assert (value >= box.lower).all()
        assert (value <= box.upper).all()
