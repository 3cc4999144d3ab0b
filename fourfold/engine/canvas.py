"""Drawing: the codes of a picture or clip one after another, with guidance.

Classifier-free guidance (2207.12598, as in Janus, 2410.13848): logits = u + g (c - u), with c what the model says to the prompt,
and u what it says where the user asked for nothing, `<|bos|><|user|><|end|><|assistant|>` and the same drawing. That is a sequence
of its own, the twin, which is read beside the answer's while it draws. With g = 1 there is none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.engine.layout import MOST_CODES, Layout
from fourfold.engine.sampler import Sampling
from fourfold.engine.sequence import glue, span_of
from fourfold.errors import ConfigError
from fourfold.media.spans import Span
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer

GUIDANCE = 2.0
CODES = Sampling(temperature=1.0, max_tokens=None)


@dataclass(frozen=True)
class Drawing:
    """How pictures and clips are drawn in an answer.

    begin: whether the model may begin one by itself (of at most the grids of its config); codes: how a code is chosen from logits
    (seed, stop and max_tokens are those of the answer); most: codes of one drawing; pixels: whether the codec shows what was drawn.
    """

    begin: bool = True
    codes: Sampling = CODES
    guidance: float = GUIDANCE
    most: int = MOST_CODES
    pixels: bool = True

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
    """One drawing in the making, which begins at `start` of its sequence; tokens [L]: all of its layout's, 0 for codes to come."""

    def __init__(self, layout: Layout, start: int, drawn: list[int], guidance: float, tokenizer: Tokenizer) -> None:
        """drawn: the codes that are there already."""
        self.layout, self.start, self.tokens = layout, start, layout.span.tokens.clone()
        self.tokens[layout.codes[: len(drawn)]] = torch.tensor(drawn, dtype=torch.long)
        self.before = unasked(tokenizer) if guidance != 1 else None

    def places(self, there: int) -> list[int]:
        """Those of the codes to come, once the first `there` tokens are known."""
        return [place for place in self.layout.codes if place >= there]

    def part(self, start: int, stop: int) -> Span:
        """Tokens [start, stop), as they stand in the sequence."""
        return placed(self.layout, self.tokens, self.start, start, stop)

    def twin(self, start: int, stop: int) -> Span | None:
        """The same as they stand in the twin, which begins with the prompt in which nothing is asked; None without guidance."""
        if self.before is None:
            return None
        own = placed(self.layout, self.tokens, len(self.before), start, stop)
        return own if start else glue(self.before, own)

    def codes(self) -> Tensor:
        """int64 [*grid]."""
        return self.tokens[self.layout.codes].view(self.layout.grid)


@torch.inference_mode()
def pixels_of(model: Transformer, codes: Tensor) -> Tensor | None:
    """What codes int64 [rows, columns] or [frames, rows, columns] look like: uint8 [frames, 3, H, W]; None without a codec."""
    codec = getattr(model, "codec", None)
    if codec is None:
        return None
    frames = codes if codes.dim() == 3 else codes[None]
    device = next(codec.parameters()).device
    return (codec.decode(frames[None].to(device))[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu()
