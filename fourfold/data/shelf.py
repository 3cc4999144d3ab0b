"""The items of a split as spans: decoded when they are asked for, and what is drawn as codes that were made once."""

import hashlib
import io
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fourfold import paths
from fourfold.data.omni import KINDS, Item, OmniCorpus
from fourfold.data.progress import progress
from fourfold.errors import ConfigError, DataError
from fourfold.files import atomic_file
from fourfold.media import spans
from fourfold.media.audio import log_mel, read_sound
from fourfold.media.images import fit, read_image
from fourfold.media.spans import Span
from fourfold.media.video import read_clip
from fourfold.parts import MediaInConfig, MediaOutConfig
from fourfold.text.tokenizer import Tokenizer

FORMAT = "1"  # part of the cache's key: raise it when what is drawn of an item changes
AT_ONCE = 64  # frames that are encoded together
Colour = tuple[int, int, int]
SMALL = 32  # pixels: the other size of pictures that are larger


class Encoder(Protocol):
    """What turns clips into codes: see media/codec.py."""

    def encode(self, clips: Tensor) -> Tensor:
        """fp32 [B, F, 3, H, W] in 0..1 -> int64 [B, F, rows, columns]."""


class Shelf:
    """Items of one split by source and by kind; every `every`-th of each source."""

    def __init__(
        self,
        corpus: OmniCorpus,
        split: str,
        tokenizer: Tokenizer,
        sizes: MediaInConfig | None,
        codes: "Codes | None" = None,
        every: int = 1,
    ):
        self.corpus, self.split, self.tokenizer = corpus, split, tokenizer
        self.sizes, self.codes, self.every = sizes, codes, every
        self._items: dict[str, list[Item]] = {}
        self._kinds: dict[str, str | None] = {}

    def names(self, wanted: str) -> list[str]:
        """The sources meant by `fluent+noto`, a kind such as `image`, or nothing (all). Raises DataError for an unknown one."""
        about, found = self.corpus.sources, []
        for name in wanted.split("+") if wanted else about:
            alike = [s for s in about if name in (s, self.kind(s))]
            if not alike:
                raise DataError(f"{self.corpus.corpus.name}:{wanted}: has no {name}; choose of {', '.join((*about, *KINDS))}")
            found += [s for s in alike if s not in found]
        return found

    def kind(self, source: str) -> str | None:
        """image, clip, speech or sound; None where the split has nothing of the source."""
        if source not in self._kinds:
            first = next(self.corpus.iterate(self.split, {source}), None)
            self._kinds[source] = None if first is None else first.kind
        return self._kinds[source]

    def of(self, source: str) -> list[Item]:
        if source not in self._items:
            self._items[source] = list(islice(self.corpus.iterate(self.split, {source}), 0, None, self.every))
        return self._items[source]

    def shown(
        self, item: Item, small: bool = False, ground: Colour | None = None, speed: float = 1.0, timbre: Sequence[float] = ()
    ) -> Span:
        """An item as it is read; of a picture, one larger than SMALL at that size when `small`, and what is clear on a ground.

        speed: how much faster sound is played; timbre: what `coloured` does with it.
        """
        sizes = self.sizes
        if sizes is None:
            raise ConfigError("media_in: the model reads no media; choose a preset that does, such as nano-omni")
        if item.kind == "image":
            longest = min(sizes.image_longest, SMALL) if small else sizes.image_longest
            pixels = pictured(item.media, longest, sizes.image_patch_size, ground)
            return spans.picture(pixels, self.tokenizer, sizes.image_patch_size, sizes.clip_patch_frames)
        if item.kind == "clip":
            return spans.clip(*self.frames(item), self.tokenizer, sizes.image_patch_size, sizes.clip_patch_frames)
        mel = coloured(log_mel(played(read_sound(item.media), speed), sizes.audio_mel_bins), timbre)
        return spans.sound(mel, self.tokenizer, sizes.audio_frames_per_token)

    def frames(self, item: Item) -> tuple[Tensor, list[float]]:
        """What is read of a clip: frames uint8 [F, 3, H, W], and when each is shown."""
        sizes = self.sizes
        assert sizes is not None
        return filmed(item.media, sizes.clip_longest, sizes.image_patch_size, sizes.clip_rate, sizes.clip_frames)

    def drawn(self, item: Item, small: bool = False) -> Span:
        """A picture or a clip as it is drawn."""
        if self.codes is None:
            raise ConfigError("media_out: the model draws nothing; choose a preset that does, such as nano-omni")
        codes = self.codes.of(item, self.of, small)
        return spans.drawing(codes[0], self.tokenizer) if item.kind == "image" else spans.film(codes, self.tokenizer)


class Codes:
    """The codes [F, rows, columns] of every picture and clip of a split, encoded once for each source and size.

    Kept in $FOURFOLD_HOME/cache under the checksums of corpus and codec. `checksum` is that of the codec.
    """

    def __init__(self, corpus: OmniCorpus, split: str, encoder: Encoder, checksum: str, sizes: MediaOutConfig, every: int = 1):
        self.encoder, self.sizes = encoder, sizes
        drawn_sizes = sizes.model_dump_json(exclude={"code_place_waves"})
        self.key = "/".join((FORMAT, corpus.checksum(split), checksum, str(every), drawn_sizes))
        self._found: dict[tuple[str, bool], dict[str, Tensor]] = {}

    def of(self, item: Item, items: Callable[[str], list[Item]], small: bool = False) -> Tensor:
        """Those of an item; `items` gives all of a source. Pictures that are larger than SMALL have others when `small`."""
        if small and (item.kind == "clip" or max(self.of(item, items).shape) * self.sizes.code_downsample <= SMALL):
            return self.of(item, items)
        if (item.source, small) not in self._found:
            self._found[item.source, small] = self._read(item.source, items(item.source), small)
        return self._found[item.source, small][item.id]

    def _read(self, source: str, items: list[Item], small: bool) -> dict[str, Tensor]:
        """By id; at the normal size or the small one."""
        key = hashlib.sha256(f"{self.key}/{source}/{small}".encode()).hexdigest()[:16]
        path = paths.home() / "cache" / f"codes-{key}.npz"
        if not path.is_file():
            self._write(path, items, source, small)
        with np.load(path) as stored:
            sizes, flat = stored["sizes"], torch.from_numpy(stored["codes"].astype(np.int64))
        pieces = flat.split(sizes.prod(1).tolist())
        return {item.id: codes.view(*size) for item, codes, size in zip(items, pieces, sizes.tolist(), strict=True)}

    def _write(self, path: Path, items: list[Item], source: str, small: bool) -> None:
        found: list[Tensor] = []
        waiting: list[Tensor] = []
        for item in progress(items, f"encoding {source}", len(items)):
            frames = self._frames(item, small)
            if waiting and (frames.shape != waiting[0].shape or len(waiting) * len(frames) >= AT_ONCE):
                found += self._encode(waiting)
                waiting = []
            waiting.append(frames)
        found += self._encode(waiting)
        sizes = np.array([codes.shape for codes in found], np.int32)
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez(file, sizes=sizes, codes=torch.cat([c.flatten() for c in found]).numpy().astype(np.uint32))

    def _frames(self, item: Item, small: bool) -> Tensor:
        """uint8 [F, 3, H, W], at most as large as the model draws."""
        step, (count, *film) = self.sizes.code_downsample, self.sizes.film_grid
        if item.kind == "clip":
            return filmed(item.media, step * max(film), step, spans.FILM_RATE, count)[0]
        longest = step * max(self.sizes.image_grid)
        return pictured(item.media, min(longest, SMALL) if small else longest, step)[None]

    @torch.inference_mode()
    def _encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        return list(self.encoder.encode(torch.stack(list(clips)).float() / 255)) if clips else []


def pictured(media: bytes, longest: int, multiple: int, ground: Colour | None = None) -> Tensor:
    """uint8 [3, H, W]: an encoded picture at a size that a grid divides, what is clear in it white or of another colour."""
    if ground is None:
        return fit(read_image(media), longest, multiple)
    with Image.open(io.BytesIO(media)) as image:
        picture = Image.alpha_composite(Image.new("RGBA", image.size, ground), image.convert("RGBA")).convert("RGB")
    return fit(torch.from_numpy(np.array(picture)).permute(2, 0, 1), longest, multiple)


def filmed(media: bytes, longest: int, multiple: int, rate: float, count: int) -> tuple[Tensor, list[float]]:
    """uint8 [F, 3, H, W] and when each frame is shown."""
    clip = read_clip(media, rate=rate, most_frames=count, longest=longest, multiple=multiple)
    return clip.frames, clip.seconds


def played(samples: Tensor, speed: float) -> Tensor:
    """fp32 [n] played faster, and so higher: [about n / speed]. One voice becomes many (Ko et al., Interspeech 2015)."""
    if speed == 1.0:
        return samples
    count = max(round(len(samples) / speed), 1)
    return F.interpolate(samples[None, None], count, mode="linear", align_corners=True)[0, 0]


def coloured(mel: Tensor, timbre: Sequence[float]) -> Tensor:
    """mel [T, bins] as another throat, room or microphone would colour it: `timbre` is how high the waves over the bins are that
    are added to every frame, of 0, 1, 2 ... half turns."""
    bins = torch.arange(mel.shape[1]) + 0.5
    waves = [height * torch.cos(torch.pi * turns / mel.shape[1] * bins) for turns, height in enumerate(timbre)]
    return mel + torch.stack(waves).sum(0) if waves else mel


def checksum_of(folder: Path) -> str:
    """Of the files of a codec."""
    files = [folder / name for name in ("config.json", "model.safetensors")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
