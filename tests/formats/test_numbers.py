"""Decoding of fp8 and fp4 against a reference that takes the bits apart, over all codes, all scales and blocks cut short."""

import math

import pytest
import torch
from torch import Tensor

from fourfold.weights.number_formats import decode_fp4, decode_fp8, scales
from tests.formats.encoding import fp4, fp8


def e4m3(code: int) -> float:
    """OCP 8-bit floating point, E4M3: bias 7, no infinity, one NaN of each sign."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 0xF, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def e2m1(code: int) -> float:
    """OCP microscaling, E2M1: bias 1."""
    sign, exponent, mantissa = -1.0 if code & 8 else 1.0, code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))


def e8m0(code: int) -> float:
    return math.nan if code == 255 else 2.0 ** (code - 127)


def rounded(values: list[list[float]], dtype: torch.dtype) -> Tensor:
    """Exact products of a few bits each, as fp32 numbers, rounded once."""
    return torch.tensor(values, dtype=torch.float64).float().to(dtype)


def same(actual: Tensor, expected: Tensor) -> bool:
    """The same bits; every NaN alike."""
    both = actual.isnan() & expected.isnan()
    bits = [t.masked_fill(both, 0).contiguous().view(torch.uint8) for t in (actual, expected)]
    return actual.dtype == expected.dtype and actual.shape == expected.shape and torch.equal(*bits)


EVERY = torch.arange(256, dtype=torch.uint8)


def test_every_e8m0_exponent() -> None:
    expected = rounded([[e8m0(code) for code in range(256)]], torch.float32)[0]
    assert same(scales(EVERY), expected) and same(scales(EVERY.view(torch.float8_e8m0fnu)), expected)
    assert expected[0] == 2.0**-127 and expected[254] == 2.0**127 and expected[255].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_fp8_code_with_every_exponent(dtype: torch.dtype) -> None:
    """Row r holds all codes under exponent r."""
    codes = EVERY.repeat(256, 1).view(torch.float8_e4m3fn)
    expected = rounded([[e4m3(code) * e8m0(row) for code in range(256)] for row in range(256)], dtype)
    for stored in (EVERY[:, None], EVERY[:, None].view(torch.float8_e8m0fnu), scales(EVERY)[:, None]):
        assert same(decode_fp8(codes, stored, (1, 256), dtype), expected)
    assert decode_fp8(codes, EVERY[:, None], (1, 256), dtype)[127, 0x7F].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_fp4_byte_with_every_exponent(dtype: torch.dtype) -> None:
    """Row r holds all bytes under exponent r; the low nibble comes first."""
    codes = EVERY.repeat(256, 1)
    row = [e2m1(nibble) for byte in range(256) for nibble in (byte & 15, byte >> 4)]
    expected = rounded([[value * e8m0(exponent) for value in row] for exponent in range(256)], dtype)
    exponents = EVERY[:, None].repeat(1, 16)
    for stored in (codes, codes.view(torch.int8)):
        assert same(decode_fp4(stored, exponents, dtype), expected)
        assert same(decode_fp4(stored, exponents.view(torch.float8_e8m0fnu), dtype), expected)


@pytest.mark.parametrize("block", [(128, 128), (32, 32), (3, 5)])
@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 127), (300, 260), (5, 400)])
def test_blocks_cut_short_at_the_edges(shape: tuple[int, int], block: tuple[int, int]) -> None:
    (rows, columns), (high, wide) = shape, block
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 1  # NaN has its test above
    scale = torch.rand(math.ceil(rows / high), math.ceil(columns / wide)) + 0.1
    values = [[e4m3(code) for code in row] for row in codes.tolist()]
    # the product of two fp32 numbers, correctly rounded, as multiplying in fp64 (exact here) and rounding once
    expected = rounded(
        [[v * scale[r // high, c // wide].item() for c, v in enumerate(row)] for r, row in enumerate(values)], torch.float32
    )
    assert same(decode_fp8(codes.view(torch.float8_e4m3fn), scale, block, torch.float32), expected)


@pytest.mark.parametrize("shape", [(1, 2), (129, 32), (130, 66), (257, 16), (3, 300)])
def test_fp4_runs_cut_short_at_the_edges(shape: tuple[int, int]) -> None:
    rows, columns = shape
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    exponents = torch.randint(100, 150, (rows, math.ceil(columns / 32)), dtype=torch.uint8)
    nibbles = [[n for byte in row for n in (byte & 15, byte >> 4)] for row in codes.tolist()]
    expected = rounded(
        [[e2m1(n) * e8m0(int(exponents[r, c // 32])) for c, n in enumerate(row)] for r, row in enumerate(nibbles)], torch.float32
    )
    assert same(decode_fp4(codes, exponents, torch.float32), expected)


@pytest.mark.parametrize("powers", [False, True])
def test_the_tests_own_encoder_comes_back_within_half_a_step(powers: bool) -> None:
    """What other tests make quantised folders with: off by at most half of e4m3's step (1/16 of a number)."""
    weight = torch.randn(200, 300)
    codes, scale = fp8(weight, (128, 128), powers)
    back = decode_fp8(codes, scale, (128, 128), torch.float32)
    tiny = scales(scale).max() * 2.0**-10
    assert ((back - weight).abs() <= weight.abs() / 16 + tiny).all()
    codes, scale = fp4(weight[:, :288])
    back = decode_fp4(codes, scale, torch.float32)
    step = scales(scale).repeat_interleave(32, 1)
    assert ((back - weight[:, :288]).abs() <= step).all()
