"""Softmax and its logarithm, in forms that no constant added to all logits changes.

``y_i = 1 / (1 + sum over j != i of exp(z_j - z_i))``: differences are affine, and the value falls
in each of them, so interval arithmetic of independent logits gives its exact range, within [0, 1].
No product is needed. The logarithm is the negative of ``log(sum exp(z_j - z_i))``, taken two at a
time by ``log(exp(a) + exp(b)) = a + softplus(b - a)``, which never overflows.
"""

from __future__ import annotations

import torch

from lipschitz.network.activations import CutExponential, Share
from lipschitz.network.activations.smooth import Softplus
from lipschitz.network.affine import Branch, Scale
from lipschitz.network.affine.layout import Differences
from lipschitz.network.composed.writer import Writer

# What -inf is replaced by where it is added to logits or filled into them: its share is 0 all the
# same, and nothing overflows, in float32 either.
MASKED = -2e37
# Logits below it count as masked.
_IS_MASKED = -1e37


def softmax(write: Writer, x: Branch, dim: int) -> Branch:
    """Softmax over a dimension.

    Raises:
        NotImplementedError: Every logit of a row is masked.
    """
    x, dim = _last(write, x, dim)
    if bool((write.nodes.sample(x) < _IS_MASKED).all(-1).any()):
        raise NotImplementedError("its mask leaves nothing of a row")
    if x.shape[-1] == 1:
        y = write.apply(Scale(torch.zeros(()), torch.ones(()), x.shape), x)
    else:
        growth = write.function(write.apply(Differences(x.shape), x), CutExponential())
        y = write.function(write.sum(growth, [-1], keep=False), Share())
    return write.move(y, -1, dim)


def log_softmax(write: Writer, x: Branch, dim: int) -> Branch:
    """The logarithm of softmax over a dimension."""
    x, dim = _last(write, x, dim)
    if x.shape[-1] == 1:
        y = write.apply(Scale(torch.zeros(()), torch.zeros(()), x.shape), x)
        return write.move(y, -1, dim)
    others = write.apply(Differences(x.shape), x)
    total = write.reshape(_log_sum(write, others), x.shape)
    y = write.scale(write.function(total, Softplus()), -1.0)
    return write.move(y, -1, dim)


def logsumexp(write: Writer, x: Branch, dim: int) -> Branch:
    """``log(sum exp(z))`` over a dimension, which keeps the size 1."""
    x, dim = _last(write, x, dim)
    return write.move(_log_sum(write, x), -1, dim)


def _last(write: Writer, x: Branch, dim: int) -> tuple[Branch, int]:
    """The dimension moved to the end, and its number."""
    if not x.shape:
        raise NotImplementedError("it mixes the examples of a batch")
    dim %= len(x.shape)
    return write.move(x, dim, len(x.shape) - 1), dim


def _log_sum(write: Writer, x: Branch) -> Branch:
    """``log(sum exp(z))`` over the last dimension, which keeps the size 1."""
    while x.shape[-1] > 1:
        half, rest = divmod(x.shape[-1], 2)
        first, second = (write.narrow(x, -1, part * half, half) for part in (0, 1))
        above = write.function(write.plus(second, first, -1), Softplus())
        both = write.plus(first, above)
        x = write.join([both, write.narrow(x, -1, 2 * half, rest)], -1) if rest else both
    return x
