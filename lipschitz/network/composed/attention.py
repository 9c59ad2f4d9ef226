"""Attention and the layers around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lipschitz.network.affine import Branch
from lipschitz.network.composed.softmax import MASK_FROM, MASKED, softmax
from lipschitz.network.composed.writer import Writer


def masked_attention(
    write: Writer,
    query: Branch,
    key: Branch,
    value: Branch,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Branch, Branch]:
    """``softmax(query key^T scale + mask) value``, and the shares.

    Args:
        write: Adds the steps.
        query, key, value: [..., L, E], [..., S, E] and [..., S, V].
        mask: True where a key counts, or what is added to its logit; broadcastable to [..., L, S].
        scale: ``1 / sqrt(E)`` if None.

    Raises:
        NotImplementedError: The mask differs between the examples of a batch, or leaves nothing.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    logits = write.named("logits").matmul(write.scale(query, scale), write.transpose(key))
    if mask is not None:
        logits = write.scale(logits, 1.0, added(mask, len(logits.shape)))
    shares = softmax(write.named("shares"), logits, len(logits.shape) - 1)
    return write.matmul(shares, value), shares


def added(mask: Tensor, dims: int) -> Tensor:
    """What a mask adds to logits of ``dims`` dimensions, without infinities.

    Raises:
        NotImplementedError: It differs between the examples of a batch.
    """
    mask = mask.detach()
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, MASKED)
    if mask.dim() > dims:
        if mask.dim() > dims + 1 or not bool((mask == mask[:1]).all()):
            raise NotImplementedError("its mask has a batch dimension")
        mask = mask[0]
    return torch.where(mask < MASK_FROM, MASKED, mask)


def multihead(
    write: Writer,
    module: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Branch, Branch | None]:
    """``nn.MultiheadAttention``."""
    if not all(isinstance(x, Branch) for x in (query, key, value)):
        raise NotImplementedError("its query, key or value is a constant")
    if not module.batch_first:
        raise NotImplementedError("its batch is not the first dimension; use batch_first=True")
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        raise NotImplementedError("with add_bias_kv or add_zero_attn")
    if isinstance(attn_mask, Branch) or isinstance(key_padding_mask, Branch):
        raise NotImplementedError("its mask depends on the input")
    heads, width = module.num_heads, module.head_dim
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)

    def by_head(name: str, x: Branch, weight: Tensor, bias: Tensor | None) -> Branch:
        part = write.named(name)
        projected = part.reshape(part.linear(x, weight, bias), [x.shape[0], heads, width])
        return part.move(projected, 1, 0)

    q, k, v = (
        by_head(name, x, weight, bias)
        for name, x, weight, bias in zip(
            ("query", "key", "value"), (query, key, value), weights, biases, strict=True
        )
    )
    mask = _mask_of(attn_mask, key_padding_mask, heads)
    mixed, shares = masked_attention(write, q, k, v, mask)
    merged = write.reshape(write.move(mixed, 0, 1), [query.shape[0], heads * width])
    out = write.linear(merged, module.out_proj.weight, module.out_proj.bias)
    if not need_weights:
        return out, None
    if average_attn_weights:
        shares = write.sum(shares, [0], keep=False, mean=True)
    return out, shares


def _mask_of(attn_mask: Tensor | None, padding: Tensor | None, heads: int) -> Tensor | None:
    """Both masks of the module, in which True means left out, as something to add to logits."""
    total = None
    if attn_mask is not None:
        total = _left_out(attn_mask)
        if total.dim() == 3:  # [batch * heads, L, S]
            by_example = total.unflatten(0, (-1, heads))
            total = added(by_example, 3)
    if padding is not None:
        total = added(_left_out(padding)[:, None, None], 3) + (0 if total is None else total)
    return total


def _left_out(mask: Tensor) -> Tensor:
    mask = torch.where(mask, MASKED, 0.0) if mask.dtype == torch.bool else mask
    return torch.where(mask < MASK_FROM, MASKED, mask)


def encoder_layer(
    write: Writer,
    module: nn.TransformerEncoderLayer,
    src: Branch,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Branch:
    """``nn.TransformerEncoderLayer``, with normalisation before or after."""
    call = write.nodes.call_module

    def attend(x: Branch) -> Branch:
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask}
        name = f"{write.name}.self_attn"
        return call(name, module.self_attn, x, x, x, need_weights=False, **masks)[0]

    def feed(x: Branch) -> Branch:
        x = call(f"{write.name}.linear1", module.linear1, x)
        x = write.nodes.call_function(f"{write.name}.activation", module.activation, x)
        return call(f"{write.name}.linear2", module.linear2, x)

    def norm(number: int, x: Branch) -> Branch:
        return call(f"{write.name}.norm{number}", getattr(module, f"norm{number}"), x)

    if module.norm_first:
        x = write.plus(src, attend(norm(1, src)))
        return write.plus(x, feed(norm(2, x)))
    x = norm(1, write.plus(src, attend(src)))
    return norm(2, write.plus(x, feed(x)))


def encoder(
    write: Writer,
    module: nn.TransformerEncoder,
    src: Branch,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Branch:
    """``nn.TransformerEncoder``."""
    masks = {"src_mask": mask, "src_key_padding_mask": src_key_padding_mask}
    call = write.nodes.call_module
    for i, layer in enumerate(module.layers):
        src = call(f"{write.name}.layers.{i}", layer, src, **masks)
    return src if module.norm is None else call(f"{write.name}.norm", module.norm, src)
