"""A prompt in, text out as it comes: chunked prefill, cached decoding, stop strings, whole characters only."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.engine.sampler import Sampling, sample
from fourfold.errors import ConfigError
from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import StreamDecoder, Tokenizer

PREFILL = 512  # prompt tokens in one forward; bounds the memory of a long prompt


@dataclass(frozen=True)
class Piece:
    """What one step gave: text that is final (often empty while it is held back), the tokens behind it, and why it ended.

    finish_reason: None until the last piece, then "stop" (an end token or a stop string) or "length" (max_tokens or the context).
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None


class Sequence:
    """One growing sequence: the model's cache and the tokens it has seen, so that a next prompt reuses what it shares."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.limit = model, model.config.max_position_embeddings
        self.cache = model.new_cache(1)
        self.tokens: list[int] = []

    def rewind(self, prompt: list[int]) -> list[int]:
        """Forget what is not a beginning of `prompt`; returns the rest of it, at least one token."""
        pairs = zip(self.tokens, prompt[:-1], strict=False)
        shared = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.tokens), len(prompt) - 1))
        self.cache.truncate(shared)
        del self.tokens[shared:]
        return prompt[shared:]

    @torch.inference_mode()
    def feed(self, tokens: list[int], chunk: int = PREFILL) -> Tensor:
        """Append tokens, `chunk` at a time; the logits [V] after the last one. After a failure, `rewind` cleans up."""
        device = next(self.model.parameters()).device
        for start in range(0, len(tokens), chunk):
            part = torch.tensor([tokens[start : start + chunk]], device=device)
            hidden = self.model.trunk(Batch.from_tokens(part, past=[len(self.tokens)]), cache=self.cache)
            self.tokens += part[0].tolist()
        return self.model.logits(hidden[-1:])[0]


class StopStrings:
    """Holds text back while it may be the beginning of a stop string, however tokens cut it."""

    def __init__(self, stops: Iterable[str]) -> None:
        self.stops, self._held = tuple(stops), ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that is free to go, and whether a stop string is complete (the one completed first counts)."""
        held = self._held + text
        found = [(held.find(stop) + len(stop), held.find(stop)) for stop in self.stops if stop in held]
        if found:
            self._held = ""
            return held[: min(found)[1]], True
        keep = max((_overlap(held, stop) for stop in self.stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The text held back, once nothing follows."""
        held, self._held = self._held, ""
        return held


def generate(
    model: Transformer,
    prompt: list[int],
    sampling: Sampling,
    tokenizer: Tokenizer,
    sequence: Sequence | None = None,
    chunk: int = PREFILL,
) -> Iterator[Piece]:
    """Continue a prompt (token ids), a Piece for each token; the last piece has the finish reason.

    `sequence` keeps its cache between calls: a prompt that begins like what it has seen is computed from there on.
    Raises ConfigError at once for an empty prompt or one that leaves no room in the context.
    """
    sequence = sequence or Sequence(model)
    if not prompt:
        raise ConfigError("prompt: empty; give at least one token of text")
    if len(prompt) >= sequence.limit:
        raise ConfigError(f"prompt: {len(prompt)} tokens leave no room in the context of {sequence.limit}; shorten it")
    return _generate(sequence, prompt, sampling, tokenizer, chunk)


def _generate(seq: Sequence, prompt: list[int], sampling: Sampling, tokenizer: Tokenizer, chunk: int) -> Iterator[Piece]:
    ends, generator = end_tokens(seq.model, tokenizer), sampling.generator()
    room = min(sampling.max_tokens or seq.limit, seq.limit - len(prompt))
    decoder, stops = StreamDecoder(tokenizer), StopStrings(sampling.stop)
    tokens = seq.rewind(prompt)
    for left in reversed(range(room)):
        token = sample(seq.feed(tokens, chunk), sampling, generator)
        tokens = [token]
        text, stopped = ("", False) if token in ends else stops.add(decoder.push(token))
        if token in tokenizer.special_ids - ends and not stopped:
            text += stops.flush()  # a stop string does not reach across a control token
        if token in ends or (left == 0 and not stopped):
            tail, stopped = stops.add(decoder.finish())
            text += tail + stops.flush()
        reason = "stop" if stopped or token in ends else "length" if left == 0 else None
        yield Piece(text, (token,), reason)
        if reason:
            return


def end_tokens(model: Transformer, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: the model's end of text, and the end of a turn."""
    own = model.config.eos_token_id
    return tokenizer.ends if own is None else tokenizer.ends | {own}


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without completing it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
