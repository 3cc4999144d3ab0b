"""Small models for tests: odd sizes, every part in one of them, and weights with spread, far from any identity start."""

from collections.abc import Callable

import torch
from torch import Tensor

from fourfold.config import (
    AttentionConfig,
    ExpertsConfig,
    MemoryConfig,
    ModelConfig,
    RopeScaling,
    SelectionConfig,
    StreamsConfig,
)
from fourfold.model.transformer import Transformer

VOCABULARY, CLASSES = 61, 37  # tokens, and the fewer classes that Engram's compression leaves of them
YARN = RopeScaling(factor=8, original_max_position_embeddings=16)
V3_ROUTER = ExpertsConfig(
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=3,
    moe_intermediate_size=10,
    first_k_dense_replace=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=1.7,
)
V2_ROUTER = V3_ROUTER.but(
    n_routed_experts=9,
    n_group=3,
    topk_method="group_limited_greedy",
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=3.0,
    n_shared_experts=2,
)
INDEXER = SelectionConfig(index_n_heads=5, index_head_dim=14, index_topk=9)
ENGRAM = MemoryConfig(
    engram_layers=(0, 2),
    engram_vocab_size=(101, 67),
    engram_dim=12,
    engram_heads=3,
    engram_kernel_size=4,
    engram_pad_id=5,
    engram_compressed_vocab_size=CLASSES,
)
LATENT = AttentionConfig(
    num_attention_heads=3, q_lora_rank=18, kv_lora_rank=14, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=7, rope_scaling=YARN
)
GROUPED = AttentionConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=10)


def base(**parts: object) -> ModelConfig:
    """Three layers, hidden size 22, with the parts given."""
    return ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=22,
        num_hidden_layers=3,
        intermediate_size=26,
        max_position_embeddings=256,
        initializer_range=0.15,
        **{"attention": GROUPED, **parts},
    )


def everything() -> ModelConfig:
    """V4's design: latent attention under YaRN, indexer, V3 router in groups, three mHC streams, Engram, two MTP depths."""
    streams = StreamsConfig(hc_mult=3)
    return base(attention=LATENT, selection=INDEXER, experts=V3_ROUTER, streams=streams, memory=ENGRAM, num_nextn_predict_layers=2)


def wide_latent() -> ModelConfig:
    """Latent attention without a query latent, its rank so large that long chunks are read expanded; softmax router, Engram."""
    latent = LATENT.but(q_lora_rank=None, kv_lora_rank=30, rope_scaling=None)
    return base(attention=latent, selection=INDEXER, experts=V2_ROUTER, memory=ENGRAM, tie_word_embeddings=True)


def grouped() -> ModelConfig:
    """Grouped queries with the indexer reading the layer input, two free streams, Engram with three orders and no compression."""
    memory = ENGRAM.but(engram_vocab_size=(53, 31, 17), engram_compressed_vocab_size=None, engram_kernel_size=3)
    return base(selection=INDEXER, experts=V2_ROUTER, streams=StreamsConfig(hc_kind="hc", hc_mult=2), memory=memory)


def multi_head() -> ModelConfig:
    """V1's design: plain multi-head attention with biases, dense feed-forward, one residual stream."""
    return base(attention=AttentionConfig(num_attention_heads=3, head_dim=8, attention_bias=True))


CONFIGS: dict[str, Callable[[], ModelConfig]] = {
    "everything": everything,
    "wide_latent": wide_latent,
    "grouped": grouped,
    "multi_head": multi_head,
}


def token_classes(config: ModelConfig) -> Tensor | None:
    """A compression map that sends several tokens to one class."""
    if config.memory is None or config.memory.engram_compressed_vocab_size is None:
        return None
    return (torch.arange(config.vocab_size) * 7) % config.memory.engram_compressed_vocab_size


def build(config: ModelConfig, seed: int = 1) -> Transformer:
    """A model in evaluation mode with `scatter`ed weights."""
    return scatter(Transformer(config, token_classes(config)).init_weights(seed), seed).eval()


@torch.no_grad()
def scatter(model: Transformer, seed: int) -> Transformer:
    """Norms, biases, convolutions and stream mixing away from where they start; weights as `init_weights` draws them."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.dtype) * std

    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last == "scale":
            parameter.copy_(noise(parameter, 0.3) + 0.7)
        elif parameter.dim() == 1 or last.endswith("_norm"):
            parameter.add_(noise(parameter, 0.3))
        elif last == "conv":
            parameter.copy_(noise(parameter, 0.5))
    for router in model.routers():
        if router.balanced:
            router.bias.copy_(noise(router.bias, 0.1))
        if router.media:
            router.media_bias.copy_(noise(router.media_bias, 0.1))
    return model


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    """Tokens with repeated n-grams, as text has them: few of the vocabulary come often."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randint(0, 6, shape, generator=generator)
    rare = torch.randint(0, VOCABULARY, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, common, rare)
