"""Rotary positions: both layouts, only differences count, and the stretched frequencies of an independent implementation."""

import math

import pytest
import torch

from fourfold.config import RopeScaling
from fourfold.model.attention import GroupedQueryAttention
from fourfold.model.rope import frequencies, rotate, tables, yarn_attention_scale, yarn_table_scale
from fourfold.presets import preset
from tests.compare import assert_close


@pytest.mark.parametrize("interleaved", [True, False])
def test_pairs_turn_by_their_angle(interleaved: bool) -> None:
    """As multiplication of complex numbers: pair j of token t turns by t · θ^(-2j/d)."""
    x, dim, theta = torch.randn(7, 3, 10), 10, 500.0
    positions = torch.tensor([0, 1, 2, 5, 100, 1000, 4095])
    out = rotate(x, *tables(positions, frequencies(dim, theta, None)), interleaved)
    for t, position in enumerate(positions.tolist()):
        for j in range(5):
            a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + 5)
            turn = complex(math.cos(position * theta ** (-2 * j / dim)), math.sin(position * theta ** (-2 * j / dim)))
            for head in range(3):
                z = complex(x[t, head, a], x[t, head, b]) * turn
                assert (out[t, head, a] - z.real).abs() < 1e-3
                assert (out[t, head, b] - z.imag).abs() < 1e-3


def test_layouts_are_one_another_reordered() -> None:
    x, tabs = torch.randn(5, 8), tables(torch.arange(5), frequencies(8, 10000.0, None))
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    assert_close(rotate(x, *tabs, True)[:, order], rotate(x[:, order], *tabs, False))


@pytest.mark.parametrize("interleaved", [True, False])
def test_products_depend_on_the_distance_alone(interleaved: bool) -> None:
    q, k, turns = torch.randn(1, 16), torch.randn(1, 16), frequencies(16, 10000.0, None)

    def product(i: int, j: int) -> torch.Tensor:
        turned = (rotate(x, *tables(torch.tensor([at]), turns), interleaved) for x, at in ((q, i), (k, j)))
        return torch.stack(list(turned)).prod(0).sum()

    for distance in (0, 1, 17, 300):
        expected = product(distance, 0)
        for start in (1, 64, 999):
            assert_close(product(start + distance, start), expected)
    assert_close(rotate(q, *tables(torch.tensor([77]), turns), interleaved).norm(), q.norm())
    assert torch.equal(rotate(q, *tables(torch.tensor([0]), turns), interleaved), q)


def test_yarn_by_hand() -> None:
    """Section 1.2 of the reference for V3: low = 10, high = 23 of 32 channels; the ramp lies between."""
    scaling, dim, base = preset("v3").attention.rope_scaling, 64, 10000.0
    low, high = (dim * math.log(4096 / (2 * math.pi * r)) / (2 * math.log(base)) for r in (32, 1))
    assert (math.floor(low), math.ceil(high)) == (10, 23)
    mine, plain = frequencies(dim, base, scaling), frequencies(dim, base, None)
    for j in range(32):
        ramp = min(max((j - 10) / 13, 0.0), 1.0)
        theta = base ** (-2 * j / dim)
        assert_close(mine[j] / plain[j], torch.tensor(ramp / 40 + 1 - ramp))
        assert abs(mine[j].item() / (theta / 40 * ramp + theta * (1 - ramp)) - 1) < 1e-5


def test_yarn_scales() -> None:
    factor_40 = RopeScaling(factor=40, original_max_position_embeddings=4096)
    assert yarn_attention_scale(factor_40) == pytest.approx(1.3689**2, abs=1e-4)
    assert yarn_attention_scale(factor_40) == pytest.approx(1.874, abs=1e-3)
    assert yarn_table_scale(factor_40) == 1.0
    assert yarn_attention_scale(preset("v2-lite").attention.rope_scaling) == pytest.approx((0.0707 * math.log(40) + 1) ** 2)
    assert yarn_attention_scale(None) == yarn_table_scale(None) == 1.0
    assert yarn_attention_scale(factor_40.but(type="llama3")) == yarn_table_scale(factor_40.but(type="llama3")) == 1.0
    assert yarn_attention_scale(factor_40.but(factor=1.0)) == 1.0
    assert yarn_attention_scale(factor_40.but(mscale_all_dim=0.0)) == 1.0
    assert yarn_table_scale(factor_40.but(mscale_all_dim=0.0)) == pytest.approx(0.1 * math.log(40) + 1)


YARNS = {
    "v3": {},
    "v4": {"factor": 256.0},
    "other betas": {"factor": 10.0, "beta_fast": 16.0, "beta_slow": 2.0},
    "mscale": {"mscale": 0.707, "mscale_all_dim": 0.5},
    "mscale alone": {"mscale": 1.0, "mscale_all_dim": 0.0},
}


@pytest.mark.parametrize("name", YARNS)
@pytest.mark.parametrize("dim", [64, 128, 16])
def test_yarn_is_that_of_transformers(name: str, dim: int) -> None:
    pytest.importorskip("transformers")
    values = {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0} | YARNS[name]
    expected, factor = theirs({"rope_type": "yarn", "rope_theta": 10000.0, **values}, dim)
    scaling = RopeScaling(**values)
    assert_ratio(frequencies(dim, 10000.0, scaling), expected)
    assert yarn_table_scale(scaling) == pytest.approx(factor)


@pytest.mark.parametrize("dim", [64, 128, 20])
def test_llama3_is_that_of_transformers(dim: int) -> None:
    pytest.importorskip("transformers")
    values = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    expected, _ = theirs({"rope_type": "llama3", "rope_theta": 500000.0, **values}, dim)
    assert_ratio(frequencies(dim, 500000.0, RopeScaling(type="llama3", **values)), expected)


def theirs(rope: dict, dim: int) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=4 * dim, num_attention_heads=4, head_dim=dim, max_position_embeddings=163840, rope_parameters=rope
    )
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))


def assert_ratio(mine: torch.Tensor, expected: torch.Tensor) -> None:
    """Slow channels are tiny: compare each with its own size."""
    assert mine.shape == expected.shape
    assert_close(mine / expected, torch.ones_like(mine))


def test_low_precision_keeps_its_format() -> None:
    x, tabs = torch.randn(6, 2, 8), tables(torch.arange(6) * 500, frequencies(8, 10000.0, None))
    low = rotate(x.bfloat16(), *tabs, True)
    assert low.dtype == torch.bfloat16
    assert_close(low, rotate(x, *tabs, True))


def test_yarn_sharpens_grouped_attention_too() -> None:
    """The published temperature: q and k each times 0.1 ln s + 1, which is m² on their product."""
    scaling = RopeScaling(factor=40, original_max_position_embeddings=4096)
    config = preset("v1-67b").but(hidden_size=64, attention=preset("v1-67b").attention.but(rope_scaling=scaling))
    assert GroupedQueryAttention(config).scale == pytest.approx(128**-0.5 * (0.1 * math.log(40) + 1) ** 2)
