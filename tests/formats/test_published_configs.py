"""config.json of the Llama and latent formats: what the published members say, there and back, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import fourfold
from fourfold.config import AttentionConfig, ModelConfig, RopeScaling
from fourfold.errors import ConfigError
from fourfold.formats import adapter_for, adapter_of, export
from fourfold.model.rope import yarn_attention_scale, yarn_table_scale
from fourfold.model.transformer import Transformer
from fourfold.presets import preset
from tests import builders
from tests.formats.small import model, respell, same_bits

TRUNK = {"hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6, "attention_bias": False, "attention_dropout": 0.0}
LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_theta": 10000}
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
V1 = TRUNK | {
    "model_type": "llama",
    "vocab_size": 102400,
    "hidden_size": 4096,
    "num_hidden_layers": 30,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "tie_word_embeddings": False,
}
V2 = (
    TRUNK
    | LATENT
    | {
        "model_type": "deepseek_v2",
        "vocab_size": 102400,
        "hidden_size": 5120,
        "num_hidden_layers": 60,
        "intermediate_size": 12288,
        "max_position_embeddings": 163840,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        "n_routed_experts": 160,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1536,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 8,
        "topk_group": 3,
        "topk_method": "group_limited_greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 16.0,
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "bos_token_id": 100000,
        "eos_token_id": 100001,
    }
)
LITE = V2 | {
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "intermediate_size": 10944,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "n_routed_experts": 64,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
}
V3 = V2 | {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "intermediate_size": 18432,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}
V32 = V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
MEMBERS = {"v1-7b": V1, "v2": V2, "v2-lite": LITE, "v3": V3, "v3.2": V32}
DISTILL = V1 | {  # R1-Distill-Llama-8B
    "vocab_size": 128256,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}
CODER = V1 | {"rope_theta": 100000, "rope_scaling": {"factor": 4.0, "type": "linear"}, "max_position_embeddings": 16384}
MOE_16B = (
    TRUNK
    | {name: value for name, value in LITE.items() if name not in LATENT}
    | {
        "model_type": "deepseek",
        "num_hidden_layers": 28,
        "max_position_embeddings": 4096,
        "rope_theta": 10000,
        "rope_scaling": None,
        "topk_method": None,
    }
)


def read(published: dict[str, Any]) -> ModelConfig:
    return adapter_of(published["model_type"]).config(published)


def family(name: str) -> ModelConfig:
    """A preset, with the balance factor that the published files of V3 carry along from V2."""
    config = preset(name)
    return config if config.experts is None else config.but(experts__aux_loss_alpha=0.001)


@pytest.mark.parametrize("name", MEMBERS)
def test_members_are_the_presets(name: str) -> None:
    assert read(MEMBERS[name]) == family(name)


def test_a_llama_with_long_context() -> None:
    config = read(DISTILL)
    assert (config.attention.head_dim, config.attention.num_key_value_heads, config.eos_token_id) == (128, 8, 128001)
    scaling = RopeScaling(type="llama3", factor=8, original_max_position_embeddings=8192, low_freq_factor=1, high_freq_factor=4)
    assert (config.attention.rope_theta, config.attention.rope_scaling) == (500000.0, scaling)


def test_the_first_of_the_experts() -> None:
    config = read(MOE_16B)
    assert config.attention == AttentionConfig(num_attention_heads=16, head_dim=128)
    assert (config.experts.n_routed_experts, config.experts.scoring_func, config.experts.topk_method) == (64, "softmax", "greedy")
    count = sum(parameter.numel() for parameter in meta(config).parameters())
    assert count == pytest.approx(16.4e9, rel=0.01)  # 2401.06066, table 1


@pytest.mark.parametrize("published", [*MEMBERS.values(), DISTILL, CODER, MOE_16B], ids=[*MEMBERS, "distill", "coder", "moe-16b"])
def test_there_and_back(published: dict[str, Any]) -> None:
    config = read(published)
    adapter = adapter_for(config)
    assert adapter.model_type == published["model_type"]
    assert adapter.config(json.loads(json.dumps(adapter.published(config)))) == config


@pytest.mark.parametrize("published", [V1, LITE, V3, V32, DISTILL, CODER], ids=["v1", "lite", "v3", "v3.2", "distill", "coder"])
def test_both_ways_of_writing_rope(published: dict[str, Any]) -> None:
    """`rope_parameters` of transformers 5 mean what `rope_theta` and `rope_scaling` mean, and the latter wins where both are."""
    scaling = dict(published["rope_scaling"] or {})
    scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type", "default"))
    parameters = {"rope_parameters": scaling | {"rope_theta": published["rope_theta"]}}
    assert read({name: value for name, value in published.items() if not name.startswith("rope_")} | parameters) == read(published)
    if published["rope_scaling"]:
        assert read(published | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}) == read(published)


def test_v3_on_disk() -> None:
    """About 685B values, with the layer for multi-token prediction and its copies of embedding and head; without them 671B."""
    config, adapter = preset("v3"), adapter_of("deepseek_v3")
    tensors = meta(config).state_dict()

    def values(names: dict[str, Any]) -> float:
        return sum(tensors[place.name][place.part].numel() for place in names.values()) / 1e9

    assert values(adapter.places(config)) == pytest.approx(684.5, abs=0.1)
    without = adapter.fitted(config, [name for name in adapter.places(config) if not name.startswith("model.layers.61.")])
    assert without == config.but(num_nextn_predict_layers=0)
    assert values(adapter.places(without)) == pytest.approx(671.0, abs=0.1)


def test_mscales_left_out_are_one_and_zero() -> None:
    """Those of the code that came with V2's weights: the factor lies on cos and sin, the softmax scale has none."""
    scaling = read(V2 | {"rope_scaling": YARN}).attention.rope_scaling
    assert yarn_table_scale(scaling) == pytest.approx(0.1 * math.log(40) + 1) and yarn_attention_scale(scaling) == 1


@pytest.mark.parametrize("mscale", [(1.0, 1.0), (1.0, 0.0), (0.7, 0.4), (0.0, 0.0)])
def test_llama_keeps_the_temperature(mscale: tuple[float, float]) -> None:
    """Its files have one factor for cos and sin; whichever way ours says it, attention scores are multiplied by the same."""
    scaling = RopeScaling(factor=8, original_max_position_embeddings=64, mscale=mscale[0], mscale_all_dim=mscale[1])
    config = builders.base(attention=builders.GROUPED.but(rope_scaling=scaling))
    adapter = adapter_of("llama")
    back = adapter.config(adapter.published(config)).attention.rope_scaling
    assert temperature(back) == pytest.approx(temperature(scaling))
    assert adapter.config(adapter.published(config.but(attention__rope_scaling=back))).attention.rope_scaling == back


def test_several_end_tokens_or_none() -> None:
    config = read(V1 | {"eos_token_id": [7, 8], "pad_token_id": -1, "bos_token_id": None})
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (7, None, None)
    assert read(V1 | {"eos_token_id": []}).eos_token_id is None


REFUSED = [
    (V1, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    (V1, {"mlp_bias": True}, "mlp_bias is True"),
    (V1, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type is 'dynamic'"),
    (V1, {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
    (V1, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "original_max_position_embeddings is missing"),
    (V1, {"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate is False"),
    (V1, {"rope_scaling": YARN | {"attention_factor": "high"}}, "attention_factor is 'high'; it must be a number"),
    (V1, {"rope_scaling": YARN | {"type": ["yarn"]}}, "rope_scaling.type is ['yarn']"),
    (V1, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (V1, {"num_key_value_heads": 5}, "num_key_value_heads is 5"),
    (V1, {"num_attention_heads": None}, "num_attention_heads is missing"),
    (V1, {"vocab_size": "many"}, "vocab_size is 'many'"),
    (V1, {"eos_token_id": 200000}, "eos_token_id is 200000"),
    (V2, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    (V2, {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
    (V2, {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
    (V2, {"norm_topk_prob": True}, "norm_topk_prob is True"),
    (V2, {"rope_interleave": False}, "rope_interleave is False"),
    (V2, {"n_routed_experts": None}, "n_routed_experts is missing"),
    (V2, {"n_group": 7}, "n_group is 7"),
    (V2, {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
    (V3, {"kv_lora_rank": None}, "kv_lora_rank is missing"),
    (V3, {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.2}}, "rope_scaling.attention_factor"),
    (V3, {"topk_method": "greedy"}, "topk_method is 'greedy'"),
    (V32, {"q_lora_rank": None}, "q_lora_rank is missing"),
    (V32, {"index_topk": 0}, "index_topk is 0"),
    (V32, {"index_head_dim": 32}, "index_head_dim"),
    (MOE_16B, {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
]


@pytest.mark.parametrize(("published", "change", "said"), REFUSED)
def test_what_cannot_be_honoured_is_named(published: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(published | change)
    assert said in str(refused.value) and "\n" not in str(refused.value)


WORDLESS = [
    ("llama", lambda: preset("v3"), "experts"),
    ("llama", lambda: preset("v1-7b").but(num_nextn_predict_layers=1), "num_nextn_predict_layers is 1"),
    ("llama", lambda: preset("v1-7b").but(attention__rope_interleave=True), "rope_interleave"),
    ("deepseek_v2", lambda: preset("v3"), "num_nextn_predict_layers is 1"),
    ("deepseek_v2", lambda: preset("v3").but(num_nextn_predict_layers=0), "topk_method is 'noaux_tc'"),
    ("deepseek_v2", lambda: preset("v1-7b"), "experts"),
    ("deepseek_v3", lambda: preset("v2"), "topk_method is 'group_limited_greedy'"),
    ("deepseek_v3", lambda: preset("v3.2"), "selection"),
    ("deepseek_v3", lambda: preset("v4"), "selection"),
    ("deepseek_v32", lambda: preset("v3"), "selection"),
    ("deepseek_v32", lambda: preset("v4"), "streams"),
    ("deepseek_v32", lambda: preset("v4").but(streams=None), "memory"),
    ("deepseek_v32", lambda: preset("v3.2").but(selection__index_rope_head_dim=32), "index_rope_head_dim"),
    ("deepseek_v32", lambda: preset("v3.2").but(attention__rope_interleave=False), "rope_interleave is False"),
    ("deepseek", lambda: preset("v2").but(attention=preset("v1-7b").attention), "n_group is 8"),
    ("deepseek", lambda: read(MOE_16B).but(experts__routed_scaling_factor=2), "routed_scaling_factor is 2"),
]


@pytest.mark.parametrize(("kind", "config", "said"), WORDLESS)
def test_what_a_format_has_no_words_for_is_named(kind: str, config: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        adapter_of(kind).published(config())
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_copies_may_be_missing(tmp_path: Path) -> None:
    """Layers for multi-token prediction without their embedding and head."""
    ours = model("deepseek_v3")
    folder = export(ours, tmp_path / "theirs")
    copies = [f"model.layers.3.{name}.weight" for name in ("embed_tokens", "shared_head.head")]
    respell(folder, lambda tensors: [tensors.pop(name) for name in copies])
    assert same_bits(fourfold.load(folder), ours)


def test_a_tied_head_may_be_stored(tmp_path: Path) -> None:
    ours = builders.build(builders.base(tie_word_embeddings=True))
    folder = export(ours, tmp_path / "theirs")
    respell(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert same_bits(fourfold.load(folder), ours)


def meta(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def temperature(scaling: RopeScaling) -> float:
    """What YaRN multiplies grouped-query scores by: cos and sin come in twice."""
    return yarn_table_scale(scaling) ** 2 * yarn_attention_scale(scaling)
