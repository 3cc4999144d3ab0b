"""Root-mean-square normalisation (1910.07467, equation 4), computed in fp32."""

from typing import Any

import torch
from torch import Tensor, nn

from fourfold.ops import native


def rms_norm_definition(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension; the result has the dtype of `x`.

    `weight` [..., d] has trailing dimensions of `x`: one vector, or one for each stream [n, d].
    """
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """With r = rsqrt(mean(x²) + eps) and h = gradient · weight: dx = r (h - x r² mean(h x)), dweight = Σ gradient · x r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        width = x.shape[-1]
        ctx.sizes = x.numel() // width, width, weight.numel() // width
        scale = x.new_empty(ctx.sizes[0], dtype=torch.float32)
        y = _normed(x, weight, eps, scale)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        parts = x.new_zeros(torch.get_num_threads(), *weight.shape, dtype=torch.float32)
        native.call("rms_norm_backward", x.dtype, x, weight, scale, grad.contiguous(), x_grad, parts, len(parts), *ctx.sizes)
        return x_grad, parts.sum(0).to(weight.dtype), None


def _normed(x: Tensor, weight: Tensor, eps: float, scale: Tensor | None = None) -> Tensor:
    """The result, and in `scale` what each row was multiplied by."""
    y, width = torch.empty_like(x), x.shape[-1]
    sizes = x.numel() // width, width, weight.numel() // width
    native.call("rms_norm_forward", x.dtype, x, weight, y, scale, *sizes, float(eps))
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm_definition`, in two passes over memory where there are kernels."""
    if native.ready(x, weight) and x.shape[-weight.dim() :] == weight.shape:
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, weight, eps)
        return _normed(x.contiguous(), weight.contiguous(), eps)
    return rms_norm_definition(x, weight, eps)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
