"""What stays in memory and what streams from disk under a budget, and the speed that the bandwidths allow at best.

Placed in order of how often a token needs it: the state of the context, what every token multiplies with, then as many routed
experts as fit (taken as used evenly: real routing is a little kinder to a cache). Engram's tables and the input table come last:
a token needs only a few of their rows, which a disk hands out as 4 KiB pages. So do the media parts, which text does not need.
"""

import re
from dataclasses import dataclass

from fourfold.config import ModelConfig
from fourfold.errors import FourfoldError
from fourfold.planner.cost import CACHE_BYTES, FORMATS, fixed_bytes, keys_indexed, keys_read, part_bytes, state_bytes
from fourfold.planner.count import MEDIA, Counts

PAGE = 4096
LAST = ("engram tables", "embedding", MEDIA)
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str, field: str) -> int:
    """`32GB`, `24GiB`, `5.5GB/s` -> bytes. Raises FourfoldError naming the field."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]i?)?b?(/s)?\s*", text, re.IGNORECASE)
    try:
        size = round(float(match[1]) * _UNITS[(match[2] or "").lower()])
    except (TypeError, ValueError, OverflowError):
        raise FourfoldError(f"{field}: {text!r} is not a size; write it like 32GB or 24GiB") from None
    if size <= 0:
        raise FourfoldError(f"{field}: must be more than zero")
    return size


@dataclass(frozen=True)
class Placement:
    """Bytes by where they are, bytes a token moves, and the rate: `tokens_per_second` when reading the disk waits for the
    router's choice, `..._overlapped` when it can be hidden behind memory traffic entirely."""

    format: str
    memory_bytes: int
    context: int
    fits: bool  # everything is resident
    context_bytes: int
    always_bytes: int  # what every token multiplies with, and how much of it is resident
    resident_always_bytes: int
    resident_expert_bytes: int
    resident_expert_share: float
    resident_table_bytes: int
    streamed_bytes: int
    memory_read_per_token: int
    disk_read_per_token: int
    tokens_per_second: float
    tokens_per_second_overlapped: float


def place(
    config: ModelConfig, counts: Counts, memory: int, form: str, ram_bandwidth: int, disk_bandwidth: int, context: int
) -> Placement:
    """Where everything goes. Raises FourfoldError when the state of the context alone is more than the memory."""
    sizes = part_bytes(counts, form)
    experts = sizes.pop("routed experts", 0)
    tables = sum(sizes.pop(part, 0) for part in LAST)
    always = sum(sizes.values())
    state = sum(state_bytes(config).values()) * context + fixed_bytes(config)
    if state > memory:
        raise FourfoldError(
            f"--memory: the state of {context} tokens takes {state / 1e9:.1f} GB, more than {memory / 1e9:.1f} GB; "
            "give more memory or a shorter --context"
        )
    resident_always = min(always, memory - state)
    resident_experts = min(experts, memory - state - resident_always)
    resident_tables = min(tables, memory - state - resident_always - resident_experts)
    share = resident_experts / experts if experts else 1.0
    chosen = counts.active_routed * FORMATS[form]
    rows = _rows_per_token(config, form) * (1 - (resident_tables / tables if tables else 1.0))
    from_disk = always - resident_always + chosen * (1 - share) + rows
    from_memory = always + chosen + _context_read(config, context)  # what streams is read from memory once more
    seconds = from_memory / ram_bandwidth, from_disk / disk_bandwidth
    resident = resident_always + resident_experts + resident_tables
    return Placement(
        format=form,
        memory_bytes=memory,
        context=context,
        fits=resident == always + experts + tables,
        context_bytes=state,
        always_bytes=always,
        resident_always_bytes=resident_always,
        resident_expert_bytes=resident_experts,
        resident_expert_share=share,
        resident_table_bytes=resident_tables,
        streamed_bytes=always + experts + tables - resident,
        memory_read_per_token=round(from_memory),
        disk_read_per_token=round(from_disk),
        tokens_per_second=1 / sum(seconds),
        tokens_per_second_overlapped=1 / max(seconds),
    )


def _rows_per_token(config: ModelConfig, form: str) -> int:
    """Bytes a disk moves for a token's looked-up rows, whole pages each."""

    def pages(row: float) -> int:
        return -(-int(row) // PAGE) * PAGE

    total = pages(2 * config.hidden_size)
    if config.memory:
        rows = len(config.memory.engram_layers) * len(config.memory.engram_vocab_size) * config.memory.engram_heads
        total += rows * pages(config.memory.engram_dim // config.memory.engram_heads * FORMATS[form])
    return total


def _context_read(config: ModelConfig, context: int) -> int:
    """Bytes of layer state that decoding one token reads: the chosen keys' rows, and all index keys."""
    index = CACHE_BYTES * config.selection.index_head_dim * keys_indexed(config, context) if config.selection else 0
    if config.compression is not None:
        return CACHE_BYTES * config.attention.head_dim * keys_read(config, context) + index
    return state_bytes(config)["kv"] // config.num_hidden_layers * keys_read(config, context) + index
