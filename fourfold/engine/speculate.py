"""Tokens guessed ahead by the model's own multi-token prediction (V3, 2412.19437, section 2.2), verified in the same forward.

The layer of the first depth is asked what follows the token that an answer chose last; with more drafts, it is asked again about
its own output, as other engines do. A draft stands when the answer's own sampler draws that very token at its place: so the output
is the same as without drafts, greedy or with a seed, and what is rejected is cut off the states again.

The layer has states of its own, which the prefix store knows nothing of: they begin with the last TAIL tokens of a prompt, and
what stands before them, or was no text, it does not see. That costs it a guess now and then, and no answer anything.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fourfold.engine.pool import Group, Seat, Seen, batch_of
from fourfold.media.spans import Span
from fourfold.model.state import INPUT_FIELDS, PLACED_FIELDS, Cache
from fourfold.model.transformer import Transformer

TAIL = 32
TRIAL, TERM = 24, 480  # decoding steps for which both ways are measured, and for which the better is kept


@dataclass(frozen=True)
class Asked:
    """What the layer is asked of one sequence: the streams [k, n, d] and their collapse [k, d] at k places, with the tokens there
    and those that follow."""

    tokens: list[int]
    following: list[int]
    place: int
    streams: Tensor
    hidden: Tensor


class Drafter:
    """Guesses `most` tokens for each of the sequences that it is asked of."""

    def __init__(self, model: Transformer, most: int) -> None:
        self.model, self.most = model, most
        self.group = Group(self._new_cache(0), [])

    def leave(self, seat: Seat) -> None:
        """Forget a sequence, known or not."""
        seat.seen, seat.drafts = None, []
        if seat in self.group.seats:
            self.group.leave(seat)

    def draft(self, seats: list[Seat]) -> None:
        """Set the drafts of sequences whose fresh tokens are one word, and whose last states were `seen`."""
        new = [seat for seat in seats if seat not in self.group.seats]
        if new:
            self.group.enter(self._new_cache(len(new)), new)
        asked = {seat: self._first(seat, seat.seen) for seat in seats if seat.seen is not None}
        lengths: list[int] = []
        for _ in range(self.most if asked else 0):
            asked = self._guess(asked)
            lengths = lengths or self.group.cache.lengths
        if self.most > 1 and asked:
            self.group.cache.truncate(lengths)

    def _first(self, seat: Seat, seen: Seen) -> Asked:
        assert not isinstance(seat.fresh, Span)
        hidden = self.model.collapse(seen.streams)
        seat.seen, seat.drafts = None, []
        return Asked(seen.tokens, [*seen.tokens[1:], *seat.fresh], seen.place, seen.streams, hidden)

    def _guess(self, asked: dict[Seat, Asked]) -> dict[Seat, Asked]:
        """Add the likeliest next token to the drafts of each; returns what to ask for the one after that."""
        model, cache = self.model, self.group.cache
        rows = [asked.get(seat) for seat in self.group.seats]
        batch = batch_of(model, [([], 0) if row is None else (row.tokens, row.place) for row in rows])
        there = [row for row in rows if row is not None]
        following = torch.tensor([token for row in there for token in row.following], device=batch.tokens.device)
        context = model.context(batch, cache, None, "sparse")
        streams, hidden = (torch.cat([getattr(row, name) for row in there]) for name in ("streams", "hidden"))
        embedded = model.embedded(replace(batch, tokens=following), context)
        streams, hidden, normed = model.mtp[0](streams, hidden, embedded, context, cache.layers[0])
        last = torch.tensor([len(row.tokens) for row in there]).cumsum(0) - 1
        found = model.logits(normed[last]).argmax(-1).tolist()
        then: dict[Seat, Asked] = {}
        for (seat, row), place, token in zip(((s, asked[s]) for s in self.group.seats if s in asked), last, found, strict=True):
            seat.drafts = [*seat.drafts, token]
            end = slice(int(place), int(place) + 1)
            then[seat] = Asked(row.following[-1:], [token], row.place + len(row.tokens), streams[end], hidden[end])
        return then

    def _new_cache(self, sequences: int) -> Cache:
        weight, inputs = self.model.embed.weight, PLACED_FIELDS if self.model.config.has_media else INPUT_FIELDS
        return Cache([self.model.mtp[0].layer.fields()], sequences, weight.dtype, weight.device, inputs)


class Trial:
    """Whether drafts pay: tokens per second with and without them, measured again from time to time.

    Both ways are tried for TRIAL steps, then the better is kept for TERM. Drafts never change an answer, so neither does this.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.drafts, self._kept, self._left = True, False, TRIAL
        self._tokens, self._seconds = {True: 0, False: 0}, {True: 0.0, False: 0.0}

    def note(self, tokens: int, seconds: float) -> None:
        """A step that did nothing but decode took so long, and gave so many tokens."""
        self._tokens[self.drafts] += tokens
        self._seconds[self.drafts] += seconds
        self._left -= 1
        if self._left:
            return
        if self._kept:
            self._begin()
        elif self.drafts:
            self.drafts, self._left = False, TRIAL
        else:
            self.drafts, self._kept, self._left = self._rate(True) > self._rate(False), True, TERM

    def _rate(self, drafts: bool) -> float:
        return self._tokens[drafts] / max(self._seconds[drafts], 1e-9)
