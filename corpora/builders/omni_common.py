"""What the builders of tiny-omni share: the split rule, encoded pictures and clips, and names as file names spell them."""

import io
import re

from PIL import Image

from fourfold.data.documents import unit
from fourfold.data.omni import Item

HELD_OUT_SHARE = 0.12  # of the concepts
SIDE, CLIP_SIDE = 64, 32  # pixels of pictures and of clips
FRAMES, RATE = 8, 8  # frames of a clip, and frames a second
Splits = dict[str, list[Item]]


def is_held_out(concept: str) -> bool:
    """The split rule of emoji and sentences: what an item is about decides where all of it goes."""
    return unit("omni:" + concept) < HELD_OUT_SHARE


def split_of(concept: str) -> str:
    return "held_out" if is_held_out(concept) else "train"


def code_points(name: str) -> str:
    """Code points as emoji files spell them ("0030-fe0f-20e3"), without zeros in front and the selector fe0f: "30-20e3"."""
    parts = [part.lstrip("0") for part in re.split("[-_]", name.lower())]
    return "-".join(part for part in parts if part and part != "fe0f")


def picture(image: Image.Image, lossless: bool = False) -> bytes:
    """A WebP file; transparency is kept exactly, the colour of what nobody sees is not."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=lossless, quality=75 if lossless else 90, method=4 if lossless else 6)
    return file.getvalue()


def clip(frames: list[Image.Image], seconds: list[float], colours: int | None = None) -> bytes:
    """An animated WebP file of RGB frames, each shown for `seconds`; with `colours`, nothing is lost but the number of colours.

    A frame that is the same as the one before it is not stored again; that one is shown longer.
    """
    if colours:
        width, height = frames[0].size
        strip = Image.new("RGB", (width * len(frames), height))
        for k, frame in enumerate(frames):
            strip.paste(frame, (width * k, 0))
        strip = strip.quantize(colours, dither=Image.Dither.NONE).convert("RGB")
        frames = [strip.crop((width * k, 0, width * (k + 1), height)) for k in range(len(frames))]
    file, shown = io.BytesIO(), [round(1000 * s) for s in seconds]
    options = {"lossless": bool(colours), "quality": 75 if colours else 90, "method": 4}
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=shown, loop=0, **options)
    return file.getvalue()


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Scaled so that the longer side is `side`, in the middle of a transparent square."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    square = Image.new("RGBA", (side, side))
    square.paste(image.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square
