"""The projections of hyper-connections and RMSNorm: own backward = the definition's autograd."""

import pytest
import torch

from fourfold.ops.mixing import mix_weights, mix_weights_definition
from fourfold.ops.norm import rms_norm, rms_norm_definition
from tests.compare import assert_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 5), (7, 4, 6), (33, 3, 16)], ids=str)
def test_mix_weights(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    streams = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    fn = torch.randn(24, shape[1] * shape[2], requires_grad=True)
    check(mix_weights, mix_weights_definition, (streams, fn))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "weight"), [((5, 6), (6,)), ((2, 3, 6), (6,)), ((7, 4, 6), (4, 6)), ((2, 3, 4, 6), (4, 6))], ids=str
)
def test_rms_norm(shape: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    check(rms_norm, rms_norm_definition, (x, torch.randn(weight).to(dtype).requires_grad_()))


def test_zeros_have_finite_gradients() -> None:
    x, weight = torch.zeros(3, 4, 6, requires_grad=True), torch.ones(6, requires_grad=True)
    fn = torch.randn(24, 24, requires_grad=True)
    (rms_norm(x, weight, 1e-6).sum() + mix_weights(x, fn, 1e-6).sum()).backward()
    assert all(p.grad.isfinite().all() for p in (x, weight, fn))


def check(fast, definition, inputs: tuple[torch.Tensor, ...]) -> None:
    mine, theirs = fast(*inputs, 1e-6), definition(*inputs, 1e-6)
    assert_close(mine, theirs, "output")
    grad = torch.randn_like(theirs)
    pairs = zip(torch.autograd.grad(mine, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True)
    for i, (a, b) in enumerate(pairs):
        assert_close(a, b, f"gradient {i}")
