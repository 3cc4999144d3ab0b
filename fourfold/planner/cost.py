"""Bytes of weights and of memory per token, and operations per token."""

import math

from fourfold.config import ModelConfig
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
    """Bytes that one more token costs over all layers: `kv` (keys and values, or latents), `index` keys, `other` (gates)."""
    totals = {"kv": 0, "index": 0, "other": 0}
    for layer in skeleton(config).layers:
        for fields in layer.fields().values():
            for name, (shape, dtype) in fields.items():
                kind = {"index_key": "index", "gate": "other"}.get(name, "kv")
                totals[kind] += math.prod(shape) * (dtype.itemsize if dtype else CACHE_BYTES)
    return totals


def keys_read(config: ModelConfig, context: int) -> int:
    return min(context, config.selection.index_topk) if config.selection else context


def flops_per_token(config: ModelConfig, counts: Counts, context: int) -> int:
    """Multiplications and additions to decode one token at a position, latents read in the absorbed form.

    2 per active weight; per layer and key read 2 · heads · (query + value width); per layer and key indexed
    2 · index heads · index width; and the mixing of residual streams.
    """
    attention, layers = config.attention, config.num_hidden_layers
    if attention.is_latent:
        widths = 2 * attention.kv_lora_rank + attention.qk_rope_head_dim
    else:
        widths = 2 * attention.head_dim
    total = 2 * counts.active
    total += layers * 2 * attention.num_attention_heads * widths * keys_read(config, context)
    if config.selection:
        total += layers * 2 * config.selection.index_n_heads * config.selection.index_head_dim * context
    if config.streams:
        n = config.streams.hc_mult
        total += layers * 2 * 2 * (n * n + 2 * n) * config.hidden_size
    return total
