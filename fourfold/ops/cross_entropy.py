"""Next-token cross-entropy over a large vocabulary, without ever holding all its logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops import native

IGNORED = -100  # as a target: the row counts for nothing
CHUNK = 512  # tokens whose logits exist at once: 8 MiB in bf16 at a vocabulary of 8192


def cross_entropy_definition(hidden: Tensor, head: Tensor, targets: Tensor, denominator: float) -> Tensor:
    """Summed cross-entropy of logits `hidden @ head.T` [N, V] in fp32, over `denominator`."""
    logits = F.linear(hidden, head).float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum") / denominator


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients a chunk of tokens at a time, both in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, denominator: float, chunk: int) -> Tensor:
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        head_grad = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(head))  # one for all chunks: fresh memory would cost more
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = torch.mm(hidden[part], head.T, out=buffer[: len(hidden[part])])
            total += _loss_and_gradient_(logits, targets[part], 1.0 / denominator)
            if hidden_grad is not None:
                torch.mm(logits, head, out=hidden_grad[part])
            if head_grad is not None and logits.dtype == torch.float32:
                head_grad.addmm_(logits.T, hidden[part])
            elif head_grad is not None:
                head_grad += logits.T @ hidden[part]
        ctx.save_for_backward(hidden_grad, None if head_grad is None else head_grad.to(head.dtype))
        return total / denominator

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple:
        return (*(None if grad is None else grad * grad_output.to(grad.dtype) for grad in ctx.saved_tensors), None, None, None)


def _loss_and_gradient_(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """Summed loss of logits [n, V], which become scale · (softmax - one-hot) in place."""
    if native.ready(logits):
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        native.call("cross_entropy", logits.dtype, logits, targets.long().contiguous(), losses, *logits.shape, scale)
        return losses.sum()
    kept, wanted = targets != IGNORED, targets.clamp(min=0)[:, None]
    log_odds = logits.float().log_softmax(-1)
    loss = -log_odds.gather(1, wanted)[:, 0].where(kept, 0.0).sum()
    odds = log_odds.exp_()
    logits.copy_(odds.scatter_add_(1, wanted, odds.new_full(wanted.shape, -1.0)).mul_(kept[:, None] * scale))
    return loss


def _check_range(targets: Tensor, vocabulary: int) -> None:
    """A kernel would read and write wherever a target leads it."""
    wrong = targets[((targets < 0) & (targets != IGNORED)) | (targets >= vocabulary)]
    if len(wrong):
        raise IndexError(f"target {int(wrong[0])} is outside the vocabulary of {vocabulary}")


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, denominator: float, chunk: int = CHUNK) -> Tensor:
    """`cross_entropy_definition` without its logits. hidden [N, d], head [V, d], targets [N] int64 with IGNORED; a scalar.

    Raises IndexError for a target outside the vocabulary.
    """
    if targets.device.type == "cpu":
        _check_range(targets, len(head))
    return _ChunkedCrossEntropy.apply(hidden, head, targets, denominator, chunk)
