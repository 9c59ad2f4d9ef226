"""Operators written out of products and unary functions: values, Jacobians, sound intervals."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev, vmap

from lipschitz import METHODS, BranchOptions, MethodOptions, Prepared, jacobian_bounds
from lipschitz.bounds.methods import is_installed
from lipschitz.bounds.native.interval import forward_intervals
from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.errors import InputError
from lipschitz.network.formats import read_network
from lipschitz.network.tracing import build_graph
from lipschitz.problem import make_problem


class Calls(nn.Module):
    """A function of a linear layer's output, in the input's shape."""

    def __init__(self, function, *layers, size=4):
        super().__init__()
        self.first = nn.Linear(size, size)
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, x):
        return self.function(self.first(x), *self.layers)


class SelfAttention(nn.Module):
    def __init__(self, mask=None, weights=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.weights = weights
        if mask is not None:
            self.register_buffer("mask", mask)
        else:
            self.mask = None

    def forward(self, x):
        out, shares = self.attention(x, x, x, attn_mask=self.mask)
        return shares if self.weights else out


class Last(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out, state = self.layer(x)
        last = state[0] if isinstance(self.layer, nn.LSTM) else state
        return out[:, -1] + last[-1].sum(1, keepdim=True)


class Cells(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x):
        x = F.silu(self.conv(x))
        scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return (x * scale[:, :, None, None]).mean((2, 3))


class Plant(nn.Module):
    """One step of a pendulum under a controller."""

    def __init__(self):
        super().__init__()
        self.pi = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        u = self.pi(x)
        angle, speed = x[:, :1], x[:, 1:]
        return torch.cat([speed * torch.cos(angle), torch.sin(angle) + u * speed - u**3 / 6], 1)


def causal(size):
    return torch.triu(torch.ones(size, size), 1).bool()


F_MASK = torch.zeros(3, 3).masked_fill(causal(3), -math.inf)


def dot_attention(y, **options):
    return F.scaled_dot_product_attention(y, y.flip(-1), y * 0.5, **options)


def masked(y):
    scores = y @ y.transpose(1, 2) / 2 + F_MASK
    return F.softmax(scores, -1) @ y


def filled(y):
    scores = (y @ y.mT).masked_fill(causal(3), float("-inf"))
    return scores.softmax(-1) @ y


def positive(y):
    return F.softplus(y) + 0.2


def encoder(layers=1, **options):
    options = {"dim_feedforward": 12, "batch_first": True, "dropout": 0.1, **options}
    layer = nn.TransformerEncoderLayer(8, 2, **options)
    if layers == 1:
        return layer
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(8), enable_nested_tensor=False)


# name -> (module, input shape)
NETWORKS = {
    "mul": (Calls(lambda y: y * y.flip(1)), (4,)),
    "mul_broadcast": (Calls(lambda y: y * y[:, :1]), (4,)),
    "mul_numbers": (Calls(lambda y: (y[:, 0] * y[:, 1])[:, None]), (4,)),
    "div": (Calls(lambda y: y / positive(y.flip(1))), (4,)),
    "constant_div": (Calls(lambda y: 2 / positive(y)), (4,)),
    "reciprocal": (Calls(lambda y: positive(y).reciprocal() - positive(y).rsqrt()), (4,)),
    "matmul": (Calls(lambda y: y @ y.mT), (3, 4)),
    "bmm": (Calls(lambda y: torch.bmm(y, y.transpose(1, 2))), (3, 4)),
    "baddbmm": (
        Calls(lambda y: torch.baddbmm(torch.ones(3, 1).to(y), y, y.mT, beta=0.5, alpha=2)),
        (3, 4),
    ),
    "einsum": (Calls(lambda y: torch.einsum("bij,bkj->bik", y, y)), (3, 4)),
    "einsum_sum": (Calls(lambda y: torch.einsum("bij,bij->bi", y, y.flip(1))), (3, 4)),
    "einsum_three": (
        Calls(lambda y: torch.einsum("bi,bj,ij->bj", y, y, torch.arange(16.0).view(4, 4).to(y))),
        (4,),
    ),
    "bilinear": (Calls(lambda y, m: m(y, y.tanh()), nn.Bilinear(4, 4, 3)), (4,)),
    "powers": (Calls(lambda y: y**3 + y**4 - positive(y) ** 1.5 + positive(y) ** -2), (4,)),
    "two_to_the": (Calls(lambda y: 2**y), (4,)),
    "exp_log": (Calls(lambda y: torch.exp(y) + torch.log(positive(y)) + y.erf()), (4,)),
    "sqrt_trig": (Calls(lambda y: positive(y).sqrt() + y.cos() * y.sin() + y.tan()), (4,)),
    "max": (Calls(lambda y: torch.max(y, 1)[0] + y.min(2).values.sum(1, keepdim=True)), (3, 4)),
    "amax": (Calls(lambda y: y.amax((1, 2))[:, None] * y.amin(2)), (3, 4)),
    "maximum": (Calls(lambda y: torch.maximum(y, y.flip(1)) - torch.minimum(y, y * 0 + 1)), (4,)),
    "var": (Calls(lambda y: y.var(1) + (y.std(2, unbiased=False).sum(1, keepdim=True))), (3, 4)),
    "norm": (Calls(lambda y: y.norm(dim=1) + torch.linalg.vector_norm(y, 1, dim=1)), (3, 4)),
    "normalize": (Calls(lambda y: F.normalize(y + 2, dim=1)), (4,)),
    "softmax": (Calls(lambda y: F.softmax(3 * y, 1)), (4,)),
    "softmax_inner": (Calls(lambda y: torch.softmax(y, 1)), (3, 4)),
    "softmax_module": (nn.Sequential(nn.Linear(4, 5), nn.Softmax(-1)), (4,)),
    "log_softmax": (nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(1)), (4,)),
    "logsumexp": (Calls(lambda y: y.logsumexp(1, keepdim=True)), (4,)),
    "one_token": (Calls(lambda y: F.softmax(y[:, :1], 1) * y + y[:, :1].log_softmax(1)), (4,)),
    "attention": (Calls(dot_attention), (3, 4)),
    "attention_causal": (Calls(lambda y: dot_attention(y, is_causal=True)), (2, 3, 4)),
    "attention_mask": (Calls(lambda y: dot_attention(y, attn_mask=~causal(3))), (3, 4)),
    "attention_written": (Calls(masked), (3, 4)),
    "attention_filled": (Calls(filled), (3, 4)),
    "attention_one_token": (Calls(dot_attention), (1, 4)),
    "multihead": (SelfAttention(), (3, 8)),
    "multihead_mask": (SelfAttention(causal(3)), (3, 8)),
    "multihead_float_mask": (SelfAttention(F_MASK, bias=False), (3, 8)),
    "multihead_shares": (SelfAttention(weights=True), (3, 8)),
    "layer_norm": (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (4,)),
    "layer_norm_two": (Calls(lambda y: F.layer_norm(y, (3, 4), eps=0.1)), (3, 4)),
    "rms_norm": (nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6)), (4,)),
    "group_norm": (nn.Sequential(nn.Conv1d(2, 4, 1), nn.GroupNorm(2, 4)), (2, 4)),
    "instance_norm": (nn.Sequential(nn.Conv1d(2, 4, 1), nn.InstanceNorm1d(4, affine=True)), (2, 4)),
    "encoder_layer": (encoder(), (3, 8)),
    "encoder_pre_norm": (encoder(norm_first=True, activation="gelu"), (3, 8)),
    "encoder": (encoder(2, activation=F.gelu, norm_first=True), (3, 8)),
    "glu": (nn.Sequential(nn.Linear(4, 6), nn.GLU(), nn.Linear(3, 2)), (4,)),
    "swiglu": (Calls(lambda y, a, b: F.silu(a(y)) * b(y), nn.Linear(4, 5), nn.Linear(4, 5)), (4,)),
    "squeeze": (SqueezeExcitation(), (2, 4, 4)),
    "hard_gates": (Calls(lambda y: y * F.hardsigmoid(y) + F.hardswish(y)), (4,)),
    "lstm": (Last(nn.LSTM(4, 5, batch_first=True)), (3, 4)),
    "lstm_deep": (Last(nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)), (3, 4)),
    "gru": (Last(nn.GRU(4, 5, batch_first=True)), (3, 4)),
    "rnn": (Last(nn.RNN(4, 5, batch_first=True, nonlinearity="relu")), (3, 4)),
    "lstm_cell": (Cells(nn.LSTMCell(4, 5)), (3, 4)),
    "gru_cell": (Cells(nn.GRUCell(4, 5)), (3, 4)),
    "plant": (Plant(), (2,)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name, dtype=torch.float64):
    """The network with weights that depend on its name alone, and a batch of points."""
    module, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(len(name))
    module = module.to(dtype).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan = max(1, parameter.shape[-1]) ** 0.5 if parameter.dim() > 1 else 2.0
            parameter.copy_(values / fan + (0.5 if parameter.dim() == 1 else 0.0))
    x = torch.rand(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return module, x


def jacobians(module, x):
    """[B, C, *input_shape] by torch.func."""
    return vmap(jacrev(lambda p: module(p[None]).flatten()))(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@every_network
def test_values_and_gradients_are_the_modules(name, dtype):
    module, x = network(name, dtype)
    graph = build_graph(module, x.shape[1:])
    close = (
        {"rtol": 2e-8, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-4}
    )
    with torch.no_grad():
        torch.testing.assert_close(graph.values(x)[-1], module(x).flatten(1), **close)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if name not in ("lstm", "lstm_deep", "gru", "rnn", "lstm_cell", "gru_cell"):
            expected = jacobians(module, x)
        else:
            expected = torch.stack(
                [
                    torch.autograd.functional.jacobian(lambda p: module(p[None]).flatten(), p)
                    for p in x
                ]
            )
    for c in range(graph.num_outputs):
        rows = torch.eye(graph.num_outputs, dtype=dtype)[c].expand(len(x), -1)
        torch.testing.assert_close(graph.gradients(x, rows), expected[:, c], **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@every_network
def test_intervals_hold_values_and_gradients(name, dtype):
    module, x = network(name, dtype)
    graph = build_graph(module, x.shape[1:])
    exact = graph.double
    generator = torch.Generator().manual_seed(0)
    identity = torch.eye(graph.num_outputs, dtype=dtype)[:6]
    for eps in (0.0, 1e-3, 0.02):
        lower, upper = x[:1] - eps, x[:1] + eps
        values = forward_intervals(graph, lower, upper).bounds[-1]
        entries = gradient_intervals(graph, lower, upper, identity)
        if name == "encoder" and not bool(entries.upper.isfinite().all()):
            continue  # through two layers intervals overflow, which ends in a refusal
        share = torch.rand(60, *x.shape[1:], generator=generator, dtype=torch.float64)
        share[30:] = share[30:].round()
        points = lower.double() + (upper - lower).double() * share
        points = torch.minimum(torch.maximum(points, lower.double()), upper.double())
        found = exact.values(points)[-1]
        assert (values.lower.double() <= found).all()
        assert (found <= values.upper.double()).all()
        for c, row in enumerate(identity.double()):
            gradients = exact.gradients(points, row.expand(len(points), -1))
            # Without products, the margin for rounding comes with the norm.
            slack = 0.0 if graph.product_nodes else 1e2 * torch.finfo(dtype).eps
            assert (entries.lower[c].double() <= gradients + slack).all()
            assert (gradients - slack <= entries.upper[c].double()).all()
        if eps == 0 and dtype == torch.float64:  # tight: nothing but rounding
            assert (entries.upper - entries.lower).max() < (1e-2 if name == "encoder" else 1e-7)


@every_network
def test_ibp_is_above_sampled_gradients_and_others_refuse(name):
    module, x = network(name)
    options = MethodOptions()
    prepared = Prepared(module, x.shape[1:], method="ibp", engine="native", options=options)
    problem = make_problem(prepared.graph, x[0], 0.01, classes=[0])
    result = prepared.bound(problem)
    assert math.isfinite(result.upper_bound)
    assert 0 < result.lower_bound <= result.upper_bound
    point = make_problem(prepared.graph, x[0], 0.0, classes=[0])
    gradient = jacobian_row(module, x[0])
    assert prepared.bound(point).upper_bound == pytest.approx(
        float(gradient), rel=1e-2 if name == "encoder" else 1e-6
    )


def jacobian_row(module, x):
    found = torch.autograd.functional.jacobian(lambda p: module(p[None]).flatten()[0], x)
    return found.abs().sum()


@pytest.mark.parametrize("method", ["crown", "alpha", "joint", "sdp", "recurjac", "lipmip", "bab"])
def test_methods_that_do_not_bound_products_say_so(method):
    if METHODS.get(method) is not None and METHODS[method].products:
        pytest.skip("it bounds them")
    module, x = network("attention")
    options = {"branching": BranchOptions()} if method == "bab" else {"method": method}
    with pytest.raises(InputError, match=r"does not bound products of two values") as error:
        Prepared(module, x.shape[1:], engine="native", **options)
    assert "\n" not in str(error.value)
    assert "ibp" in str(error.value)


@pytest.mark.parametrize("engine", ["native", "auto_lirpa"])
def test_entries_of_products_are_refused_on_both_engines(engine):
    if not is_installed(engine):
        pytest.skip("its package is missing")
    module, x = network("attention")
    with pytest.raises(InputError, match=r"does not bound products of two values"):
        jacobian_bounds(module, x[:1], 0.1, engine=engine)


def test_a_product_of_one_value_with_itself_is_its_square():
    graph = build_graph(Calls(lambda y: y * y).double().eval(), (4,))
    assert not graph.product_nodes
    assert [str(graph.nodes[i].activation) for i in graph.activation_nodes] == ["square"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (torch.log, "'log', log, may be anything from .* above 0"),
        (torch.sqrt, "sqrt, may be anything from .* above 0"),
        (lambda y: 1 / y, "reciprocal, may be anything from .* on one side of 0"),
        (lambda y: y.norm(dim=1, keepdim=True), "sqrt, may be anything"),
        (lambda y: y**-0.5, "rsqrt, may be anything"),
    ],
    ids=["log", "sqrt", "reciprocal", "norm", "power"],
)
@pytest.mark.parametrize("method", ["ibp", "crown", "alpha", "joint"])
def test_what_reaches_a_bad_point_is_one_line_that_names_node_and_interval(function, words, method):
    module = Calls(function, size=2).double().eval()
    with torch.no_grad():
        module.first.weight.copy_(torch.eye(2))
        module.first.bias.fill_(0.0)
    x = torch.full((2,), 0.1, dtype=torch.float64)
    prepared = Prepared(module, (2,), method=method, engine="native")
    with pytest.raises(InputError, match=words) as error:
        prepared.bound(make_problem(prepared.graph, x, 0.5))
    assert "\n" not in str(error.value)
    # On a smaller box it is bounded.
    result = prepared.bound(make_problem(prepared.graph, x, 0.01))
    assert 0 < result.lower_bound <= result.upper_bound < math.inf


@pytest.mark.parametrize("dtype", [torch.float64])
def test_softmax_of_logits_of_ten_thousand(dtype):
    """Nothing overflows, in values, gradients or bounds."""
    module = nn.Sequential(nn.Linear(2, 4), nn.Softmax(1), nn.Linear(4, 1)).to(dtype).eval()
    with torch.no_grad():
        weight = torch.tensor([[1e4, 0.0], [0.0, 1e4], [1e4, 1.0], [-1e4, -1e4]])
        module[0].weight.copy_(weight)
    x = torch.tensor([0.7, 0.4], dtype=dtype)
    graph = build_graph(module, (2,))
    torch.testing.assert_close(graph.values(x[None])[-1], module(x[None]).detach())
    for method in ("ibp", "crown", "alpha"):
        prepared = Prepared(module, (2,), method=method, engine="native")
        for eps in (0.0, 1e-5, 0.1):
            result = prepared.bound(make_problem(prepared.graph, x, eps))
            assert math.isfinite(result.upper_bound)
            assert result.lower_bound <= result.upper_bound


@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min, -1e9])
def test_masks_of_any_kind_leave_out_the_same(fill):
    mask = torch.zeros(3, 3).masked_fill(causal(3), fill)

    def attend(y):
        return F.softmax(y @ y.mT + mask.to(y), -1) @ y

    module = Calls(attend).double().eval()
    x = torch.rand(1, 3, 4, dtype=torch.float64)
    graph = build_graph(module, (3, 4))
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach().flatten(1))
    row = torch.zeros(1, 12, dtype=torch.float64)
    row[0, 0] = 1  # of the first token, which sees itself alone
    entries = gradient_intervals(graph, x - 0.01, x + 0.01, row)
    assert (entries.lower[0, 1:] == 0).all()
    assert (entries.upper[0, 1:] == 0).all()


def test_a_mask_that_leaves_nothing_is_refused():
    mask = torch.full((3, 3), -math.inf)
    module = Calls(lambda y: F.softmax(y @ y.mT + mask.to(y), -1) @ y).double().eval()
    with pytest.raises(NotImplementedError, match="mask leaves nothing"):
        build_graph(module, (3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_layer_norm_of_constant_features(dtype):
    """Variance 0: the root of eps bounds everything."""
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=1e-3), nn.Linear(4, 2))
    x = torch.tensor([0.5, 0.25, 0.75], dtype=dtype)
    module = module.to(dtype).eval()
    with torch.no_grad():
        module[0].weight.copy_((torch.arange(12.0).reshape(4, 3) % 5) / 4)
        module[0].bias.copy_(0.3 - module[0].weight @ x)
    prepared = Prepared(module, (3,), method="ibp", engine="native")
    point = prepared.bound(make_problem(prepared.graph, x, 0.0))
    assert 0 < point.lower_bound <= point.upper_bound <= 1.01 * point.lower_bound
    result = prepared.bound(make_problem(prepared.graph, x, 0.05))
    assert math.isfinite(result.upper_bound)


def test_last_states_are_a_value_like_any_other():
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 5, batch_first=True)

        def forward(self, x):
            return self.gru(x)[1].squeeze(0)

    module, x = Squeezed().eval(), torch.rand(2, 3, 4)
    graph = build_graph(module, (3, 4))
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach())


@pytest.mark.parametrize("name", ["attention_written", "attention", "lstm", "layer_norm", "glu"])
def test_exported_programs_are_read_alike(name, tmp_path):
    module, x = network(name)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "net.pt2")
    loaded, shape = read_network(tmp_path / "net.pt2")
    graph = build_graph(loaded, shape)
    torch.testing.assert_close(graph.values(x)[-1], module(x).detach().flatten(1))
