"""Clips of 8 frames at 8 frames a second: animated Fluent emoji, and sprites that move on a plain ground."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageSequence

from builders.omni_common import CLIP_SIDE, FRAMES, RATE, clip, fitted
from builders.omni_emoji import Emoji, about, files
from fourfold.data.omni import Item

SHOWN = [1 / RATE] * FRAMES


def animated(folder: Path, emoji: dict[str, Emoji]) -> Iterator[Item]:
    """Each animation cut into clips of one second, those left out in which nothing moves."""
    for one, path in files(folder, emoji):
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                yield from _cut(one, image)


def _cut(emoji: Emoji, image: Image.Image) -> Iterator[Item]:
    """Clips that follow one another through the loop; a loop that is shorter than a clip is gone through again."""
    frames, lasts = [], []
    for frame in ImageSequence.Iterator(image):
        frames.append(on_ground(fitted(frame.convert("RGBA"), CLIP_SIDE), (255, 255, 255)))
        lasts.append(frame.info["duration"])
    ends = list(accumulate(lasts))
    for number in range(max(1, ends[-1] * RATE // (1000 * FRAMES))):
        times = [1000 * (number * FRAMES + k) / RATE for k in range(FRAMES)]
        shown = [frames[bisect_right(ends, time % ends[-1])] for time in times]
        if any(frame.tobytes() != shown[0].tobytes() for frame in shown):
            details = about(emoji, "fluent") | {"start": times[0] / 1000, "rate": RATE, "loop": ends[-1] / 1000}
            name = f"animated/{emoji.code}/{number}"
            yield Item(name, "animated", "clip", clip(shown, SHOWN), emoji.label, emoji.concept, details)


def on_ground(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """An RGBA picture over one colour, as RGB."""
    return Image.alpha_composite(Image.new("RGBA", image.size, (*colour, 255)), image).convert("RGB")
