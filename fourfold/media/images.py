"""Pictures, by Pillow: any mode and orientation to uint8 [3, H, W], and scaled to a grid of patches."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fourfold.errors import MediaError
from fourfold.media.limits import Limits
from fourfold.media.sources import Kind, Source, because, name_of, opened, unreadable

# No format here runs another program (EPS), nor holds a second picture whose size its header does not say (ICO, ICNS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "PPM", "JPEG2000")
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # pages of a TIFF and views of a JPEG are no animation


def read_image(source: Source, limits: Limits = Limits()) -> Tensor:
    """A picture as it is meant to be seen, uint8 [3, H, W]: turned as EXIF says, on white paper; of an animation the first frame.

    Raises MediaError: not a picture, damaged, cut short, or with more than `limits.pixels` (refused by its header).
    """
    with opened_image(source, limits) as image, decoding(source):
        image.load()
        return rgb(_upright(image))


def is_animated(source: Source, limits: Limits = Limits()) -> bool:
    """Whether this is a picture that moves: one for `read_clip`. Raises MediaError as `read_image` does."""
    with opened_image(source, limits) as image, decoding(source):
        return image.format in ANIMATED and getattr(image, "is_animated", False)


@contextmanager
def opened_image(source: Source, limits: Limits, kind: Kind = "image") -> Iterator[Image.Image]:
    """A picture of which the header has been read, and its size found to be within `limits.pixels`; `kind` is for errors."""
    name = name_of(source, kind)
    too_large = f"more than {limits.pixels:,} pixels; scale it down or raise the limit `pixels`"
    with opened(source, kind, limits) as file:
        width, height = _webp_size(file.read(30))
        file.seek(0)
        try:
            if width * height <= limits.pixels:
                with warnings.catch_warnings():  # Pillow's own bound is not ours, and what is odd about a file is no news
                    warnings.simplefilter("ignore")
                    image = Image.open(file, formats=FORMATS)
                width, height = image.size
        except Image.DecompressionBombError as error:
            raise MediaError(f"{name}: has {too_large}") from error
        except UnidentifiedImageError as error:  # which says nothing but the address of the file object
            raise unreadable(source, "image") from error
        except Exception as error:  # decoders raise what they like
            raise unreadable(source, "image", error) from error
        if width * height > limits.pixels:
            raise MediaError(f"{name}: is {width} x {height}, {too_large}")
        with image:
            yield image


@contextmanager
def decoding(source: Source, kind: Kind = "image") -> Iterator[None]:
    """Whatever a decoder raises becomes one line."""
    name = name_of(source, kind)
    try:
        yield
    except MemoryError as error:
        raise MediaError(f"{name}: takes more memory than there is; scale it down") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise MediaError(f"{name}: is damaged or cut short{because(error)}; copy or export it again") from error


def rgb(image: Image.Image) -> Tensor:
    """What a loaded picture looks like on white paper: uint8 [3, H, W], channels last in memory (which is fast to scale)."""
    image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def fit(pixels: Tensor, longest: int, multiple: int = 1) -> Tensor:
    """uint8 [..., 3, H, W] scaled so that no side is longer than `longest` and both are multiples of `multiple`.

    Small pictures stay as they are but for the nearest multiple, and no side is less than one. What is scaled is averaged over the
    area of each new pixel (bicubic), so a picture keeps its whole content at any shape; aspect ratios as near as the grid allows.
    """
    if longest < multiple:
        raise ValueError(f"longest is {longest}, less than the multiple ({multiple})")
    sides = pixels.shape[-2:]
    scale = min(1.0, longest / max(sides))
    most = longest // multiple
    return resized(pixels, *(min(max(int(side * scale / multiple + 0.5), 1), most) * multiple for side in sides))


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """uint8 [..., 3, H, W] -> [..., 3, height, width], bicubic with anti-aliasing."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    flat = pixels.reshape(-1, *pixels.shape[-3:]).contiguous(memory_format=torch.channels_last)  # else ten times slower
    scaled = F.interpolate(flat, size=(height, width), mode="bicubic", antialias=True)
    return scaled.reshape(*pixels.shape[:-2], height, width).contiguous()


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height of a WebP, whose decoder takes memory for them as soon as it is opened; (0, 0) of any other file.

    From the first chunk: VP8X, VP8L or VP8 (RFC 9649, sections 2.7, 3.4 and 2.5).
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    bits = int.from_bytes(head[21:25], "little")
    if head[12:16] == b"VP8L":
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; a broken EXIF block says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Pictures of more than 8 bits to grey; those of 8 as they are.

    Mode I;16 goes to 65535. Files do not say how far I and F go: to the first of 1 (F only), 255 (F only) or 65535 that none
    of their values exceeds, else to the largest value.
    """
    if image.mode[0] not in "IF":
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    peak = float(values.max())
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    top = next((top for top in tops if peak <= top), peak)
    return Image.fromarray((values.clip(0, top) * (255 / top) + 0.5).astype(np.uint8))
