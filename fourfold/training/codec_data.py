"""What the codec learns from: the pictures and clips of a corpus, decoded once, and batches that follow from the step alone."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.data.omni import OmniCorpus
from fourfold.data.progress import progress
from fourfold.data.shelf import filmed, pictured
from fourfold.errors import DataError
from fourfold.media.spans import FILM_RATE

LARGE, SMALL = 64, 32  # pixels: the sizes at which pictures are drawn; clips are SMALL
FRAMES = 8
TINTED = 0.25  # share of pictures and clips whose colours are changed

Pools = dict[str, Tensor]  # uint8 [n, F, 3, H, W] by what they are


@dataclass(frozen=True)
class CodecData:
    """Pictures at 64 pixels, the same at 32, smaller pictures, and clips; a batch has as many pixels of each.

    `checksums` identify the corpus; a resumed run must find them unchanged.
    """

    train: Pools
    held_out: Pools
    checksums: dict[str, str]

    @classmethod
    def open(cls, corpus: str, multiple: int, every: int, held_out: int) -> "CodecData":
        """Every `every`-th picture and clip of the split `train`, and `held_out` of each pool of the other. Raises DataError."""
        found = OmniCorpus.open(corpus)
        train = _pools(found, "train", multiple, every)
        if not train:
            raise DataError(f"{found.corpus.folder}: has no pictures or clips of a size that is drawn; name one like tiny-omni")
        others = _pools(found, "held_out", multiple, every) if "held_out" in found.corpus.splits else {}
        return cls(train, {name: _spread(pool, held_out) for name, pool in others.items()}, found.corpus.checksums)

    def batch(self, step: int, seed: int, pixels: int) -> list[Tensor]:
        """fp32 [B, F, 3, H, W] in 0..1 of each pool, so many pixels in all: half of them mirrored, some in other colours."""
        drawn = torch.Generator().manual_seed(random.Random(f"{seed}/{step}").getrandbits(63))
        return [_varied(_pick(pool, pixels // len(self.train), drawn), drawn) for pool in self.train.values()]


def as_numbers(clips: Tensor) -> Tensor:
    """uint8 -> fp32 in 0..1."""
    return clips.float() / 255


def _pools(corpus: OmniCorpus, split: str, multiple: int, every: int) -> Pools:
    pools: dict[str, list[Tensor]] = {}
    sources = corpus.sources.values()
    total = sum(about["splits"].get(split, {}).get("documents", 0) for about in sources)
    for place, item in enumerate(progress(corpus.iterate(split), f"decoding {split}", total)):
        if place % every or item.kind not in ("image", "clip"):
            continue
        if item.kind == "clip":
            _add(pools, "clips", filmed(item.media, SMALL, multiple, FILM_RATE, FRAMES)[0], SMALL, FRAMES)
            continue
        picture = pictured(item.media, LARGE, multiple)[None]
        _add(pools, "small", picture, SMALL)
        if _add(pools, "large", picture, LARGE):
            _add(pools, "reduced", pictured(item.media, SMALL, multiple)[None], SMALL)
    return {name: torch.stack(pools[name]) for name in sorted(pools)}


def _add(pools: dict[str, list[Tensor]], name: str, frames: Tensor, side: int, count: int = 1) -> bool:
    """Put squares of this size into a pool; others cannot be stacked, and are left out."""
    fits = frames.shape == (count, 3, side, side)
    if fits:
        pools.setdefault(name, []).append(frames)
    return fits


def _spread(pool: Tensor, count: int) -> Tensor:
    """`count` of them, evenly spread."""
    count = min(count, len(pool))
    return pool[torch.arange(count) * len(pool) // count]


def _pick(pool: Tensor, pixels: int, drawn: torch.Generator) -> Tensor:
    count = max(pixels // (pool[0].numel() // 3), 1)
    return as_numbers(pool[torch.randint(len(pool), (count,), generator=drawn)])


def _varied(clips: Tensor, drawn: torch.Generator) -> Tensor:
    """Half of the clips mirrored; in some each colour channel is stretched between two random values, white ground included."""
    mirrored = torch.rand(len(clips), 1, 1, 1, 1, generator=drawn) < 0.5
    tinted = torch.rand(len(clips), 1, 1, 1, 1, generator=drawn) < TINTED
    dark, light = torch.rand(2, len(clips), 1, 3, 1, 1, generator=drawn)
    clips = torch.where(mirrored, clips.flip(-1), clips)
    return torch.where(tinted, dark + (light - dark) * clips, clips)
