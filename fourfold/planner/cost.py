"""Bytes of weights and of memory per token, and operations per token."""

import math

from fourfold.config import ModelConfig
from fourfold.model.block_state import BlockLayout
from fourfold.model.rows import Fields
from fourfold.planner.count import EXACT, Counts, skeleton

# bytes per packed parameter, scales included: fp8 one fp32 scale per 128 x 128 block, int8 one 16-bit scale per 128, int4 per 32
FORMATS = {"bf16": 2.0, "fp8": 1 + 4 / 128**2, "int8": 1 + 2 / 128, "int4": 0.5 + 2 / 32}
LONG = 1 << 20
CACHE_BYTES = 2  # keys, latents and index keys are held in bf16


def part_bytes(counts: Counts, form: str) -> dict[str, int]:
    """Bytes of each part, multi-token prediction apart; what a published checkpoint leaves unpacked stays in 16 bits."""
    sizes = {part: number * (2.0 if part in EXACT else FORMATS[form]) for part, number in counts.parts.items()}
    sizes["unpacked vectors"] = counts.vectors * (2.0 - FORMATS[form])
    sizes.pop("multi-token prediction", None)
    return {part: round(size) for part, size in sizes.items()}


def weight_bytes(counts: Counts) -> dict[str, int]:
    return {form: sum(part_bytes(counts, form).values()) for form in FORMATS}


def state_bytes(config: ModelConfig) -> dict[str, int]:
    """Bytes that one more token costs over all layers: `kv` (keys and values, or latents), `index` keys, `other` (gates).

    Of a layer that compresses, a token's share of a block.
    """
    totals = {"kv": 0.0, "index": 0.0, "other": 0.0}
    for layout in _layouts(config):
        fields, tokens = (layout.rows, layout.ratio) if isinstance(layout, BlockLayout) else (layout, 1)
        for name, size in _row_bytes(fields).items() if tokens else ():
            totals[{"index_key": "index", "gate": "other", "end": "other"}.get(name, "kv")] += size / tokens
    return {kind: math.ceil(total) for kind, total in totals.items()}


def fixed_bytes(config: ModelConfig) -> int:
    """What a sequence costs over all layers however long it is: raw rows of the newest tokens, where layers compress."""
    layouts = [layout for layout in _layouts(config) if isinstance(layout, BlockLayout)]
    return sum(tokens * sum(_row_bytes(fields).values()) for layout in layouts for tokens, fields in layout.kept)


def _layouts(config: ModelConfig) -> list[Fields | BlockLayout]:
    return [layout for layer in skeleton(config).layers for layout in layer.fields().values()]


def _row_bytes(fields: Fields) -> dict[str, int]:
    return {name: math.prod(shape) * (dtype.itemsize if dtype else CACHE_BYTES) for name, (shape, dtype) in fields.items()}


def keys_read(config: ModelConfig, context: int) -> int:
    """Keys that a query at a position reads, over all layers."""
    topk = config.selection.index_topk if config.selection else context
    compression = config.compression
    if compression is None:
        return config.num_hidden_layers * min(context, topk)
    ratios = compression.compress_ratios[: config.num_hidden_layers]
    blocks = (min(context // r, topk if r == compression.csa_ratio else context) for r in ratios if r)
    return len(ratios) * min(context, compression.sliding_window) + sum(blocks)


def keys_indexed(config: ModelConfig, context: int) -> int:
    """Index keys that a query at a position is compared with, over all layers."""
    if config.selection is None:
        return 0
    compression = config.compression
    if compression is None:
        return config.num_hidden_layers * context
    choosing = compression.compress_ratios[: config.num_hidden_layers].count(compression.csa_ratio)
    return choosing * (context // compression.csa_ratio)


def flops_per_token(config: ModelConfig, counts: Counts, context: int) -> int:
    """Multiplications and additions to decode one token at a position, latents read in the absorbed form.

    2 per active weight; per key read 2 · heads · (query + value width); per key indexed 2 · index heads · index width; and the
    mixing of residual streams.
    """
    attention, layers = config.attention, config.num_hidden_layers
    if attention.is_latent:
        widths = 2 * attention.kv_lora_rank + attention.qk_rope_head_dim
    else:
        widths = 2 * attention.head_dim
    total = 2 * counts.active
    total += 2 * attention.num_attention_heads * widths * keys_read(config, context)
    if config.selection:
        total += 2 * config.selection.index_n_heads * config.selection.index_head_dim * keys_indexed(config, context)
    if config.streams:
        n = config.streams.hc_mult
        total += layers * 2 * 2 * (n * n + 2 * n) * config.hidden_size
    return total
