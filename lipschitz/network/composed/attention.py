"""Attention and the layers around it."""

from __future__ import annotations

from collections.abc import Callable
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
    mask: Branch | Tensor | None = None,
    scale: float | None = None,
) -> tuple[Branch, Branch]:
    """``softmax(query key^T scale + mask) value``, and the shares.

    Args:
        write: Adds the steps.
        query, key, value: [..., L, E], [..., S, E] and [..., S, V].
        mask: True where a key counts, or what is added to its logit; broadcastable to [..., L, S].
            One that depends on the input is added as it is.
        scale: ``1 / sqrt(E)`` if None.

    Raises:
        NotImplementedError: The mask differs between the examples of a batch, or leaves nothing.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    logits = write.named("logits").matmul(write.scale(query, scale), write.transpose(key))
    if isinstance(mask, Branch):
        logits = write.plus(logits, write.expand(mask, logits.shape))
    elif mask is not None:
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
    shape = query.shape
    query, key, value = (rows(write, x, first=module.batch_first) for x in (query, key, value))
    if isinstance(attn_mask, Branch) or isinstance(key_padding_mask, Branch):
        raise NotImplementedError("its mask depends on the input")
    if isinstance(key_padding_mask, Tensor) and key_padding_mask.dim() == 1:
        key_padding_mask = key_padding_mask[None]
    mask = _mask_of(attn_mask, key_padding_mask, module.num_heads)
    out, shares = _heads(write, module, query, key, value, mask)
    if len(shape) == 3:  # one example alone, with its dimension of 1
        out = write.reshape(out, [*shape[:-1], out.shape[-1]])
    if not need_weights:
        return out, None
    if average_attn_weights:
        shares = write.sum(shares, [0], keep=False, mean=True)
    if len(shape) == 3:
        shares = write.unsqueeze(shares, 0)
    return out, shares


def rows(write: Writer, x: Branch, *, first: bool) -> Branch:
    """An input of a layer as [L, E], whichever of its dimensions is the batch.

    Args:
        write: Adds the steps.
        x: [L, E]; of one example alone [L, E], [1, L, E] or [L, 1, E].
        first: Whether the layer takes the batch first.

    Raises:
        NotImplementedError: It has another shape.
    """
    if x.whole and len(x.shape) == 3 and x.shape[0 if first else 1] == 1:
        return write.reshape(x, [x.shape[1 if first else 0], x.shape[2]])
    if len(x.shape) != 2 or not (first or x.whole):
        raise NotImplementedError("its batch is not the first dimension; use batch_first=True")
    return x


def _heads(
    write: Writer,
    module: nn.MultiheadAttention,
    query: Branch,
    key: Branch,
    value: Branch,
    mask: Tensor | None,
) -> tuple[Branch, Branch]:
    """The result [L, E], and the shares [heads, L, S] of each value."""
    if module.add_zero_attn:
        raise NotImplementedError("with add_zero_attn")
    if type(module) is not nn.MultiheadAttention:
        raise NotImplementedError(f"its attention is a {type(module).__name__}")
    heads, width = module.num_heads, module.head_dim
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    extra = (None, module.bias_k, module.bias_v)

    def by_head(
        name: str, x: Branch, weight: Tensor, bias: Tensor | None, more: Tensor | None
    ) -> Branch:
        part = write.named(name)
        projected = part.linear(x, weight, bias)
        if more is not None:  # one position that is the same whatever the input
            projected = part.with_row(projected, more.flatten())
        projected = part.reshape(projected, [projected.shape[0], heads, width])
        return part.move(projected, 1, 0)

    names = ("query", "key", "value")
    parts = zip(names, (query, key, value), weights, biases, extra, strict=True)
    q, k, v = (by_head(*part) for part in parts)
    if mask is not None and module.bias_k is not None:
        mask = nn.functional.pad(mask, (0, 1))
    mixed, shares = masked_attention(write, q, k, v, mask)
    merged = write.reshape(write.move(mixed, 0, 1), [query.shape[0], heads * width])
    return write.linear(merged, module.out_proj.weight, module.out_proj.bias), shares


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


class _Steps:
    """The steps of an encoder's or decoder's layer, on values [L, E]."""

    def __init__(self, write: Writer, module: nn.Module) -> None:
        self.write, self.module = write, module

    def _call(self, part: str, x: Branch) -> Branch:
        name = f"{self.write.name}.{part}"
        return self.write.nodes.call_module(name, getattr(self.module, part), x)

    def attend(self, part: str, x: Branch, to: Branch, *masks: Tensor | None) -> Branch:
        """One of its attentions."""
        attention = getattr(self.module, part)
        if any(isinstance(mask, Branch) for mask in masks):
            raise NotImplementedError("its mask depends on the input")
        mask = _mask_of(*masks, attention.num_heads)
        return _heads(self.write.named(part), attention, x, to, to, mask)[0]

    def feed(self, x: Branch) -> Branch:
        """The two linear layers."""
        x = self._call("linear1", x)
        name = f"{self.write.name}.activation"
        x = self.write.nodes.call_function(name, self.module.activation, x)
        return self._call("linear2", x)

    def residual(self, x: Branch, number: int, block: Callable[[Branch], Branch]) -> Branch:
        """``x + block(x)``, normalised before or after."""
        norm = f"norm{number}"
        if self.module.norm_first:
            return self.write.plus(x, block(self._call(norm, x)))
        return self._call(norm, self.write.plus(x, block(x)))


def encoder_layer(
    write: Writer,
    module: nn.TransformerEncoderLayer,
    src: Branch,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Branch:
    """``nn.TransformerEncoderLayer``, with normalisation before or after."""
    x, steps = rows(write, src, first=module.self_attn.batch_first), _Steps(write, module)
    masks = (src_mask, src_key_padding_mask)
    x = steps.residual(x, 1, lambda y: steps.attend("self_attn", y, y, *masks))
    return write.reshape(steps.residual(x, 2, steps.feed), src.shape)


def decoder_layer(
    write: Writer,
    module: nn.TransformerDecoderLayer,
    tgt: Any,
    memory: Any,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
) -> Branch:
    """``nn.TransformerDecoderLayer``, whose two inputs both depend on the network's."""
    if not (isinstance(tgt, Branch) and isinstance(memory, Branch)):
        raise NotImplementedError("its target or memory is a constant")
    first, steps = module.self_attn.batch_first, _Steps(write, module)
    x, memory = (rows(write, part, first=first) for part in (tgt, memory))
    own, other = (tgt_mask, tgt_key_padding_mask), (memory_mask, memory_key_padding_mask)
    x = steps.residual(x, 1, lambda y: steps.attend("self_attn", y, y, *own))
    x = steps.residual(x, 2, lambda y: steps.attend("multihead_attn", y, memory, *other))
    return write.reshape(steps.residual(x, 3, steps.feed), tgt.shape)


def _stack(write: Writer, module: nn.Module, x: Branch, *others: Any, **masks: Any) -> Branch:
    call = write.nodes.call_module
    for i, layer in enumerate(module.layers):
        x = call(f"{write.name}.layers.{i}", layer, x, *others, **masks)
    return x if module.norm is None else call(f"{write.name}.norm", module.norm, x)


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
    return _stack(write, module, src, **masks)


def decoder(
    write: Writer,
    module: nn.TransformerDecoder,
    tgt: Any,
    memory: Any,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Branch:
    """``nn.TransformerDecoder``."""
    masks = {
        "tgt_mask": tgt_mask,
        "memory_mask": memory_mask,
        "tgt_key_padding_mask": tgt_key_padding_mask,
        "memory_key_padding_mask": memory_key_padding_mask,
    }
    return _stack(write, module, tgt, memory, **masks)


def transformer(
    write: Writer,
    module: nn.Transformer,
    src: Any,
    tgt: Any,
    src_mask: Any = None,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    src_key_padding_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    src_is_causal: bool | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Branch:
    """``nn.Transformer``."""
    call = write.nodes.call_module
    masks = {"mask": src_mask, "src_key_padding_mask": src_key_padding_mask}
    memory = call(f"{write.name}.encoder", module.encoder, src, **masks)
    masks = {
        "tgt_mask": tgt_mask,
        "memory_mask": memory_mask,
        "tgt_key_padding_mask": tgt_key_padding_mask,
        "memory_key_padding_mask": memory_key_padding_mask,
    }
    return call(f"{write.name}.decoder", module.decoder, tgt, memory, **masks)
