"""Root-mean-square normalisation (1910.07467, equation 4), computed in fp32."""

from typing import Any

import torch
from torch import Tensor, nn


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
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        grad, normed = grad.float(), x.float() * scale
        weight_grad = (grad * normed).flatten(0, -weight.dim() - 1).sum(0).to(weight.dtype)
        grad = grad * weight.float()
        along = (grad * normed).mean(-1, keepdim=True)
        return grad.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), weight_grad, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm_definition` with a backward of its own, in fewer passes over memory."""
    return _RMSNorm.apply(x, weight, eps)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
