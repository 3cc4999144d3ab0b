"""Small models with compressed attention, for tests: every kind of layer, the released ratios, no choice among blocks."""

import torch
from torch import Tensor

from fourfold.config import AttentionConfig, CompressionConfig, ExpertsConfig, ModelConfig, SelectionConfig, StreamsConfig
from fourfold.model.transformer import Transformer
from tests.builders import ENGRAM, YARN, base

LENGTH = 96
DOCUMENTS = torch.tensor([[0] * 37 + [1] + [2] * 5 + [3] * 2 + [4] * 51, [5] * 96, [6, 7] + [8] * 94])
HEADS = AttentionConfig(
    num_attention_heads=6, num_key_value_heads=1, head_dim=14, q_lora_rank=18, qk_rope_head_dim=6, rope_scaling=YARN
)
ROUTER = ExpertsConfig(
    n_routed_experts=7,
    num_experts_per_tok=2,
    moe_intermediate_size=10,
    n_shared_experts=1,
    scoring_func="sqrtsoftplus",
    num_hash_layers=1,
    swiglu_limit=0.3,
)


def small() -> ModelConfig:
    """Every kind of layer with short blocks, hash-routed and clamped experts, streams and their multi-token prediction."""
    compression = CompressionConfig(compress_ratios=(7, 3, 0, 0), sliding_window=5, o_groups=3, o_lora_rank=4, csa_ratio=3)
    index = SelectionConfig(index_n_heads=5, index_head_dim=10, index_topk=4)
    streams = StreamsConfig(hc_mult=2, hc_mtp=True)
    parts = dict(attention=HEADS, selection=index, compression=compression, experts=ROUTER, streams=streams)
    return base(**parts, num_nextn_predict_layers=1)


def released() -> ModelConfig:
    """The ratios of the released models, one stream, Engram beside them; two index heads, so that many scores are zero."""
    compression = CompressionConfig(compress_ratios=(4, 128, 4), sliding_window=23, o_groups=2, o_lora_rank=7)
    index = SelectionConfig(index_n_heads=2, index_head_dim=8, index_topk=9)
    return base(attention=HEADS, selection=index, compression=compression, experts=ROUTER, memory=ENGRAM)


def alone() -> ModelConfig:
    """Blocks without a choice among them, in a window of one token, without YaRN; dense feed-forward."""
    compression = CompressionConfig(compress_ratios=(2, 5, 1), sliding_window=1, o_groups=1, o_lora_rank=9)
    return base(attention=HEADS.but(rope_scaling=None), compression=compression)


CONFIGS = {"small": small, "released": released, "alone": alone}


@torch.no_grad()
def plain(model: Transformer, tokens: Tensor) -> Tensor:
    return model(tokens).logits
