"""Layers that are written out: their rules get a writer, the layer, and the call's arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lipschitz.network.affine import Branch
from lipschitz.network.composed.attention import (
    decoder,
    decoder_layer,
    encoder,
    encoder_layer,
    multihead,
    transformer,
)
from lipschitz.network.composed.dimensions import inner
from lipschitz.network.composed.functions import WRITTEN_FUNCTIONS, Written
from lipschitz.network.composed.identities import local_response_norm
from lipschitz.network.composed.norms import group_norm, instance_norm, layer_norm
from lipschitz.network.composed.recurrent import recurrent, recurrent_cell
from lipschitz.network.composed.softmax import log_softmax, softmax
from lipschitz.network.composed.writer import Writer

WrittenModule = Callable[..., Written]


def _dim(module: nn.Module, x: Branch) -> int:
    if module.dim is None:
        raise NotImplementedError("it has no dim; name one")
    return inner(x, module.dim)


def _softmax(write: Writer, module: nn.Softmax, x: Branch) -> Written:
    return softmax(write, x, _dim(module, x))


def _softmax2d(write: Writer, module: nn.Softmax2d, x: Branch) -> Written:
    return softmax(write, x, len(x.shape) - 3)


def _softmin(write: Writer, module: nn.Softmin, x: Branch) -> Written:
    return softmax(write, write.scale(x, -1.0), _dim(module, x))


def _log_softmax(write: Writer, module: nn.LogSoftmax, x: Branch) -> Written:
    return log_softmax(write, x, _dim(module, x))


def _layer_norm(write: Writer, module: nn.LayerNorm, x: Branch) -> Written:
    shape = module.normalized_shape
    return layer_norm(write, x, shape, module.weight, module.bias, module.eps)


def _rms_norm(write: Writer, module: Any, x: Branch) -> Written:
    eps = torch.finfo(write.nodes.sample(x).dtype).eps if module.eps is None else module.eps
    shape = module.normalized_shape
    return layer_norm(write, x, shape, module.weight, None, eps, centred=False)


def _group_norm(write: Writer, module: nn.GroupNorm, x: Branch) -> Written:
    return group_norm(write, x, module.num_groups, module.weight, module.bias, module.eps)


def _instance_norm(write: Writer, module: Any, x: Branch) -> Written:
    if module.running_mean is not None:  # in eval mode it is affine
        return None
    return instance_norm(write, x, module.weight, module.bias, module.eps)


def _glu(write: Writer, module: nn.GLU, x: Branch) -> Written:
    return WRITTEN_FUNCTIONS["glu"](write, None, x, module.dim)


def _cosine(write: Writer, module: nn.CosineSimilarity, x1: Any, x2: Any) -> Written:
    return WRITTEN_FUNCTIONS["cosine_similarity"](write, None, x1, x2, module.dim, module.eps)


def _distance(write: Writer, module: nn.PairwiseDistance, x1: Any, x2: Any) -> Written:
    options = (module.norm, module.eps, module.keepdim)
    return WRITTEN_FUNCTIONS["pairwise_distance"](write, None, x1, x2, *options)


def _hardsigmoid(write: Writer, module: nn.Hardsigmoid, x: Branch) -> Written:
    return WRITTEN_FUNCTIONS["hardsigmoid"](write, None, x)


def _bilinear(write: Writer, module: nn.Bilinear, first: Any, second: Any) -> Written:
    return WRITTEN_FUNCTIONS["bilinear"](write, None, first, second, module.weight, module.bias)


WRITTEN_MODULES: dict[type[nn.Module], WrittenModule] = {
    nn.Softmax: _softmax,
    nn.Softmax2d: _softmax2d,
    nn.Softmin: _softmin,
    nn.LogSoftmax: _log_softmax,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    nn.LocalResponseNorm: local_response_norm,
    nn.CosineSimilarity: _cosine,
    nn.PairwiseDistance: _distance,
    nn.GLU: _glu,
    nn.Hardsigmoid: _hardsigmoid,
    nn.Bilinear: _bilinear,
    nn.MultiheadAttention: multihead,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
    nn.TransformerDecoderLayer: decoder_layer,
    nn.TransformerDecoder: decoder,
    nn.Transformer: transformer,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), recurrent_cell),
}
