from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from oracles import jacobian
from torch import fx, nn

from lipschitz import local_lipschitz
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.network.tracing import build_graph, check_jacobian


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graph_has_autograds_output_and_jacobian(case, dtype):
    model = case.model(dtype)
    graph = build_graph(model, case.input_shape)
    assert graph.dtype == dtype
    x = case.point(dtype)
    rows = torch.eye(graph.num_outputs, dtype=dtype)
    ours = graph.gradients(x.expand(len(rows), *x.shape), rows)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(ours, jacobian(model, x), **tolerance)
    torch.testing.assert_close(graph.values(x[None])[-1], model(x[None]), **tolerance)


def test_input_that_skips_the_network_keeps_its_identity():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return x + torch.relu(self.inner(x))

    model = Skip().double().eval()
    with torch.no_grad():
        model.inner.weight.zero_()
    graph = build_graph(model, (3,))
    gradients = graph.gradients(torch.rand(3, 3, dtype=torch.float64), torch.eye(3).double())
    assert torch.equal(gradients, torch.eye(3).double())


def unsupported(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2)).eval()


class Product(nn.Module):
    def forward(self, x):
        return x * x.flip(1)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class MovesBatch(nn.Module):
    def forward(self, x):
        return x.reshape(-1)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Attention(), "MultiheadAttention.*batch_first=True"),
        (nn.LSTM(4, 4), "LSTM.*batch_first=True"),
        (nn.LocalResponseNorm(2), "LocalResponseNorm|batch"),
        (nn.Threshold(0.1, 20.0), "Threshold"),
        (nn.Softplus(threshold=2.0), "Softplus.*jumps"),
        (MovesBatch(), "batch dimension"),
        (Detached(), "detach"),
        (Branching(), "traced"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_unsupported_layer_is_refused_by_name(layer, named):
    with pytest.raises((NotImplementedError, InputError), match=named):
        build_graph(unsupported(layer), (4,))


def test_subclass_with_its_own_forward_is_not_taken_for_its_base():
    class Squashed(nn.Linear):
        def forward(self, x):
            return torch.cumprod(super().forward(x), 1)

    with pytest.raises(NotImplementedError, match="cumprod"):
        build_graph(nn.Sequential(Squashed(4, 2)).eval(), (4,))


def test_forward_hook_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(NotImplementedError, match="hook"):
        build_graph(model, (4,))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_layer_in_training_mode_is_refused(layer):
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"'1' is in training mode.*eval\(\)"):
        build_graph(model, (4,))
    build_graph(model.eval(), (4,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad):
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].bias[1] = bad
    with pytest.raises(InputError, match=r"0\.bias"):
        build_graph(model, (4,))


def test_half_precision_and_mixed_weights_are_refused():
    with pytest.raises(InputError, match="float16"):
        build_graph(nn.Linear(4, 2).half().eval(), (4,))
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).double()).eval()
    with pytest.raises(InputError, match=r"float32, float64|float64"):
        build_graph(mixed, (4,))


def test_a_compiled_network_is_bounded_as_what_it_was_made_from():
    """And is not compiled for that, which takes long and prints what failed."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    compiled = torch.compile(model, backend=lambda *_: pytest.fail("it was compiled"))
    expected = local_lipschitz(model, torch.zeros(4), 0.1, method="ibp").upper_bound
    assert local_lipschitz(compiled, torch.zeros(4), 0.1, method="ibp").upper_bound == expected


def test_wrong_input_shape_is_refused():
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        build_graph(nn.Sequential(nn.Linear(4, 2)).eval(), (5,))


class Returns(nn.Module):
    """A layer whose result goes through a function; arguments that nobody gives."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x, *more, scale=2.0, mask=None, **options):
        return self.function(self.layer(x) * scale)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda y: (y, y), "returns a tuple"),
        (lambda y: y.split(2, 1), "returns a tuple"),
        (lambda y: {"logits": y}, "returns a dict"),
        (lambda y: torch.ones(2), "returns a constant"),
        (lambda y: torch.max(y, 1), "returns a"),
        (lambda y: torch.max(y), "mixes the examples|batch"),
        (lambda y: torch.topk(y, 2)[0], "'topk'"),
        (lambda y: torch.aminmax(y, dim=1)[0], "'aminmax'"),
        (lambda y: y.split(1, 0)[0], "split.*batch"),
        (lambda y: F.max_pool1d(y[:, None], 2, return_indices=True)[0], "max_pool1d"),
    ],
    ids=range(10),
)
def test_what_is_no_single_affine_value_is_refused(function, named):
    with pytest.raises((NotImplementedError, InputError), match=named):
        build_graph(Returns(function).eval(), (4,))


Pair = namedtuple("Pair", "logits features")


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda y: (y,), "returns a tuple"),
        (lambda y: [y], "returns a list"),
        (lambda y: Pair(y, y), "returns a Pair"),
        (lambda y: {"logits": y, "loss": y}, "returns a dict with the keys 'logits', 'loss'"),
        (lambda y: {"out": {"logits": y}}, "returns a dict with the keys 'out'"),
        (lambda y: None, "returns None"),
        (lambda y: 3, "returns an int"),
        (lambda y: y.sum().item(), "returns a float"),
        (lambda y: y.shape, "returns a Size"),
        (lambda y: "cat", "returns a str"),
        (lambda y: (part for part in [y]), "returns a generator"),
        (lambda y: y[:, :0], r"empty tensor, of shape \(2, 0\)"),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_a_network_that_returns_no_tensor_is_refused_in_one_line(function, named, shape):
    """By the tracer and by a call that has to find out the shape of one input first."""
    model = Returns(function).eval()
    for call in (
        lambda: build_graph(model, (4,)),
        lambda: local_lipschitz(model, torch.zeros(shape), 0.1),
    ):
        with pytest.raises(InputError, match=f"{named}.*it must") as error:
            call()
        assert "\n" not in str(error.value)


def test_arguments_that_nobody_gives_are_their_defaults():
    model, x = Returns(lambda y: y).double().eval(), torch.rand(3, 4, dtype=torch.float64)
    torch.testing.assert_close(build_graph(model, (4,)).values(x)[-1], model(x))


class Mixing(nn.Module):
    """Operators that move numbers between the examples of a batch."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x.flip(0), "'flip'.*mixes the examples"),
        (lambda x: torch.roll(x, 1, 0), "'roll'.*mixes the examples"),
        (lambda x: x - x.mean(0, keepdim=True), "batch"),
        (lambda x: torch.eye(2).to(x) @ x, "'matmul'.*batch"),
        (lambda x: x[0].expand(2, 4), "batch"),
        (lambda x: x.t() @ torch.ones(2, 4).to(x), "'t'"),
        (lambda x: x.view(2, 2, 2).flatten(1), "batch of"),
        (lambda x: x + torch.arange(8.0).view(2, 4).to(x), "'add'.*batch dimension"),
        (lambda x: x / x.shape[0], "differs"),
    ],
    ids=range(9),
)
def test_what_does_not_keep_examples_apart_is_refused(function, named):
    with pytest.raises((NotImplementedError, InputError), match=named):
        build_graph(unsupported(Mixing(function)), (4,))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: F.linear(torch.ones(2, 2, 4), x.mean(1)), "weights depend on the input"),
        (lambda x: F.softmax(x, 0), "softmax.*mixes the examples"),
        (lambda x: torch.einsum("bij,bij->ib", x, x), "einsum.*batch"),
        (lambda x: F.layer_norm(x, (4,), eps=0.0), "layer_norm.*eps"),
        (lambda x: x ** torch.arange(1.0, 5.0), "pow.*exponent"),
        (lambda x: torch.norm(x, 0.5, dim=1), "norm.*order 0.5"),
        (lambda x: x.var(), "var.*mixes the examples"),
        (lambda x: F.softmax(x - torch.inf, 2), "not finite"),
        (lambda x: F.batch_norm(x, None, None, training=True), "batch_norm.*statistics"),
        (lambda x: F.dropout(x, 0.5), "dropout.*training=self.training"),
        (lambda x: x * float("inf"), "not finite"),
        (lambda x: F.pad(x, (1, 1), value=float("-inf")), "not finite"),
        (lambda x: x.half(), "'half'"),
        (lambda x: x.to(torch.bfloat16), "precision"),
        (lambda x: x.sort(1)[0], "'sort'"),
        (lambda x: x * x.sum(1).tolist()[0][0], "'tolist'"),
        (lambda x: x.cumprod(1), "'cumprod'"),
        (lambda x: F.avg_pool1d(x, 2) + F.avg_pool2d(x, 2, divisor_override=-2), "negative"),
    ],
    ids=range(18),
)
def test_functions_that_are_not_affine_are_refused_by_name(function, named):
    model = nn.Sequential(nn.Conv1d(2, 2, 1), Mixing(function))
    with pytest.raises(NotImplementedError, match=named) as error:
        build_graph(model.eval(), (2, 4))
    assert "\n" not in str(error.value)


def overwrites_rarely(x):
    x[x > 100] = 0
    return x


def overwrites_a_part(x):
    x[:, 0] = x[:, 1]
    return x


def overwrites_through_a_view(x):
    y = x * 1.0
    torch.relu_(y[:, :2])
    return y


def overwrites_what_it_views(x):
    y = x * 1.0
    view = y.flatten(1)
    y.relu_()
    return view


def writes_out(x):
    y = x * 1.0
    torch.cat([x, x], 1, out=y)
    return y


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (overwrites_rarely, "'gt'"),
        (overwrites_a_part, "setitem|copy_"),
        (overwrites_through_a_view, "shares"),
        (overwrites_what_it_views, "shares"),
        (writes_out, "cat.*in place"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_changes_in_place_that_random_points_may_not_show_are_refused(function, named):
    """Weights and inputs are positive, so that every comparison with autograd would pass."""
    model = unsupported(Mixing(function))
    with torch.no_grad():
        model[0].weight.abs_(), model[0].bias.abs_()
    with pytest.raises(NotImplementedError, match=named):
        build_graph(model, (4,))


def relu(x):
    return x**3


fx.wrap("relu")


def test_a_function_of_the_same_name_is_not_taken_for_torchs():
    with pytest.raises(NotImplementedError, match="relu"):
        build_graph(nn.Sequential(nn.Linear(4, 4), Mixing(lambda x: relu(x))).eval(), (4,))


def test_check_catches_a_wrong_slope():
    """Negative control: a rule off by 0.1 % must not pass the check."""
    model = CASES[1].model()
    graph = build_graph(model, CASES[1].input_shape)
    check_jacobian(graph, model)
    nodes = list(graph.nodes)
    broken = nodes[2].affine.to("cpu", torch.float64)
    broken.weight = broken.weight * 1.001
    nodes[2] = type(nodes[2])(nodes[2].name, nodes[2].parents, nodes[2].shape, broken)
    with pytest.raises(InputError, match="differs"):
        check_jacobian(Graph(nodes, graph.device, graph.dtype), model)
