"""What a batch costs in each mode of training: the losses summed into one number, and what to write down about them."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fourfold.data.rows import RowBatch
from fourfold.modality import Modality
from fourfold.model.inputs import Batch
from fourfold.model.trace import LayerTrace, Trace
from fourfold.model.transformer import TrainOutput, Transformer
from fourfold.ops.cross_entropy import IGNORED, cross_entropy
from fourfold.training.losses import (
    balance_loss,
    dead_fraction,
    expert_loads,
    indexer_loss,
    targets_ahead,
)
from fourfold.training.media import MediaSettings, count_kinds, ctc_loss, kind_losses, model_batch, weighed
from fourfold.training.metrics import gain_metrics

Mode = Literal["dense", "indexer", "sparse"]
OF_TEXT = MediaSettings()


@dataclass
class Outcome:
    """Sums over the micro-batches of a step: losses, loads [6, E] per router, share of dead queries per indexer, other metrics."""

    terms: dict[str, float] = field(default_factory=dict)
    loads: list[Tensor] = field(default_factory=list)
    dead: list[float] = field(default_factory=list)
    gains: dict[str, float] = field(default_factory=dict)


def set_mode(model: Transformer, mode: Mode) -> None:
    """Freeze what a stage does not train: all but the indexers in `indexer`, the indexers in `dense`, nothing in `sparse`."""
    indexers = {name for name, _ in model.indexer_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mode == "sparse" or (name in indexers) == (mode == "indexer"))


def accumulate(
    model: Transformer, rows: RowBatch, mode: Mode, mtp_weight: float, micro: int, media: MediaSettings = OF_TEXT
) -> Outcome:
    """Add the gradients of a batch of rows to the model's, `micro` rows at a time (0: all at once)."""
    outcome, step = Outcome(), micro or len(rows)
    judge = Judge(model, rows, mode, mtp_weight, media)
    for start in range(0, len(rows), step):
        judge.add(rows.part(start, start + step), outcome)
    return outcome


class Judge:
    """The losses of a batch, a part of its rows at a time: every mean is over the whole batch, so that parts add up."""

    def __init__(self, model: Transformer, rows: RowBatch, mode: Mode, mtp_weight: float, media: MediaSettings):
        self.model, self.mode, self.mtp_weight, self.media = model, mode, mtp_weight, media
        self.rows, self.has_media = len(rows), rows.modality is not None
        ahead = range(1, model.config.num_nextn_predict_layers + 2)
        if self.has_media:
            self.kinds = [count_kinds(rows, a) for a in ahead]
        else:
            targets = (targets_ahead(rows.tokens, rows.documents, a) for a in ahead)
            self.kinds = [{Modality.TEXT: max(int((t != IGNORED).sum()), 1)} for t in targets]
        self.spoken = len(rows.spoken)

    def add(self, rows: RowBatch, outcome: Outcome) -> None:
        """Gradients of these rows to the model's, all else to the outcome."""
        share, trace = len(rows) / self.rows, Trace(attention_mass=self.mode != "dense")
        batch = model_batch(self.model, rows)
        output = self.model.train_forward(batch, trace, "sparse" if self.mode == "sparse" else "dense")
        terms: dict[str, Tensor] = {}
        apart: dict[str, Tensor] = {}  # parts of a term, written down beside it
        if self.mode != "indexer":
            terms, apart = self.predicted(output, rows)
            terms |= _balance(self.model, trace, len(rows), share)
        if self.mode != "dense":
            judged = [layer for layer in trace.layers if layer.index_scores is not None]
            terms["indexer_kl"] = _indexer_kl(judged) * share
            if judged:
                _add(outcome.dead, [dead_fraction(layer) * share for layer in judged])
        weights = {"mtp_loss": self.mtp_weight, "ctc_loss": self.media.ctc_weight}
        loss = sum(value * weights.get(name, 1.0) for name, value in terms.items())
        if loss.requires_grad:
            loss.backward()
        for name, value in {"loss": loss, **terms, **apart}.items():
            outcome.terms[name] = outcome.terms.get(name, 0.0) + value.item()
        _add(outcome.loads, self.loads(batch, trace))
        outcome.gains = gain_metrics(trace.layers[: self.model.config.num_hidden_layers])

    def predicted(self, output: TrainOutput, rows: RowBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of next and further tokens and of speech; and the next token's apart by kind, where there are media."""
        hidden = [output.hidden, *output.mtp_hidden]
        if self.has_media:
            found = [kind_losses(self.model, h, rows, a, self.kinds[a - 1]) for a, h in enumerate(hidden, 1)]
            losses = [weighed(by_kind, counts, self.media) for by_kind, counts in zip(found, self.kinds, strict=True)]
            apart = {f"{kind.name.lower()}_loss": loss for kind, loss in found[0].items()}
        else:
            targets = [targets_ahead(rows.tokens, rows.documents, a).flatten() for a in range(1, len(hidden) + 1)]
            counts = [kinds[Modality.TEXT] for kinds in self.kinds]
            losses = [cross_entropy(h, self.model.head_weight, t, n) for h, t, n in zip(hidden, targets, counts, strict=True)]
            apart = {"text_loss": losses[0]} if self.model.config.has_media else {}
        terms = {"lm_loss": losses[0]}
        if len(losses) > 1:
            terms["mtp_loss"] = torch.stack(losses[1:]).mean()
        if self.media.ctc_weight and rows.spoken:
            terms["ctc_loss"] = ctc_loss(self.model, output.hidden, rows, self.spoken)
        return terms, apart

    def loads(self, batch: Batch, trace: Trace) -> list[Tensor]:
        """[6, E] of each router; padding, which only rows with media have, has no say."""
        experts, modality = self.model.config.experts, batch.modality
        if self.has_media:
            is_padding = (batch.tokens == self.model.config.pad_token_id) & (modality == Modality.TEXT)
            modality = modality.masked_fill(is_padding, len(Modality))
        return [expert_loads(layer.expert_ids, modality, experts.n_routed_experts) for layer in _routed(trace)]


def _indexer_kl(judged: list[LayerTrace]) -> Tensor:
    """Summed over layers; there are none where every document is shorter than a block."""
    return torch.stack([indexer_loss(layer) for layer in judged]).sum() if judged else torch.zeros(())


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
