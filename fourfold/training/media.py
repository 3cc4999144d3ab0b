"""What media add to the losses: what each place is learnt as and how much that counts, and CTC for speech."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.data.rows import GIVEN, RowBatch
from fourfold.modality import Modality
from fourfold.model.inputs import Batch, is_read
from fourfold.model.transformer import Transformer
from fourfold.ops.cross_entropy import cross_entropy
from fourfold.training.optim import Amount

Kinds = Mapping[Modality, float]


@dataclass(frozen=True)
class MediaSettings:
    """How media are trained. codec: a name or folder; it makes the codes that are drawn, and goes with the model.

    image ... filmed: what a place of this kind (as in `RowBatch.learnt`) counts beside one of plain text; words about media are
    few beside what they are about, codes many. ctc_weight: of the CTC loss of speech, by the vocabulary's head (0: none).
    """

    codec: str = "codec"
    image: Amount = 4.0
    video: Amount = 4.0
    audio: Amount = 2.0
    drawn: Amount = 0.5
    filmed: Amount = 0.5
    ctc_weight: Amount = 0.0

    def weight(self, kind: Modality) -> float:
        return 1.0 if kind is Modality.TEXT else getattr(self, kind.name.lower())


def model_batch(model: Transformer, rows: RowBatch) -> Batch:
    """The inputs of rows: all but the last place of each, with a vector for each patch."""
    batch = Batch.from_tokens(rows.tokens[:, :-1], rows.documents[:, :-1])
    if rows.modality is None:
        return batch
    modality = rows.modality[:, :-1].flatten()
    vectors = model.look(modality, rows.pixels, rows.mel) if is_read(modality).any() else None
    return replace(batch, positions=rows.positions[:, :, :-1].flatten(1), modality=modality, vectors=vectors)


def kinds_ahead(rows: RowBatch, ahead: int) -> Tensor:
    """[B, T]: as what the place that lies `ahead` places later is learnt; GIVEN past its document or its row."""
    kinds = torch.full_like(rows.learnt[:, :-1], GIVEN)
    reach = rows.tokens.shape[1] - ahead
    same = rows.documents[:, :reach] == rows.documents[:, ahead:]
    kinds[:, :reach] = rows.learnt[:, ahead:].where(same, GIVEN)[:, : kinds.shape[1]]
    return kinds


def count_kinds(rows: RowBatch, ahead: int) -> dict[Modality, int]:
    """How many places of each kind are predicted `ahead` places before; further than the next one, words only."""
    counts = torch.bincount(kinds_ahead(rows, ahead).flatten().long(), minlength=GIVEN + 1)
    return {kind: int(counts[kind]) for kind in Modality if counts[kind] and (ahead == 1 or not kind.is_code)}


def kind_losses(model: Transformer, hidden: Tensor, rows: RowBatch, ahead: int, denominators: Kinds) -> dict[Modality, Tensor]:
    """Summed cross-entropy of each kind over its denominator: words by the vocabulary's head, codes by their own.

    hidden [B · T, d]: the states that predict what stands `ahead` places later.
    """
    kinds = kinds_ahead(rows, ahead).flatten()
    width = rows.tokens.shape[1]
    targets = F.pad(rows.tokens, (0, ahead))[:, ahead : width - 1 + ahead].flatten()
    losses = {}
    for kind, denominator in denominators.items():
        chosen = (kinds == kind).nonzero()[:, 0]
        if len(chosen):
            head = model.code_head_weight if kind.is_code else model.head_weight
            losses[kind] = cross_entropy(hidden[chosen], head, targets[chosen], denominator)
    return losses


def weighed(losses: Mapping[Modality, Tensor], counts: Kinds, settings: MediaSettings) -> Tensor:
    """One loss of the means of all kinds: a mean over places, each of which counts what its kind does."""
    whole = sum(settings.weight(kind) * count for kind, count in counts.items())
    total = torch.zeros(())
    for kind, loss in losses.items():
        total = total + loss * (settings.weight(kind) * counts[kind] / max(whole, 1e-9))
    return total


def ctc_loss(model: Transformer, hidden: Tensor, rows: RowBatch, denominator: float) -> Tensor:
    """Sum over the speech of rows of -log P(its tokens | its places) / tokens, over `denominator` (Graves 2006).

    Read off the vocabulary's head at the places of sound, `<|pad|>` being the blank. Speech with fewer places than it needs for
    its tokens counts nothing.
    """
    states = hidden.unflatten(0, (len(rows), -1))
    heard = [states[said.row, said.start : said.stop] for said in rows.spoken]
    places, lengths = torch.tensor([len(part) for part in heard]), torch.tensor([len(said.tokens) for said in rows.spoken])
    logits = model.logits(torch.cat(heard)).log_softmax(-1)
    padded = torch.nn.utils.rnn.pad_sequence(logits.split(places.tolist()))
    tokens, blank = torch.cat([said.tokens for said in rows.spoken]), model.config.pad_token_id
    losses = F.ctc_loss(padded, tokens, places, lengths, blank=blank, reduction="none", zero_infinity=True)
    return (losses / lengths.clamp(min=1)).sum() / denominator
