"""Rotary fields of published config.json files: `rope_theta` and `rope_scaling`, or the `rope_parameters` of transformers 5.

YaRN's temperature is published in two ways. Latent formats give `mscale` and `mscale_all_dim`, which are 1 and 0 where left out
(the code that came with V2's weights); the others give `attention_factor`, on cos and sin, by default 0.1 ln(factor) + 1.
"""

import math
from typing import Any

from fourfold.config import AttentionConfig, RopeScaling
from fourfold.errors import ConfigError
from fourfold.formats.fields import Published, given, need, number, typed
from fourfold.model.rope import yarn_table_scale

WORDS = {
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}


def read_rope(published: Published, latent: bool) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` for an AttentionConfig. Raises ConfigError for a scaling that the model does not have."""
    words = typed(published, "rope_scaling", dict) or typed(published, "rope_parameters", dict)
    theta = words.get("rope_theta") or published.get("rope_theta") or 10000.0
    kind = words.get("rope_type") or words.get("type") or "default"
    if (words.get("partial_rotary_factor") or published.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConfigError("partial_rotary_factor cannot be honoured: the model turns every rotary channel")
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in tuple(WORDS):
        raise ConfigError(f"rope_scaling.type is {kind!r}, which cannot be honoured; it may be {' or '.join(map(repr, WORDS))}")
    fields = given(words, *WORDS[kind])
    if kind == "linear":  # which does not say, and does not need, the length before
        fields["original_max_position_embeddings"] = need(published, "max_position_embeddings")["max_position_embeddings"]
    scaling = RopeScaling(type=kind, **fields)
    if kind == "yarn":
        scaling = _read_temperature(scaling, words, latent)
    return {"rope_theta": theta, "rope_scaling": scaling}


def write_rope(attention: AttentionConfig) -> Published:
    """The inverse of `read_rope`, in words that older readers (`type`) and transformers 5 (`rope_type`) both know."""
    scaling = attention.rope_scaling
    if scaling is None:
        return {"rope_theta": attention.rope_theta, "rope_scaling": None}
    words = {"type": scaling.type, "rope_type": scaling.type} | {name: getattr(scaling, name) for name in WORDS[scaling.type]}
    if scaling.type == "yarn":
        words |= _write_temperature(scaling, attention.is_latent)
    return {"rope_theta": attention.rope_theta, "rope_scaling": words}


def _read_temperature(scaling: RopeScaling, words: Published, latent: bool) -> RopeScaling:
    """An `attention_factor` that the model cannot reach is refused, and so is a ramp between fractions of channels."""
    if words.get("truncate") is False:
        raise ConfigError("rope_scaling.truncate is False, which cannot be honoured; leave it out")
    mscale, everywhere, factor = (number(words, name) for name in ("mscale", "mscale_all_dim", "attention_factor"))
    if latent:
        scaling = scaling.but(mscale=1.0 if mscale is None else mscale, mscale_all_dim=everywhere or 0.0)
        reached = yarn_table_scale(scaling)
    else:
        if factor is None:
            factor = _factor_in_transformers(scaling, mscale, everywhere)
        if factor != _plain_factor(scaling):
            mscale = 10 * (factor - 1) / math.log(scaling.factor) if scaling.factor > 1 else 0.0
            scaling = scaling.but(mscale=mscale, mscale_all_dim=mscale)
        reached = _plain_factor(scaling)
    if factor is not None and not math.isclose(factor, reached, rel_tol=1e-6):
        raise ConfigError(f"rope_scaling.attention_factor is {factor}, where its other fields ask for {reached:.6g}; leave it out")
    return scaling


def _write_temperature(scaling: RopeScaling, latent: bool) -> Published:
    if not latent:  # attention scores take cos and sin twice, and the softmax scale once
        factor = _plain_factor(scaling)
        return {} if factor == _factor_in_transformers(scaling, None, None) else {"attention_factor": factor}
    words = {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
    factor = yarn_table_scale(scaling)
    return words if factor == _factor_in_transformers(scaling, **words) else words | {"attention_factor": factor}


def _plain_factor(scaling: RopeScaling) -> float:
    """m(mscale): what cos and sin carry when the softmax scale carries nothing; the product of both is the same."""
    return yarn_table_scale(scaling.but(mscale_all_dim=0.0))


def _factor_in_transformers(scaling: RopeScaling, mscale: float | None, mscale_all_dim: float | None) -> float:
    """What transformers 5 puts on cos and sin without an `attention_factor`: it takes a zero for a missing field."""
    if mscale and mscale_all_dim:
        return yarn_table_scale(scaling.but(mscale=mscale, mscale_all_dim=mscale_all_dim))
    return yarn_table_scale(scaling.but(mscale=1.0, mscale_all_dim=0.0))
