"""DeepSeek-V3.2's format: V3.1's and the lightning indexer in every layer (V3.2, section 2.1).

    model.layers.N.self_attn.indexer.{wq_b,wk,weights_proj}.weight · indexer.k_norm.{weight,bias}

The indexer turns the first `qk_rope_head_dim` channels of its heads, in halves (j, j + qk_rope_head_dim / 2), while the attention
around it turns pairs. The Hadamard transform of its queries and keys is orthogonal, so that leaving it out changes no score.
"""

from collections.abc import Collection
from typing import Any

from fourfold.config import AttentionConfig, ModelConfig, SelectionConfig
from fourfold.errors import ConfigError
from fourfold.formats.adapter import Place
from fourfold.formats.deepseek_v3 import DeepseekV3Adapter
from fourfold.formats.fields import Published, need
from fourfold.formats.trunk import Places

INDEXER = ("index_n_heads", "index_head_dim", "index_topk")
TENSORS = ("wq_b.weight", "wk.weight", "k_norm.weight", "k_norm.bias", "weights_proj.weight")


class DeepseekV32Adapter(DeepseekV3Adapter):
    model_type = "deepseek_v32"
    architecture = "DeepseekV32ForCausalLM"
    pairing = (True,)

    def published(self, config: ModelConfig) -> Published:
        return super().published(config) | {name: getattr(config.selection, name) for name in INDEXER}

    def _attention(self, published: Published) -> AttentionConfig:
        need(published, "q_lora_rank")  # the indexer's queries come from that latent
        return super()._attention(published)

    def _attention_places(self, config: ModelConfig, theirs: str, ours: str) -> Places:
        indexer = {f"{theirs}.indexer.{name}": Place(f"{ours}.indexer.{name}") for name in TENSORS}
        return super()._attention_places(config, theirs, ours) | indexer

    def _others(self, published: Published) -> dict[str, Any]:
        return super()._others(published) | {"selection": SelectionConfig(**need(published, *INDEXER))}

    def _other_words(self) -> dict[str, Collection[str]]:
        return super()._other_words() | {"selection": (*INDEXER, "index_rope_head_dim")}

    def _check(self, config: ModelConfig) -> None:
        super()._check(config)
        if config.attention.q_lora_rank is None:
            raise ConfigError("q_lora_rank is None, but the indexer of deepseek_v32 reads that latent; set it")
        turned, needed = config.index_rope_dim, config.attention.rope_dim
        if turned != needed:
            field = "index_rope_head_dim" if config.selection.index_rope_head_dim else "index_head_dim"
            raise ConfigError(
                f"{field}: the indexer turns {turned} channels, in deepseek_v32 as many as qk_rope_head_dim ({needed})"
            )


ADAPTER = DeepseekV32Adapter()
