"""Reading where one vector is both key and value for all heads (V4 2606.19348, section 2.3.3), with an attention sink.

    p_k ∝ exp(scale q·c_k),  Σ_k p_k = 1 - exp(sink) / (exp(sink) + Σ_k exp(scale q·c_k));  out = Σ_k p_k c_k

Keys may come in several sets, each shared by all queries or gathered for each, and all of them stand in one softmax.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KeySet = tuple[Tensor, Tensor]  # vectors [S, K, D] or [S, C, K, D], and which of them each query may read: [S, C, K] bool


def attend_shared(q: Tensor, sets: Sequence[KeySet], sinks: Tensor, scale: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """q [S, C, H, D], sinks [H] -> out [S, C, H, D] and each set's probabilities [S, C, H, K] in fp32.

    The softmax is in fp32. A query that may read nothing gives zeros: its sink takes all.
    """
    scores = [_products(q, vectors).float().mul(scale).masked_fill(~mask[:, :, None], -torch.inf) for vectors, mask in sets]
    sink = sinks.float()[:, None].expand(*q.shape[:-1], 1)
    *odds, _ = torch.cat([*scores, sink], dim=-1).softmax(-1).split([*(s.shape[-1] for s in scores), 1], dim=-1)
    out = sum(_weighted(p.to(q.dtype), vectors) for p, (vectors, _) in zip(odds, sets, strict=True))
    return out, tuple(odds)


def _products(q: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("schd,skd->schk" if vectors.dim() == 3 else "schd,sckd->schk", q, vectors)


def _weighted(odds: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("schk,skd->schd" if vectors.dim() == 3 else "schk,sckd->schd", odds, vectors)
