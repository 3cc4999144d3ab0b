"""ModelConfig: what a model of the family is, in parts that nest in Python and lie flat in config.json.

A part that a model does not have is None. A family member is only a config: nothing in `model/` asks which member it is building.
"""

from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fourfold.errors import ConfigError
from fourfold.parts import (
    PARTS,
    AttentionConfig,
    CompressionConfig,
    ExpertsConfig,
    MediaInConfig,
    MediaOutConfig,
    MemoryConfig,
    Part,
    RopeScaling,
    SelectionConfig,
    StreamsConfig,
    require,
)

__all__ = [
    "LATER",
    "MODEL_TYPE",
    "PARTS",
    "AttentionConfig",
    "CompressionConfig",
    "ExpertsConfig",
    "MediaInConfig",
    "MediaOutConfig",
    "MemoryConfig",
    "ModelConfig",
    "Part",
    "RopeScaling",
    "SelectionConfig",
    "StreamsConfig",
]

MODEL_TYPE = "fourfold"
# fields that a config.json written before them has not: left out unless set
LATER = {"num_hash_layers", "swiglu_limit", "hc_mtp", "clip_patch_frames"}


class ModelConfig(Part):
    """One model: its sizes, and a part for each mechanism that it has."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: int = Field(gt=0, le=4096)
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    attention: AttentionConfig
    selection: SelectionConfig | None = None
    compression: CompressionConfig | None = None
    experts: ExpertsConfig | None = None
    streams: StreamsConfig | None = None
    memory: MemoryConfig | None = None
    media_in: MediaInConfig | None = None
    media_out: MediaOutConfig | None = None
    num_nextn_predict_layers: int = Field(0, ge=0)
    rms_norm_eps: PositiveFloat = 1e-6
    initializer_range: PositiveFloat = 0.02
    tie_word_embeddings: bool = False
    pad_token_id: int | None = Field(None, ge=0)
    bos_token_id: int | None = Field(0, ge=0)
    eos_token_id: int | None = Field(1, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            require(token is None or token < self.vocab_size, name, f"is {token}, outside vocab_size ({self.vocab_size})")
        if self.experts is not None:
            dense, layers = self.experts.first_k_dense_replace, self.num_hidden_layers
            require(dense <= layers, "first_k_dense_replace", f"is {dense}, more than num_hidden_layers ({layers})")
            hashed = self.experts.num_hash_layers
            require(hashed <= layers, "num_hash_layers", f"is {hashed}, more than num_hidden_layers ({layers})")
        if self.memory is not None:
            self._check_memory(self.memory)
        if self.has_media:
            self._check_media()
        if self.compression is not None:
            self._check_compression(self.compression, self.attention)
        elif not self.attention.is_latent:
            for name in ("q_lora_rank", "qk_rope_head_dim"):
                remedy = "needs kv_lora_rank or compress_ratios; set one of them or leave this out"
                require(getattr(self.attention, name) is None, name, remedy)
        return self

    def _check_compression(self, compression: CompressionConfig, attention: AttentionConfig) -> None:
        require(not attention.is_latent, "kv_lora_rank", "does not go with compress_ratios; set head_dim instead")
        for name in ("q_lora_rank", "qk_rope_head_dim"):
            require(getattr(attention, name), name, "is needed with compress_ratios; set it (V4-Flash has 1024 and 64)")
        heads, rope = attention.num_attention_heads, attention.rope_dim
        require(attention.key_value_heads == 1, "num_key_value_heads", "must be 1 with compress_ratios: heads share one vector")
        require(not attention.attention_bias, "attention_bias", "does not go with compress_ratios; leave it out")
        require(attention.interleaved, "rope_interleave", "is False, but with compress_ratios channels turn in pairs; leave it out")
        require(rope <= attention.head_dim, "qk_rope_head_dim", f"is {rope}, more than head_dim ({attention.head_dim})")
        groups, ratios = compression.o_groups, compression.compress_ratios
        require(heads % groups == 0, "o_groups", f"is {groups}, which must divide num_attention_heads ({heads})")
        wanted = self.num_hidden_layers + self.num_nextn_predict_layers
        require(len(ratios) == wanted, "compress_ratios", f"has {len(ratios)} numbers; give one for each of {wanted} layers")
        if compression.csa_ratio in ratios:
            require(self.selection, "index_topk", f"is needed: layers of compress ratio {compression.csa_ratio} choose blocks")
            width = self.selection.index_head_dim
            require(rope <= width, "index_head_dim", f"is {width}, less than qk_rope_head_dim ({rope})")
            own = self.selection.index_rope_head_dim
            require(own is None, "index_rope_head_dim", "does not go with compress_ratios, whose indexer turns qk_rope_head_dim")

    def _check_memory(self, memory: MemoryConfig) -> None:
        outside = [layer for layer in memory.engram_layers if not 0 <= layer < self.num_hidden_layers]
        require(not outside, "engram_layers", f"names layer {outside}, outside 0..{self.num_hidden_layers - 1}")
        classes = memory.engram_compressed_vocab_size or self.vocab_size
        require(classes <= self.vocab_size, "engram_compressed_vocab_size", f"is {classes}, more than vocab_size")
        require(memory.engram_pad_id < classes, "engram_pad_id", f"is {memory.engram_pad_id}, outside the {classes} ids")

    def _check_media(self) -> None:
        """What is read or drawn needs positions on three axes, and a patch cannot be given again from a token."""
        blocks = "does not go with media parts: blocks across patches are not defined; leave one of them out"
        require(self.compression is None, "compress_ratios", blocks)
        hashed = self.experts is not None and self.experts.num_hash_layers > 0
        require(not hashed, "num_hash_layers", "does not go with media parts: a patch is no token; set it to 0")
        name = "qk_rope_head_dim" if self.attention.is_latent else "head_dim"
        require(self.attention.rope_dim >= 6, name, f"is {self.attention.rope_dim}; time, row and column need 6 rotated channels")

    @property
    def has_media(self) -> bool:
        """Whether anything but text may stand in a sequence."""
        return self.media_in is not None or self.media_out is not None

    @property
    def index_rope_dim(self) -> int:
        """Rotated channels of the indexer: as published, as many as the attention's own."""
        wanted = self.selection.index_rope_head_dim or self.attention.rope_dim
        return min(wanted, self.selection.index_head_dim // 2 * 2)

    def has_experts(self, layer: int) -> bool:
        return self.experts is not None and layer >= self.experts.first_k_dense_replace

    def has_indexer(self, layer: int) -> bool:
        """Whether an indexer chooses what a layer reads: where tokens are compressed, in the layers of CSA alone."""
        compression = self.compression
        return self.selection is not None and (compression is None or compression.compress_ratios[layer] == compression.csa_ratio)

    def is_hashed(self, layer: int) -> bool:
        """Whether the tokens themselves decide which experts they take in a layer."""
        return self.experts is not None and layer < self.experts.num_hash_layers

    def to_flat(self) -> dict[str, Any]:
        """The contents of config.json: parts that are None leave no field behind."""
        flat: dict[str, Any] = {"model_type": MODEL_TYPE, "architectures": ["FourfoldForCausalLM"]}
        for name, value in self.model_dump(mode="json").items():
            flat.update(_written(PARTS[name], value or {}) if name in PARTS else {name: value})
        return flat

    @classmethod
    def from_flat(cls, flat: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_flat`. Raises ConfigError for an unknown or missing field."""
        if not isinstance(flat, dict):
            raise ConfigError("config.json: must hold one JSON object")
        flat = {key: value for key, value in flat.items() if key not in ("model_type", "architectures")}
        values: dict[str, Any] = {}
        for name, part in PARTS.items():
            if name in flat:
                raise ConfigError(f"{name} is a part, and config.json is flat; write its fields beside the others")
            fields = {key: flat.pop(key) for key in list(flat) if key in part.model_fields}
            if fields:
                values[name] = part(**fields)
        return cls(**values, **flat)


def _written(part: type[Part], fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in LATER or value != part.model_fields[name].default}
