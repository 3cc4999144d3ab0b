"""Fields of DeepSeek's experts, as all formats before V4 write them (2401.06066); their tensors are in `trunk`."""

from typing import Any, ClassVar

from fourfold.config import ExpertsConfig
from fourfold.formats.fields import Published, given, need, only

SIZES = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
OTHERS = ("n_shared_experts", "first_k_dense_replace", "aux_loss_alpha")
GROUPS = ("n_group", "topk_group", "routed_scaling_factor")


class RoutedExperts:
    """`choices`: the values that a format has for what its router can be; the first is meant when the field is left out.

    `fields`: what else it says beside the sizes, and `defaults`: what is meant by leaving those out.
    """

    choices: ClassVar[dict[str, tuple[Any, ...]]]
    fields: ClassVar[tuple[str, ...]] = (*OTHERS, *GROUPS)
    defaults: ClassVar[dict[str, Any]] = {}

    @property
    def expert_words(self) -> tuple[str, ...]:
        """All the fields of an ExpertsConfig that the format does not lose; the last is for training only, and not written."""
        return (*SIZES, *self.fields, *self.choices, "bias_update_speed")

    def _experts(self, published: Published) -> ExpertsConfig:
        only(published, "moe_layer_freq", 1)
        chosen = {name: only(published, name, *values) for name, values in self.choices.items()}
        return ExpertsConfig(**self.defaults | need(published, *SIZES) | given(published, *self.fields) | chosen)

    def _write_experts(self, experts: ExpertsConfig) -> Published:
        words = {name: getattr(experts, name) for name in (*SIZES, *self.fields, *self.choices)}
        for name, values in self.choices.items():
            only(words, name, *values)
        return words | {"moe_layer_freq": 1, "seq_aux": True}
