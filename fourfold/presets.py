"""The family and our own sizes, as functions that return a ModelConfig.

Published members have the figures of their config.json. `v4` is the model that the articles of early 2026 describe, which was
never released: V3's latent attention, V3.2's indexer, mHC and Engram at about 1T parameters and 1M tokens of context. What was
released under that name has compressed attention and no Engram: `v4-flash` and `v4-pro`.
"""

from collections.abc import Callable

from fourfold.config import (
    AttentionConfig,
    CompressionConfig,
    ExpertsConfig,
    MediaInConfig,
    MediaOutConfig,
    MemoryConfig,
    ModelConfig,
    RopeScaling,
    SelectionConfig,
    StreamsConfig,
)
from fourfold.errors import ConfigError

YARN_40 = RopeScaling(factor=40, original_max_position_embeddings=4096)


def v1_7b() -> ModelConfig:
    """DeepSeek LLM 7B (2401.02954): a Llama-shaped model with multi-head attention."""
    return ModelConfig(
        vocab_size=102400,
        hidden_size=4096,
        num_hidden_layers=30,
        intermediate_size=11008,
        max_position_embeddings=4096,
        bos_token_id=100000,
        eos_token_id=100001,
        attention=AttentionConfig(num_attention_heads=32, head_dim=128),
    )


def v1_67b() -> ModelConfig:
    """DeepSeek LLM 67B: 95 layers, grouped-query attention with 8 groups."""
    grouped = AttentionConfig(num_attention_heads=64, num_key_value_heads=8, head_dim=128)
    return v1_7b().but(hidden_size=8192, num_hidden_layers=95, intermediate_size=22016, attention=grouped)


def v2() -> ModelConfig:
    """DeepSeek-V2 236B (2405.04434): MLA and fine-grained experts chosen within 3 of 8 groups."""
    return ModelConfig(
        vocab_size=102400,
        hidden_size=5120,
        num_hidden_layers=60,
        intermediate_size=12288,
        max_position_embeddings=163840,
        bos_token_id=100000,
        eos_token_id=100001,
        attention=_latent(heads=128, q_lora_rank=1536),
        experts=ExpertsConfig(
            n_routed_experts=160,
            n_shared_experts=2,
            num_experts_per_tok=6,
            moe_intermediate_size=1536,
            first_k_dense_replace=1,
            n_group=8,
            topk_group=3,
            topk_method="group_limited_greedy",
            scoring_func="softmax",
            norm_topk_prob=False,
            routed_scaling_factor=16.0,
            aux_loss_alpha=1e-3,
            bias_update_speed=0.0,
        ),
    )


def v2_lite() -> ModelConfig:
    """DeepSeek-V2-Lite 16B: no query latent, plain top-6 routing."""
    experts = dict(n_routed_experts=64, moe_intermediate_size=1408, n_group=1, topk_group=1, routed_scaling_factor=1.0)
    scaling = YARN_40.but(mscale=0.707, mscale_all_dim=0.707)
    return v2().but(
        hidden_size=2048,
        num_hidden_layers=27,
        intermediate_size=10944,
        attention=_latent(heads=16, q_lora_rank=None).but(rope_scaling=scaling),
        experts=v2().experts.but(topk_method="greedy", **experts),
    )


def v3() -> ModelConfig:
    """DeepSeek-V3 671B (2412.19437): sigmoid routing balanced by a bias, one multi-token prediction layer."""
    return ModelConfig(
        vocab_size=129280,
        hidden_size=7168,
        num_hidden_layers=61,
        intermediate_size=18432,
        max_position_embeddings=163840,
        num_nextn_predict_layers=1,
        attention=_latent(heads=128, q_lora_rank=1536),
        experts=ExpertsConfig(
            n_routed_experts=256,
            n_shared_experts=1,
            num_experts_per_tok=8,
            moe_intermediate_size=2048,
            first_k_dense_replace=3,
            n_group=8,
            topk_group=4,
            routed_scaling_factor=2.5,
        ),
    )


def v3_2() -> ModelConfig:
    """DeepSeek-V3.2: V3.1 with the lightning indexer."""
    return v3().but(selection=SelectionConfig(index_n_heads=64, index_head_dim=128, index_topk=2048))


def v4() -> ModelConfig:
    """The articles' V4: about 1T parameters, 16 of 576 experts a token, MLA, DSA, Engram, mHC, 1M tokens.

    Sizes that the articles leave open follow the papers: Engram in layers 1 and 15 with orders 2 and 3 (2601.07372, appendix A)
    and near a quarter of the sparse parameters; experts narrower than V3's, because 16 of them work at once. Pictures are seen as
    V4.1-Flash sees them (32 layers, 3 x 3 patches to one place, at most 1024 places), sound at 12.5 places a second; what is drawn
    has the 64,000 codes of the largest quantiser in 2309.15505, 1024 for 512 pixels squared.
    """
    scaling = RopeScaling(factor=256, original_max_position_embeddings=4096)
    return v3_2().but(
        max_position_embeddings=1 << 20,
        attention=v3().attention.but(rope_scaling=scaling),
        experts=v3().experts.but(n_routed_experts=576, num_experts_per_tok=16, moe_intermediate_size=1024),
        streams=StreamsConfig(hc_mult=4),
        memory=MemoryConfig(
            engram_layers=(1, 15),
            engram_vocab_size=(27_800_000, 27_800_000),
            engram_dim=2048,
            engram_pad_id=2,
            engram_compressed_vocab_size=99092,
        ),
        media_in=MediaInConfig(
            image_patch_size=42,
            image_longest=1344,
            clip_longest=672,
            clip_rate=2.0,
            clip_frames=256,
            audio_mel_bins=128,
            tower_layers=32,
            audio_tower_layers=16,
            tower_hidden_size=1280,
            tower_intermediate_size=3456,
            tower_heads=20,
            tower_patch_size=14,
        ),
        media_out=MediaOutConfig(image_token_size=64000, code_downsample=16, image_grid=(32, 32), film_grid=(16, 16, 16)),
    )


def v4_lite() -> ModelConfig:
    """The same design at about 200B: a machine with one large accelerator, or a patient workstation."""
    return v4().but(
        hidden_size=4096,
        num_hidden_layers=43,
        intermediate_size=12288,
        attention=_latent(heads=64, q_lora_rank=1024).but(rope_scaling=v4().attention.rope_scaling),
        experts=v4().experts.but(n_routed_experts=256, moe_intermediate_size=1152),
        memory=v4().memory.but(engram_vocab_size=(10_500_000, 10_500_000), engram_dim=1024),
        media_in=v4().media_in.but(
            tower_layers=24, audio_tower_layers=12, tower_hidden_size=1024, tower_intermediate_size=2752, tower_heads=16
        ),
    )


def v4_flash() -> ModelConfig:
    """DeepSeek-V4-Flash 284B as released (2606.19348): two layers of the window alone, then CSA and HCA in turn."""
    ratios = (0, 0, *(4, 128) * 20, 4, 0)
    return ModelConfig(
        vocab_size=129280,
        hidden_size=4096,
        num_hidden_layers=43,
        intermediate_size=2048,  # of dense layers, of which there is none
        max_position_embeddings=1 << 20,
        num_nextn_predict_layers=1,
        attention=AttentionConfig(
            num_attention_heads=64,
            num_key_value_heads=1,
            head_dim=512,
            q_lora_rank=1024,
            qk_rope_head_dim=64,
            rope_scaling=RopeScaling(factor=16, original_max_position_embeddings=65536),
        ),
        selection=SelectionConfig(index_n_heads=64, index_head_dim=128, index_topk=512),
        compression=CompressionConfig(compress_ratios=ratios, sliding_window=128, o_groups=8, o_lora_rank=1024),
        experts=ExpertsConfig(
            n_routed_experts=256,
            n_shared_experts=1,
            num_experts_per_tok=6,
            moe_intermediate_size=2048,
            scoring_func="sqrtsoftplus",
            routed_scaling_factor=1.5,
            num_hash_layers=3,
            swiglu_limit=10.0,
        ),
        streams=StreamsConfig(hc_mult=4, hc_mtp=True),
    )


def v4_pro() -> ModelConfig:
    """DeepSeek-V4-Pro 1.6T as released: wider and deeper, its first two layers HCA."""
    flash = v4_flash()
    experts = dict(n_routed_experts=384, moe_intermediate_size=3072, routed_scaling_factor=2.5)
    return flash.but(
        hidden_size=7168,
        num_hidden_layers=61,
        intermediate_size=3072,
        attention=flash.attention.but(num_attention_heads=128, q_lora_rank=1536),
        selection=flash.selection.but(index_topk=1024),
        compression=flash.compression.but(compress_ratios=(128, 128, *(4, 128) * 29, 4, 0), o_groups=16),
        experts=flash.experts.but(**experts),
    )


def nano() -> ModelConfig:
    """All of v4's parts at about 7M active parameters: what two cores can train in an evening."""
    return ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        num_hidden_layers=6,
        intermediate_size=640,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.03,
        num_nextn_predict_layers=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attention=AttentionConfig(
            num_attention_heads=8,
            q_lora_rank=96,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=32,
        ),
        selection=SelectionConfig(index_n_heads=4, index_head_dim=32, index_topk=128),
        experts=ExpertsConfig(
            n_routed_experts=16,
            n_shared_experts=1,
            num_experts_per_tok=4,
            moe_intermediate_size=128,
            first_k_dense_replace=1,
        ),
        streams=StreamsConfig(hc_mult=4),
        memory=MemoryConfig(engram_layers=(1, 3), engram_vocab_size=(3701, 3701), engram_dim=128, engram_heads=4),
    )


def nano_dense() -> ModelConfig:
    """What nano is measured against: a plain transformer with its attention and as many active parameters, all of them dense."""
    return nano().but(
        intermediate_size=880,
        num_nextn_predict_layers=0,
        selection=None,
        experts=None,
        streams=None,
        memory=None,
    )


def micro() -> ModelConfig:
    """About 1M active parameters, for ablations."""
    small = dict(num_attention_heads=4, q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16, v_head_dim=16)
    return nano().but(
        hidden_size=80,
        num_hidden_layers=4,
        intermediate_size=224,
        attention=nano().attention.but(**small),
        selection=SelectionConfig(index_n_heads=2, index_head_dim=16, index_topk=64),
        experts=nano().experts.but(moe_intermediate_size=48),
        memory=nano().memory.but(engram_vocab_size=(601, 601), engram_dim=64),
    )


def debug() -> ModelConfig:
    """Every part at the smallest size that still means something: builds and trains in seconds."""
    return micro().but(
        hidden_size=32,
        num_hidden_layers=3,
        intermediate_size=64,
        attention=micro().attention.but(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8),
        selection=SelectionConfig(index_n_heads=4, index_head_dim=8, index_topk=16),
        experts=micro().experts.but(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16),
        memory=micro().memory.but(engram_layers=(1,), engram_vocab_size=(251, 251), engram_dim=16, engram_heads=2),
    )


def nano_omni() -> ModelConfig:
    """nano that also reads pictures, clips and sound, and draws pictures and clips."""
    return _omni(nano())


def micro_omni() -> ModelConfig:
    """micro with the same media parts: one arm of a study of modalities."""
    return _omni(micro())


def debug_omni() -> ModelConfig:
    """debug with the same media parts, so that it takes the same data and the same codec."""
    return _omni(debug())


def _omni(config: ModelConfig) -> ModelConfig:
    """The media parts of our own sizes: patches of 8 x 8 pixels and of 80 ms, straight into the trunk."""
    return config.but(
        media_in=MediaInConfig(image_patch_size=8, audio_mel_bins=80, image_place_waves=6),
        media_out=MediaOutConfig(image_token_size=1000, code_place_waves=6),
    )


def _latent(heads: int, q_lora_rank: int | None) -> AttentionConfig:
    """MLA as V2 and V3 have it."""
    return AttentionConfig(
        num_attention_heads=heads,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        rope_scaling=YARN_40,
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "v1-7b": v1_7b,
    "v1-67b": v1_67b,
    "v2-lite": v2_lite,
    "v2": v2,
    "v2.5": v2,
    "v3": v3,
    "r1": v3,
    "v3.1": v3,
    "v3.2": v3_2,
    "v4-lite": v4_lite,
    "v4": v4,
    "v4-flash": v4_flash,
    "v4-pro": v4_pro,
    "nano": nano,
    "nano-omni": nano_omni,
    "nano-dense": nano_dense,
    "micro": micro,
    "micro-omni": micro_omni,
    "debug": debug,
    "debug-omni": debug_omni,
}


def preset(name: str) -> ModelConfig:
    """The config of a family member. Raises ConfigError with the names there are."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
