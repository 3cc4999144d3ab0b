"""Rotary positions (2104.09864), in both layouts, stretched by YaRN (2309.00071), by the Llama-3 rule or all alike."""

import math

import torch
from torch import Tensor

from fourfold.config import ModelConfig, RopeScaling
from fourfold.ops.rotary import rotate


def all_frequencies(config: ModelConfig) -> dict[str, Tensor]:
    """The kinds of frequencies that a model turns by: `attention`; the indexer's; those of layers that compress (V4).

    With compression, YaRN stretches these last ones only, whose base is another too: a window needs no long range.
    """
    attention, scaling = config.attention, config.attention.rope_scaling
    if config.compression is not None:
        window = frequencies(attention.rope_dim, attention.rope_theta, None)
        return {"attention": window, "compressed": frequencies(attention.rope_dim, config.compression.compress_rope_theta, scaling)}
    turns = {"attention": frequencies(attention.rope_dim, attention.rope_theta, scaling)}
    if config.selection is not None:
        turns["index"] = frequencies(config.index_rope_dim, attention.rope_theta, scaling)
    return turns


def frequencies(dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Angles per position, fp32 [dim / 2], slowest last."""
    plain = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    if scaling is None:
        return plain
    if scaling.type == "linear":  # 2306.15595: positions are divided, which is the same
        return plain / scaling.factor
    return (_yarn if scaling.type == "yarn" else _llama3)(plain, dim, theta, scaling)


def _yarn(plain: Tensor, dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN section 3.2: fast channels keep their angle, slow ones are divided by `factor`, a ramp lies between."""
    original = scaling.original_max_position_embeddings

    def channel(rotations: float) -> float:  # the channel that turns so often over the original length
        return dim * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(math.floor(channel(scaling.beta_fast)), 0)
    high = min(math.ceil(channel(scaling.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def _llama3(plain: Tensor, dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's rule: by wavelength, keep the short, divide the long, blend between."""
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * (1 - keep) + plain * keep


def yarn_attention_scale(scaling: RopeScaling | None) -> float:
    """m², the factor on the softmax scale in V2, V3 and V3.2: m = 0.1 · mscale_all_dim · ln(factor) + 1 (√t of YaRN, squared)."""
    if scaling is None or scaling.type != "yarn" or scaling.factor <= 1:
        return 1.0
    return _m(scaling.factor, scaling.mscale_all_dim) ** 2


def yarn_table_scale(scaling: RopeScaling | None) -> float:
    """The factor on cos and sin: m(mscale) / m(mscale_all_dim), which is 1 when they are equal."""
    if scaling is None or scaling.type != "yarn" or scaling.factor <= 1:
        return 1.0
    return _m(scaling.factor, scaling.mscale) / _m(scaling.factor, scaling.mscale_all_dim)


def _m(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if mscale else 1.0


def tables(positions: Tensor, inverse: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin [N, dim / 2] in fp32 for positions [N], or on A axes [A, N]: pair j then turns by axis j mod A."""
    if positions.dim() == 1:
        positions = positions[None]
    axes = torch.arange(len(inverse), device=positions.device) % len(positions)
    angles = positions.float().T[:, axes] * inverse
    return angles.cos() * scale, angles.sin() * scale


def rotate_tail(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True) -> Tensor:
    """`rotate` on the last channels only, as many as there are angles for (V4: 64 of a head's 512)."""
    kept, turned = x.split([x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    return torch.cat([kept, rotate(turned, cos, sin, interleaved)], dim=-1)
