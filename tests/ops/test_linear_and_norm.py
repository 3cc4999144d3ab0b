"""The one matrix product and the one norm, against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops.linear import Linear, linear
from fourfold.ops.norm import RMSNorm, rms_norm
from tests.compare import assert_close


class Packed:
    """A weight kept in a form of its own: int8 with a scale for each row."""

    def __init__(self, weight: Tensor) -> None:
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.whole = (weight / self.scale).round().to(torch.int8)

    def unpack(self) -> Tensor:
        return self.whole.float() * self.scale

    def matmul(self, x: Tensor) -> Tensor:
        return (x @ self.whole.float().T) * self.scale[:, 0]


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_linear_takes_plain_and_packed_weights(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(*shape), torch.randn(5, 7), torch.randn(5)
    packed = Packed(weight)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert_close(linear(x, packed), F.linear(x, packed.unpack()))
    assert_close(linear(x, packed, bias), F.linear(x, packed.unpack(), bias))


def test_linear_module() -> None:
    plain, biased = Linear(4, 3), Linear(4, 3, bias=True)
    assert plain.bias is None
    assert biased.weight.shape == (3, 4)
    torch.nn.init.normal_(biased.weight)
    torch.nn.init.normal_(biased.bias)
    x = torch.randn(2, 4)
    assert torch.equal(biased(x), F.linear(x, biased.weight, biased.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_pytorchs(dtype: torch.dtype) -> None:
    norm = RMSNorm(16, 1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = (3 * torch.randn(4, 5, 16)).to(dtype)
    out = norm(x)
    assert out.dtype == dtype
    assert_close(out, F.rms_norm(x.float(), (16,), norm.weight.float(), 1e-5), dtype=dtype)
    assert_close(rms_norm(x, None, 1e-5), F.rms_norm(x.float(), (16,), None, 1e-5), dtype=dtype)


def test_norm_is_computed_in_fp32() -> None:
    """Squares of large bf16 numbers would lose nothing in range but all of their precision."""
    x = (torch.randn(1, 4096) + 300).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert (rms_norm(x, None, 1e-6).double() - exact).abs().max() <= 2**-8
