"""Impossible configs are one line that names the field; what is possible survives config.json unchanged."""

import json

import pytest
from pydantic import ValidationError

from fourfold.config import (
    LATER,
    PARTS,
    AttentionConfig,
    ExpertsConfig,
    MediaInConfig,
    MemoryConfig,
    ModelConfig,
    Part,
    RopeScaling,
    SelectionConfig,
)
from fourfold.errors import ConfigError, FourfoldError
from fourfold.presets import PRESETS, preset
from tests.builders import CONFIGS, everything, grouped, multi_head
from tests.model.compressing import small as compressed

TOWER = {"tower_layers": 1, "tower_hidden_size": 24, "tower_intermediate_size": 32, "tower_heads": 2}


def drawing() -> ModelConfig:
    """With both media parts."""
    return preset("debug-omni")


IMPOSSIBLE = [  # the config, what is changed in its flat form, and what the message must begin with
    (everything, {"hidden_size": 0}, "hidden_size is 0"),
    (everything, {"hidden_size": -8}, "hidden_size is -8"),
    (everything, {"hidden_size": "wide"}, "hidden_size is 'wide'"),
    (everything, {"hidden_size": 2.5}, "hidden_size is 2.5"),
    (everything, {"hidden_size": float("nan")}, "hidden_size is nan"),
    (everything, {"vocab_size": None}, "vocab_size is None"),
    (everything, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    (everything, {"intermediate_size": 0}, "intermediate_size is 0"),
    (everything, {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    (everything, {"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
    (everything, {"initializer_range": -1.0}, "initializer_range is -1.0"),
    (everything, {"tie_word_embeddings": "perhaps"}, "tie_word_embeddings is 'perhaps'"),
    (everything, {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers is -1"),
    (everything, {"pad_token_id": 61}, "pad_token_id is 61, outside vocab_size (61)"),
    (everything, {"bos_token_id": 100}, "bos_token_id is 100, outside"),
    (everything, {"eos_token_id": 61}, "eos_token_id is 61, outside"),
    (everything, {"eos_token_id": -1}, "eos_token_id is -1"),
    (everything, {"hiden_size": 5}, "hiden_size is not a known field; check its spelling"),
    (everything, {"num_attention_heads": 0}, "num_attention_heads is 0"),
    (everything, {"head_dim": 8}, "head_dim does not apply"),
    (everything, {"v_head_dim": None}, "v_head_dim is needed"),
    (everything, {"qk_nope_head_dim": None}, "qk_nope_head_dim is needed"),
    (everything, {"qk_rope_head_dim": None}, "qk_rope_head_dim is needed"),
    (everything, {"qk_rope_head_dim": 7}, "qk_rope_head_dim must be even"),
    (everything, {"kv_lora_rank": 0}, "kv_lora_rank is 0"),
    (everything, {"kv_lora_rank": None}, "head_dim is needed"),
    (everything, {"rope_theta": 0}, "rope_theta is 0"),
    (everything, {"rope_scaling": {"factor": 4}}, "original_max_position_embeddings is missing"),
    (everything, {"rope_scaling": {"factor": -1, "original_max_position_embeddings": 8}}, "factor is -1"),
    (everything, {"rope_scaling": {"type": "ntk", "factor": 2, "original_max_position_embeddings": 8}}, "type is 'ntk'"),
    (everything, {"rope_scaling": {"facto": 2}}, "factor is missing"),
    (everything, {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
    (grouped, {"head_dim": None}, "head_dim is needed"),
    (grouped, {"head_dim": 9}, "head_dim must be even"),
    (grouped, {"num_key_value_heads": 4}, "num_key_value_heads is 4, which must divide num_attention_heads (6)"),
    (grouped, {"q_lora_rank": 8}, "q_lora_rank needs kv_lora_rank"),
    (grouped, {"v_head_dim": 8}, "v_head_dim needs kv_lora_rank"),
    (everything, {"index_topk": 0}, "index_topk is 0"),
    (everything, {"index_n_heads": None}, "index_n_heads is None"),
    (everything, {"index_rope_head_dim": 16}, "index_rope_head_dim must not exceed index_head_dim"),
    (everything, {"index_rope_head_dim": 5}, "index_rope_head_dim must be even"),
    (everything, {"n_routed_experts": 0}, "n_routed_experts is 0"),
    (everything, {"n_routed_experts": 10}, "n_group is 4, which must divide n_routed_experts (10)"),
    (everything, {"topk_group": 5}, "topk_group is 5, more than n_group (4)"),
    (everything, {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, more than the 4 a token may choose from"),
    (everything, {"n_group": 8, "topk_group": 4}, "n_group leaves one expert a group"),
    (everything, {"topk_method": "random"}, "topk_method is 'random'"),
    (everything, {"scoring_func": "tanh"}, "scoring_func is 'tanh'"),
    (everything, {"n_shared_experts": -1}, "n_shared_experts is -1"),
    (everything, {"first_k_dense_replace": 4}, "first_k_dense_replace is 4, more than num_hidden_layers (3)"),
    (everything, {"routed_scaling_factor": 0}, "routed_scaling_factor is 0"),
    (everything, {"aux_loss_alpha": -0.1}, "aux_loss_alpha is -0.1"),
    (everything, {"hc_mult": 0}, "hc_mult is 0"),
    (everything, {"hc_kind": "wide"}, "hc_kind is 'wide'"),
    (everything, {"hc_sinkhorn_iters": 0}, "hc_sinkhorn_iters is 0"),
    (everything, {"engram_layers": [3]}, "engram_layers names layer [3], outside 0..2"),
    (everything, {"engram_layers": [-1]}, "engram_layers names layer [-1]"),
    (everything, {"engram_layers": [1, 1]}, "engram_layers names a layer twice"),
    (everything, {"engram_layers": 1}, "engram_layers is 1"),
    (everything, {"engram_vocab_size": []}, "engram_vocab_size names no order"),
    (everything, {"engram_vocab_size": [50, 0]}, "engram_vocab_size.1 is 0"),
    (everything, {"engram_dim": 13}, "engram_heads is 3, which must divide engram_dim (13)"),
    (everything, {"engram_kernel_size": 0}, "engram_kernel_size is 0"),
    (everything, {"engram_pad_id": 37}, "engram_pad_id is 37, outside the 37 ids"),
    (everything, {"engram_compressed_vocab_size": 62}, "engram_compressed_vocab_size is 62, more than vocab_size"),
    (everything, {"num_hash_layers": 4}, "num_hash_layers is 4, more than num_hidden_layers (3)"),
    (everything, {"num_hash_layers": -1}, "num_hash_layers is -1"),
    (everything, {"swiglu_limit": 0}, "swiglu_limit is 0"),
    (everything, {"compress_ratios": [0] * 5, "sliding_window": 3, "o_groups": 1, "o_lora_rank": 2}, "kv_lora_rank does not go"),
    (grouped, {"qk_rope_head_dim": 4}, "qk_rope_head_dim needs kv_lora_rank or compress_ratios"),
    (compressed, {"compress_ratios": [0, 4]}, "compress_ratios has 2 numbers; give one for each of 4 layers"),
    (compressed, {"compress_ratios": [0, 4, -1, 0]}, "compress_ratios.2 is -1"),
    (compressed, {"compress_ratios": None}, "compress_ratios is None"),
    (compressed, {"sliding_window": 0}, "sliding_window is 0"),
    (compressed, {"o_groups": 4}, "o_groups is 4, which must divide num_attention_heads (6)"),
    (compressed, {"num_key_value_heads": 2}, "num_key_value_heads must be 1"),
    (compressed, {"q_lora_rank": None}, "q_lora_rank is needed with compress_ratios"),
    (compressed, {"qk_rope_head_dim": None}, "qk_rope_head_dim is needed with compress_ratios"),
    (compressed, {"qk_rope_head_dim": 16}, "qk_rope_head_dim is 16, more than head_dim (14)"),
    (compressed, {"index_head_dim": 4}, "index_head_dim is 4, less than qk_rope_head_dim (6)"),
    (compressed, {"rope_interleave": False}, "rope_interleave is False, but with compress_ratios"),
    (compressed, {"index_rope_head_dim": 4}, "index_rope_head_dim does not go with compress_ratios"),
    (compressed, {"compress_rope_theta": 1}, "compress_rope_theta is 1: input should be greater than 1"),
    (compressed, {"attention_bias": True}, "attention_bias does not go with compress_ratios"),
    (compressed, {"image_token_size": 9}, "compress_ratios does not go with media parts"),
    (everything, {"num_hash_layers": 1, "image_token_size": 9}, "num_hash_layers does not go with media parts"),
    (grouped, {"head_dim": 4, "image_token_size": 9}, "head_dim is 4; time, row and column need 6 rotated channels"),
    (everything, {"image_patch_size": 8}, "audio_mel_bins is missing"),
    (everything, {"audio_mel_bins": 80}, "image_patch_size is missing"),
    (everything, {"image_grid": [8, 8]}, "image_token_size is missing"),
    (drawing, {"image_grid": [8, 0]}, "image_grid.1 is 0"),
    (drawing, {"film_grid": [8, 8]}, "film_grid.2 is missing"),
    (drawing, {"image_longest": 4}, "image_longest is 4, less than image_patch_size (8)"),
    (drawing, {"clip_rate": 0}, "clip_rate is 0"),
    (drawing, {"tower_layers": 2}, "tower_hidden_size is needed with a tower"),
    (drawing, {"tower_heads": 2}, "tower_heads needs tower_layers or audio_tower_layers"),
    (drawing, {"tower_patch_size": 4}, "tower_patch_size needs tower_layers"),
    (drawing, TOWER | {"tower_heads": 5}, "tower_heads is 5, which must divide tower_hidden_size (24)"),
    (drawing, TOWER | {"tower_heads": 4}, "tower_heads leaves 6 channels a head"),
    (drawing, TOWER | {"tower_patch_size": 3}, "tower_patch_size is 3, which must divide image_patch_size (8)"),
]
REQUIRED = ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"]


def message(config, changes: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_flat(config().to_flat() | changes)
    return str(caught.value)


@pytest.mark.parametrize(("config", "changes", "begins"), IMPOSSIBLE, ids=[f"{i}: {c[1]}" for i, c in enumerate(IMPOSSIBLE)])
def test_an_impossible_config_names_its_field_in_one_line(config, changes: dict, begins: str) -> None:
    said = message(config, changes)
    assert said.startswith(begins)
    assert "\n" not in said


@pytest.mark.parametrize("field", [*REQUIRED, "num_attention_heads", "index_topk", "n_routed_experts", "engram_dim"])
def test_a_missing_field_is_named(field: str) -> None:
    flat = everything().to_flat()
    del flat[field]
    with pytest.raises(ConfigError, match=f"^{field} is missing; set it$"):
        ModelConfig.from_flat(flat)


def test_a_missing_or_misshapen_part_is_named() -> None:
    sizes = {name: getattr(everything(), name) for name in REQUIRED}
    with pytest.raises(ConfigError, match="^attention is missing"):
        ModelConfig(**sizes)
    with pytest.raises(ConfigError, match="^attention is missing"):
        ModelConfig.from_flat(sizes)
    with pytest.raises(ConfigError, match="^attention is 5"):
        ModelConfig(**sizes, attention=5)
    with pytest.raises(ConfigError, match="^streams is 4"):
        ModelConfig(**sizes, attention=grouped().attention, streams=4)


@pytest.mark.parametrize("flat", [[], None, "x", 3])
def test_what_is_no_object_is_refused(flat: object) -> None:
    with pytest.raises(ConfigError, match="must hold one JSON object"):
        ModelConfig.from_flat(flat)


@pytest.mark.parametrize("name", [*PRESETS, *CONFIGS])
def test_round_trip_through_json(name: str) -> None:
    config = PRESETS[name]() if name in PRESETS else CONFIGS[name]()
    flat = config.to_flat()
    assert flat["model_type"] == "fourfold"
    assert not [key for key in flat if key in PARTS], "parts lie flat"
    again = ModelConfig.from_flat(json.loads(json.dumps(flat)))
    assert again == config
    assert again.to_flat() == flat


def test_parts_that_are_absent_leave_no_field() -> None:
    flat = multi_head().to_flat()
    for part in ("selection", "compression", "experts", "streams", "memory", "media_in", "media_out"):
        assert not set(PARTS[part].model_fields) & set(flat)


def test_fields_that_came_later_leave_no_trace_where_they_say_nothing() -> None:
    media = MediaInConfig(image_patch_size=8, audio_mel_bins=80)
    flat = everything().but(media_in=media).to_flat()
    assert not LATER & flat.keys()
    paired = everything().but(media_in=media.but(clip_patch_frames=2))
    assert LATER <= compressed().to_flat().keys() | paired.to_flat().keys()
    for config in (compressed(), paired):
        assert ModelConfig.from_flat(config.to_flat()) == config


def test_a_layer_that_chooses_blocks_needs_an_indexer() -> None:
    with pytest.raises(ConfigError, match="^index_topk is needed: layers of compress ratio 3 choose blocks"):
        compressed().but(selection=None)


def test_no_two_parts_share_a_field_name() -> None:
    names = [name for part in PARTS.values() for name in part.model_fields] + list(ModelConfig.model_fields)
    assert len(set(names)) == len(names)


def test_published_names() -> None:
    """Those of config.json files in the wild, so that a reader finds what he knows."""
    flat = preset("v4").to_flat()
    for (
        name
    ) in """hidden_size kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim n_routed_experts n_shared_experts
        num_experts_per_tok moe_intermediate_size first_k_dense_replace n_group topk_group topk_method scoring_func norm_topk_prob
        routed_scaling_factor index_n_heads index_head_dim index_topk hc_mult hc_sinkhorn_iters hc_eps num_nextn_predict_layers
        rope_theta rope_scaling rms_norm_eps tie_word_embeddings initializer_range bos_token_id eos_token_id""".split():
        assert name in flat, name


def test_but_changes_one_field_and_checks_it() -> None:
    config = everything()
    assert config.but(hidden_size=30).hidden_size == 30
    assert config.but(experts__topk_group=3).experts.topk_group == 3
    assert config.but(**{"attention.rope_scaling.factor": 3.0}).attention.rope_scaling.factor == 3.0
    assert config == everything(), "the original stays"
    with pytest.raises(ConfigError, match="topk_group is 9"):
        config.but(experts__topk_group=9)
    with pytest.raises(ConfigError, match="nothing is not a known field"):
        config.but(nothing=1)


def test_configs_are_frozen() -> None:
    config = everything()
    with pytest.raises(ValidationError):
        config.hidden_size = 3
    assert hash(config) == hash(everything())


def test_each_error_is_a_fourfold_error() -> None:
    assert issubclass(ConfigError, FourfoldError)
    for part, values in ((AttentionConfig, {}), (SelectionConfig, {}), (ExpertsConfig, {}), (MemoryConfig, {}), (RopeScaling, {})):
        assert issubclass(part, Part)
        with pytest.raises(ConfigError, match=r"^\w+ is missing; set it$"):
            part(**values)


def test_what_follows_from_the_fields() -> None:
    latent, plain = everything(), multi_head()
    assert (latent.attention.is_latent, latent.attention.rope_dim, latent.attention.interleaved) == (True, 6, True)
    assert (plain.attention.is_latent, plain.attention.rope_dim, plain.attention.interleaved) == (False, 8, False)
    assert plain.attention.key_value_heads == 3
    assert plain.but(attention__rope_interleave=True).attention.interleaved
    assert [latent.has_experts(i) for i in range(4)] == [False, True, True, True]
    assert not any(plain.has_experts(i) for i in range(4))
    assert latent.index_rope_dim == 6
    assert latent.but(selection__index_head_dim=5).index_rope_dim == 4
    assert latent.but(selection__index_rope_head_dim=2).index_rope_dim == 2
    assert (latent.memory.max_ngram, latent.memory.width) == (3, 24)
