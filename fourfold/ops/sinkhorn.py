"""Sinkhorn-Knopp projection towards doubly stochastic matrices, as mHC uses it (2512.24880, section 4.2; released V4 code).

The last normalisation makes each column sum to one (weights into a target stream); row sums are only approximate.
"""

from typing import Any

import torch
from torch import Tensor


def sinkhorn_definition(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """`logits` [..., n, n] (source, target) -> mixing weights: softmax over rows, then alternate column and row sums to 1."""
    mix = logits.softmax(-1) + eps
    mix = mix / (mix.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        mix = mix / (mix.sum(-1, keepdim=True) + eps)
        mix = mix / (mix.sum(-2, keepdim=True) + eps)
    return mix


class _Sinkhorn(torch.autograd.Function):
    """The same with tokens innermost ([n, n, N]: sums over n become additions of whole rows) and a backward of its own.

    A normalisation y = x / t, t = sum(x) + eps has dx = (dy - sum(dy · y)) / t, and x = y · t, so only the sums are kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, iterations: int, eps: float) -> Tensor:
        start = logits.permute(1, 2, 0).contiguous().softmax(1)
        mix, sums = start + eps, []
        for step in range(2 * iterations - 1):
            total = mix.sum(step % 2, keepdim=True).add_(eps)
            mix = mix / total
            sums.append(total)
        ctx.save_for_backward(start, mix, *sums)
        return mix.permute(2, 0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        start, mix, *sums = ctx.saved_tensors
        grad, mix = grad.permute(1, 2, 0).contiguous(), mix.clone()
        for step in reversed(range(len(sums))):
            grad = (grad - (grad * mix).sum(step % 2, keepdim=True)).div_(sums[step])
            mix.mul_(sums[step])
        grad = start * (grad - (grad * start).sum(1, keepdim=True))
        return grad.permute(2, 0, 1), None, None


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """`sinkhorn_definition` for logits [N, n, n], in the layout and with the backward above."""
    return _Sinkhorn.apply(logits, iterations, eps)
