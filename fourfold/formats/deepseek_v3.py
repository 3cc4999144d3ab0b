"""DeepSeek-V3's format: V3, R1 and V3.1; tensors as in `latent`, and multi-token prediction as layers after the last.

    model.layers.{61 + depth} = a layer + {embed_tokens,enorm,hnorm,eh_proj}.weight, shared_head.{norm,head}.weight

Embedding and head of those layers are copies of the main ones (2412.19437, section 2.2). Some savers drop these layers and leave
`num_nextn_predict_layers` as it was, so that the tensors decide.
"""

from collections.abc import Collection
from typing import Any, ClassVar

from fourfold.config import ModelConfig
from fourfold.formats.adapter import Place
from fourfold.formats.fields import Published, given
from fourfold.formats.latent import LatentAdapter
from fourfold.formats.trunk import Places


class DeepseekV3Adapter(LatentAdapter):
    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    choices: ClassVar = {
        "topk_method": ("noaux_tc",),
        "scoring_func": ("sigmoid",),
        "norm_topk_prob": (True, False),
    }
    pairing = (True, False)

    def published(self, config: ModelConfig) -> Published:
        return super().published(config) | {"num_nextn_predict_layers": config.num_nextn_predict_layers}

    def places(self, config: ModelConfig, names: Collection[str] = ()) -> Places:
        places = super().places(config, names)
        for depth in range(config.num_nextn_predict_layers):
            n = config.num_hidden_layers + depth
            theirs, ours = f"model.layers.{n}", f"mtp.{depth}"
            places |= self._layer(config, n, theirs, f"{ours}.layer") | _prediction(config, theirs, ours)
        return places

    def fitted(self, config: ModelConfig, names: Collection[str]) -> ModelConfig:
        held = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
        depths = config.num_nextn_predict_layers
        while depths and str(config.num_hidden_layers + depths - 1) not in held:
            depths -= 1
        return config.but(num_nextn_predict_layers=depths)

    def _others(self, published: Published) -> dict[str, Any]:
        return given(published, "num_nextn_predict_layers")

    def _other_words(self) -> dict[str, Collection[str]]:
        return {"trunk": ("num_nextn_predict_layers",)}


def _prediction(config: ModelConfig, theirs: str, ours: str) -> Places:
    head = "embed.weight" if config.tie_word_embeddings else "head"
    return {
        f"{theirs}.enorm.weight": Place(f"{ours}.enorm.weight"),
        f"{theirs}.hnorm.weight": Place(f"{ours}.hnorm.weight"),
        f"{theirs}.eh_proj.weight": Place(f"{ours}.eh_proj.weight"),
        f"{theirs}.shared_head.norm.weight": Place(f"{ours}.norm.weight"),
        f"{theirs}.embed_tokens.weight": Place("embed.weight", copy=True),
        f"{theirs}.shared_head.head.weight": Place(head, copy=True),
    }


ADAPTER = DeepseekV3Adapter()
