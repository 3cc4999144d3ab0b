"""Clips in which a real sprite (an emoji, a piece of clothing) moves over a plain ground in the way the caption says."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from builders.common import pick
from builders.omni_clips import SHOWN
from builders.omni_common import CLIP_SIDE, FRAMES, clip, fitted
from builders.omni_emoji import Emoji
from builders.omni_fashion import CLASSES
from fourfold.data.documents import unit
from fourfold.data.omni import Item

STEP, LAST = 2, FRAMES - 1  # pixels a frame along an axis; the number of the last frame
COLOURS = 64  # of a clip
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
GROUNDS = {
    "white": (255, 255, 255),
    "grey": (190, 190, 190),
    "black": (20, 20, 20),
    "blue": (110, 165, 235),
    "green": (140, 205, 140),
    "yellow": (250, 235, 140),
    "pink": (250, 190, 205),
    "orange": (250, 180, 110),
    "purple": (180, 150, 220),
}


@dataclass(frozen=True)
class Sprite:
    """A picture that can be moved: its RGBA pixels, its name in a sentence, and what the split goes by."""

    id: str
    image: Image.Image
    name: str
    concept: str
    style: str


@dataclass(frozen=True)
class Pose:
    """Where the middle of a sprite is (pixels), how long its longer side is, and by how many degrees it is turned left."""

    x: float
    y: float
    side: int
    turned: float = 0.0


def moved(sprite: Sprite, motion: str) -> Item:
    """The clip of a sprite doing what `motion` names; place, size and ground follow from the names of both."""
    key = f"{sprite.id}/{motion}"
    ground = pick(list(GROUNDS), "ground:" + key)
    frames = []
    for pose in MOTIONS[motion](key):
        image = fitted(sprite.image, pose.side).rotate(pose.turned, Image.Resampling.BICUBIC)
        frame = Image.new("RGBA", (CLIP_SIDE, CLIP_SIDE), (*GROUNDS[ground], 255))
        frame.alpha_composite(image, (round(pose.x - pose.side / 2), round(pose.y - pose.side / 2)))
        frames.append(frame.convert("RGB"))
    details = {"object": sprite.name, "motion": motion, "sprite": sprite.id, "style": sprite.style, "ground": ground}
    text = f"the {sprite.name} {said(motion)}"
    return Item(f"sprites/{key}".replace(" ", "-"), "sprites", "clip", clip(frames, SHOWN, COLOURS), text, sprite.concept, details)


def said(motion: str) -> str:
    """ "moves up and to the left", "grows"."""
    if motion not in DIRECTIONS:
        return motion
    return "moves " + motion.replace(" ", " and to the ")


def _along(direction: tuple[int, int]) -> Callable[[str], list[Pose]]:
    def poses(key: str) -> list[Pose]:
        side = pick([14, 16, 18], "side:" + key)
        way = STEP * LAST
        start = [_start(side, way * axis, f"{name}:{key}") for name, axis in zip("xy", direction, strict=True)]
        return [Pose(start[0] + STEP * k * direction[0], start[1] + STEP * k * direction[1], side) for k in range(FRAMES)]

    return poses


def _start(side: int, way: int, key: str) -> int:
    """Where to begin on one axis, so that the sprite stays in the picture while it goes `way` pixels."""
    low, high = side // 2 + max(0, -way), CLIP_SIDE - side // 2 - max(0, way)
    return low + int(unit(key) * (high - low + 1))


def _middle(key: str) -> tuple[int, int]:
    return 14 + int(unit("x:" + key) * 5), 14 + int(unit("y:" + key) * 5)


def _grows(key: str) -> list[Pose]:
    return [Pose(*_middle(key), 8 + 2 * k) for k in range(FRAMES)]


def _shrinks(key: str) -> list[Pose]:
    return _grows(key)[::-1]


def _jumps(key: str) -> list[Pose]:
    """Up and down once, as something thrown: the height is a parabola in time."""
    x, y = _middle(key)[0], CLIP_SIDE - 9
    return [Pose(x, y - 14 * 4 * k * (FRAMES - k) / FRAMES**2, 16) for k in range(FRAMES)]


def _swings(key: str) -> list[Pose]:
    """Left, right and back to upright, twice."""
    x, y = _middle(key)
    return [Pose(x, y, 20, 35 * (0, 1, 0, -1)[k % 4]) for k in range(FRAMES)]


MOTIONS: dict[str, Callable[[str], list[Pose]]] = {name: _along(direction) for name, direction in DIRECTIONS.items()}
MOTIONS |= {"grows": _grows, "shrinks": _shrinks, "jumps": _jumps, "swings": _swings}


def of_emoji(images: Iterable[tuple[Emoji, Image.Image]], style: str) -> list[Sprite]:
    """The things among emoji in one style, cut to what is drawn."""
    things = [(one, image.convert("RGBA")) for one, image in images if one.noun]
    return [Sprite(f"{style}/{one.code}", image.crop(image.getbbox()), one.label, one.concept, style) for one, image in things]


def of_clothes(pixels: np.ndarray, classes: np.ndarray, split: str, count: int) -> list[Sprite]:
    """The first `count` of Fashion-MNIST, trousers left out, whose name is a plural; their black ground is made transparent."""
    sprites = []
    for index in np.flatnonzero(classes != CLASSES.index("trousers"))[:count]:
        grey = pixels[index]
        seen = np.minimum(grey.astype(int) * 4, 255).astype(np.uint8)
        name, image = CLASSES[classes[index]], Image.fromarray(np.stack([grey, grey, grey, seen], -1))
        sprites.append(Sprite(f"fashion/{split}/{index}", image, name, f"fashion/{split}/{index}", "fashion"))
    return sprites


def clips(sprites: list[Sprite], each: int) -> Iterator[Item]:
    """`each` motions of every sprite, so chosen that over all sprites every motion comes about equally often."""
    names = list(MOTIONS)
    for number, sprite in enumerate(sorted(sprites, key=lambda s: unit("sprite:" + s.id))):
        for k in range(each):
            yield moved(sprite, names[(number * each + k) % len(names)])
