"""Pictures and clips to files, each whole or absent."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fourfold.errors import MediaError
from fourfold.files import atomic_file

PICTURES = {".png": "PNG", ".webp": "WEBP"}
ENCODERS = ("libx264", "mpeg4")  # the first that this build of PyAV has


def write_image(pixels: Tensor, path: str | os.PathLike) -> None:
    """uint8 [3, H, W] to a .png or .webp file, both without loss. MediaError for another suffix."""
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise MediaError(f"{path}: a picture is written as {' or '.join(PICTURES)}; choose such a name")
    picture = _pictures(pixels[None])[0]
    with atomic_file(path) as partial:
        picture.save(partial, PICTURES[path.suffix.lower()], lossless=True)


def write_clip(frames: Tensor, path: str | os.PathLike, rate: float = 8.0) -> None:
    """uint8 [F, 3, H, W], F >= 1, at `rate` frames a second, to .gif, .webp (without loss) or .mp4 (H.264).

    A .gif repeats for ever in at most 256 colours a frame, a .mp4 gets even sides by repeating the last row or column. Raises
    MediaError for another suffix.
    """
    path = Path(path)
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise MediaError(f"{path}: a clip is written as {', '.join(WRITERS)}; choose such a name")
    if frames.dim() != 4 or not len(frames) or rate <= 0:
        raise ValueError(f"frames {tuple(frames.shape)} at rate {rate} are no clip")
    with atomic_file(path) as partial:
        write(frames, partial, rate)


def _gif(frames: Tensor, path: Path, rate: float) -> None:
    first, *rest = _pictures(frames)
    lasts = _durations(len(frames), rate, 10)
    first.save(path, "GIF", save_all=True, append_images=rest, duration=lasts, loop=0)


def _webp(frames: Tensor, path: Path, rate: float) -> None:
    first, *rest = _pictures(frames)
    lasts = _durations(len(frames), rate, 1)
    first.save(path, "WEBP", save_all=True, append_images=rest, duration=lasts, loop=0, lossless=True)


def _mp4(frames: Tensor, path: Path, rate: float) -> None:
    height, width = frames.shape[2:]
    even = F.pad(frames.float(), (0, width % 2, 0, height % 2), mode="replicate").byte()
    step = 1 / Fraction(rate).limit_denominator(1000)
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream = file.add_stream(next(e for e in ENCODERS if e in av.codecs_available), rate=1 / step)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = *even.shape[:1:-1], "yuv420p", 1
        for number, pixels in enumerate(even):
            frame = av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            frame.pts, frame.time_base = number, step
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


WRITERS: dict[str, Callable[[Tensor, Path, float], None]] = {".gif": _gif, ".webp": _webp, ".mp4": _mp4}


def _durations(count: int, rate: float, unit: int) -> list[int]:
    """Milliseconds of each frame, multiples of `unit`: each frame is there when the rate says, and less than a unit before."""
    ends = [int(number * 1000 / rate / unit + 1e-6) * unit for number in range(count + 1)]
    return [max(end - begin, unit) for begin, end in zip(ends, ends[1:], strict=False)]


def _pictures(frames: Tensor) -> list[Image.Image]:
    return [Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy()) for pixels in frames]
