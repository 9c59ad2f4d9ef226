"""The network and its derivatives as one graph: values are autograd's gradients and Hessians."""

import pytest
import torch
import torch.nn.functional as F
from layers import LAYERS
from oracles import dense_matrix, jacobian
from shared import graph_of
from torch import Tensor, nn

from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.affine import Combination, Linear
from lipschitz.network.derivative import Adjoint, Step, Term, Terms
from lipschitz.network.graph import Graph, Node
from lipschitz.network.tracing import build_graph

SMOOTH = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "tanhshrink": nn.Tanhshrink(),
    "softsign": nn.Softsign(),
    "softplus": nn.Softplus(2.0),
    "log_sigmoid": nn.LogSigmoid(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "elu": nn.ELU(),
    "celu": nn.CELU(0.5),
}
JUMPING = {"elu2": nn.ELU(2.0), "selu": nn.SELU(), "hardswish": nn.Hardswish()}
STRAIGHT = {"relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.1), "hardtanh": nn.Hardtanh()}


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Residual(nn.Module):
    """Blocks that add what they read, the first of which reads the raw input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.first(x))
        x = x + 2 * F.silu(self.second(x))
        return self.last(x)


class Shared(nn.Module):
    """One activation whose value is read three times, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(5, 5), nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.layer(x))
        z = torch.tanh(self.layer(y))
        return self.last(torch.cat([y, z - y, x], dim=1)) + y[:, :2]


def normed() -> nn.Module:
    """BatchNorm with statistics of its own, in eval mode."""
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), activation, nn.Linear(7, 6), activation, nn.Linear(6, 3))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


NETWORKS = {
    **{name: (lambda a=a: mlp(a), (5,)) for name, a in {**SMOOTH, "sine": Sine()}.items()},
    "residual": (Residual, (5,)),
    "shared": (Shared, (5,)),
    "batch_norm": (normed, (5,)),
    "images": (images, (2, 4, 4)),
}
ONLY_ONCE = {
    **{name: (lambda a=a: mlp(a), (5,)) for name, a in {**JUMPING, **STRAIGHT}.items()},
    "max_pool": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 2)),
        (2, 4, 4),
    ),
}


def built(case: tuple) -> tuple[nn.Module, Graph, Tensor]:
    make, shape = case
    torch.manual_seed(0)
    model = make().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    x = torch.randn(4, *shape, dtype=torch.float64)
    return model, build_graph(model, shape), x


def first_gradients(terms: Terms, rows: Tensor) -> tuple[int, int]:
    """The terms of ``J(x)^T r`` and of r."""
    cotangent = terms.constant(rows.shape[1:])
    return terms.gradient(terms.output, cotangent)[0], cotangent


@pytest.mark.parametrize("name", [*NETWORKS, *ONLY_ONCE])
def test_gradient_is_that_of_autograd(name):
    model, graph, x = built({**NETWORKS, **ONLY_ONCE}[name])
    rows = torch.randn(len(x), graph.num_outputs, dtype=torch.float64)
    terms = Terms(graph)
    gradient, cotangent = first_gradients(terms, rows)
    values = terms.values(x, {cotangent: rows})
    x.requires_grad_()
    output = model(x)
    (expected,) = torch.autograd.grad((output * rows).sum(), x)
    torch.testing.assert_close(values[terms.output], output)
    torch.testing.assert_close(values[gradient], expected)
    for term, value in zip(terms.terms, values, strict=True):
        assert value.shape[1:] == term.shape
    # Negative control: other rows have another gradient.
    other = terms.values(x.detach(), {cotangent: 1.001 * rows})[gradient]
    assert not torch.allclose(other, expected)


@pytest.mark.parametrize("name", [*NETWORKS, *ONLY_ONCE])
def test_cotangents_of_every_term_are_those_of_autograd(name):
    _, graph, x = built({**NETWORKS, **ONLY_ONCE}[name])
    rows = torch.randn(len(x), graph.num_outputs, dtype=torch.float64)
    terms = Terms(graph)
    cotangent = terms.constant(rows.shape[1:])
    before = len(terms.terms)
    _, found = terms.gradient(terms.output, cotangent)
    values = terms.values(x, {cotangent: rows})
    nodes = graph.values(x.requires_grad_())
    expected = torch.autograd.grad((nodes[-1] * rows).sum(), nodes[:-1], allow_unused=True)
    assert found[terms.output] == cotangent
    assert all(index < before for index in found)
    for index, gradient in enumerate(expected):
        if gradient is None:
            assert index not in found
        else:
            torch.testing.assert_close(values[found[index]], gradient)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_of_the_gradient_is_the_hessian(name):
    model, graph, x = built(NETWORKS[name])
    x = x[0]
    row = torch.randn(1, graph.num_outputs, dtype=torch.float64)
    terms = Terms(graph)
    gradient, cotangent = first_gradients(terms, row)
    direction = terms.constant(x.shape)
    second, _ = terms.gradient(gradient, direction)
    unit = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
    given = {cotangent: row.expand(len(unit), -1), direction: unit}
    found = terms.values(x.expand(len(unit), *x.shape), given)[second].flatten(1)
    hessian = torch.func.hessian(lambda p: (model(p[None]) * row).sum())(x)
    hessian = hessian.reshape(x.numel(), x.numel())
    assert hessian.abs().max() > 1e-3
    torch.testing.assert_close(found, hessian)
    torch.testing.assert_close(found, found.T)
    # Negative control: the slopes' slopes of another point.
    other = terms.values((x + 0.1).expand(len(unit), *x.shape), given)[second].flatten(1)
    assert not torch.allclose(other, hessian, rtol=1e-3)


def test_a_slope_that_is_read_twice_is_one_term():
    """Two gradients, of two rows, share the slopes of the activations."""
    _, graph, _ = built(NETWORKS["tanh"])
    terms = Terms(graph)
    rows = torch.zeros(1, 3)
    first_gradients(terms, rows)
    first_gradients(terms, rows)
    functions = [t for t in terms.terms if t.function is not None]
    assert len(functions) == 2 * len(graph.activation_nodes)


@pytest.mark.parametrize("name", ONLY_ONCE)
def test_no_hessian_where_slopes_jump(name):
    _, graph, x = built(ONLY_ONCE[name])
    terms = Terms(graph)
    gradient, _ = first_gradients(terms, torch.zeros(1, graph.num_outputs))
    names = "|".join({str(graph.nodes[i].activation).split("(")[0] for i in graph.activation_nodes})
    with pytest.raises(NotImplementedError, match=f"the slope of ({names}).* jumps"):
        terms.gradient(gradient, terms.constant(x.shape[1:]))


def sum_network() -> Graph:
    """Both outputs are the sum of the inputs."""
    weight = torch.ones(2, 2, dtype=torch.float64)
    nodes = [
        Node("x", (), torch.Size([2])),
        Node("layer", (0,), torch.Size([2]), affine=Linear(weight, None, torch.Size([2]))),
    ]
    return Graph(nodes, torch.device("cpu"), torch.float64)


def test_output_that_does_not_depend_on_the_input():
    terms = Terms(sum_network())
    alone = terms.constant((2,))
    scaled = terms.add(Term((alone,), torch.Size([2]), function=PiecewiseLinear()))
    size = len(terms.terms)
    for output in (alone, scaled):
        with pytest.raises(NotImplementedError, match="does not depend on the input"):
            terms.gradient(output, terms.constant((2,)))
    assert len(terms.terms) == size + 2  # but for the constants, nothing was added


def test_products_of_what_depends_and_what_does_not():
    """``x * c``, ``x * x`` and ``(x * c) * x``: the product rule, each side once."""
    terms = Terms(sum_network())
    factor = terms.constant((2,))
    shape = torch.Size([2])
    scaled = terms.add(Term((1, factor), shape, is_product=True))
    square = terms.add(Term((1, 1), shape, is_product=True))
    cubic = terms.add(Term((scaled, square), shape, is_product=True))
    total = terms.add(Term((scaled, square, cubic), shape, Combination((1, 1, 1), shape)))
    x = torch.randn(3, 2, dtype=torch.float64)
    c, rows, unit = (torch.randn(3, 2, dtype=torch.float64) for _ in range(3))
    row = terms.constant((2,))
    gradient, _ = terms.gradient(total, row)
    direction = terms.constant((2,))
    second, _ = terms.gradient(gradient, direction)
    values = terms.values(x, {factor: c, row: rows, direction: unit})

    def value(p: Tensor) -> Tensor:
        y = p.sum(1, keepdim=True).expand(-1, 2)
        return ((y * c + y * y + y * c * y * y) * rows).sum()

    torch.testing.assert_close(values[gradient], torch.func.grad(value)(x))
    expected = torch.func.grad(lambda p: (torch.func.grad(value)(p) * unit).sum())(x)
    torch.testing.assert_close(values[second], expected)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_adjoint_of_every_layer_is_its_transposed_matrix(case):
    graph = graph_of(case)
    for node in graph.nodes[1:]:
        if node.affine is None:
            continue
        for slot, shape in enumerate(node.affine.input_shapes):
            adjoint = Adjoint(node.affine, slot)
            matrix = dense_matrix(lambda x, a=node.affine, s=slot: a.linear_from(s, x), shape)
            found = dense_matrix(adjoint.linear, node.affine.output_shape)
            back = dense_matrix(lambda g, a=adjoint: a.adjoint(g)[0], shape)
            absolute = dense_matrix(adjoint.magnitude().linear, node.affine.output_shape)
            torch.testing.assert_close(found, matrix.T)
            torch.testing.assert_close(back, matrix)
            torch.testing.assert_close(absolute, matrix.T.abs())
            assert (
                adjoint.to("cpu", torch.float32)
                .linear(torch.zeros(1, *node.affine.output_shape))
                .dtype
                == torch.float32
            )


def test_steps_have_the_slopes_and_constant_lines():
    step = Step(PiecewiseLinear(0.25))
    lower, upper = torch.tensor([-1.0, -1.0, 0.5]), torch.tensor([1.0, -0.5, 2.0])
    assert step.forward(torch.tensor([-2.0, 3.0])).tolist() == [0.25, 1.0]
    least, most = step.interval(lower, upper)
    assert least.tolist() == [0.25, 0.25, 1.0]
    assert most.tolist() == [1.0, 0.25, 1.0]
    lines = step.lines(lower, upper)
    assert lines.lower_slope.eq(0).all()
    assert lines.upper_slope.eq(0).all()
    assert torch.equal(lines.lower_intercept, least)
    assert torch.equal(lines.upper_intercept, most)


def test_layers_are_differentiable():
    """Every layer of the catalogue gives the Jacobian, row by row."""
    for case in LAYERS:
        graph, x, model = graph_of(case), case.point(), case.model()
        rows = torch.eye(graph.num_outputs, dtype=torch.float64)
        terms = Terms(graph)
        gradient, cotangent = first_gradients(terms, rows)
        found = terms.values(x.expand(len(rows), *x.shape), {cotangent: rows})[gradient]
        expected = jacobian(lambda p, m=model: m(p).reshape(len(p), -1), x)
        torch.testing.assert_close(found, expected)
