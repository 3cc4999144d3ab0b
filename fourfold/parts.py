"""The parts that a ModelConfig is made of, one for each mechanism that a model may have.

Every field has the name that published config.json files use (`kv_lora_rank`, `num_experts_per_tok`, `hc_mult`, ...).
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from fourfold.errors import ConfigError


class Part(BaseModel):
    """A frozen group of fields; an unknown field or an impossible value is a ConfigError that names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(one_line(error)) from None

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
    """How rotary frequencies are stretched: YaRN (2309.00071, with the V3 mscale rule), the Llama-3 rule, or all alike (linear)."""

    type: Literal["yarn", "llama3", "linear"] = "yarn"
    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0


class AttentionConfig(Part):
    """Multi-head or grouped-query attention (`head_dim`), or latent attention when `kv_lora_rank` is set (MLA).

    `head_dim` together with `qk_rope_head_dim` and `q_lora_rank` is for compressed attention, which has a part of its own.
    """

    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    q_lora_rank: PositiveInt | None = None
    kv_lora_rank: PositiveInt | None = None
    qk_nope_head_dim: PositiveInt | None = None
    qk_rope_head_dim: PositiveInt | None = None
    v_head_dim: PositiveInt | None = None
    rope_theta: float = Field(10000.0, gt=1)
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
        return self.qk_rope_head_dim or self.head_dim

    @property
    def interleaved(self) -> bool:
        """RoPE pairs (2j, 2j+1) as in MLA and V4, else halves (j, j + d/2) as in Llama."""
        return self.qk_rope_head_dim is not None if self.rope_interleave is None else self.rope_interleave

    @model_validator(mode="after")
    def _check(self) -> Self:
        latent = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        if self.is_latent:
            for name in latent:
                require(getattr(self, name), name, "is needed with kv_lora_rank; set it (V3 has 128, 64 and 128)")
            require(self.head_dim is None, "head_dim", "does not apply to latent attention; leave it out")
        else:
            require(self.head_dim, "head_dim", "is needed without kv_lora_rank; set it to hidden_size / num_attention_heads")
            for name in ("qk_nope_head_dim", "v_head_dim"):
                require(getattr(self, name) is None, name, "needs kv_lora_rank; set that too or leave this out")
            heads, kv = self.num_attention_heads, self.key_value_heads
            require(heads % kv == 0, "num_key_value_heads", f"is {kv}, which must divide num_attention_heads ({heads})")
        require(self.rope_dim % 2 == 0, "qk_rope_head_dim" if self.qk_rope_head_dim else "head_dim", "must be even for RoPE")
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
        require(rope is None or rope <= self.index_head_dim, "index_rope_head_dim", "must not exceed index_head_dim")
        require(rope is None or rope % 2 == 0, "index_rope_head_dim", "must be even")
        return self


class CompressionConfig(Part):
    """Attention of the released V4 (2606.19348, section 2.3): a window of raw tokens, and older ones compressed block by block.

    `compress_ratios` has a number for each layer, those for multi-token prediction last: the tokens of a block, 0 for the window
    alone. A layer of `csa_ratio` is CSA: its blocks overlap and an indexer chooses among them. All others are HCA, read whole.
    """

    compress_ratios: tuple[NonNegativeInt, ...]
    sliding_window: PositiveInt
    o_groups: PositiveInt
    o_lora_rank: PositiveInt
    compress_rope_theta: float = Field(160000.0, gt=1)
    csa_ratio: PositiveInt = 4


class ExpertsConfig(Part):
    """DeepSeekMoE (2401.06066): routed and shared experts; the V2 (softmax), V3 (sigmoid) or V4 (sqrtsoftplus) router.

    In the first `num_hash_layers` the token itself decides which experts it takes. `swiglu_limit` bounds what SiLU multiplies.
    """

    n_routed_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    moe_intermediate_size: PositiveInt
    n_shared_experts: int = Field(0, ge=0)
    first_k_dense_replace: int = Field(0, ge=0)
    n_group: PositiveInt = 1
    topk_group: PositiveInt = 1
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"] = "noaux_tc"
    scoring_func: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: PositiveFloat = 1.0
    aux_loss_alpha: float = Field(1e-4, ge=0)
    bias_update_speed: float = Field(1e-3, ge=0)
    num_hash_layers: int = Field(0, ge=0)
    swiglu_limit: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        experts, groups = self.n_routed_experts, self.n_group
        require(experts % groups == 0, "n_group", f"is {groups}, which must divide n_routed_experts ({experts})")
        require(self.topk_group <= groups, "topk_group", f"is {self.topk_group}, more than n_group ({groups})")
        choosable = experts // groups * self.topk_group
        chosen = self.num_experts_per_tok
        require(
            chosen <= choosable,
            "num_experts_per_tok",
            f"is {chosen}, more than the {choosable} a token may choose from",
        )
        two_best = self.topk_method != "noaux_tc" or groups == 1 or experts // groups >= 2
        require(two_best, "n_group", "leaves one expert a group; noaux_tc scores a group by its two best experts")
        return self


class StreamsConfig(Part):
    """Residual streams: `hc_mult` of them, mixed freely (`hc`, 2409.19606) or doubly stochastically (`mhc`, 2512.24880).

    `hc_mtp`: multi-token prediction goes on from the streams themselves, as in the released V4, not from their collapse.
    """

    hc_kind: Literal["mhc", "hc"] = "mhc"
    hc_mult: PositiveInt = 4
    hc_sinkhorn_iters: PositiveInt = 20
    hc_eps: PositiveFloat = 1e-6
    hc_mtp: bool = False


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
        require(self.engram_vocab_size, "engram_vocab_size", "names no order; give one row count for each order from 2 on")
        divides = self.engram_dim % self.engram_heads == 0
        require(divides, "engram_heads", f"is {self.engram_heads}, which must divide engram_dim ({self.engram_dim})")
        require(len(set(self.engram_layers)) == len(self.engram_layers), "engram_layers", "names a layer twice")
        return self


class MediaInConfig(Part):
    """Pictures, clips and sound read by the trunk: patches of pixels and stretches of log-mel frames, a vector each.

    A patch is projected straight into the trunk, or first seen by a tower (`tower_layers`; `audio_tower_layers` for sound), which
    looks at a whole picture in patches of `tower_patch_size`, or at `audio_window` tokens of sound. A patch also tells its place in
    the picture or clip, in `image_place_waves` wavelengths an axis (see model/places.py; 0: rotary positions alone). A patch of a
    clip is of `clip_patch_frames` frames at once, as in Qwen2-VL (2409.12191, section 2.1): it shows which way things move within
    it; a picture counts as so many equal frames. How files are brought to size: the longer side in pixels, and of a clip frames a
    second and how many at most.
    """

    image_patch_size: PositiveInt
    audio_mel_bins: PositiveInt
    audio_frames_per_token: PositiveInt = 8
    image_longest: PositiveInt = 64
    clip_longest: PositiveInt = 32
    clip_rate: PositiveFloat = 8.0
    clip_frames: PositiveInt = 16
    clip_patch_frames: PositiveInt = 1
    image_place_waves: NonNegativeInt = 0
    tower_layers: NonNegativeInt = 0
    audio_tower_layers: NonNegativeInt = 0
    tower_hidden_size: PositiveInt | None = None
    tower_intermediate_size: PositiveInt | None = None
    tower_heads: PositiveInt | None = None
    tower_patch_size: PositiveInt | None = None  # None: as large as the trunk's own
    audio_window: PositiveInt = 25

    @property
    def piece(self) -> int:
        """Pixels of a side of what is projected at once."""
        return self.tower_patch_size or self.image_patch_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        tower = self.tower_layers > 0 or self.audio_tower_layers > 0
        for name in ("tower_hidden_size", "tower_intermediate_size", "tower_heads"):
            given = getattr(self, name) is not None
            require(given or not tower, name, "is needed with a tower; set it (v4 has 1280, 3456 and 20)")
            require(tower or not given, name, "needs tower_layers or audio_tower_layers; set one or leave this out")
        if tower:
            width, heads = self.tower_hidden_size, self.tower_heads
            require(width % heads == 0, "tower_heads", f"is {heads}, which must divide tower_hidden_size ({width})")
            each = width // heads
            require(each % 4 == 0, "tower_heads", f"leaves {each} channels a head; make them a multiple of 4 (rows and columns)")
        require(self.tower_layers or not self.tower_patch_size, "tower_patch_size", "needs tower_layers; set it or leave this out")
        patch, piece = self.image_patch_size, self.piece
        require(patch % piece == 0, "tower_patch_size", f"is {piece}, which must divide image_patch_size ({patch})")
        for name in ("image_longest", "clip_longest"):
            require(getattr(self, name) >= patch, name, f"is {getattr(self, name)}, less than image_patch_size ({patch})")
        return self


class MediaOutConfig(Part):
    """Pictures and clips drawn by the trunk, as codes with a table and a head of their own (as Janus does, 2410.13848).

    `image_token_size` codes, each standing for `code_downsample` pixels squared of a frame; the grids are what is drawn unless
    another is asked for: rows and columns of a picture; frames, rows and columns of a clip. A code also tells its place in what is
    drawn, in `code_place_waves` wavelengths an axis (0: rotary positions alone).
    """

    image_token_size: PositiveInt
    code_downsample: PositiveInt = 8
    image_grid: tuple[PositiveInt, PositiveInt] = (8, 8)
    film_grid: tuple[PositiveInt, PositiveInt, PositiveInt] = (8, 4, 4)
    code_place_waves: NonNegativeInt = 0


PARTS: dict[str, type[Part]] = {
    "attention": AttentionConfig,
    "selection": SelectionConfig,
    "compression": CompressionConfig,
    "experts": ExpertsConfig,
    "streams": StreamsConfig,
    "memory": MemoryConfig,
    "media_in": MediaInConfig,
    "media_out": MediaOutConfig,
}


def require(condition: Any, field: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{field} {message}")


def one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    *outer, last = first["loc"]
    field = ".".join(str(part) for part in (*(p for p in outer if p not in PARTS), last))
    said = {"missing": "is missing; set it", "extra_forbidden": "is not a known field; check its spelling"}
    message = said.get(first["type"]) or f"is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return f"{field} {message}"
