"""ModelConfig: what a model of the family is, in parts that nest in Python and lie flat in config.json.

Every field has the name that published config.json files use (`kv_lora_rank`, `num_experts_per_tok`, `hc_mult`, ...); a part that
a model does not have is None. A family member is only a config: nothing in `model/` asks which member it is building.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from fourfold.errors import ConfigError

MODEL_TYPE = "fourfold"


class Part(BaseModel):
    """A frozen group of fields; an unknown field or an impossible value is a ConfigError that names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None

    def but(self, **changes: Any) -> Self:
        """A validated copy with some fields changed; a key may be dotted (`experts.n_routed_experts`)."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for key, value in changes.items():
            name, _, rest = key.replace("__", ".").partition(".")
            if rest and not isinstance(values.get(name), Part):
                raise ConfigError(f"{name} is not a part of this model; set the whole of it first")
            values[name] = values[name].but(**{rest: value}) if rest else value
        return type(self)(**values)


class RopeScaling(Part):
    """How rotary frequencies are stretched: YaRN (2309.00071, with the V3 mscale rule) or the Llama-3 rule."""

    type: Literal["yarn", "llama3"] = "yarn"
    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0


class AttentionConfig(Part):
    """Multi-head or grouped-query attention (`head_dim`), or latent attention when `kv_lora_rank` is set (MLA)."""

    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    q_lora_rank: PositiveInt | None = None
    kv_lora_rank: PositiveInt | None = None
    qk_nope_head_dim: PositiveInt | None = None
    qk_rope_head_dim: PositiveInt | None = None
    v_head_dim: PositiveInt | None = None
    rope_theta: PositiveFloat = 10000.0
    rope_interleave: bool | None = None
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False

    @property
    def is_latent(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def rope_dim(self) -> int:
        return self.qk_rope_head_dim if self.is_latent else self.head_dim

    @property
    def interleaved(self) -> bool:
        """RoPE pairs (2j, 2j+1) as in MLA, else halves (j, j + d/2) as in Llama."""
        return self.is_latent if self.rope_interleave is None else self.rope_interleave

    @model_validator(mode="after")
    def _check(self) -> Self:
        latent = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        if self.is_latent:
            for name in latent:
                _require(getattr(self, name), name, "is needed with kv_lora_rank; set it (V3 has 128, 64 and 128)")
            _require(self.head_dim is None, "head_dim", "does not apply to latent attention; leave it out")
        else:
            _require(self.head_dim, "head_dim", "is needed without kv_lora_rank; set it to hidden_size / num_attention_heads")
            for name in (*latent, "q_lora_rank"):
                _require(getattr(self, name) is None, name, "needs kv_lora_rank; set that too or leave this out")
            heads, kv = self.num_attention_heads, self.key_value_heads
            _require(heads % kv == 0, "num_key_value_heads", f"is {kv}, which must divide num_attention_heads ({heads})")
        _require(self.rope_dim % 2 == 0, "qk_rope_head_dim" if self.is_latent else "head_dim", "must be even for RoPE")
        return self


class SelectionConfig(Part):
    """The lightning indexer and its top-k (V3.2, section 2.1)."""

    index_n_heads: PositiveInt
    index_head_dim: PositiveInt
    index_topk: PositiveInt
    index_rope_head_dim: PositiveInt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        rope = self.index_rope_head_dim
        _require(rope is None or rope <= self.index_head_dim, "index_rope_head_dim", "must not exceed index_head_dim")
        _require(rope is None or rope % 2 == 0, "index_rope_head_dim", "must be even")
        return self


class ExpertsConfig(Part):
    """DeepSeekMoE (2401.06066): routed and shared experts, the V2 (softmax) or V3 (sigmoid, bias-balanced) router."""

    n_routed_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    moe_intermediate_size: PositiveInt
    n_shared_experts: int = Field(0, ge=0)
    first_k_dense_replace: int = Field(0, ge=0)
    n_group: PositiveInt = 1
    topk_group: PositiveInt = 1
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"] = "noaux_tc"
    scoring_func: Literal["softmax", "sigmoid"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: PositiveFloat = 1.0
    aux_loss_alpha: float = Field(1e-4, ge=0)
    bias_update_speed: float = Field(1e-3, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        experts, groups = self.n_routed_experts, self.n_group
        _require(experts % groups == 0, "n_group", f"is {groups}, which must divide n_routed_experts ({experts})")
        _require(self.topk_group <= groups, "topk_group", f"is {self.topk_group}, more than n_group ({groups})")
        choosable = experts // groups * self.topk_group
        chosen = self.num_experts_per_tok
        _require(
            chosen <= choosable,
            "num_experts_per_tok",
            f"is {chosen}, more than the {choosable} a token may choose from",
        )
        two_best = self.topk_method != "noaux_tc" or groups == 1 or experts // groups >= 2
        _require(two_best, "n_group", "leaves one expert a group; noaux_tc scores a group by its two best experts")
        return self


class StreamsConfig(Part):
    """Residual streams: `hc_mult` of them, mixed freely (`hc`, 2409.19606) or doubly stochastically (`mhc`, 2512.24880)."""

    hc_kind: Literal["mhc", "hc"] = "mhc"
    hc_mult: PositiveInt = 4
    hc_sinkhorn_iters: PositiveInt = 20
    hc_eps: PositiveFloat = 1e-6


class MemoryConfig(Part):
    """Engram (2601.07372): hashed n-gram tables read before attention in the layers named (0-based)."""

    engram_layers: tuple[int, ...]
    engram_vocab_size: tuple[PositiveInt, ...]  # rows per head, one entry for each order 2, 3, ...
    engram_dim: PositiveInt  # values per order, over all its heads
    engram_heads: PositiveInt = 8
    engram_kernel_size: PositiveInt = 4
    engram_seed: int = 0
    engram_pad_id: int = Field(0, ge=0)  # a class of the compressed vocabulary, not a token
    engram_compressed_vocab_size: PositiveInt | None = None  # None: the vocabulary is not compressed

    @property
    def max_ngram(self) -> int:
        return len(self.engram_vocab_size) + 1

    @property
    def width(self) -> int:
        """Values fetched for a token: all orders together."""
        return self.engram_dim * len(self.engram_vocab_size)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.engram_vocab_size, "engram_vocab_size", "names no order; give one row count for each order from 2 on")
        divides = self.engram_dim % self.engram_heads == 0
        _require(divides, "engram_heads", f"is {self.engram_heads}, which must divide engram_dim ({self.engram_dim})")
        _require(len(set(self.engram_layers)) == len(self.engram_layers), "engram_layers", "names a layer twice")
        return self


class MediaInConfig(Part):
    """The place for pictures, clips and sound read by the trunk as patches of pixels and log-mel frames."""

    image_patch_size: PositiveInt
    audio_mel_bins: PositiveInt


class MediaOutConfig(Part):
    """The place for pictures and clips drawn by the trunk as codes with a table and a head of their own."""

    image_codes: PositiveInt
    image_tokens: PositiveInt


PARTS: dict[str, type[Part]] = {
    "attention": AttentionConfig,
    "selection": SelectionConfig,
    "experts": ExpertsConfig,
    "streams": StreamsConfig,
    "memory": MemoryConfig,
    "media_in": MediaInConfig,
    "media_out": MediaOutConfig,
}


class ModelConfig(Part):
    """One model: its sizes, and a part for each mechanism that it has."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: int = Field(gt=0, le=4096)
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    attention: AttentionConfig
    selection: SelectionConfig | None = None
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
            _require(token is None or token < self.vocab_size, name, f"is {token}, outside vocab_size ({self.vocab_size})")
        if self.experts is not None:
            dense, layers = self.experts.first_k_dense_replace, self.num_hidden_layers
            _require(dense <= layers, "first_k_dense_replace", f"is {dense}, more than num_hidden_layers ({layers})")
        if self.memory is not None:
            self._check_memory(self.memory)
        return self

    def _check_memory(self, memory: MemoryConfig) -> None:
        outside = [layer for layer in memory.engram_layers if not 0 <= layer < self.num_hidden_layers]
        _require(not outside, "engram_layers", f"names layer {outside}, outside 0..{self.num_hidden_layers - 1}")
        classes = memory.engram_compressed_vocab_size or self.vocab_size
        _require(classes <= self.vocab_size, "engram_compressed_vocab_size", f"is {classes}, more than vocab_size")
        _require(memory.engram_pad_id < classes, "engram_pad_id", f"is {memory.engram_pad_id}, outside the {classes} ids")

    @property
    def index_rope_dim(self) -> int:
        """Rotated channels of the indexer: as published, as many as the attention's own."""
        wanted = self.selection.index_rope_head_dim or self.attention.rope_dim
        return min(wanted, self.selection.index_head_dim // 2 * 2)

    def has_experts(self, layer: int) -> bool:
        return self.experts is not None and layer >= self.experts.first_k_dense_replace

    def to_flat(self) -> dict[str, Any]:
        """The contents of config.json: parts that are None leave no field behind."""
        flat: dict[str, Any] = {"model_type": MODEL_TYPE, "architectures": ["FourfoldForCausalLM"]}
        for name, value in self.model_dump(mode="json").items():
            flat.update(value or {}) if name in PARTS else flat.update({name: value})
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


def _require(condition: Any, field: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{field} {message}")


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    *outer, last = first["loc"]
    field = ".".join(str(part) for part in (*(p for p in outer if p not in PARTS), last))
    said = {"missing": "is missing; set it", "extra_forbidden": "is not a known field; check its spelling"}
    message = said.get(first["type"]) or f"is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return f"{field} {message}"
