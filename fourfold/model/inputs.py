"""The vocabulary of a forward pass: a ragged Batch of flat tokens, and the Context that its layers share."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.modality import Modality
from fourfold.model.trace import LayerTrace, Trace

if TYPE_CHECKING:
    from fourfold.media.spans import Span


def document_starts(documents: Tensor) -> Tensor:
    """documents [S, K], constant over consecutive tokens of one -> [S, K]: where each token's document begins."""
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    places = torch.arange(documents.shape[1], device=documents.device)
    return torch.where(begins, places, 0).cummax(1).values


def is_read(modality: Tensor) -> Tensor:
    """Bool, where a vector stands in place of a token."""
    return (modality >= Modality.IMAGE) & (modality <= Modality.AUDIO)


def is_code(modality: Tensor) -> Tensor:
    """Bool, where the token is a code of the picture codec."""
    return modality >= Modality.DRAWN


@dataclass(frozen=True)
class Batch:
    """Chunks of several sequences laid end to end; prefill, decode, packed documents and media share this form.

    tokens [N] int64; lengths: tokens of each sequence in this chunk, summing to N; positions [3, N] (time, row, column; equal for
    text); modality [N]; documents [N]: tokens of one sequence see each other only within a document. vectors [M, d]: what stands
    in place of a token where something is read, in the order of these places.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    positions: Tensor
    modality: Tensor
    documents: Tensor
    vectors: Tensor | None = None

    @classmethod
    def from_tokens(cls, tokens: Tensor, documents: Tensor | None = None, past: list[int] | None = None) -> "Batch":
        """A batch of equal lengths from tokens [B, T]; `past`: tokens each sequence has already seen.

        Positions restart at each document (documents [B, T], constant over consecutive tokens of one).
        """
        if documents is not None and past is not None:
            raise ValueError("documents restart positions and past moves them; build the Batch itself to continue packed rows")
        rows, length = tokens.shape
        place = torch.arange(length, device=tokens.device).expand(rows, length)
        if documents is None:
            documents = torch.zeros_like(tokens)
        else:
            place = place - document_starts(documents)
        if past is not None:
            place = place + torch.tensor(past, device=tokens.device)[:, None]
        flat = tokens.reshape(-1)
        positions = place.reshape(1, -1).expand(3, -1)
        return cls(flat, (length,) * rows, positions, torch.zeros_like(flat, dtype=torch.uint8), documents.reshape(-1))

    @classmethod
    def ragged(cls, chunks: list[Tensor], past: list[int] | None = None) -> "Batch":
        """A batch of text chunks of different lengths, each [T_i]."""
        past = past or [0] * len(chunks)
        place = torch.cat([torch.arange(p, p + len(c), device=c.device) for c, p in zip(chunks, past, strict=True)])
        flat = torch.cat(chunks)
        zeros = torch.zeros_like(flat)
        return cls(flat, tuple(len(c) for c in chunks), place.expand(3, -1), zeros.to(torch.uint8), zeros)

    @classmethod
    def from_spans(cls, rows: "Sequence[Span | Sequence[Span]]", vectors: Tensor | None = None) -> "Batch":
        """A sequence of each row: one span, or several packed as documents. Positions are those of the spans.

        So a continuation is a `Span.cut` of the whole. `vectors` [M, d] of what is read, see `Transformer.look`.
        """
        packed = [[row] if hasattr(row, "tokens") else list(row) for row in rows]
        spans = [span for row in packed for span in row]
        numbers = torch.tensor([number for row in packed for number in range(len(row))])
        return cls(
            tokens=torch.cat([span.tokens for span in spans]),
            lengths=tuple(sum(map(len, row)) for row in packed),
            positions=torch.cat([span.positions for span in spans], 1),
            modality=torch.cat([span.modality for span in spans]),
            documents=numbers.repeat_interleave(torch.tensor([len(span) for span in spans])),
            vectors=vectors,
        )

    def cut(self, start: int, stop: int) -> "Batch":
        """The places [start, stop) of a batch of one sequence, with the vectors that belong to them.

        Codes tell their places by what came before them: what is cut off in front has to stand in the cache.
        """
        if self.sequences != 1:
            raise ValueError(f"only a batch of one sequence can be cut, this one has {self.sequences}")
        fields = {name: getattr(self, name)[..., start:stop] for name in ("tokens", "positions", "modality", "documents")}
        read, vectors = is_read(self.modality), self.vectors
        if vectors is not None:
            vectors = vectors[int(read[:start].sum()) : int(read[:stop].sum())]
        return Batch(lengths=(len(fields["tokens"]),), vectors=vectors, **fields)

    def shifted(self, x: Tensor) -> Tensor:
        """x [N, ...] of the batch's places: each has what belongs to the next one of its sequence, and the last of them zeros."""
        padded = self.pad(x)
        return self.unpad(torch.cat([padded[:, 1:], torch.zeros_like(padded[:, :1])], 1))

    def to(self, device: torch.device) -> "Batch":
        """All of it on a device."""
        fields = ("tokens", "positions", "modality", "documents", "vectors")
        there = {name: getattr(self, name) for name in fields}
        return replace(self, **{name: x if x is None else x.to(device) for name, x in there.items()})

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def _slots(self) -> Tensor | None:
        """Where each token stands in the padded [S, L] face; None when all lengths are equal and it is a view."""
        if min(self.lengths) == self.longest:
            return None
        starts = [i * self.longest for i in range(self.sequences)]
        device = self.tokens.device
        return torch.cat([torch.arange(s, s + n, device=device) for s, n in zip(starts, self.lengths, strict=True)])

    def pad(self, x: Tensor) -> Tensor:
        """[N, ...] -> [S, L, ...], zeros behind the shorter sequences."""
        if self._slots is None:
            return x.unflatten(0, (self.sequences, self.longest))
        room = x.new_zeros(self.sequences * self.longest, *x.shape[1:])
        return room.index_copy(0, self._slots, x).unflatten(0, (self.sequences, self.longest))

    def unpad(self, x: Tensor) -> Tensor:
        """[S, L, ...] -> [N, ...], the inverse of `pad`."""
        flat = x.flatten(0, 1)
        return flat if self._slots is None else flat[self._slots]


@dataclass(frozen=True)
class History:
    """All that the sequences hold so far, this chunk included: [S, K], with each sequence's own length."""

    tokens: Tensor
    documents: Tensor
    modality: Tensor
    lengths: Tensor  # [S]


@dataclass(frozen=True)
class NewBlocks:
    """Blocks of tokens of one document whose last token is in this chunk, those of all sequences end to end [M] (V4's compression).

    A block stands in its sequence where its last token stands: whoever sees that token may read the block.
    """

    lengths: tuple[int, ...]  # blocks of each sequence, summing to M
    sequences: Tensor  # [M] whose block it is
    ends: Tensor  # [M] place of the last token
    follows: Tensor  # [M] bool: there is a block before it in its document
    rotary: tuple[Tensor, Tensor]  # cos and sin [M, ...] at the position of its first token


@dataclass
class Context:
    """What one forward shares with every layer: who may see whom, rotary tables, and what the caller asked for.

    `blocks`: for each ratio of compression, the blocks that this chunk finishes.
    """

    batch: Batch
    past: Tensor  # [S] tokens seen before this chunk
    history: History
    rotary: dict[str, tuple[Tensor, Tensor]]
    sparse: bool = True
    trace: Trace | None = None
    blocks: dict[int, NewBlocks] = field(default_factory=dict)
    _last: tuple[slice, Tensor] | None = None

    @cached_property
    def queries(self) -> Tensor:
        """[S, L]: each query's place in its sequence (places behind a shorter chunk repeat the pattern and are discarded)."""
        return self.past[:, None] + torch.arange(self.batch.longest, device=self.past.device)

    @cached_property
    def within(self) -> Tensor:
        """[N]: each token's place in its document."""
        documents = self.history.documents
        places = self.queries.clamp(max=documents.shape[1] - 1)
        return self.batch.unpad(places - document_starts(documents).gather(1, places))

    def visible(self, queries: slice) -> Tensor | None:
        """[S, C, K] bool for some of the queries: keys that are not later, exist, and belong to the same document. None for all.

        Made a chunk at a time, since the whole would be larger than what is attended to; the last one is kept for the next layer.
        """
        if self._sees_all:
            return None
        if self._last is None or self._last[0] != queries:
            self._last = queries, self._visible(queries)
        return self._last[1]

    def _visible(self, queries: slice) -> Tensor:
        documents, places = self.history.documents, self.queries[:, queries]
        keys = torch.arange(documents.shape[1], device=documents.device)
        own = documents.gather(1, places.clamp(max=documents.shape[1] - 1))
        return (places[..., None] >= keys) & (own[..., None] == documents[:, None])

    def sees(self, queries: slice, places: Tensor) -> Tensor:
        """[S, C, P] bool: which of the tokens at `places` [S, P] (any at all) some of the queries see."""
        documents, asking = self.history.documents, self.queries[:, queries]
        last = documents.shape[1] - 1
        own, theirs = documents.gather(1, asking.clamp(max=last)), documents.gather(1, places.clamp(0, last))
        earlier = (places[:, None] <= asking[..., None]) & (places[:, None] >= 0)
        return earlier & (own[..., None] == theirs[:, None])

    @cached_property
    def _sees_all(self) -> bool:
        """A single new token each, in sequences of one length and one document: decoding, most of the time."""
        documents = self.history.documents
        even = bool((self.history.lengths == documents.shape[1]).all())
        return self.batch.longest == 1 and even and bool((documents == documents[:, -1:]).all())

    @property
    def layer_trace(self) -> LayerTrace | None:
        """The record of the layer now running, None when nobody asked."""
        return self.trace.layers[-1] if self.trace is not None else None

    @property
    def wants_mass(self) -> bool:
        return self.trace is not None and self.trace.attention_mass
