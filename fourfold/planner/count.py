"""Parameters of a config, counted on the model itself (built without memory), part by part.

The rule: `total` has embeddings and head, multi-token prediction apart; `active` is what one token multiplies with: the head but
not the input table, the chosen experts only, and of Engram's tables only the rows fetched; and nothing of the media parts, which
text does not touch. So counted, V3 is 671.0e9 / 36.6e9.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from fourfold.config import ModelConfig
from fourfold.model.transformer import Transformer

MEDIA = "media"  # what reads patches, and the table and head of codes

# the first match names the part; order matters (an indexer lies inside an attention)
PARTS = (
    ("mtp.", "multi-token prediction"),
    ("media.", MEDIA),
    ("code_", MEDIA),
    (".engram.table.", "engram tables"),
    (".engram.", "engram projections"),
    (".indexer.", "indexer"),
    (".attention.", "attention"),
    (".ffn.router.", "routers"),
    (".ffn.gate_up.", "routed experts"),
    (".ffn.down.", "routed experts"),
    (".ffn.shared.", "shared experts"),
    (".ffn.", "dense feed-forward"),
    ("_site.", "streams"),
    ("collapse.", "streams"),
    ("embed.", "embedding"),
    ("head", "head"),
    ("norm", "norms"),
)
EXACT = {"routers", "streams", "norms", "embedding", "head", MEDIA}  # parts that quantisation leaves in 16 bits, as published


@dataclass(frozen=True)
class Counts:
    """Parameters by part (a tied head is counted once, as the head), and the sums that people quote."""

    parts: dict[str, int]
    total: int
    active: int
    active_routed: int  # of the routed experts, those a token takes
    vectors: int  # parameters of one dimension, which no format packs

    @property
    def engram(self) -> int:
        return self.parts.get("engram tables", 0)

    @property
    def media(self) -> int:
        return self.parts.get(MEDIA, 0)

    @property
    def mtp(self) -> int:
        return self.parts.get("multi-token prediction", 0)

    @property
    def engram_share(self) -> float:
        """Engram's share of the sparse parameters (total - active)."""
        return self.engram / max(self.total - self.active, 1)


@lru_cache(maxsize=4)
def skeleton(config: ModelConfig) -> Transformer:
    """The model with shapes and no memory, to be read only."""
    with torch.device("meta"):
        return Transformer(config)


def count(config: ModelConfig) -> Counts:
    parts: dict[str, int] = {}
    vectors = 0
    for name, parameter in skeleton(config).named_parameters():
        part = part_of(name, config)
        parts[part] = parts.get(part, 0) + parameter.numel()
        if parameter.dim() < 2 and part not in EXACT and part != "multi-token prediction":
            vectors += parameter.numel()
    total = sum(parts.values()) - parts.get("multi-token prediction", 0)
    routed = parts.get("routed experts", 0)
    chosen = routed * config.experts.num_experts_per_tok // config.experts.n_routed_experts if routed else 0
    tables = parts.get("engram tables", 0)
    fetched = len(config.memory.engram_layers) * config.memory.width if config.memory else 0
    untouched = parts.get("embedding", 0) + parts.get(MEDIA, 0)
    active = total - untouched - routed + chosen - tables + fetched
    return Counts(parts, total, active, chosen, vectors)


def part_of(name: str, config: ModelConfig) -> str:
    part = next(part for pattern, part in PARTS if name.startswith(pattern) or pattern in name)
    return "head" if part == "embedding" and config.tie_word_embeddings else part
