"""What a site of hyper-connections projects from its streams: m = (fn · u) · rsqrt(mean(u²) + eps), u = vec(X) in fp32.

The root mean square divides after the projection and has no weight (released V4 code; 2512.24880, equation 7 up to that order).
"""

from typing import Any

import torch
from torch import Tensor


def mix_weights_definition(streams: Tensor, fn: Tensor, eps: float) -> Tensor:
    """streams [N, n, d], fn [m, n·d] -> fp32 [N, m]."""
    flat = streams.flatten(1).float()
    return (flat @ fn.T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


class _MixWeights(torch.autograd.Function):
    """du = (g r) fn - u r² Σ(g m) / width, where r is the root mean square's inverse; u is widened again, not kept."""

    @staticmethod
    def forward(ctx: Any, streams: Tensor, fn: Tensor, eps: float) -> Tensor:
        flat = streams.flatten(1).float()
        scale = torch.linalg.vector_norm(flat, dim=-1, keepdim=True).square_().div_(flat.shape[1]).add_(eps).rsqrt_()
        mixed = (flat @ fn.T).mul_(scale)
        ctx.save_for_backward(streams, fn, scale, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        streams, fn, scale, mixed = ctx.saved_tensors
        flat = streams.flatten(1).float()
        scaled = grad * scale
        fn_grad = scaled.T @ flat
        along = (grad * mixed).sum(-1, keepdim=True).mul_(scale.square()).div_(-flat.shape[1])
        streams_grad = torch.addmm(flat * along, scaled, fn)
        return streams_grad.view_as(streams).to(streams.dtype), fn_grad, None


def mix_weights(streams: Tensor, fn: Tensor, eps: float) -> Tensor:
    """`mix_weights_definition` with a backward of its own, in fewer passes over memory."""
    return _MixWeights.apply(streams, fn, eps)
