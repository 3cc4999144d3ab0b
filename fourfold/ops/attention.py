"""Reading keys and values: softmax(q kᵀ · scale) v over the keys that a mask or a selection allows."""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`attend_definition` by PyTorch's fused kernel; shapes as there."""
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
