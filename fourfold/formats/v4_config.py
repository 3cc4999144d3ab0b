"""config.json of the released DeepSeek-V4, in the words of the released files and in those of transformers.

    what                         released                              transformers
    blocks of each layer         compress_ratios (0, 4, 128; mtp last) layer_types and compress_rates
    layers routed by token       num_hash_layers                       mlp_layer_types
    channels that turn           qk_rope_head_dim                      partial_rotary_factor
    frequencies                  rope_theta, compress_rope_theta,      rope_parameters.main and .compress
                                 rope_scaling

YaRN applies where blocks are, without its factor on attention. A window layer turns by rope_theta alone.
"""

from typing import Any

from fourfold.config import (
    AttentionConfig,
    CompressionConfig,
    ExpertsConfig,
    ModelConfig,
    RopeScaling,
    SelectionConfig,
    StreamsConfig,
)
from fourfold.errors import ConfigError
from fourfold.formats.fields import Published, check_words, given, need, number, only, read_trunk, typed, write_trunk

ATTENTION = ("num_attention_heads", "head_dim", "q_lora_rank")
INDEX = ("index_n_heads", "index_head_dim", "index_topk")
EXPERTS = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
ROUTER = ("n_shared_experts", "scoring_func", "routed_scaling_factor", "num_hash_layers", "swiglu_limit")
COMPRESSION = ("sliding_window", "o_groups", "o_lora_rank")
STREAMS = ("hc_mult", "hc_sinkhorn_iters", "hc_eps")
YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
WINDOW, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"  # transformers' layer types
CSA_RATIO, HCA_RATIO, THETA, COMPRESS_THETA = 4, 128, 10000.0, 160000.0  # where a config.json says nothing


def read(published: Published) -> ModelConfig:
    """The model that a config.json means. Raises ConfigError naming a field that cannot be honoured."""
    depths = 0 if drafts(published) else typed(published, "num_nextn_predict_layers", int)
    compression = _read_compression(published, depths)
    chooses = compression.csa_ratio in compression.compress_ratios
    width = need(published, "moe_intermediate_size")["moe_intermediate_size"]
    return ModelConfig(
        **read_trunk(published | {"intermediate_size": width}),  # there is no dense layer
        num_nextn_predict_layers=depths,
        attention=_read_attention(published),
        selection=SelectionConfig(**need(published, *INDEX)) if chooses else None,
        compression=compression,
        experts=_read_experts(published),
        streams=StreamsConfig(**given(published, *STREAMS), hc_mtp=True),
    )


def drafts(published: Published) -> bool:
    """Whether stages of DSpark stand in the place of multi-token prediction (builds 0731 and 0813): they are left unread."""
    return bool(published.get("dspark_block_size"))


def write(config: ModelConfig, model_type: str) -> Published:
    """The inverse of `read`, in the released words, and in transformers' where those have no place for what is meant."""
    _check(config, model_type)
    attention, experts, compression = config.attention, config.experts, config.compression
    words = {name: getattr(attention, name) for name in (*ATTENTION, "qk_rope_head_dim", "rope_theta")}
    words |= {"num_key_value_heads": 1, "attention_bias": False, "rope_scaling": _write_scaling(attention.rope_scaling)}
    words |= {name: getattr(experts, name) for name in (*EXPERTS, *ROUTER)}
    words |= {"swiglu_limit": experts.swiglu_limit or 0.0, "topk_method": "noaux_tc", "norm_topk_prob": True}
    words |= {name: getattr(compression, name) for name in (*COMPRESSION, "compress_rope_theta")} | _write_ratios(config)
    words |= {name: getattr(config.streams, name) for name in STREAMS}
    words["num_nextn_predict_layers"] = config.num_nextn_predict_layers
    if config.selection is not None:
        words |= {name: getattr(config.selection, name) for name in INDEX}
    trunk = write_trunk(config)
    del trunk["intermediate_size"]
    return trunk | words


def _check(config: ModelConfig, model_type: str) -> None:
    words: dict[str, tuple[str, ...]] = {
        "trunk": ("num_nextn_predict_layers",),
        "attention": (*ATTENTION, "num_key_value_heads", "qk_rope_head_dim", "rope_theta", "rope_scaling"),
        "compression": tuple(CompressionConfig.model_fields),
        "experts": (*EXPERTS, *ROUTER, "aux_loss_alpha", "bias_update_speed"),  # the last two are for training only
        "streams": (*STREAMS, "hc_mtp"),
    }
    check_words(config, model_type, **words | ({"selection": INDEX} if config.selection else {}))
    if config.num_nextn_predict_layers and not config.streams.hc_mtp:
        raise ConfigError(f"hc_mtp is False, but {model_type} predicts from the streams; leave multi-token prediction out")
    if config.experts.n_shared_experts != 1:
        raise ConfigError(f"n_shared_experts is {config.experts.n_shared_experts}; {model_type} has one")


def _read_attention(published: Published) -> AttentionConfig:
    only(published, "attention_bias", False)
    only(published, "num_key_value_heads", 1)
    sizes = need(published, *ATTENTION)
    turned = published.get("qk_rope_head_dim") or int(sizes["head_dim"] * (number(published, "partial_rotary_factor") or 0.125))
    main, _, scaling = _read_rope(published)
    return AttentionConfig(**sizes, num_key_value_heads=1, qk_rope_head_dim=turned, rope_theta=main, rope_scaling=scaling)


def _read_rope(published: Published) -> tuple[float, float, RopeScaling | None]:
    """Base of the window layers, base of the others, and how the others' frequencies are stretched."""
    both = typed(published, "rope_parameters", dict)
    main, rest = typed(both, "main", dict), typed(both, "compress", dict) or typed(published, "rope_scaling", dict)
    only(main, "rope_type", "default")
    bases = main.get("rope_theta") or published.get("rope_theta"), rest.get("rope_theta") or published.get("compress_rope_theta")
    kind = rest.get("rope_type") or rest.get("type") or "default"
    if kind not in ("default", "yarn"):
        raise ConfigError(f"rope_scaling.type is {kind!r}, which cannot be honoured; it may be 'yarn'")
    only(rest, "attention_factor", 1.0, 1)
    scaling = None if kind == "default" else RopeScaling(**given(rest, *YARN))
    return bases[0] or THETA, bases[1] or COMPRESS_THETA, scaling


def _write_scaling(scaling: RopeScaling | None) -> Published | None:
    if scaling is None:
        return None
    if scaling != RopeScaling(**{name: getattr(scaling, name) for name in YARN}):
        raise ConfigError("rope_scaling: deepseek_v4 has YaRN with the default mscale only; leave its other fields out")
    return {"type": "yarn", "rope_type": "yarn"} | {name: getattr(scaling, name) for name in YARN}


def _read_compression(published: Published, depths: int) -> CompressionConfig:
    layers = need(published, "num_hidden_layers")["num_hidden_layers"]
    rates = {CSA: CSA_RATIO, HCA: HCA_RATIO, WINDOW: 0} | typed(published, "compress_rates", dict)
    ratios, kinds = typed(published, "compress_ratios", list), typed(published, "layer_types", list)
    if not ratios and not kinds:
        raise ConfigError("compress_ratios is missing; copy the published config.json again")
    if not ratios:
        if unknown := [kind for kind in kinds if kind not in tuple(rates)]:
            raise ConfigError(f"layer_types holds {unknown[0]!r}, which cannot be honoured")
        if CSA in kinds and HCA in kinds and rates[CSA] == rates[HCA]:
            raise ConfigError(f"compress_rates has {rates[CSA]} for both kinds of layers, which cannot be honoured")
        ratios = [rates[kind] for kind in kinds]
    ratios = [*ratios, *[0] * (layers + depths - len(ratios))] if len(ratios) == layers else ratios[: layers + depths]
    sizes = need(published, *COMPRESSION)
    theta = _read_rope(published)[1]
    return CompressionConfig(**sizes, compress_ratios=tuple(ratios), compress_rope_theta=theta, csa_ratio=rates[CSA])


def _write_ratios(config: ModelConfig) -> Published:
    """The released words suffice for the released ratios. For others transformers needs its own, which know one ratio of a kind."""
    ratios, csa = config.compression.compress_ratios, config.compression.csa_ratio
    words: Published = {"compress_ratios": list(ratios)}
    wide = set(ratios) - {0, csa}
    if len(wide) > 1:
        said = f"compress_ratios has {len(wide)} lengths for blocks that are read whole ({', '.join(map(str, sorted(wide)))})"
        raise ConfigError(f"{said}; deepseek_v4 has words for one")
    if csa == CSA_RATIO and wide <= {HCA_RATIO}:
        return words
    kinds = [WINDOW if not ratio else CSA if ratio == csa else HCA for ratio in ratios[: config.num_hidden_layers]]
    return words | {"layer_types": kinds, "compress_rates": {CSA: csa, HCA: max(wide, default=HCA_RATIO)}}


def _read_experts(published: Published) -> ExpertsConfig:
    only(published, "topk_method", "noaux_tc")
    only(published, "norm_topk_prob", True)
    only(published, "n_shared_experts", 1)
    kind = only(published, "scoring_func", "sqrtsoftplus", "sigmoid")
    fields: dict[str, Any] = need(published, *EXPERTS) | given(published, "routed_scaling_factor")
    limit = published.get("swiglu_limit") or None
    return ExpertsConfig(
        **fields, n_shared_experts=1, scoring_func=kind, num_hash_layers=_read_hashed(published), swiglu_limit=limit
    )


def _read_hashed(published: Published) -> int:
    kinds = typed(published, "mlp_layer_types", list)
    if not kinds:
        return typed(published, "num_hash_layers", int)
    hashed = kinds.count("hash_moe")
    if kinds != ["hash_moe"] * hashed + ["moe"] * (len(kinds) - hashed):
        raise ConfigError("mlp_layer_types: layers routed by token must come first; others cannot be honoured")
    return hashed
