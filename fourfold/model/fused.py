"""A plain layer (one stream, grouped-query attention to everything, one feed-forward) in one kernel, for a step of decoding.

`Layer.forward` is what it means. A small model's step is mostly the calls in between: two hundred of them in a layer.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourfold.model.attention import GroupedQueryAttention
from fourfold.model.experts import FeedForward
from fourfold.model.inputs import Context
from fourfold.model.rows import Rows
from fourfold.model.state import LayerStates
from fourfold.model.streams import PlainResidual
from fourfold.ops import native
from fourfold.ops.int8 import Int8Weight
from fourfold.ops.linear import FEW, Linear

if TYPE_CHECKING:
    from fourfold.model.layer import Layer


def is_plain(layer: "Layer") -> bool:
    """Whether a layer is made of those parts, in sizes that are read in whole vectors."""
    attention, ffn = layer.attention, layer.ffn
    if not isinstance(attention, GroupedQueryAttention) or not isinstance(ffn, FeedForward) or layer.engram is not None:
        return False
    sites = isinstance(layer.attention_site, PlainResidual) and isinstance(layer.ffn_site, PlainResidual)
    bare = attention.indexer is None and ffn.limit is None and attention.o_proj.bias is None
    inner, width = ffn.down_proj.weight.shape[1], ffn.down_proj.weight.shape[0]
    return sites and bare and not any(size % native.LANES for size in (inner, width, attention.width))


def can_step(streams: Tensor, context: Context, states: LayerStates) -> bool:
    """Whether this is a step of decoding that nobody looks into: one token of each of a few sequences, here and in fp32."""
    lengths = context.batch.lengths
    alone = max(lengths) == min(lengths) == 1 and len(lengths) <= FEW
    if not alone or context.trace is not None or torch.is_grad_enabled() or streams.dtype is not torch.float32:
        return False
    return native.ready(streams, *context.rotary["attention"]) and isinstance(states.get("attention"), Rows)


def step(layer: "Layer", streams: Tensor, context: Context, state: Rows) -> Tensor | None:
    """streams [S, 1, d] -> [S, 1, d], the new rows noted in `state`; None where a weight is in another format than the streams."""
    attention, ffn = layer.attention, layer.ffn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    *first, narrow = [_parts(linear) for linear in (*projections, ffn.gate_up_proj, ffn.down_proj)]
    norms = layer.attention_norm, layer.ffn_norm
    plain = [values for values, scales in (*first, narrow) if scales is None]
    if not native.ready(streams, *plain, *(norm.weight for norm in norms)):
        return None
    before, wide = first[:-1], first[-1]
    slots = state.extend(context.batch.lengths)
    keys, values = state.read("key"), state.read("value")
    mask, (cos, sin), streams = context.visible(slice(0, 1)), context.rotary["attention"], streams.contiguous()
    out, rows, longest = torch.empty_like(streams), len(streams), keys.shape[1]
    weights = [part for pair in before for part in pair], [*wide, *narrow]
    sizes = rows, streams.shape[2], attention.heads, attention.groups, attention.width, ffn.down_proj.weight.shape[1], longest
    settings = keys.stride(0), int(attention.interleaved), norms[0].eps, norms[1].eps, float(attention.scale)
    around = cos, sin, keys, values, slots, None if mask is None else mask.contiguous(), out
    native.call(
        "plain_layer",
        streams.dtype,
        streams,
        norms[0].weight,
        *weights[0],
        norms[1].weight,
        *weights[1],
        *around,
        *sizes,
        *settings,
    )
    return out


def _parts(linear: Linear) -> tuple[Tensor, Tensor | None]:
    """A weight and no scales, or codes and scales."""
    weight = linear.weight
    return (weight.packed, weight.scales) if isinstance(weight, Int8Weight) else (weight, None)
