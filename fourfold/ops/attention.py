"""Reading keys and values: softmax(q kᵀ · scale) v over the keys that a mask or a selection allows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops import native
from fourfold.ops.parts import visible_parts

FEW = 4  # queries of a sequence: a step of decoding, with some drafts


def attend_definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The plain form, which also gives the probabilities.

    Args: q [S, C, H, D]; k [S, K, G, D] and v [S, K, G, E] with H a multiple of G; mask [S, C, K] bool, None for all.
    Returns: out [S, C, H, E] and probabilities [S, H, C, K]. A query with an empty mask reads zeros.
    """
    repeat = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeat, dim=2) if repeat > 1 else x for x in (k, v))
    scores = torch.einsum("schd,skhd->shck", q, k) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    probabilities = scores.float().softmax(-1).to(q.dtype)
    if mask is not None:
        probabilities = probabilities.masked_fill(~mask[:, None], 0.0)  # also clears the NaN of an empty row
    return torch.einsum("shck,skhe->sche", probabilities, v), probabilities


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, by_itself: bool = False) -> Tensor:
    """`attend_definition` by PyTorch's fused kernel, the fastest without gradients; a few queries by ours. Shapes as there.

    by_itself: ours for any number, which gives a query the same bits however many stand beside it.
    """
    if (by_itself or q.shape[1] <= FEW) and not torch.is_grad_enabled() and native.ready(q, k, v) and _vectors(q, k, v):
        return _attend_few(q.contiguous(), k, v, mask, scale)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if grouped and k.shape[1] == 1:  # one latent for all heads: a broadcast view costs nothing
        k, v, grouped = k.expand(-1, q.shape[1], -1, -1), v.expand(-1, q.shape[1], -1, -1), False
    allowed = None if mask is None else mask[:, None]
    width = v.shape[-1]
    if width < q.shape[-1]:  # the fused kernel wants one width for all; without padding it falls back to the slow path
        v = F.pad(v, (0, q.shape[-1] - width))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale, enable_gqa=grouped)[..., :width]
    if mask is not None:
        out = out.masked_fill(~mask.any(-1)[:, None, :, None], 0.0)
    return out.transpose(1, 2)


def _vectors(*tensors: Tensor) -> bool:
    """Whether rows can be read in whole vectors."""
    return all(x.stride(-1) == 1 and x.shape[-1] % native.LANES == 0 for x in tensors)


def _attend_few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    sizes = *q.shape[:3], k.shape[2], k.shape[1], q.shape[3], v.shape[3], *k.stride()[:3], *v.stride()[:3]
    allowed = None if mask is None else mask.contiguous()
    native.call("attend_few", q.dtype, q, k, v, allowed, out, *sizes, float(scale))
    return out


class _AttendInParts(torch.autograd.Function):
    """A few queries of one sequence at a time, over the range of keys that any of them may read: for packed documents that is
    little. The probabilities are kept for the backward pass, and give the attention mass for nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, wants_mass: bool
    ) -> tuple[Tensor, Tensor | None]:
        sequences, queries, heads, _ = q.shape
        groups, keys = k.shape[2], k.shape[1]
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))  # heads first
        mask = mask.contiguous()
        out = q.new_empty(sequences, heads, queries, v.shape[-1])
        mass = q.new_zeros(mask.shape, dtype=torch.float32) if wants_mass else None
        kept: list[tuple[int, slice, slice, Tensor]] = []
        wants_grad = any(ctx.needs_input_grad)  # not in a frozen trunk, which is read for its mass alone
        for s, part, read in visible_parts(mask, heads * keys):
            scores = torch.bmm(_by_group(q[s][:, part], groups), k[s][:, read].mT)
            _softmax_(scores, mask[s], None if mass is None else mass[s], part, read, heads, scale)
            out[s][:, part] = torch.bmm(scores, v[s][:, read]).view(heads, -1, v.shape[-1])
            if wants_grad:
                kept.append((s, part, read, scores))
        ctx.save_for_backward(q, k, v)
        ctx.kept, ctx.scale = kept, scale
        if mass is not None:
            ctx.mark_non_differentiable(mass)
        return out.transpose(1, 2), mass

    @staticmethod
    def backward(ctx: Any, out_grad: Tensor, _: Any) -> tuple:
        q, k, v = ctx.saved_tensors
        groups = k.shape[1]
        out_grad, q_grad = out_grad.transpose(1, 2).contiguous(), torch.zeros_like(q)
        k_grad, v_grad = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for s, part, read, probabilities in ctx.kept:
            arriving, own = (_by_group(x[s][:, part], groups) for x in (out_grad, q))
            v_grad[s][:, read] += torch.bmm(probabilities.mT, arriving)
            grad = torch.bmm(arriving, v[s][:, read].mT)
            _softmax_backward_(probabilities, grad, ctx.scale)
            k_grad[s][:, read] += torch.bmm(grad.mT, own)
            q_grad[s][:, part] = torch.bmm(grad, k[s][:, read]).view(q.shape[1], -1, q.shape[-1])
        grads = (x.to(q.dtype).transpose(1, 2) for x in (q_grad, k_grad, v_grad))
        return (*grads, None, None, None)


def attend_in_parts(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, wants_mass: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`attend_definition` for training: the output, and on demand the mass [S, C, K] fp32, the mean probability over heads.

    Nothing flows back through the mass.
    """
    return _AttendInParts.apply(q, k, v, mask, scale, wants_mass)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[H, C, D] -> [G, H/G · C, D]: the heads that share a key, one after the other."""
    return x.reshape(groups, -1, x.shape[-1])


def _softmax_(scores: Tensor, mask: Tensor, mass: Tensor | None, part: slice, read: slice, heads: int, scale: float) -> None:
    """Scores [G, H/G · C, keys] to probabilities in place; mask and mass [queries, K] are of the whole sequence."""
    allowed, size, keys = mask[part, read], part.stop - part.start, scores.shape[-1]
    to = None if mass is None else mass[part, read]
    if native.ready(scores):
        native.call("softmax", scores.dtype, scores, allowed, to, heads, size, keys, mask.stride(0), float(scale))
        return
    rows = scores.view(heads, size, keys)
    odds = (rows.float() * scale).masked_fill(~allowed, -torch.inf).softmax(-1).masked_fill(~allowed, 0.0)
    rows.copy_(odds)
    if to is not None:
        to.copy_(rows.float().mean(0))


def _softmax_backward_(probabilities: Tensor, grad: Tensor, scale: float) -> None:
    """d(probabilities) to d(scores) in place."""
    if native.ready(probabilities, grad):
        rows, keys = probabilities.shape[0] * probabilities.shape[1], probabilities.shape[2]
        native.call("softmax_backward", grad.dtype, probabilities, grad, rows, keys, float(scale))
        return
    p, g = probabilities.float(), grad.float()
    grad.copy_(scale * p * (g - (p * g).sum(-1, keepdim=True)))


def attend_chosen(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, valid: Tensor, scale: float) -> Tensor:
    """Each query reads its own chosen keys: gathers k and v rows at `indices` [S, C, k]; other shapes as above."""
    sequence = torch.arange(q.shape[0], device=q.device)[:, None, None]
    keys, values = k[sequence, indices], v[sequence, indices]  # [S, C, k, G, D]
    groups = keys.shape[3]
    grouped = q.unflatten(2, (groups, -1))  # [S, C, G, H/G, D]
    scores = torch.einsum("scghd,sckgd->scghk", grouped, keys).float() * scale
    allowed = valid[:, :, None, None]
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).masked_fill(~allowed, 0.0).to(v.dtype)
    return torch.einsum("scghk,sckge->scghe", weights, values).flatten(2, 3)
