"""What the formats with latent attention and DeepSeek's experts share (V2, V3, V3.2).

    model.layers.N.self_attn.{q_a_proj,q_b_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj}.weight (q_proj where there is no query latent)
    model.layers.N.self_attn.{q_a_layernorm,kv_a_layernorm}.weight
    model.layers.N.mlp.{gate_proj,up_proj,down_proj}.weight (dense: N < first_k_dense_replace)
    model.layers.N.mlp.gate.weight · mlp.gate.e_score_correction_bias (V3 on)
    model.layers.N.mlp.experts.E.{gate_proj,up_proj,down_proj}.weight · mlp.shared_experts.{...}.weight
    model.layers.N.{input_layernorm,post_attention_layernorm}.weight · model.{embed_tokens,norm}.weight · lm_head.weight

The rotated channels of queries and of the shared key are stored, and turn, in pairs (2j, 2j + 1).
"""

from collections.abc import Collection
from typing import Any, ClassVar

from fourfold.config import AttentionConfig, ModelConfig
from fourfold.errors import ConfigError
from fourfold.formats.adapter import Adapter, Place
from fourfold.formats.experts import RoutedExperts
from fourfold.formats.fields import Published, check_words, given, need, only, read_trunk, write_trunk
from fourfold.formats.rotary import read_rope, write_rope
from fourfold.formats.trunk import Places, ends, feed_forward, norms

SIZES = ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
ATTENTION = (*SIZES, "q_lora_rank", "attention_bias")
INNER_EPS = 1e-6  # of the norms inside the attention, whatever rms_norm_eps says: the code that came with the weights


class LatentAdapter(RoutedExperts, Adapter):
    """`pairing`: the values that a format has for `rope_interleave`; the first is meant when it is left out."""

    pairing: ClassVar[tuple[bool, ...]] = (True,)

    def config(self, published: Published) -> ModelConfig:
        parts = {"attention": self._attention(published), "experts": self._experts(published), **self._others(published)}
        config = ModelConfig(**read_trunk(published), **parts)
        self._check(config)
        return config

    def published(self, config: ModelConfig) -> Published:
        words = {"attention": (*ATTENTION, "rope_theta", "rope_scaling", "rope_interleave"), "experts": self.expert_words}
        check_words(config, self.model_type, **words, **self._other_words())
        self._check(config)
        return write_trunk(config) | self._write_attention(config.attention) | self._write_experts(config.experts)

    def places(self, config: ModelConfig, names: Collection[str] = ()) -> Places:
        places = ends(config, names)
        for n in range(config.num_hidden_layers):
            places |= self._layer(config, n, f"model.layers.{n}", f"layers.{n}")
        return places

    def _layer(self, config: ModelConfig, n: int, theirs: str, ours: str) -> Places:
        attention = self._attention_places(config, f"{theirs}.self_attn", f"{ours}.attention")
        return norms(theirs, ours) | attention | feed_forward(config, n, theirs, ours)

    def _attention_places(self, config: ModelConfig, theirs: str, ours: str) -> Places:
        compressed = config.attention.q_lora_rank is not None
        queries = ("q_a_proj", "q_a_layernorm", "q_b_proj") if compressed else ("q_proj",)
        table = {name: name for name in (*queries, "kv_a_layernorm", "kv_b_proj", "o_proj")} | {"kv_a_proj_with_mqa": "kv_a_proj"}
        places = {f"{theirs}.{name}.weight": Place(f"{ours}.{mine}.weight") for name, mine in table.items()}
        if config.attention.attention_bias:  # on what reads or writes the residual stream, but for q_proj
            biased = {"kv_a_proj_with_mqa", "o_proj", "q_a_proj"} & table.keys()
            places |= {f"{theirs}.{name}.bias": Place(f"{ours}.{table[name]}.bias") for name in sorted(biased)}
        return places

    def _attention(self, published: Published) -> AttentionConfig:
        turns_pairs = only(published, "rope_interleave", *self.pairing)
        fields = need(published, *SIZES) | given(published, "q_lora_rank", "attention_bias")
        return AttentionConfig(**fields, rope_interleave=None if turns_pairs else False, **read_rope(published, latent=True))

    def _write_attention(self, attention: AttentionConfig) -> Published:
        words = {name: getattr(attention, name) for name in ATTENTION} | {"num_key_value_heads": attention.num_attention_heads}
        only({"rope_interleave": attention.interleaved}, "rope_interleave", *self.pairing)
        halves = {} if attention.interleaved else {"rope_interleave": False}
        return words | halves | write_rope(attention)

    def _others(self, published: Published) -> dict[str, Any]:
        """Further fields and parts of the ModelConfig."""
        return {}

    def _other_words(self) -> dict[str, Collection[str]]:
        """The fields of those that the format has words for."""
        return {}

    def _check(self, config: ModelConfig) -> None:
        if config.rms_norm_eps != INNER_EPS:
            said = f"rms_norm_eps is {config.rms_norm_eps}, but {self.model_type} has {INNER_EPS} inside its attention"
            raise ConfigError(f"{said} and the model has one value for all; it must be {INNER_EPS}")
