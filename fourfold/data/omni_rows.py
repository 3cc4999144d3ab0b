"""Rows of whole documents about media: none is ever cut, what is left of a row is padding, and padding is ignored.

A row is a pure function of (corpus, codec, tokenizer, seed, number): it draws documents until several in a row do not fit.
"""

import torch

from fourfold.data.haystack import Draw
from fourfold.data.omni_documents import Documents
from fourfold.data.rows import GIVEN, RowBatch, Spoken, joined
from fourfold.data.script import MediaDocument
from fourfold.errors import DataError
from fourfold.media import spans
from fourfold.media.spans import Span

MISSES = 4  # documents in a row that may be too long before a row is closed
TRIES = 50  # for the first one


class OmniRows:
    """Rows of `length` + 1 places, as many as one likes."""

    def __init__(self, documents: Documents, length: int, key: str):
        self.documents, self.width, self.key = documents, length + 1, key
        self.pad = documents.tokenizer.special("pad")

    def row_at(self, place: int) -> int:
        return place

    def take(self, rows: list[int]) -> RowBatch:
        return joined([self._row(row) for row in rows])

    def _row(self, row: int) -> RowBatch:
        found: list[MediaDocument] = []
        left, misses, draw = self.width, 0, Draw(f"{self.key}/{row}")
        while misses < (MISSES if found else TRIES):
            document = self.documents.make(draw)
            if len(document) <= left:
                found.append(document)
                left, misses = left - len(document), 0
            else:
                misses += 1
        if not found:
            raise DataError(f"{self.key}: no document fits a row of {self.width} tokens; raise sequence_length")
        return pack(found, self.width, self.pad)


def pack(documents: list[MediaDocument], width: int, pad: int) -> RowBatch:
    """A row of documents, filled up with padding, each token of which is a document of its own."""
    lengths = [len(document) for document in documents]
    left = width - sum(lengths)
    parts = [document.span for document in documents] + [padding(left, pad)] * (left > 0)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    numbers = torch.cat([torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)), torch.arange(left) + len(lengths)])
    learnt = torch.cat([*(document.learnt for document in documents), torch.full((left,), GIVEN, dtype=torch.uint8)])
    patches = {n: [x for part in parts if (x := getattr(part, n)) is not None] for n in ("pixels", "mel")}
    return RowBatch(
        tokens=torch.cat([part.tokens for part in parts])[None],
        documents=numbers[None],
        modality=torch.cat([part.modality for part in parts])[None],
        positions=torch.cat([part.positions for part in parts], 1)[:, None],
        learnt=learnt[None],
        **{name: torch.cat(found) if found else None for name, found in patches.items()},
        spoken=tuple(
            Spoken(0, at + start, at + stop, tokens)
            for at, document in zip(starts, documents, strict=True)
            for start, stop, tokens in document.spoken
        ),
    )


def padding(count: int, pad: int) -> Span:
    """Tokens at the first place of a document of one token."""
    filled = spans.text([pad] * count)
    return Span(filled.tokens, filled.modality, torch.zeros_like(filled.positions))
