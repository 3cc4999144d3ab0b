"""Drawing: the codes of pictures and clips of one size, side by side in one cache, with guidance.

Classifier-free guidance (2207.12598, as in Janus, 2410.13848): logits = u + g (c - u), with c what the model says to the prompt,
and u what it says where the user asked for nothing, `<|bos|><|user|><|end|><|assistant|>` and the same drawing. Such twins take the
second half of the cache's sequences. With g = 1 there are none.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.engine.layout import MOST_CODES, Layout
from fourfold.engine.sampler import Sampling
from fourfold.engine.sequence import Sequence, advance, glue, span_of
from fourfold.errors import ConfigError
from fourfold.media.spans import Span
from fourfold.model.inputs import Batch
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer

GUIDANCE = 1.5
CODES = Sampling(temperature=1.0, max_tokens=None)


@dataclass(frozen=True)
class Drawing:
    """How pictures and clips are drawn in an answer.

    begin: whether the model may begin one by itself (of at most the grids of its config); codes: how a code is chosen from logits
    (seed, stop and max_tokens are those of the answer); most: codes of one drawing.
    """

    begin: bool = True
    codes: Sampling = CODES
    guidance: float = GUIDANCE
    most: int = MOST_CODES

    def __post_init__(self) -> None:
        check_guidance(self.guidance)


def check_guidance(guidance: float) -> float:
    """Raise ConfigError unless it is a number from 0 (nothing that was asked counts) up."""
    if not 0 <= guidance < math.inf:
        raise ConfigError(f"guidance: is {guidance}; choose 1 (none) or a little more, such as {GUIDANCE}")
    return guidance


def guided(logits: Tensor, guidance: float) -> Tensor:
    """logits [n, codes], or [2n, codes] with the twins' behind -> [n, codes]."""
    if guidance == 1:
        return logits
    told, untold = logits.chunk(2)
    return untold + guidance * (told - untold)


def unasked(tokenizer: Tokenizer) -> Span:
    """A prompt in which the user says nothing: what training shows where it drops the condition."""
    return span_of([tokenizer.special(name) for name in ("bos", "user", "end", "assistant")])


def placed(layout: Layout, tokens: Tensor, place: int, start: int, stop: int) -> Span:
    """Tokens [start, stop) of a drawing that begins at a place of its sequence; tokens [L] with the codes known so far."""
    part = layout.span.cut(start, stop)
    return Span(tokens[start:stop], part.modality, part.positions + place)


class Canvas:
    """n drawings of one layout in a cache of n sequences, or of 2n with guidance: the twins come behind.

    places: where each of the n begins in its sequence; tokens [n, L]: all of the layout's, zeros for codes to come.
    """

    def __init__(
        self, model: Transformer, cache: Cache, layout: Layout, places: list[int], tokens: Tensor, guidance: float
    ) -> None:
        self.model, self.cache, self.layout, self.tokens, self.guidance = model, cache, layout, tokens, guidance
        twins = [len(unasked(model.tokenizer))] * len(places) if guidance != 1 else []
        self.places = torch.tensor([*places, *twins])

    def strokes(self, hidden: Tensor, there: int, choose: Callable[[Tensor], list[int]]) -> Iterator[list[int]]:
        """The next code of each drawing, place by place; `choose` makes n of logits [n, codes].

        hidden [S, d]: the states after the first `there` tokens of the layout, which the cache has seen; later it is `fed` of them.
        """
        self.fed = there
        for place in (place for place in self.layout.codes if place >= there):
            if self.fed < place:
                hidden, self.fed = advance(self.model, self.cache, self._part(self.fed, place)), place
            codes = choose(self._logits(hidden))
            self.tokens[:, place] = torch.tensor(codes)
            yield codes

    @torch.inference_mode()
    def _logits(self, hidden: Tensor) -> Tensor:
        """hidden [S, d] -> [n, codes]."""
        return guided(self.model.code_logits(hidden), self.guidance)

    def own_cache(self) -> Cache:
        """That of the drawings without their twins."""
        return self.cache if self.guidance == 1 else self.cache.fork(list(range(len(self.tokens))))

    def codes(self) -> Tensor:
        """int64 [n, *grid]."""
        return self.tokens[:, self.layout.codes].unflatten(1, self.layout.grid)

    def _part(self, start: int, stop: int) -> Batch:
        """Tokens [start, stop) of every sequence."""
        part, count = self.layout.span.cut(start, stop), len(self.places)
        tokens = self.tokens[:, start:stop].repeat(count // len(self.tokens), 1).flatten()
        positions = (part.positions[:, None] + self.places[:, None]).flatten(1)
        batch = Batch(tokens, (len(part),) * count, positions, part.modality.repeat(count), torch.zeros_like(tokens))
        return batch.to(self.model.embed.weight.device)


def open_canvas(
    sequence: Sequence, pending: Span, layout: Layout, there: int, drawn: list[int], guidance: float, chunk: int
) -> tuple[Canvas, Tensor]:
    """One drawing at the end of a sequence, of which `pending` has not been read yet, and the states after it.

    Without guidance the sequence's own cache is drawn into; with it a copy, which is to be put back when the drawing is whole.
    """
    model, tokens = sequence.model, layout.span.tokens.clone()
    tokens[layout.codes[: len(drawn)]] = torch.tensor(drawn, dtype=torch.long)
    start = len(sequence) + len(pending) - there
    if guidance == 1:
        return Canvas(model, sequence.cache, layout, [start], tokens[None], guidance), sequence.read(pending, chunk)
    if len(pending) > 1:
        sequence.read(pending.cut(0, len(pending) - 1), chunk)
    cache = sequence.cache.fork([0, 0])
    cache.truncate([len(sequence), 0])
    before = unasked(model.tokenizer)
    twin = glue(before, placed(layout, tokens, len(before), 0, there))
    batch = model.batch([pending.cut(len(pending) - 1, len(pending)), twin])
    return Canvas(model, cache, layout, [start], tokens[None], guidance), advance(model, cache, batch)


@torch.inference_mode()
def pixels_of(model: Transformer, codes: Tensor) -> Tensor | None:
    """What codes int64 [rows, columns] or [frames, rows, columns] look like: uint8 [frames, 3, H, W]; None without a codec."""
    codec = getattr(model, "codec", None)
    if codec is None:
        return None
    frames = codes if codes.dim() == 3 else codes[None]
    device = next(codec.parameters()).device
    return (codec.decode(frames[None].to(device))[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu()
