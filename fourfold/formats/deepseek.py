"""The format of DeepSeekMoE 16B (2401.06066): Llama's attention and the first of DeepSeek's experts, names of both.

transformers has no class of its own for it; the published folder brings code along, which our export does not.
"""

from typing import ClassVar

from fourfold.config import ModelConfig
from fourfold.formats.experts import OTHERS, RoutedExperts
from fourfold.formats.fields import Published, check_words, read_trunk, write_trunk
from fourfold.formats.llama import ATTENTION, ROPE, LlamaAdapter


class DeepseekAdapter(RoutedExperts, LlamaAdapter):
    model_type = "deepseek"
    architecture = "DeepseekForCausalLM"
    choices: ClassVar = {"topk_method": ("greedy",), "scoring_func": ("softmax",), "norm_topk_prob": (False, True)}
    fields = OTHERS
    defaults: ClassVar = {"aux_loss_alpha": 1e-3, "bias_update_speed": 0.0}

    def config(self, published: Published) -> ModelConfig:
        parts = {"attention": self._attention(published), "experts": self._experts(published)}
        return ModelConfig(**read_trunk(published), **parts)

    def published(self, config: ModelConfig) -> Published:
        check_words(config, self.model_type, attention=(*ATTENTION, *ROPE), experts=self.expert_words)
        return write_trunk(config) | self._write_attention(config.attention) | self._write_experts(config.experts)


ADAPTER = DeepseekAdapter()
