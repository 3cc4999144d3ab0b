"""What a batch costs in each mode of training: the losses summed into one number, and what to write down about them."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fourfold.model.inputs import Batch
from fourfold.model.trace import LayerTrace, Trace
from fourfold.model.transformer import Transformer
from fourfold.ops.cross_entropy import IGNORED, cross_entropy
from fourfold.training.losses import (
    balance_loss,
    dead_fraction,
    expert_counts,
    indexer_loss,
    targets_ahead,
)
from fourfold.training.metrics import gain_metrics

Mode = Literal["dense", "indexer", "sparse"]


@dataclass
class Outcome:
    """Sums over the micro-batches of a step: losses, loads [E] per router, share of dead queries per indexer, other metrics."""

    terms: dict[str, float] = field(default_factory=dict)
    loads: list[Tensor] = field(default_factory=list)
    dead: list[float] = field(default_factory=list)
    gains: dict[str, float] = field(default_factory=dict)


def set_mode(model: Transformer, mode: Mode) -> None:
    """Freeze what a stage does not train: all but the indexers in `indexer`, the indexers in `dense`, nothing in `sparse`."""
    indexers = {name for name, _ in model.indexer_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mode == "sparse" or (name in indexers) == (mode == "indexer"))


def accumulate(model: Transformer, tokens: Tensor, documents: Tensor, mode: Mode, mtp_weight: float, micro: int) -> Outcome:
    """Add the gradients of a batch (tokens and documents [B, T+1]) to the model's, `micro` rows at a time (0: all at once)."""
    outcome = Outcome()
    ahead = range(1, model.config.num_nextn_predict_layers + 2)
    counts = [max(int((targets_ahead(tokens, documents, a) != IGNORED).sum()), 1) for a in ahead]
    rows = micro or len(tokens)
    for part in zip(tokens.split(rows), documents.split(rows), strict=True):
        _one_part(model, *part, mode, mtp_weight, counts, len(part[0]) / len(tokens), outcome)
    return outcome


def _one_part(
    model: Transformer,
    tokens: Tensor,
    documents: Tensor,
    mode: Mode,
    mtp_weight: float,
    counts: list[int],
    share: float,
    outcome: Outcome,
) -> None:
    trace = Trace(attention_mass=mode != "dense")
    batch = Batch.from_tokens(tokens[:, :-1], documents[:, :-1])
    output = model.train_forward(batch, trace, "sparse" if mode == "sparse" else "dense")
    terms: dict[str, Tensor] = {}
    if mode != "indexer":
        hidden = [output.hidden, *output.mtp_hidden]
        targets = [targets_ahead(tokens, documents, a).flatten() for a in range(1, len(hidden) + 1)]
        losses = [cross_entropy(h, model.head_weight, t, n) for h, t, n in zip(hidden, targets, counts, strict=True)]
        terms["lm_loss"] = losses[0]
        if len(losses) > 1:
            terms["mtp_loss"] = torch.stack(losses[1:]).mean()
        terms |= _balance(model, trace, len(tokens), share)
    if mode != "dense":
        judged = [layer for layer in trace.layers if layer.index_scores is not None]
        kept = [indexer_loss(layer) for layer in judged]  # none where every document is shorter than a block
        terms["indexer_kl"] = torch.stack(kept).sum() * share if kept else torch.zeros(())
        if judged:
            _add(outcome.dead, [dead_fraction(layer) * share for layer in judged])
    loss = sum(value * (mtp_weight if name == "mtp_loss" else 1.0) for name, value in terms.items())
    if loss.requires_grad:
        loss.backward()
    for name, value in {"loss": loss, **terms}.items():
        outcome.terms[name] = outcome.terms.get(name, 0.0) + value.item()
    experts = model.config.experts
    _add(outcome.loads, [expert_counts(layer.expert_ids.flatten(), experts.n_routed_experts) for layer in _routed(trace)])
    outcome.gains = gain_metrics(trace.layers[: model.config.num_hidden_layers])


def _balance(model: Transformer, trace: Trace, rows: int, share: float) -> dict[str, Tensor]:
    experts, routed = model.config.experts, _routed(trace)
    if not routed or not experts.aux_loss_alpha:
        return {}
    losses = [balance_loss(layer, rows, experts.num_experts_per_tok) for layer in routed]
    return {"balance_loss": torch.stack(losses).sum() * (experts.aux_loss_alpha * share)}


def _routed(trace: Trace) -> list[LayerTrace]:
    return [layer for layer in trace.layers if layer.expert_ids is not None]


def _add(sums: list, values: list) -> None:
    """Element by element, in place; an empty list of sums takes the values."""
    sums[:] = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
