"""Sequences of many answers side by side in one cache: each step reads something in all of them, in one ragged forward."""

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fourfold.engine.sequence import Prompt, contents, glue, span_of
from fourfold.media.spans import Span
from fourfold.model.inputs import Batch
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer


@dataclass(frozen=True)
class Seen:
    """Words that a sequence has read in its last forward: the tokens, where they begin, and the streams [k, n, d] behind them."""

    tokens: list[int]
    place: int
    streams: Tensor

    def first(self, count: int) -> "Seen":
        return Seen(self.tokens[:count], self.place, self.streams[:count])


class Seat:
    """One sequence of an answer: what it has read, in order (`past`, `length` tokens), and what it is to read next (`fresh`).

    ready: all sequences of its answer are in the pool. drafts: what may follow the fresh token (speculate.py), read with it; seen:
    what drafts are made of, where they are made. contents: what stands at each place, for the prefix store, and `kept`: the
    tokens whose pages are there; None where none is used.
    """

    def __init__(self, fresh: Prompt, past: Span | None = None) -> None:
        self.past: list[Prompt] = [] if past is None else [past]
        self.length, self.fresh = 0 if past is None else len(past), fresh
        self.ready = False
        self.drafts: list[int] = []
        self.seen: Seen | None = None
        self.contents: list[Hashable] | None = None
        self.kept = 0

    def __len__(self) -> int:
        """Tokens, the fresh ones included."""
        return self.length + len(self.fresh)

    def next(self) -> Prompt:
        """What is to be read in the pool's next forward."""
        if not self.ready:
            return []
        return self.fresh if isinstance(self.fresh, Span) or not self.drafts else [*self.fresh, *self.drafts]

    def take(self) -> None:
        """What was fresh has been read."""
        fresh, self.fresh = self.fresh, []
        if self.past and isinstance(self.past[-1], list) and not isinstance(fresh, Span):
            self.past[-1].extend(fresh)
        else:
            self.past.append(fresh if isinstance(fresh, Span) else list(fresh))
        if self.contents is not None and len(self.contents) < self.length + len(fresh):  # a prompt's are known before it is read
            unknown = contents(fresh) if isinstance(fresh, Span) else fresh
            self.contents += unknown[max(len(self.contents) - self.length, 0) :]
        self.length += len(fresh)

    def whole(self) -> Span:
        """Everything, the fresh tokens included."""
        spans, place = [], 0
        for part in [*self.past, self.fresh]:
            spans.append(span_of(part, place))
            place += len(part)
        return glue(*spans)


class Group:
    """Seats and the cache that holds their sequences: that of seats[s] is sequence s."""

    def __init__(self, cache: Cache, seats: list[Seat]) -> None:
        self.cache, self.seats = cache, list(seats)

    def enter(self, cache: Cache, seats: list[Seat]) -> None:
        """Take in the sequences of a cache, which is used up."""
        self.cache.join(cache)
        self.seats += seats

    def leave(self, seat: Seat) -> None:
        """Forget a sequence."""
        place, last = self.seats.index(seat), self.seats.pop()
        if place < len(self.seats):
            self.seats[place] = last
        self.cache.leave(place)

    def read(self, model: Transformer) -> tuple[Tensor, tuple[int, ...]]:
        """Feed every sequence that is ready what is fresh, and its drafts: the streams [N, n, d] behind it, and tokens of each."""
        batch = batch_of(model, [(seat.next(), seat.length) for seat in self.seats])
        if not batch.longest:  # all wait for a twin
            return model.embed.weight.new_zeros(0, 1, model.config.hidden_size), batch.lengths
        return model.streams(batch, self.cache), batch.lengths


class Pool:
    """All seats, in groups of like lengths: each group is one forward.

    Attention pads to the longest sequence of its cache. A group is kept apart where the padding would be more than `spare` bytes:
    those of the weights that one more forward reads.
    """

    def __init__(self, model: Transformer, spare: float) -> None:
        self.model, self.spare = model, spare
        self.groups: list[Group] = []
        self._per_token = model.new_cache(1).bytes_per_token()

    @property
    def seats(self) -> list[Seat]:
        return [seat for group in self.groups for seat in group.seats]

    def enter(self, cache: Cache, seats: list[Seat]) -> None:
        """Take in the sequences of a cache, which is used up."""
        if self._padding(seats) > self.spare:  # they were read together, and part here
            for place, seat in enumerate(seats):
                self.enter(cache.fork([place]), [seat])
            return
        best = min(self.groups, key=lambda group: self._padding([*group.seats, *seats]), default=None)
        if best is not None and self._padding([*best.seats, *seats]) <= self.spare:
            best.enter(cache, seats)
        else:
            self.groups.append(Group(cache, seats))

    def leave(self, seat: Seat) -> None:
        """Forget a sequence."""
        group = next(group for group in self.groups if seat in group.seats)
        group.leave(seat)
        if not group.seats:
            self.groups.remove(group)

    def read(self) -> tuple[Tensor, list[int]]:
        """Feed every sequence that is ready what is fresh, and its drafts.

        Returns the streams [N, n, d] behind all that, and where those of each of `seats` end. The seats are not told. After a
        failure the pool is to be given up.
        """
        found = [group.read(self.model) for group in self.groups]
        streams = [part for part, _ in found if len(part)]
        return torch.cat(streams), list(accumulate(length for _, lengths in found for length in lengths))

    def cut_back(self) -> None:
        """Forget drafts that did not stand."""
        for group in self.groups:
            if group.cache.lengths != (lengths := [seat.length for seat in group.seats]):
                group.cache.truncate(lengths)

    def _padding(self, seats: list[Seat]) -> float:
        """Bytes that are read for nothing in each step over these together."""
        lengths = [len(seat) for seat in seats]
        return (max(lengths) * len(lengths) - sum(lengths)) * self._per_token


def batch_of(model: Transformer, rows: list[tuple[Prompt, int]]) -> Batch:
    """A batch of some tokens, which may be none, of each sequence, and the places that they begin at."""
    if any(isinstance(prompt, Span) for prompt, _ in rows):
        return model.batch([span_of(prompt, place) for prompt, place in rows])
    tokens = torch.tensor([token for prompt, _ in rows for token in prompt])
    places = torch.tensor([place + i for prompt, place in rows for i in range(len(prompt))])
    zeros = torch.zeros_like(tokens)
    batch = Batch(tokens, tuple(len(prompt) for prompt, _ in rows), places.expand(3, -1), zeros.to(torch.uint8), zeros)
    return batch.to(model.embed.weight.device)


def beside(batches: list[Batch]) -> Batch:
    """Several batches as one, their sequences one after another."""
    fields = {name: torch.cat([getattr(b, name) for b in batches], -1) for name in ("tokens", "positions", "modality", "documents")}
    vectors = [batch.vectors for batch in batches if batch.vectors is not None]
    lengths = tuple(length for batch in batches for length in batch.lengths)
    return Batch(lengths=lengths, vectors=torch.cat(vectors) if vectors else None, **fields)
