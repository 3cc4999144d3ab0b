"""What is minimised: next-token and multi-token cross-entropy, the balance loss of the routers, the KL loss of the indexers.

Every loss takes a `weight` or a `denominator` so that a batch cut into micro-batches adds up to the loss of the whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.model.trace import LayerTrace

IGNORED = -100
CHUNK = 512  # tokens whose logits exist at once: 16 MiB in fp32 at a vocabulary of 8192


def targets_ahead(tokens: Tensor, documents: Tensor, ahead: int) -> Tensor:
    """What position i of an input row [B, T] predicts `ahead` tokens later, [B, T]; IGNORED past its document or its row.

    tokens, documents: [B, T+1], the input row and the one token after it.
    """
    targets = torch.full_like(tokens[:, :-1], IGNORED)
    reach = tokens.shape[1] - ahead
    same = documents[:, :reach] == documents[:, ahead:]
    targets[:, :reach] = tokens[:, ahead:].where(same, IGNORED)[:, : targets.shape[1]]
    return targets


def cross_entropy_plain(hidden: Tensor, head: Tensor, targets: Tensor, denominator: float) -> Tensor:
    """Definition: summed cross-entropy of logits `hidden @ head.T` [N, V] in fp32, over `denominator`."""
    logits = F.linear(hidden, head).float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum") / denominator


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients a chunk of tokens at a time, both in the forward pass: the logits [N, V] never exist whole."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor, denominator: float, chunk: int) -> Tensor:
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        head_grad = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        # Two buffers serve every chunk (one in fp32): fresh memory of this size would cost more than the arithmetic.
        raw = hidden.new_empty(min(chunk, len(hidden)), len(head))
        wide = raw if raw.dtype == torch.float32 else raw.float()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            kept, wanted = targets[part] != IGNORED, targets[part].clamp(min=0)[:, None]
            products = torch.mm(hidden[part], head.T, out=raw[: len(kept)])
            logits = wide[: len(kept)].copy_(products)
            best, right = logits.amax(-1), logits.gather(1, wanted)[:, 0]
            odds = torch.softmax(logits, -1, out=logits)
            logsumexp = best - odds.amax(-1).log()  # the best token's odds are at least 1 / V, so their logarithm is exact
            total += (logsumexp - right).where(kept, 0.0).sum()
            odds.scatter_add_(1, wanted, odds.new_full(wanted.shape, -1.0)).mul_(kept[:, None] / denominator)
            grad = products.copy_(odds)
            if hidden_grad is not None:
                torch.mm(grad, head, out=hidden_grad[part])
            if head_grad is not None and raw is wide:
                head_grad.addmm_(grad.T, hidden[part])
            elif head_grad is not None:
                head_grad += grad.T @ hidden[part]
        ctx.save_for_backward(hidden_grad, None if head_grad is None else head_grad.to(head.dtype))
        return total / denominator

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple:
        return (*(None if grad is None else grad * grad_output.to(grad.dtype) for grad in ctx.saved_tensors), None, None, None)


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, denominator: float, chunk: int = CHUNK) -> Tensor:
    """`cross_entropy_plain` without its logits. hidden [N, d], head [V, d], targets [N] int64 with IGNORED; a scalar."""
    return _ChunkedCrossEntropy.apply(hidden, head, targets, denominator, chunk)


def balance_loss(layer: LayerTrace, rows: int, experts_per_token: int) -> Tensor:
    """Sum over experts of f_e P_e, mean over `rows` sequences of equal length; 1 when the load is even.

    f_e is the share of choices that fell on expert e times the number of experts, P_e the mean normalised score.
    """
    scores = layer.expert_scores.unflatten(0, (rows, -1))
    experts = scores.shape[-1]
    chosen = expert_counts(layer.expert_ids.reshape(rows, -1), experts)
    share = chosen * (experts / (experts_per_token * scores.shape[1]))
    return (share * scores.mean(1)).sum(-1).mean()


def expert_counts(expert_ids: Tensor, experts: int) -> Tensor:
    """How often each expert was chosen: [..., choices] -> [..., experts] fp32."""
    counts = torch.zeros(*expert_ids.shape[:-1], experts, dtype=torch.float32, device=expert_ids.device)
    return counts.scatter_add_(-1, expert_ids, torch.ones_like(expert_ids, dtype=torch.float32))


@torch.no_grad()
def update_bias(bias: Tensor, load: Tensor, speed: float) -> None:
    """Balance without a loss: raise the selection bias of experts below the mean load by `speed`, lower the others'."""
    bias += speed * torch.sign(load.mean() - load)


def indexer_loss(layer: LayerTrace) -> Tensor:
    """Mean over queries of KL(attention mass || softmax of the index scores), over the keys that the trace lets be judged."""
    scores = layer.index_scores.float().masked_fill(~layer.index_mask, -torch.inf)
    judged = layer.index_mask.any(-1)
    log_index = scores[judged].log_softmax(-1)
    mass = layer.attention_mass[judged].float()
    return (torch.special.xlogy(mass, mass) - mass * log_index.masked_fill(mass == 0, 0.0)).sum(-1).mean()


@torch.no_grad()
def dead_fraction(layer: LayerTrace) -> float:
    """Share of queries whose index scores are all exactly zero: every ReLU is off, so that neither choice nor gradient is left."""
    judged = layer.index_mask.any(-1)
    silent = ((layer.index_scores == 0) | ~layer.index_mask).all(-1)
    return (silent & judged).sum().item() / max(judged.sum().item(), 1)
