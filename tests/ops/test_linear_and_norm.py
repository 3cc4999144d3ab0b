"""The one matrix product, the one norm and the projection of streams: against PyTorch's own and against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops.linear import Linear, linear
from fourfold.ops.mixing import mix_weights, mix_weights_definition
from fourfold.ops.norm import RMSNorm, rms_norm, rms_norm_definition
from tests.compare import assert_close

NORMED = [
    ((9, 16), (16,)),
    ((2, 5, 16), (16,)),
    ((7, 3, 16), (3, 16)),
    ((2, 4, 3, 16), (3, 16)),
]  # shapes of x and weight


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
    for form in (norm, lambda x: rms_norm_definition(x, norm.weight, 1e-5)):
        assert form(x).dtype == dtype
        assert_close(form(x), F.rms_norm(x.float(), (16,), norm.weight.float(), 1e-5), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "weight"), [((9, 16), (16,)), ((2, 5, 16), (16,)), ((7, 3, 16), (3, 16)), ((2, 4, 3, 16), (3, 16))]
)
def test_norm_is_its_definition_with_gradients(shape: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype) -> None:
    leaves = [(3 * torch.randn(*shape)).to(dtype).requires_grad_(), torch.randn(*weight).to(dtype).requires_grad_()]
    outputs = [form(*leaves, 1e-5) for form in (rms_norm, rms_norm_definition)]
    assert_close(*outputs)
    direction = torch.randn(*shape).to(dtype)
    fast, plain = (torch.autograd.grad((out * direction).sum(), leaves) for out in outputs)
    for name, mine, expected in zip(("x", "weight"), fast, plain, strict=True):
        assert mine.dtype == dtype
        assert_close(mine, expected, f"gradient of {name}")


def test_norm_takes_a_view_and_leaves_it_alone() -> None:
    whole = torch.randn(6, 3, 20)
    kept, weight = whole.clone(), torch.randn(8, requires_grad=True)
    view = whole[:, 1, 4:12].requires_grad_()
    out = rms_norm(view, weight, 1e-6)
    assert_close(out, rms_norm_definition(kept[:, 1, 4:12], weight, 1e-6))
    out.sum().backward()
    assert torch.equal(whole, kept)


def test_norm_of_zeros_and_of_huge_numbers_is_finite() -> None:
    for value in (0.0, 1e-30, 1e15):
        x, weight = torch.full((2, 8), value, requires_grad=True), torch.ones(8, requires_grad=True)
        out = rms_norm(x, weight, 1e-6)
        out.sum().backward()
        assert out.isfinite().all()
        assert x.grad.isfinite().all()
        assert weight.grad.isfinite().all()


def test_norm_is_computed_in_fp32() -> None:
    """Squares of large bf16 numbers would lose nothing in range but all of their precision."""
    x = (torch.randn(1, 4096) + 300).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert (rms_norm(x, torch.ones(4096), 1e-6).double() - exact).abs().max() <= 2**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 4])
def test_stream_projection_is_its_definition_with_gradients(n: int, dtype: torch.dtype) -> None:
    streams = (2 * torch.randn(11, n, 10)).to(dtype).requires_grad_()
    leaves = [streams, torch.randn((2 + n) * n, 10 * n).requires_grad_()]
    outputs = [form(*leaves, 1e-6) for form in (mix_weights, mix_weights_definition)]
    assert all(out.dtype == torch.float32 for out in outputs)
    assert_close(*outputs)
    direction = torch.randn_like(outputs[0])
    fast, plain = (torch.autograd.grad((out * direction).sum(), leaves) for out in outputs)
    for name, mine, expected in zip(("streams", "fn"), fast, plain, strict=True):
        assert mine.dtype == expected.dtype
        assert_close(mine, expected, f"gradient of {name}")
