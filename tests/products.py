"""Small networks with products of two values, one for every operator, with weights of a seed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


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


def network(name, dtype=torch.float64, networks=NETWORKS):
    """The network with weights that depend on its name alone, and a batch of points."""
    module, shape = networks[name]
    generator = torch.Generator().manual_seed(len(name))
    module = module.to(dtype).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan = max(1, parameter.shape[-1]) ** 0.5 if parameter.dim() > 1 else 2.0
            parameter.copy_(values / fan + (0.5 if parameter.dim() == 1 else 0.0))
    x = torch.rand(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return module, x
