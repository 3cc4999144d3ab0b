"""The lightning indexer: its scores I_{t,s} = Σ_j w_{t,j} ReLU(q_{t,j} · k_s) (V3.2, equation 1), and the loss that trains it.

All in fp32. The loss is the KL divergence of the index scores' softmax from the attention mass (V3.2, equations 3 and 4).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops import native
from fourfold.ops.parts import visible_parts


def index_scores_definition(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """queries [S, C, h, D], keys [S, K, D], weights [S, C, h] fp32 -> fp32 [S, C, K]."""
    products = F.relu(torch.einsum("schd,skd->schk", queries.float(), keys.float()))
    return torch.einsum("schk,sch->sck", products, weights)


class _IndexScores(torch.autograd.Function):
    """A few queries at a time over the keys that some of them may see; their products are kept, and become gradients in place."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, weights: Tensor, visible: Tensor) -> Tensor:
        (sequences, size, heads, _), length = queries.shape, keys.shape[1]
        wide_queries, wide_keys, weights = queries.float(), keys.float(), weights.contiguous()
        scores = wide_keys.new_zeros(sequences, size, length)
        kept: list[tuple[int, slice, slice, Tensor]] = []
        wants_grad = any(ctx.needs_input_grad)
        for s, part, read in visible_parts(visible, heads * length):
            products = wide_queries[s, part].flatten(0, 1) @ wide_keys[s, read].T  # [C · h, keys]
            to, own = scores[s, part, read], weights[s, part]
            native.call("index_scores", None, products, own, to, len(own), heads, products.shape[1], length)
            if wants_grad:
                kept.append((s, part, read, products))
        ctx.save_for_backward(wide_queries, wide_keys, weights)
        ctx.kept, ctx.formats = kept, (queries.dtype, keys.dtype)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        queries, keys, weights = ctx.saved_tensors
        heads, length, grad = weights.shape[2], keys.shape[1], grad.contiguous()
        queries_grad, keys_grad, weights_grad = torch.zeros_like(queries), torch.zeros_like(keys), torch.empty_like(weights)
        kept, ctx.kept = ctx.kept, None  # used up
        for s, part, read, products in kept:
            arriving, own, to = grad[s, part, read], weights[s, part], weights_grad[s, part]
            native.call("index_scores_backward", None, products, own, arriving, to, len(own), heads, products.shape[1], length)
            queries_grad[s, part] = (products @ keys[s, read]).unflatten(0, (-1, heads))
            keys_grad[s, read] += products.T @ queries[s, part].flatten(0, 1)
        return queries_grad.to(ctx.formats[0]), keys_grad.to(ctx.formats[1]), weights_grad, None


def index_scores(queries: Tensor, keys: Tensor, weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """`index_scores_definition`, where there are kernels only for what is `visible` [S, C, K] bool: other scores mean nothing."""
    if visible is not None and native.ready(queries, keys) and native.ready(weights) and weights.dtype == torch.float32:
        return _IndexScores.apply(queries, keys, weights, visible)
    return index_scores_definition(queries, keys, weights)


def index_kl_definition(scores: Tensor, mass: Tensor, mask: Tensor) -> Tensor:
    """Mean over queries of KL(mass || softmax(scores)) over the keys in `mask` [S, L, K] bool; a query without any is left out.

    scores [S, L, K] fp32; mass [S, L, K]: attention probabilities, mean over heads, summing to one over the mask.
    """
    judged = mask.any(-1)
    log_index = scores.masked_fill(~mask, -torch.inf)[judged].log_softmax(-1)
    mass = mass[judged].float()
    return (torch.special.xlogy(mass, mass) - mass * log_index.masked_fill(mass == 0, 0.0)).sum(-1).mean()


class _IndexKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, mass: Tensor, mask: Tensor) -> Tensor:
        scores, mass, mask = (t.contiguous() for t in (scores, mass, mask))
        losses, grad = scores.new_empty(scores.shape[:-1]), torch.empty_like(scores)
        native.call("index_kl", None, scores, mass, mask, losses, grad, losses.numel(), scores.shape[-1])
        judged = losses != -1  # the others' mark; a loss that is no number stays one
        ctx.grad, ctx.count = grad, max(int(judged.sum()), 1)
        return losses.where(judged, 0.0).sum() / ctx.count

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor, None, None]:
        grad, ctx.grad = ctx.grad, None  # used up: a copy of this size would cost more than the loss
        return grad.mul_(arriving / ctx.count), None, None


def index_kl(scores: Tensor, mass: Tensor, mask: Tensor) -> Tensor:
    """`index_kl_definition` in one pass where there are kernels."""
    if native.ready(scores, mass) and scores.dtype == torch.float32:
        return _IndexKL.apply(scores, mass, mask)
    return index_kl_definition(scores, mass, mask)
