"""Counts against what the publishers say, and against numbers worked out by hand."""

import pytest

from fourfold.planner.count import count
from fourfold.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("v1-7b", 6.91e9, None),
        ("v1-67b", 67.4e9, None),
        ("v2-lite", 15.7e9, 2.45e9),
        ("v2", 235.7e9, 20.9e9),
        ("v3", 671.0e9, 36.6e9),
    ],
)
def test_published_sizes(name: str, total: float, active: float | None) -> None:
    counts = count(preset(name))
    assert counts.total == pytest.approx(total, rel=5e-3)
    if active is not None:
        assert counts.active == pytest.approx(active, rel=5e-3)


def test_the_articles_v4() -> None:
    config, counts = preset("v4"), count(preset("v4"))
    assert 0.97e12 <= counts.total <= 1.03e12
    assert 32e9 <= counts.active <= 37e9
    assert 0.20 <= counts.engram_share <= 0.25
    assert config.experts.num_experts_per_tok == 16
    assert config.streams.hc_mult == 4
    assert config.max_position_embeddings == 1 << 20
    assert config.attention.is_latent and config.selection is not None


def test_v4_lite_and_nano() -> None:
    assert 190e9 <= count(preset("v4-lite")).total <= 210e9
    nano = count(preset("nano"))
    assert 5e6 <= nano.active <= 8e6
    assert nano.total + nano.mtp <= 18e6


@pytest.mark.parametrize("name", PRESETS)
def test_parts_add_up(name: str) -> None:
    counts = count(preset(name))
    assert sum(counts.parts.values()) == counts.total + counts.mtp
    assert 0 < counts.active <= counts.total


def test_media_parts_have_a_row_of_their_own() -> None:
    """They count in the total, and not in what a token of text multiplies with."""
    omni, plain = count(preset("nano-omni")), count(preset("nano"))
    assert omni.parts == plain.parts | {"media": omni.media}
    assert omni.total == plain.total + omni.media
    assert (omni.active, omni.mtp, plain.media) == (plain.active, plain.mtp, 0)


def test_a_small_model_by_hand() -> None:
    """debug: every tensor of the dense layer, written out."""
    config = preset("debug")
    d, a = config.hidden_size, config.attention
    heads = a.num_attention_heads
    query = d * a.q_lora_rank + a.q_lora_rank + a.q_lora_rank * heads * (a.qk_nope_head_dim + a.qk_rope_head_dim)
    latent = d * (a.kv_lora_rank + a.qk_rope_head_dim) + a.kv_lora_rank
    expand = a.kv_lora_rank * heads * (a.qk_nope_head_dim + a.v_head_dim) + heads * a.v_head_dim * d
    parts = count(config).parts
    assert parts["attention"] == config.num_hidden_layers * (query + latent + expand)
    assert parts["head"] == config.vocab_size * d
    assert "embedding" not in parts  # tied
    experts = config.experts
    assert parts["routed experts"] == 2 * experts.n_routed_experts * 3 * d * experts.moe_intermediate_size
