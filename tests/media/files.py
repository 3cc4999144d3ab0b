"""Small media files, made while a test runs: pictures by Pillow, sound by soundfile, films by PyAV."""

import io
import os
import resource
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

TICK = Fraction(1, 1000)  # of the films made here


def slope(height: int, width: int, turn: int = 0) -> Tensor:
    """uint8 [3, H, W], smooth, and unlike itself however it is turned or mirrored."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = [0.2 + 0.7 * x, 0.9 - 0.6 * y, (x * y + turn / 7) % 1]
    return (torch.stack(planes) * 255).round().byte()


def numbered(count: int, height: int = 16, width: int = 24) -> Tensor:
    """uint8 [F, 3, H, W]: frame i is of the one colour (5 i, 255 - 5 i, 7)."""
    colours = torch.tensor([[5 * i % 256, (255 - 5 * i) % 256, 7] for i in range(count)], dtype=torch.uint8)
    return colours[:, :, None, None].repeat(1, 1, height, width)


def pil(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def animated(frames: Tensor, durations: Sequence[int], format: str = "WEBP", **options: object) -> bytes:
    """Durations in milliseconds; WebP and PNG without loss."""
    first, *rest = map(pil, frames)
    options |= {"lossless": True} if format == "WEBP" else {}
    return encoded(first, format, save_all=True, append_images=rest, duration=list(durations), **options)


def tone(hertz: float, rate: int = 16_000, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def sound(samples: np.ndarray, rate: int = 16_000, format: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def film(
    frames: Tensor | None,
    begins: Sequence[float] = (),
    format: str = "matroska",
    codec: str = "ffv1",
    heard: np.ndarray | None = None,
    sound_codec: str = "aac",
    turned: int = 0,
    **options: str,
) -> bytes:
    """Frames [F, 3, H, W] shown from `begins` (seconds) on, and mono sound at 48 kHz; ffv1 keeps every pixel.

    `options` are the container's. A last frame lasts 40 ms.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=format, options=options) as out:
        picture = out.add_stream(codec, rate=25) if frames is not None else None
        track = out.add_stream(sound_codec, rate=48_000, layout="mono") if heard is not None else None
        if picture is not None:
            height, width = frames.shape[2:]
            picture.width, picture.height, picture.pix_fmt = width, height, "bgr0" if codec == "ffv1" else "yuv420p"
            picture.codec_context.time_base, picture.codec_context.gop_size, picture.thread_count = TICK, 12, 1
            if turned:
                picture.set_display_rotation(turned)
            for pixels, begin in zip(frames, begins, strict=True):
                frame = av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
                frame.pts, frame.time_base = round(begin / TICK), TICK
                out.mux(picture.encode(frame))
            out.mux(picture.encode())
        if track is not None:
            frame = av.AudioFrame.from_ndarray(heard[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = 48_000
            out.mux(track.encode(frame))
            out.mux(track.encode())
    return file.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A sound PNG of one bit a pixel, all black, a few kB in size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer, rows = zlib.compressobj(1), bytes(1 + (width + 7) // 8) * 100
    packed = b"".join(packer.compress(rows) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@contextmanager
def little_memory(mebibytes: int) -> Iterator[None]:
    """No more than so much memory beyond what this process has: a larger allocation fails."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("how much memory a process has is read from /proc, which is Linux's")
    old = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as pages:
        now = int(pages.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + mebibytes * 2**20, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)
