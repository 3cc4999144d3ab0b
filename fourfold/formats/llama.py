"""Llama's format: DeepSeek LLM (V1), the R1 distillations of Llama, and any other plain Llama checkpoint.

    model.layers.N.self_attn.{q_proj,k_proj,v_proj,o_proj}.weight (and .bias with attention_bias)
    model.layers.N.mlp.{gate_proj,up_proj,down_proj}.weight
    model.layers.N.{input_layernorm,post_attention_layernorm}.weight
    model.{embed_tokens,norm}.weight · lm_head.weight (not when tied)

RoPE turns halves (j, j + head_dim / 2) in these files.
"""

from collections.abc import Collection
from typing import Any

from fourfold.config import AttentionConfig, ModelConfig
from fourfold.errors import ConfigError
from fourfold.formats.adapter import Adapter, Place
from fourfold.formats.fields import Published, check_words, given, need, read_trunk, write_trunk
from fourfold.formats.rotary import read_rope, write_rope
from fourfold.formats.trunk import Places, ends, feed_forward, norms

ATTENTION = ("num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias")
ROPE = ("rope_theta", "rope_scaling", "rope_interleave")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class LlamaAdapter(Adapter):
    model_type = "llama"
    architecture = "LlamaForCausalLM"

    def config(self, published: Published) -> ModelConfig:
        return ModelConfig(**read_trunk(published), attention=self._attention(published))

    def published(self, config: ModelConfig) -> Published:
        check_words(config, self.model_type, attention=(*ATTENTION, *ROPE))
        return write_trunk(config) | self._write_attention(config.attention)

    def places(self, config: ModelConfig, names: Collection[str] = ()) -> Places:
        places = ends(config, names)
        for n in range(config.num_hidden_layers):
            theirs, ours = f"model.layers.{n}", f"layers.{n}"
            places |= norms(theirs, ours) | self._attention_places(config, theirs, ours) | feed_forward(config, n, theirs, ours)
        return places

    def _attention(self, published: Published) -> AttentionConfig:
        """Without `head_dim`, as before 2024, heads share out the hidden size; without groups, every head has its own keys."""
        sizes = need(published, "num_attention_heads", "hidden_size")
        fields = {"head_dim": sizes["hidden_size"] // sizes["num_attention_heads"]} | given(published, *ATTENTION)
        if fields.get("num_key_value_heads") == sizes["num_attention_heads"]:
            del fields["num_key_value_heads"]
        return AttentionConfig(**fields, **read_rope(published, latent=False))

    def _write_attention(self, attention: AttentionConfig) -> dict[str, Any]:
        if attention.interleaved:
            raise ConfigError(f"rope_interleave: {self.model_type} turns halves; save the model in Fourfold's own format")
        words = {name: getattr(attention, name) for name in ATTENTION}
        return words | {"num_key_value_heads": attention.key_value_heads, "mlp_bias": False} | write_rope(attention)

    def _attention_places(self, config: ModelConfig, theirs: str, ours: str) -> Places:
        kinds = ("weight", "bias") if config.attention.attention_bias else ("weight",)
        return {
            f"{theirs}.self_attn.{name}.{kind}": Place(f"{ours}.attention.{name}.{kind}") for name in PROJECTIONS for kind in kinds
        }


ADAPTER = LlamaAdapter()
