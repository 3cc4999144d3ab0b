"""What a step trains on: rows of tokens, and beside them what media need."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fourfold.modality import Modality
from fourfold.model.inputs import document_starts, is_read

GIVEN = 255  # of a place that nobody has to predict: a patch, a question


@dataclass(frozen=True)
class Spoken:
    """Places [start, stop) of a row that are sound, and the tokens [n] that are said in it."""

    row: int
    start: int
    stop: int
    tokens: Tensor


@dataclass(frozen=True)
class RowBatch:
    """Rows of T + 1 places, inputs and their targets: tokens and documents int64 [B, T+1]. The rest is None where all is text.

    modality uint8 [B, T+1] (of what stands at a place); positions int64 [3, B, T+1]; learnt uint8 [B, T+1]: the kind of loss that
    a place counts for when it is predicted (TEXT plain text, IMAGE words about a picture, VIDEO and AUDIO likewise, DRAWN and
    FILMED codes), or GIVEN; pixels and mel: the patches of all rows, in the order of their places; spoken: where speech is heard.
    Padding is a document a token, so that it sees nothing and predicts nothing.
    """

    tokens: Tensor
    documents: Tensor
    modality: Tensor | None = None
    positions: Tensor | None = None
    learnt: Tensor | None = None
    pixels: Tensor | None = None
    mel: Tensor | None = None
    spoken: tuple[Spoken, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> "RowBatch":
        """Rows [start, stop)."""
        tokens, documents = self.tokens[start:stop], self.documents[start:stop]
        if self.modality is None:
            return RowBatch(tokens, documents)
        heard = self.modality == Modality.AUDIO
        seen = is_read(self.modality) & ~heard
        return RowBatch(
            tokens, documents, self.modality[start:stop], self.positions[:, start:stop], self.learnt[start:stop],
            _owned(self.pixels, seen, start, stop), _owned(self.mel, heard, start, stop),
            tuple(replace(said, row=said.row - start) for said in self.spoken if start <= said.row < stop),
        )  # fmt: skip

    def with_media(self) -> "RowBatch":
        """The same with every field of media filled in: text is text, learnt as text, and counts its places by document."""
        if self.modality is not None:
            return self
        kinds = torch.zeros_like(self.tokens, dtype=torch.uint8)
        places = torch.arange(self.tokens.shape[1]) - document_starts(self.documents)
        return replace(self, modality=kinds, learnt=kinds, positions=places.expand(3, -1, -1))


def joined(batches: Sequence[RowBatch]) -> RowBatch:
    """Rows below one another; documents keep apart."""
    width = batches[0].tokens.shape[1]
    first = [sum(len(batch) for batch in batches[:i]) for i in range(len(batches))]
    numbers = [batch.documents - batch.documents.min() + at * width for batch, at in zip(batches, first, strict=True)]
    tokens, documents = torch.cat([batch.tokens for batch in batches]), torch.cat(numbers)
    if all(batch.modality is None for batch in batches):
        return RowBatch(tokens, documents)
    full = [batch.with_media() for batch in batches]
    return RowBatch(
        tokens, documents, _together([b.modality for b in full]), _together([b.positions for b in full], 1),
        _together([b.learnt for b in full]), _together([b.pixels for b in full]), _together([b.mel for b in full]),
        tuple(replace(said, row=said.row + at) for b, at in zip(full, first, strict=True) for said in b.spoken),
    )  # fmt: skip


def _together(parts: list[Tensor | None], dim: int = 0) -> Tensor | None:
    """Those that there are, one after the other."""
    present = [part for part in parts if part is not None]
    return torch.cat(present, dim) if present else None


def _owned(patches: Tensor | None, places: Tensor, start: int, stop: int) -> Tensor | None:
    """The patches of rows [start, stop), where `places` [B, T+1] says who has one."""
    if patches is None:
        return None
    first, last = int(places[:start].sum()), int(places[:stop].sum())
    return patches[first:last] if last > first else None
