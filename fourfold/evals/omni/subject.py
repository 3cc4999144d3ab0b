"""What is evaluated: something that answers questions about media, weighs answers, and draws.

A prompt is what the user's turn holds, in order: items that are shown, and words. The evals know no more of a model than this, so
that a test can put one in its place that knows every answer, or none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.data.omni import Item, OmniCorpus
from fourfold.data.progress import progress
from fourfold.data.shelf import Shelf
from fourfold.engine.batches import answer, draw
from fourfold.engine.canvas import CODES
from fourfold.errors import ConfigError
from fourfold.evals.omni.drawing import painted
from fourfold.media import spans
from fourfold.media.codec import Codec
from fourfold.media.spans import Span
from fourfold.model.inputs import Batch
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer
from fourfold.parts import MediaOutConfig

Prompt = Sequence[Item | str]
AT_ONCE = 48  # prompts in one forward
DRAWN = 64  # drawings in one batch
GUIDANCE = 1.5  # of what is drawn, at temperature 1
ENDINGS = 160  # answers that are weighed in one forward


class Subject(Protocol):
    """codec: of what is drawn, and `grids` how large that is; None for a model that draws nothing."""

    codec: Codec | None
    grids: MediaOutConfig | None

    def answer(self, prompts: Sequence[Prompt], longest: int, label: str) -> list[str]:
        """The greedy answer to each, of at most `longest` tokens."""

    def surprise(self, prompts: Sequence[Prompt], endings: Sequence[Sequence[str]], label: str) -> list[list[float]]:
        """-log p in nats of each of its endings as the whole answer to a prompt."""

    def draw(self, wishes: Sequence[Prompt], grid: tuple[int, ...], label: str) -> Tensor:
        """uint8 [N, F, 3, H, W]: a picture (F = 1; grid of rows, columns) or clip (grid of frames, rows, columns) for each."""


class ModelSubject:
    """One of our models. Raises ConfigError for one that reads no media."""

    def __init__(self, model: Transformer, corpus: OmniCorpus) -> None:
        if model.config.media_in is None:
            raise ConfigError("media_in: this model reads no pictures and no sound; evaluate one that does, such as nano-omni")
        self.model, self.tokenizer = model, model.tokenizer
        self.shelf = Shelf(corpus, "held_out", self.tokenizer, model.config.media_in)
        self.grids = model.config.media_out
        self.codec: Codec | None = getattr(model, "codec", None) if self.grids else None

    def answer(self, prompts: Sequence[Prompt], longest: int, label: str) -> list[str]:
        said = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: _size(prompts[i]))
        for group in progress(_cut(order, AT_ONCE), label, len(order), len):
            replies = answer(self.model, [self.span(prompts[i]) for i in group], longest, at_once=AT_ONCE)
            for i, reply in zip(group, replies, strict=True):
                said[i] = reply
        return said

    def surprise(self, prompts: Sequence[Prompt], endings: Sequence[Sequence[str]], label: str) -> list[list[float]]:
        found, begin = [], 0
        groups = []
        for stop in range(1, len(prompts) + 1):  # as many prompts at once as their endings allow
            if stop == len(prompts) or sum(map(len, endings[begin : stop + 1])) > ENDINGS:
                groups.append(slice(begin, stop))
                begin = stop
        for part in progress(groups, label, len(groups)):
            found += self._weigh(prompts[part], endings[part])
        return found

    @torch.inference_mode()
    def _weigh(self, prompts: Sequence[Prompt], endings: Sequence[Sequence[str]]) -> list[list[float]]:
        """Each prompt is read once, and copied for each of its endings."""
        cache, last = self._read(prompts)
        owners = [i for i, own in enumerate(endings) for _ in own]
        ids = self.tokenizer.encode_many([ending for own in endings for ending in own])
        cache, end = cache.fork(owners), self.tokenizer.special("end")
        inputs = [torch.tensor([*last[i], *own]) for i, own in zip(owners, ids, strict=True)]
        targets = torch.tensor([token for own in ids for token in (*own, end)])
        device = self.model.embed.weight.device
        hidden = self.model.trunk(Batch.ragged(inputs, cache.lengths).to(device), cache)
        nats = F.cross_entropy(self.model.logits(hidden), targets.to(device), reduction="none").double()
        sums = iter([own.sum().item() for own in nats.split([len(own) + 1 for own in ids])])
        return [[next(sums) for _ in own] for own in endings]

    def draw(self, wishes: Sequence[Prompt], grid: tuple[int, ...], label: str) -> Tensor:
        if self.codec is None:
            raise ConfigError("media_out: this model draws nothing; evaluate one that does, such as nano-omni")
        found = []
        for group in progress(_cut(range(len(wishes)), DRAWN), label, len(wishes), len):
            drawn = replace(CODES, seed=group[0])  # drawing i has seed i
            codes = draw(self.model, [self.span(wishes[i]) for i in group], grid, drawn, GUIDANCE, at_once=DRAWN)
            found.append(painted(self.codec, codes if codes.dim() == 4 else codes[:, None]))
        return torch.cat(found)

    @torch.inference_mode()
    def _read(self, prompts: Sequence[Prompt]) -> tuple[Cache, list[list[int]]]:
        """A cache that has seen each prompt but its last token, and that token."""
        read = [self.span(prompt) for prompt in prompts]
        cache = self.model.new_cache(len(read))
        self.model.trunk(self.model.batch([span.cut(0, len(span) - 1) for span in read]), cache)
        return cache, [span.tokens[-1:].tolist() for span in read]

    def span(self, prompt: Prompt) -> Span:
        """The user's turn as training writes it, up to where the assistant's begins."""
        shown = [spans.text(self.tokenizer.encode(p)) if isinstance(p, str) else self.shelf.shown(p) for p in prompt]
        opened, closed = ([self.tokenizer.special(name) for name in names] for names in (("bos", "user"), ("end", "assistant")))
        return spans.join([spans.text(opened), *shown, spans.text(closed)])


def _cut(places: Sequence[int], count: int) -> list[Sequence[int]]:
    return [places[start : start + count] for start in range(0, len(places), count)]


def _size(prompt: Prompt) -> int:
    """What grows with the length of a prompt and costs nothing to know."""
    return sum(len(part) if isinstance(part, str) else len(part.media) for part in prompt)
