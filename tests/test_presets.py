"""The family's sizes, counted here from the shapes of a model on the meta device: no formula of the library's own.

The rule: total has embeddings and head, multi-token prediction apart; active has the head but not the input table, of the experts
those that a token takes, of Engram the rows that it fetches.
"""

from functools import cache
from math import prod

import pytest
import torch

from fourfold.errors import ConfigError
from fourfold.model.transformer import Transformer
from fourfold.presets import PRESETS, preset

PUBLISHED = {  # total, active; where only the total was published, None
    "v1-7b": (6.91e9, None),
    "v1-67b": (67.4e9, None),
    "v2-lite": (15.7e9, 2.45e9),
    "v2": (235.7e9, 20.9e9),
    "v2.5": (235.7e9, 20.9e9),
    "v3": (671.0e9, 36.6e9),
    "r1": (671.0e9, 36.6e9),
    "v3.1": (671.0e9, 36.6e9),
}


@cache
def counted(name: str) -> dict[str, int]:
    config = preset(name)
    with torch.device("meta"):
        model = Transformer(config)
    assert all(p.is_meta for p in model.parameters())
    found = dict.fromkeys(("total", "active", "engram", "mtp", "media"), 0)
    for tensor, parameter in model.named_parameters():
        size, parts = prod(parameter.shape), tensor.split(".")
        if parts[0] == "mtp":
            found["mtp"] += size
            continue
        found["total"] += size
        if parts[0] in ("media", "code_embed", "code_head", "code_places"):  # no token of text touches them
            found["media"] += size
            continue
        if "engram" in parts and "table" in parts:
            found["engram"] += size
            found["active"] += config.memory.engram_heads * len(config.memory.engram_vocab_size) * parameter.shape[1]
        elif "gate_up" in parts or "down" in parts:
            found["active"] += size // config.experts.n_routed_experts * config.experts.num_experts_per_tok
        elif parts[0] != "embed" or config.tie_word_embeddings:  # a tied table is the head too
            found["active"] += size
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    found, (total, active) = counted(name), PUBLISHED[name]
    assert found["total"] == pytest.approx(total, rel=0.005)
    if active is not None:
        assert found["active"] == pytest.approx(active, rel=0.005)


def test_v3_multi_token_prediction() -> None:
    """11.5B of its own, as its README rounds it: the tensors it lists make 11.61B."""
    assert counted("v3")["mtp"] == pytest.approx(11.5e9, rel=0.01)


@pytest.mark.parametrize(("name", "total", "active"), [("v4-flash", 284e9, 13e9), ("v4-pro", 1.6e12, 49e9)])
def test_the_released_v4(name: str, total: float, active: float) -> None:
    """The model card rounds to whole billions: 13.27e9 active is its 13B, 2.1 % above the round figure."""
    found = counted(name)
    assert found["total"] == pytest.approx(total, rel=0.02)
    assert found["active"] == pytest.approx(active, rel=0.022)
    assert round(found["active"] / 1e9) * 1e9 == active


def test_the_released_v4_in_detail() -> None:
    """Figures of section 5a.1 of the reference that the counts do not pin."""
    flash, pro = preset("v4-flash"), preset("v4-pro")
    kinds = {name: preset(name).compression.compress_ratios for name in ("v4-flash", "v4-pro")}
    assert [i for i, r in enumerate(kinds["v4-flash"]) if r == 4] == list(range(2, 43, 2))
    assert [i for i, r in enumerate(kinds["v4-flash"]) if r == 128] == list(range(3, 42, 2))
    assert [i for i, r in enumerate(kinds["v4-pro"]) if r == 4] == list(range(2, 61, 2))
    assert [i for i, r in enumerate(kinds["v4-pro"]) if r == 128] == [0, 1, *range(3, 60, 2)]
    for config, heads, rank, groups, topk in ((flash, 64, 1024, 8, 512), (pro, 128, 1536, 16, 1024)):
        attention, selection, compression = config.attention, config.selection, config.compression
        assert (attention.num_attention_heads, attention.q_lora_rank, attention.key_value_heads) == (heads, rank, 1)
        assert (attention.head_dim, attention.rope_dim, attention.interleaved, attention.rope_theta) == (512, 64, True, 10000)
        scaling = attention.rope_scaling
        assert (scaling.factor, scaling.original_max_position_embeddings, compression.compress_rope_theta) == (16, 65536, 160000)
        assert (selection.index_n_heads, selection.index_head_dim, selection.index_topk) == (64, 128, topk)
        assert (compression.o_groups, compression.o_lora_rank, compression.sliding_window) == (groups, 1024, 128)
        assert (config.experts.num_experts_per_tok, config.experts.num_hash_layers, config.experts.swiglu_limit) == (6, 3, 10)
        assert (config.experts.scoring_func, config.streams.hc_mult, config.streams.hc_mtp) == ("sqrtsoftplus", 4, True)
        assert config.memory is None and config.max_position_embeddings == 1 << 20
    assert (flash.experts.routed_scaling_factor, pro.experts.routed_scaling_factor) == (1.5, 2.5)


def test_the_indexer_is_all_that_v32_adds() -> None:
    config, found = preset("v3.2"), counted("v3.2")
    assert config.but(selection=None) == preset("v3.1")
    each = 1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64
    assert found["total"] - counted("v3")["total"] == 61 * each


def test_v4_is_the_articles_model() -> None:
    config, found = preset("v4"), counted("v4")
    assert 0.97e12 <= found["total"] <= 1.03e12
    assert 32e9 <= found["active"] <= 37e9
    assert 0.20 <= found["engram"] / (found["total"] - found["active"]) <= 0.25
    assert config.experts.num_experts_per_tok == 16
    assert config.max_position_embeddings == 1_048_576
    assert config.attention.is_latent
    assert config.selection is not None
    assert (config.streams.hc_mult, config.streams.hc_kind) == (4, "mhc")
    scaling = config.attention.rope_scaling
    assert scaling.factor * scaling.original_max_position_embeddings == config.max_position_embeddings


def test_v4_lite_is_the_same_design() -> None:
    lite, v4 = preset("v4-lite"), preset("v4")
    found = counted("v4-lite")
    assert 190e9 <= found["total"] <= 210e9
    assert 0.20 <= found["engram"] / (found["total"] - found["active"]) <= 0.25
    assert lite.max_position_embeddings == v4.max_position_embeddings
    assert lite.experts.num_experts_per_tok == 16
    assert (lite.streams, lite.selection) == (v4.streams, v4.selection)
    assert lite.attention.is_latent


@pytest.mark.parametrize(("name", "most"), [("v4", 2.5e9), ("v4-lite", 1.5e9)])
def test_the_articles_models_read_and_draw(name: str, most: float) -> None:
    """Towers of a few hundred million parameters and a table and head of codes: a fraction of a percent of the whole."""
    config, found = preset(name), counted(name)
    assert most / 3 < found["media"] < most < 0.01 * found["total"]
    seen, drawn = config.media_in, config.media_out
    assert seen.tower_layers > 0 and seen.image_patch_size == 3 * seen.tower_patch_size
    assert (seen.image_longest // seen.image_patch_size) ** 2 == 1024
    assert (seen.clip_longest // seen.image_patch_size) ** 2 * seen.clip_frames < config.max_position_embeddings
    assert drawn.image_token_size * config.hidden_size * 2 < found["media"]


@pytest.mark.parametrize("name", ["nano", "debug"])
def test_omni_is_the_same_trunk_with_media_parts(name: str) -> None:
    omni, plain, added = preset(f"{name}-omni"), preset(name), counted(f"{name}-omni")
    assert omni.but(media_in=None, media_out=None) == plain
    assert omni.media_in is not None and omni.media_out is not None and not omni.media_in.tower_layers
    assert added["active"] == counted(name)["active"]
    d, codes = omni.hidden_size, omni.media_out.image_token_size
    waves = 2 * 2 * 3 * 6  # of patches and of codes: cosine and sine of six, on three axes
    assert added["media"] == 2 * codes * d + (3 * 8 * 8 + 80 * 8 + 2 * 2 + waves) * d  # projections, their biases and norms
    assert 2 * (counted("nano-omni")["total"] + counted("nano-omni")["mtp"]) < 40e6, "a file under 40 MB in bf16"


def test_nano_fits_its_bounds() -> None:
    config, found = preset("nano"), counted("nano")
    assert 5e6 <= found["active"] <= 8e6
    assert found["total"] + found["mtp"] <= 18e6
    assert all(getattr(config, part) is not None for part in ("selection", "experts", "streams", "memory"))
    assert config.num_nextn_predict_layers > 0


def test_micro_has_about_a_million_active() -> None:
    assert 0.8e6 <= counted("micro")["active"] <= 1.25e6


@pytest.mark.parametrize("name", ["nano", "micro", "debug", "debug-omni"])
def test_our_own_have_all_parts_and_run(name: str) -> None:
    model = Transformer(preset(name)).init_weights(0).eval()
    with torch.no_grad():
        logits = model(torch.arange(20)[None]).logits
    assert logits.shape == (1, 20, model.config.vocab_size)
    assert logits.isfinite().all()
    for part in ("selection", "experts", "streams", "memory"):
        assert getattr(model.config, part) is not None


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_without_memory(name: str) -> None:
    assert counted(name)["total"] > counted(name)["active"] / 2 > 0


def test_published_details() -> None:
    """Figures of section 1.1 of the reference that the counts do not pin."""
    v3, v2, lite, v1, grouped = (preset(name) for name in ("v3", "v2", "v2-lite", "v1-7b", "v1-67b"))
    assert (v3.experts.topk_method, v3.experts.scoring_func, v3.experts.norm_topk_prob) == ("noaux_tc", "sigmoid", True)
    assert (v3.experts.n_group, v3.experts.topk_group, v3.experts.routed_scaling_factor) == (8, 4, 2.5)
    assert (v2.experts.topk_method, v2.experts.scoring_func, v2.experts.norm_topk_prob) == (
        "group_limited_greedy",
        "softmax",
        False,
    )
    assert (v2.experts.n_group, v2.experts.topk_group, v2.experts.routed_scaling_factor) == (8, 3, 16.0)
    assert (lite.experts.topk_method, lite.experts.n_group, lite.experts.routed_scaling_factor) == ("greedy", 1, 1.0)
    assert (lite.attention.q_lora_rank, lite.attention.rope_scaling.mscale, lite.attention.rope_scaling.mscale_all_dim) == (
        None,
        0.707,
        0.707,
    )
    assert [p.max_position_embeddings for p in (v3, v2, lite, v1, grouped)] == [163840, 163840, 163840, 4096, 4096]
    assert [(p.bos_token_id, p.eos_token_id) for p in (v3, v2, v1)] == [(0, 1), (100000, 100001), (100000, 100001)]
    for p in (v3, v2, lite):
        assert (p.attention.rope_scaling.factor, p.attention.rope_scaling.original_max_position_embeddings) == (40, 4096)
    assert (v1.attention.key_value_heads, grouped.attention.key_value_heads) == (32, 8)
    assert v1.attention.rope_scaling is None
    index = preset("v3.2").selection
    assert (index.index_n_heads, index.index_head_dim, index.index_topk) == (64, 128, 2048)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="preset 'v5' is not known; choose one of v1-7b, .*debug"):
        preset("v5")
