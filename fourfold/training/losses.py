"""What is minimised: next-token and multi-token cross-entropy, the balance loss of the routers, the KL loss of the indexers.

Every loss takes a `weight` or a `denominator` so that a batch cut into micro-batches adds up to the loss of the whole.
"""

import torch
from torch import Tensor

from fourfold.modality import Modality
from fourfold.model.trace import LayerTrace
from fourfold.ops.cross_entropy import IGNORED
from fourfold.ops.indexer import index_kl


def targets_ahead(tokens: Tensor, documents: Tensor, ahead: int) -> Tensor:
    """What position i of an input row [B, T] predicts `ahead` tokens later, [B, T]; IGNORED past its document or its row.

    tokens, documents: [B, T+1], the input row and the one token after it.
    """
    targets = torch.full_like(tokens[:, :-1], IGNORED)
    reach = tokens.shape[1] - ahead
    same = documents[:, :reach] == documents[:, ahead:]
    targets[:, :reach] = tokens[:, ahead:].where(same, IGNORED)[:, : targets.shape[1]]
    return targets


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


def expert_loads(expert_ids: Tensor, modality: Tensor, experts: int) -> Tensor:
    """How often the tokens of each modality chose each expert: ids [N, k], modality [N] -> [6, E] fp32; others are not counted."""
    places = modality.long()[:, None] * experts + expert_ids
    counts = torch.bincount(places.flatten(), minlength=(len(Modality) + 1) * experts)
    return counts.view(-1, experts)[: len(Modality)].float()


def indexer_loss(layer: LayerTrace) -> Tensor:
    """KL of the indexer from the attention that its layer traced."""
    return index_kl(layer.index_scores, layer.attention_mass, layer.index_mask)


@torch.no_grad()
def dead_fraction(layer: LayerTrace) -> float:
    """Share of queries whose index scores are all exactly zero: every ReLU is off, so that neither choice nor gradient is left.

    Counted over each eighth query.
    """
    scores, mask = layer.index_scores[:, ::8], layer.index_mask[:, ::8]
    judged = mask.any(-1)
    silent = ((scores == 0) | ~mask).all(-1)
    return (silent & judged).sum().item() / max(judged.sum().item(), 1)
