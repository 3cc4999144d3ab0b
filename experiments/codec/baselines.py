"""What the codec is measured against, each with as many bits as the codec takes: JPEG, bicubic reduction, and H.264 for clips.

Each baseline may choose its settings for each picture with the original at hand, and pays neither for saying which they are nor for
anything that could be agreed on beforehand (headers, tables, parameter sets). Of what fits it takes what has the least squared
error; where nothing fits, the smallest. It returns the pixels, uint8 as it was given them, and how many bits they took.
"""

import io
import re
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from PIL import Image

QUALITIES = (1, 2, 3, 4, 5, 7, 9, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90)
RATE_FACTORS = (18, 24, 28, 32, 35, 38, 41, 44, 47, 51)
Made = tuple[np.ndarray, int]
BICUBIC = Image.Resampling.BICUBIC


def jpeg(picture: np.ndarray, bits: float) -> Made:
    """A picture [H, W, 3] as baseline JPEG.

    Tried are all QUALITIES, chroma whole and halved, at every size in steps of 8 pixels, brought back to the original size by
    bicubic enlargement; a grey picture is stored as one. Counted is the coded scan alone: headers, quantisation tables and the
    standard Huffman tables are free. (Huffman tables made for the picture tell of it and would count; alone they do not fit.)
    """
    original = _grey_or_colour(picture)
    found = []
    for size in _sizes(original.size, 8):
        for quality in QUALITIES:
            for subsampling in (0,) if original.mode == "L" else (0, 2):
                file = io.BytesIO()
                original.resize(size, BICUBIC).save(file, "JPEG", quality=quality, subsampling=subsampling)
                found.append((_enlarged(Image.open(file), original.size), 8 * scan_bytes(file.getvalue())))
    return _best(found, picture, bits)


def scan_bytes(file: bytes) -> int:
    """Bytes of coded picture data in a baseline JPEG file: what follows the header of its one scan, up to the end marker."""
    place = 2
    while file[place + 1] != 0xDA:
        place += 2 + int.from_bytes(file[place + 2 : place + 4])
    return len(file) - (place + 2 + int.from_bytes(file[place + 2 : place + 4])) - 2


def bicubic(picture: np.ndarray, bits: float) -> Made:
    """A picture [H, W, 3] reduced to few pixels and enlarged again, both bicubic.

    Tried are 1 to 8 bits for each channel of a pixel, evenly spaced, and the largest n x n, n x (n + 1) and (n + 1) x n pixels that
    fit each; a grey picture has one channel.
    """
    original = _grey_or_colour(picture)
    channels = len(original.getbands())
    found = []
    for depth in range(1, 9):
        pixels = bits / (channels * depth)
        side = max(min(int(pixels**0.5), *original.size), 1)
        for width, height in ((side, side), (side + 1, side), (side, side + 1)):
            if width * height <= max(pixels, 1) and width <= original.width and height <= original.height:
                again = _enlarged(_at_depth(original.resize((width, height), BICUBIC), depth), original.size)
                found.append((again, width * height * channels * depth))
    return _best(found, picture, bits)


def h264(clip: np.ndarray, bits: float) -> Made:
    """A clip [F, H, W, 3] by x264 (veryslow, tuned for PSNR).

    Tried are all RATE_FACTORS at three sizes. Counted are the coded slices alone, without parameter sets and comments.
    """
    full = clip.shape[2:0:-1]
    found = []
    for size in _sizes(full, 4):
        for factor in RATE_FACTORS if min(size) >= 16 else ():
            again, used = _through_x264([Image.fromarray(frame).resize(size, BICUBIC) for frame in clip], factor)
            found.append((np.stack([_enlarged(frame, full) for frame in again]), used))
    return _best(found, clip, bits)


def _through_x264(frames: list[Image.Image], factor: int) -> tuple[list[Image.Image], int]:
    """The frames decoded, and the bits of their slices."""
    file = io.BytesIO()
    with av.open(file, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.options = {"crf": str(factor), "preset": "veryslow", "tune": "psnr"}
        for frame in [*map(av.VideoFrame.from_image, frames), None]:
            container.mux(stream.encode(frame))
    data = file.getvalue()
    with av.open(io.BytesIO(data), format="h264") as container:
        again = [frame.to_image() for frame in container.decode(video=0)]
    units = re.split(b"\x00\x00\x00?\x01", data)
    return again, 8 * sum(len(unit) for unit in units if unit and unit[0] & 31 in (1, 5))


def _sizes(full: tuple[int, int], steps: int) -> Iterator[tuple[int, int]]:
    """`full` and smaller sizes of its shape: steps of 8 pixels of the shorter side, or `steps` even ones if those are fewer."""
    count = min(min(full) // 8, steps)
    for step in range(1, count + 1):
        yield (full[0] * step // count, full[1] * step // count)


def _grey_or_colour(picture: np.ndarray) -> Image.Image:
    is_grey = (picture == picture[..., :1]).all()
    return Image.fromarray(np.ascontiguousarray(picture[..., 0]) if is_grey else picture)


def _at_depth(image: Image.Image, depth: int) -> Image.Image:
    steps = 2**depth - 1
    return Image.fromarray(np.round(np.round(np.asarray(image) / 255 * steps) * (255 / steps)).astype(np.uint8))


def _enlarged(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize(size, BICUBIC))


def _best(found: list[Made], true: np.ndarray, bits: float) -> Made:
    """The nearest to `true` of those with at most `bits` bits, else the one with the fewest."""
    fitting = [each for each in found if each[1] <= bits] or [min(found, key=lambda each: each[1])]
    return min(fitting, key=lambda each: np.square(each[0].astype(np.float64) - true).mean())
