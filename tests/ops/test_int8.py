"""INT8 weights: the kernel against its definition, what rounding costs, and rows that do not know each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.ops.int8 import Int8Weight, coded, int8_product_definition
from fourfold.ops.linear import Linear, dense, linear
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS


def scaled(*shape: int) -> torch.Tensor:
    """Rows of sizes far apart, so that a scale for all of them would lose the small ones."""
    return torch.randn(shape) * 10.0 ** torch.randint(-3, 3, (*shape[:-1], 1))


@given(
    outputs=st.integers(1, 70),
    width=st.integers(1, 20).map(lambda n: 4 * n),
    rows=st.integers(1, 19),
    dtype=st.sampled_from(FORMATS),
)
def test_product_is_its_definition(kernels: Calls, outputs: int, width: int, rows: int, dtype: torch.dtype) -> None:
    weight, x = Int8Weight(scaled(outputs, width)), scaled(rows, width).to(dtype)
    expected = int8_product_definition(x.float(), weight.dense())
    size = expected.abs().amax(-1, keepdim=True).clamp(min=1e-20)
    found = weight.matmul(x)
    assert found.dtype == dtype
    assert_close(found.float() / size, expected / size, dtype=dtype)
    kernels.expect("linear_int8")


def test_codes_are_within_half_a_step() -> None:
    weight = scaled(37, 72)
    packed = Int8Weight(weight)
    step = weight.abs().amax(-1, keepdim=True) / 127
    assert ((dense(packed) - weight).abs() <= 0.5001 * step).all()
    codes, scales = coded(weight, 127)
    assert codes.abs().amax(-1).eq(127).all()
    assert torch.equal(scales, step)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_row_does_not_know_its_neighbours(kernels: Calls, dtype: torch.dtype) -> None:
    if not kernels.available:
        pytest.skip("the library's product adds up in an order that depends on the number of rows")
    weight, x = Int8Weight(torch.randn(50, 96)), scaled(21, 96).to(dtype)
    together = weight.matmul(x)
    for count in (1, 2, 3, 5, 8, 13):
        assert torch.equal(weight.matmul(x[7 : 7 + count]), together[7 : 7 + count])


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16), (0, 16)])
def test_linear_takes_it(kernels: Calls, shape: tuple[int, ...]) -> None:
    layer = Linear(16, 5, bias=True)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x, packed = torch.randn(shape), Int8Weight(layer.weight)
    assert_close(linear(x, packed, layer.bias), int8_product_definition(x, packed.dense()) + layer.bias)


def test_zeros_and_what_is_no_number(kernels: Calls) -> None:
    weight = torch.randn(3, 16)
    weight[1] = 0
    packed, x = Int8Weight(weight), torch.zeros(3, 16)
    assert not packed.matmul(x).any()
    x[1, 3], x[2, 3] = torch.nan, torch.inf
    found = packed.matmul(x)
    assert not found[0].any()
    assert not found[1:, ::2].isfinite().any()


def test_scales_stay_fp32_when_a_model_is_cast() -> None:
    packed = Int8Weight(torch.randn(4, 16))
    expected = packed.dense()
    assert torch.equal(packed.bfloat16().float().dense(), expected)
