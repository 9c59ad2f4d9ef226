"""Networks read from modules, .pt2 and .onnx alike, whatever their code does to batches."""

import contextlib
import io
import math
import warnings

import products
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipschitz.bounds.native.terms.jacobian import gradient_intervals
from lipschitz.errors import InputError
from lipschitz.network.formats import read_network
from lipschitz.network.tracing import build_graph


class Turned(nn.Module):
    """A layer that takes positions first."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose(0, 1))[0].transpose(0, 1)


class Attention(nn.Module):
    def __init__(self, *, turned=False, mask=None, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=not turned, **options)
        self.turned = turned
        self.register_buffer("mask", mask)

    def forward(self, x):
        x = x.transpose(0, 1) if self.turned else x
        x = self.attention(x, x, x, attn_mask=self.mask)[0]
        return x.transpose(0, 1) if self.turned else x


class Encoded(nn.Module):
    def __init__(self, **options):
        super().__init__()
        options = {"dim_feedforward": 6, "batch_first": True, **options}
        self.layer = nn.TransformerEncoderLayer(4, 2, **options)

    def forward(self, x):
        if self.layer.self_attn.batch_first:
            return self.layer(x)
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class Decoded(nn.Module):
    """Cross attention to a memory that depends on the input too."""

    def __init__(self, **options):
        super().__init__()
        self.memory = nn.Linear(4, 4)
        self.layer = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True, **options)

    def forward(self, x):
        return self.layer(x, torch.tanh(self.memory(x)))


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Transformer(4, 2, 1, 1, 6, batch_first=True)

    def forward(self, x):
        return self.layer(x, x.flip(1))


class Heads(nn.Module):
    """Queries, keys and values from one layer, their number put first."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 2, 2).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-2, -1) * 0.7).softmax(-1)
        return self.out((shares @ v).transpose(1, 2).flatten(2))


class Vision(nn.Module):
    """A vision transformer of one block."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 4, 2, 2)
        self.token, self.place = (nn.Parameter(torch.rand(1, n, 4)) for n in (1, 5))
        layer = nn.TransformerEncoderLayer(
            4, 2, 6, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.place
        return self.head(self.encoder(x)[:, 0])


class LastState(nn.Module):
    def __init__(self, layer, pick):
        super().__init__()
        self.layer, self.pick = layer, pick

    def forward(self, x):
        return self.pick(self.layer(x)[1])


class Started(nn.Module):
    """A recurrent layer whose first state depends on the input."""

    def __init__(self):
        super().__init__()
        self.layer, self.start = nn.GRU(4, 3, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x, self.start(x[:, 0])[None])[0]


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def causal(size=3):
    return torch.triu(torch.ones(size, size), 1).bool()


def merged(state):
    return state.transpose(0, 1).flatten(1)


# name -> (module, input shape)
NETWORKS = {
    "attention": (Attention(), (3, 4)),
    "attention_turned": (Attention(turned=True), (3, 4)),
    "attention_mask": (Attention(mask=causal()), (3, 4)),
    "attention_extra": (Attention(add_bias_kv=True), (3, 4)),
    "heads": (Heads(), (3, 4)),
    "post_norm_relu": (Encoded(), (3, 4)),
    "pre_norm_gelu": (Encoded(norm_first=True, activation="gelu"), (3, 4)),
    "one_token": (Encoded(), (1, 4)),
    "turned_encoder": (Encoded(batch_first=False), (3, 4)),
    "decoder": (Decoded(), (2, 4)),
    "decoder_pre_norm": (Decoded(norm_first=True, activation=F.gelu), (2, 4)),
    "transformer": (Whole(), (2, 4)),
    "vision": (Vision(), (1, 4, 4)),
    "lstm_turned": (Turned(nn.LSTM(4, 3)), (3, 4)),
    "gru_turned": (Turned(nn.GRU(4, 3, 2, bidirectional=True)), (2, 4)),
    "rnn_turned": (Turned(nn.RNN(4, 3)), (2, 4)),
    "gru_state": (LastState(nn.GRU(4, 3, 2, batch_first=True), merged), (2, 4)),
    "lstm_state": (
        LastState(nn.LSTM(4, 3, batch_first=True), lambda s: s[0].squeeze(0) + s[1][-1]),
        (2, 4),
    ),
    "gru_started": (Started(), (2, 4)),
}
# What torch.onnx.export(dynamo=False) itself does not write.
NOT_EXPORTED = {"attention", "post_norm_relu", "pre_norm_gelu", "one_token"}
NOT_EXPORTED |= {"attention_mask", "decoder", "decoder_pre_norm", "transformer", "vision"}
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name, dtype=torch.float64):
    module, x = products.network(name, dtype, NETWORKS)
    return module.requires_grad_(False), x


def check(graph, module, x, rtol=1e-8):
    """Values and gradients are the module's, and intervals of gradients hold them."""
    close = {"rtol": rtol, "atol": rtol}
    torch.testing.assert_close(graph.values(x)[-1], module(x).flatten(1), **close)
    row = torch.zeros(1, graph.num_outputs, dtype=x.dtype)
    row[0, 0] = 1
    found = graph.gradients(x, row.expand(len(x), -1))
    first = lambda p: module(p[None]).flatten()[0]  # noqa: E731
    expected = torch.stack([torch.autograd.functional.jacobian(first, point) for point in x])
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * max(1, scale))
    bounds = gradient_intervals(graph, x - 1e-3, x + 1e-3, row.expand(len(x), -1))
    assert (bounds.lower <= found).all()
    assert (found <= bounds.upper).all()


@every_network
def test_modules(name):
    module, x = network(name)
    check(build_graph(module, x.shape[1:]), module, x)


@pytest.mark.parametrize("open_batch", [False, True], ids=["one example", "open batch"])
@every_network
def test_exported_programs(name, open_batch, tmp_path):
    module, x = network(name)
    options = {"dynamic_shapes": ({0: torch.export.Dim("b", min=1)},)} if open_batch else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x if open_batch else x[:1],), **options)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded, shape = read_network(tmp_path / "net.pt2")
    check(build_graph(loaded, shape), module, x)


def exported(module, x, path, **options):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()):
            torch.onnx.export(module, (x,), str(path), **options)
    return read_network(path)


@pytest.mark.parametrize("open_batch", [False, True], ids=["one example", "open batch"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in NOT_EXPORTED])
def test_onnx_files(name, open_batch, tmp_path):
    pytest.importorskip("onnx")
    module, x = network(name, torch.float32)
    options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "b"}}} if open_batch else {}
    example = x if open_batch else x[:1]
    loaded, shape = exported(module, example, tmp_path / "net.onnx", dynamo=False, **options)
    check(build_graph(loaded, shape), module, x, rtol=2e-4)


@every_network
def test_onnx_files_of_the_newer_exporter(name, tmp_path):
    pytest.importorskip("onnxscript")
    module, x = network(name, torch.float32)
    loaded, shape = exported(module, x[:1], tmp_path / "net.onnx", dynamo=True)
    check(build_graph(loaded, shape), module, x, rtol=2e-4)


def test_networks_that_mix_examples_stay_refused():
    for function in (
        lambda x: x - x.mean(0),
        lambda x: x.transpose(0, 1) @ x,
        lambda x: x.softmax(0),
    ):
        with pytest.raises((NotImplementedError, InputError), match="batch"):
            build_graph(Calls(function).eval(), (3,))


def test_what_is_not_covered_says_why():
    turned = Turned(nn.LSTM(4, 3, proj_size=2)).eval()
    with pytest.raises(NotImplementedError, match=r"LSTM.*with a projection"):
        build_graph(turned, (3, 4))

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, attn_mask=(x @ x.mT)[0])[0]

    with pytest.raises(NotImplementedError, match="mask depends on the input"):
        build_graph(Masked().eval(), (3, 4))


def test_code_that_asks_for_the_kind_of_its_values():
    """While torch.fx traces, a tuple is none."""

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x):
            state = self.layer(x)[1]
            state = state[0] if isinstance(state, tuple) else state
            return state.squeeze(0)

    module, x = Asks().double().eval(), torch.rand(3, 2, 4, dtype=torch.float64)
    check(build_graph(module, (2, 4)), module, x)


def test_a_mask_that_depends_on_the_input_is_added():
    def attend(x):
        return F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.mT)

    module, x = Calls(attend).eval(), torch.rand(2, 3, 4, dtype=torch.float64)
    graph = build_graph(module.double(), (3, 4))
    torch.testing.assert_close(graph.values(x)[-1], module(x).flatten(1))


@pytest.mark.parametrize("masked", [-math.inf, -1e9])
def test_masks_merged_with_heads_leave_out_the_same(masked, tmp_path):
    """A mask of [heads * batch, L, L] positions, as the steps of attention have it."""
    mask = torch.zeros(3, 3).masked_fill(causal(), masked)
    module = Attention(turned=True, mask=mask)
    module = module.double().eval()
    x = torch.rand(1, 3, 4, dtype=torch.float64)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "net.pt2")
    loaded, shape = read_network(tmp_path / "net.pt2")
    graph = build_graph(loaded, shape)
    row = torch.zeros(1, 12, dtype=torch.float64)
    row[0, 0] = 1  # of the first token, which sees itself alone
    entries = gradient_intervals(graph, x - 0.01, x + 0.01, row)
    assert (entries.lower[0, 1:] == 0).all()
    assert (entries.upper[0, 1:] == 0).all()
