"""Prompts into a cache: one sequence that grows and is used again, or several side by side."""

import hashlib
from collections.abc import Hashable
from collections.abc import Sequence as Listed
from dataclasses import replace

import torch
from torch import Tensor

from fourfold.media import spans
from fourfold.media.spans import Span
from fourfold.modality import Modality
from fourfold.model.inputs import Batch, is_read
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer

PREFILL = 512  # prompt tokens in one forward; bounds the memory of a long prompt

Prompt = Span | Listed[int]  # ids are text


def span_of(prompt: Prompt, place: int = 0) -> Span:
    """Ids as text that begins at `place`; a Span as it is."""
    if isinstance(prompt, Span):
        return prompt
    span = spans.text(prompt)
    return replace(span, positions=span.positions + place)


def glue(first: Span, *rest: Span) -> Span:
    """One after the other, all with the positions they have; only the first may show something."""
    names = ("tokens", "modality", "positions")
    return replace(first, **{name: torch.cat([getattr(span, name) for span in (first, *rest)], -1) for name in names})


@torch.inference_mode()
def advance(model: Transformer, cache: Cache, batch: Batch, selection: str = "sparse") -> Tensor:
    """Feed each sequence of a cache its next tokens, at least one; the final hidden states [S, d] after the last of each."""
    hidden = model.trunk(batch, cache=cache, selection=selection)
    return hidden[torch.tensor(batch.lengths, device=hidden.device).cumsum(0) - 1]


def contents(span: Span) -> list[Hashable]:
    """What stands at each place, to be compared: equal beginnings of two lists give equal states.

    A token is itself. A patch is known by all of what is read together with it: a tower lets patches see each other, and frames of
    a clip are counted from its first.
    """
    if not bool(span.modality.any()):
        return span.tokens.tolist()
    kinds, tokens = span.modality.tolist(), span.tokens.tolist()
    found: list[Hashable] = [token if kind == Modality.TEXT else (kind, token) for kind, token in zip(kinds, tokens, strict=True)]
    for start, stop in shown(span.modality):
        digest = _digest(span.cut(start, stop))
        found[start:stop] = [(digest, place) for place in range(stop - start)]
    return found


def shown(modality: Tensor) -> list[tuple[int, int]]:
    """Places [start, stop) of each picture, clip or sound that is read, what stands between its rows and frames included.

    Rows are one token apart, frames of a clip two, and what is not of one thing further (media/spans.py).
    """
    places = is_read(modality).nonzero()[:, 0]
    if not len(places):
        return []
    filmed = modality[places] == Modality.VIDEO
    breaks = (places.diff() > torch.where(filmed[1:] & filmed[:-1], 3, 2)).nonzero()[:, 0] + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in places.tensor_split(breaks.tolist())]


def _digest(span: Span) -> bytes:
    """Of everything the model is shown in a span, and of when and where."""
    parts = (span.tokens, span.positions, span.modality, span.pixels, span.mel)
    raw = b"".join(part.contiguous().numpy().tobytes() for part in parts if part is not None)
    return hashlib.blake2b(raw, digest_size=16).digest()


class Sequence:
    """One growing sequence: the model's cache and what it has seen, so that a next prompt reuses what it shares."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.limit = model, model.config.max_position_embeddings
        self.cache = model.new_cache(1)
        self.seen: list[Hashable] = []  # what stands at each place, see `contents`

    def __len__(self) -> int:
        return len(self.seen)

    def rewind(self, prompt: Prompt) -> Span:
        """Forget what is not a beginning of `prompt`; returns the rest, at least one token, beginning inside no picture or clip."""
        span = span_of(prompt)
        wanted = contents(span)
        pairs = zip(self.seen, wanted[:-1], strict=False)
        shared = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.seen), len(wanted) - 1))
        shared = next((start for start, stop in shown(span.modality) if start < shared < stop), shared)
        self.cache.truncate(shared)
        del self.seen[shared:]
        return span.cut(shared, len(span))

    @torch.inference_mode()
    def read(self, prompt: Prompt, chunk: int = PREFILL, selection: str = "sparse") -> Tensor:
        """Append tokens, `chunk` at a time, what they show being looked at as a whole; the hidden state [1, d] after the last.

        After a failure, `rewind` cleans up.
        """
        span = span_of(prompt, len(self))
        batch, new = self.model.batch([span]), contents(span)
        for start in range(0, len(new), chunk):
            hidden = advance(self.model, self.cache, batch.cut(start, start + chunk), selection)
            self.seen += new[start : start + chunk]
        return hidden

    @torch.inference_mode()
    def feed(self, prompt: Prompt, chunk: int = PREFILL) -> Tensor:
        """`read`, and the logits [V] of the token that follows."""
        return self.model.logits(self.read(prompt, chunk))[0]

    @torch.inference_mode()
    def read_beside(self, own: Span, twin: Span, chunk: int = PREFILL) -> Tensor:
        """Append `own`, and `twin` to a second sequence that is begun for it; the hidden states [2, d] after the last of each."""
        if len(self.cache.lengths) == 1:
            if len(own) > 1:
                self.read(own.cut(0, len(own) - 1), chunk)
                own = own.cut(len(own) - 1, len(own))
            self.cache.join(self.model.new_cache(1))
        hidden = advance(self.model, self.cache, self.model.batch([own, twin]))
        self.seen += contents(own)
        return hidden

    @torch.inference_mode()
    def end_twin(self) -> None:
        """Forget the second sequence, where there is one."""
        if len(self.cache.lengths) > 1:
            self.cache.leave(1)
