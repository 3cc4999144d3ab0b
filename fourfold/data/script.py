"""A chat with media as it is written, turn by turn: the spans of a document, and what of it is learnt."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fourfold.data.rows import GIVEN
from fourfold.media import spans
from fourfold.media.spans import Span
from fourfold.modality import Modality
from fourfold.text.tokenizer import Tokenizer


class Speech(NamedTuple):
    """A span of sound, and the words that are spoken in it."""

    span: Span
    words: str


Said = Span | Speech | str  # what a turn is made of; words are encoded as ordinary text, so that no control token can be typed


@dataclass(frozen=True)
class MediaDocument:
    """A whole document. learnt uint8 [n]: as in `RowBatch`; spoken: places [start, stop) of speech, and the tokens said there."""

    span: Span
    learnt: Tensor
    spoken: tuple[tuple[int, int, Tensor], ...] = ()

    def __len__(self) -> int:
        return len(self.learnt)


class Script:
    """Writes `<|bos|>`, the turns and `<|eos|>`. What the assistant says and draws is learnt, up to its `<|end|>`."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._spans: list[Span] = []
        self._learnt: list[Tensor] = []
        self._spoken: list[tuple[int, int, Tensor]] = []
        self._add(self._control("bos"), GIVEN)

    def user(self, *parts: Said) -> None:
        """A turn of media and words; of nothing where no condition is given."""
        for part in (self._control("user"), *parts, self._control("end")):
            self._add(part, GIVEN)

    def assistant(self, *parts: Said, about: Modality) -> None:
        """A turn whose codes are learnt as codes, and whose words as words about this kind of media."""
        self._add(self._control("assistant"), GIVEN)
        for part in (*parts, self._control("end")):
            self._add(part, about)

    def finish(self) -> MediaDocument:
        self._add(self._control("eos"), GIVEN)
        return MediaDocument(spans.join(self._spans), torch.cat(self._learnt), tuple(self._spoken))

    def _add(self, part: Said, learnt_as: int) -> None:
        span = self._span(part)
        learnt = torch.full((len(span),), learnt_as, dtype=torch.uint8)
        self._learnt.append(learnt if learnt_as == GIVEN else learnt.where(span.modality == Modality.TEXT, span.modality))
        self._spans.append(span)

    def _span(self, part: Said) -> Span:
        if isinstance(part, str):
            return spans.text(self.tokenizer.encode(part))
        if isinstance(part, Span):
            return part
        heard = (part.span.modality == Modality.AUDIO).nonzero()[:, 0] + sum(map(len, self._spans))
        self._spoken.append((int(heard[0]), int(heard[-1]) + 1, torch.tensor(self.tokenizer.encode(part.words))))
        return part.span

    def _control(self, name: str) -> Span:
        return spans.text([self.tokenizer.special(name)])
