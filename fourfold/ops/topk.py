"""Top-k with the house's tie rule: among equal scores the newer position wins, and the expert with the lower index.

`torch.topk` leaves ties to the library, and indexer scores tie exactly in practice (every ReLU off gives 0), so that padding or
another batch would change what is read.
"""

import torch
from torch import Tensor

from fourfold.ops import native


def first_topk(scores: Tensor, k: int) -> Tensor:
    """Indices [..., k] of the k largest, best first; equal scores go to the lower index (experts)."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def newest_topk_definition(scores: Tensor, k: int) -> Tensor:
    """Indices [..., min(k, K)] of the k largest, ascending; equal scores go to the higher index (positions)."""
    newest_first = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return (scores.shape[-1] - 1 - newest_first).sort(-1).values


def newest_topk(scores: Tensor, k: int) -> Tensor:
    """`newest_topk_definition` without a full sort: find the k-th score, then fill its ties from the newest end."""
    length = scores.shape[-1]
    if k >= length:
        return torch.arange(length, device=scores.device).expand(scores.shape)
    if native.ready(scores) and scores.dtype == torch.float32:
        scores = scores.contiguous()
        chosen = torch.empty(*scores.shape[:-1], k, dtype=torch.long)
        native.call("newest_topk", None, scores, chosen, scores.numel() // length, length, k)
        return chosen
    cut = scores.topk(k, dim=-1).values[..., -1:]
    above, ties = scores > cut, scores == cut
    wanted = k - above.sum(-1, keepdim=True)
    ties_from_newest = ties.flip(-1).cumsum(-1).flip(-1)
    kept = above | (ties & (ties_from_newest <= wanted))
    slot = torch.where(kept, kept.cumsum(-1) - 1, k)  # a row's k-th slot takes everything that was not chosen
    positions = torch.arange(length, device=scores.device).expand(scores.shape)
    room = torch.zeros(*scores.shape[:-1], k + 1, dtype=torch.long, device=scores.device)
    return room.scatter_(-1, slot, positions)[..., :k]
