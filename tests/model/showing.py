"""Small models with media parts, and a document in which everything that may be read or drawn stands."""

import torch
from torch import Tensor

from fourfold.config import MediaInConfig, MediaOutConfig, ModelConfig
from fourfold.media import spans
from fourfold.media.spans import Span
from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import NAMED
from tests.builders import VOCABULARY, everything, grouped, random_tokens

CODES = VOCABULARY + 9  # more than there are words: mixed up, the two vocabularies are an error
PATCH, BINS, FRAMES = 4, 5, 2
MEDIA_IN = MediaInConfig(
    image_patch_size=PATCH, audio_mel_bins=BINS, audio_frames_per_token=FRAMES, image_longest=16, clip_longest=8, audio_window=3
)
WAVES = 3  # of places, for patches and codes
TOWER = dict(
    tower_layers=2, audio_tower_layers=1, tower_hidden_size=16, tower_intermediate_size=20, tower_heads=2, tower_patch_size=2
)
MEDIA_OUT = MediaOutConfig(image_token_size=CODES)


class Words:
    """What spans ask of a tokenizer, in the small vocabulary of tests."""

    def special(self, name: str) -> int:
        return NAMED.split().index(name)

    def encode(self, text: str) -> list[int]:
        return [40 + ord(letter) % 20 for letter in text]


WORDS = Words()


def flat() -> ModelConfig:
    """All of V4's parts under YaRN, patches straight into the trunk."""
    return everything().but(media_in=MEDIA_IN, media_out=MEDIA_OUT)


def placed() -> ModelConfig:
    """`flat` with places in patches and codes, and a tower for pictures."""
    tower = {name: value for name, value in TOWER.items() if name != "audio_tower_layers"}
    media_in = MEDIA_IN.but(**tower, image_place_waves=WAVES)
    return flat().but(media_in=media_in, media_out=MEDIA_OUT.but(code_place_waves=WAVES))


def towered() -> ModelConfig:
    """Grouped queries and free streams, a tower for pictures and one for sound."""
    return grouped().but(media_in=MEDIA_IN.but(**TOWER), media_out=MEDIA_OUT, num_nextn_predict_layers=1)


CONFIGS = {"flat": flat, "towered": towered, "placed": placed}


def text(length: int, seed: int) -> Span:
    return spans.text(random_tokens(length, seed=seed).tolist())


def picture(rows: int = 2, columns: int = 3, seed: int = 0) -> Span:
    return spans.picture(_pixels(1, rows, columns, seed)[0], WORDS, PATCH)


def clip(frames: int = 3, rows: int = 1, columns: int = 2, seed: int = 0) -> Span:
    return spans.clip(_pixels(frames, rows, columns, seed), [0.125 * f for f in range(frames)], WORDS, PATCH)


def sound(tokens: int = 4, seed: int = 0) -> Span:
    generator = torch.Generator().manual_seed(seed)
    return spans.sound(torch.randn(tokens * FRAMES - 1, BINS, generator=generator), WORDS, FRAMES)


def drawing(rows: int = 2, columns: int = 3, seed: int = 0) -> Span:
    return spans.drawing(_codes(rows, columns, seed=seed), WORDS)


def film(frames: int = 2, rows: int = 1, columns: int = 2, seed: int = 0) -> Span:
    return spans.film(_codes(frames, rows, columns, seed=seed), WORDS)


def story() -> Span:
    """Text, a picture, text, a clip, sound at once, a drawing, a film, and text."""
    return spans.join([text(3, 1), picture(), text(2, 2), clip(), sound(), drawing(), text(1, 3), film(), text(4, 4)])


def heads(model: Transformer, hidden: Tensor) -> Tensor:
    """What both heads say, side by side: [N, V + codes]."""
    return torch.cat([model.logits(hidden), model.code_logits(hidden)], -1)


def step(wholes: list[tuple[Span, Batch]], parts: list[slice]) -> Batch:
    """A part of each whole sequence (a span and the Batch made of it), as one ragged batch."""
    vectors = [batch.cut(part.start, part.stop).vectors for (_, batch), part in zip(wholes, parts, strict=True)]
    given = [vector for vector in vectors if vector is not None]
    cuts = [span.cut(part.start, part.stop) for (span, _), part in zip(wholes, parts, strict=True)]
    return Batch.from_spans(cuts, torch.cat(given) if given else None)


def _pixels(frames: int, rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, rows * PATCH, columns * PATCH), generator=generator, dtype=torch.uint8)


def _codes(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, CODES, shape, generator=torch.Generator().manual_seed(seed))
