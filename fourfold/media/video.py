"""Clips: films by PyAV, animated pictures by Pillow, both as the frames that are shown at even intervals."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

import av
import torch
from PIL import Image
from torch import Tensor

from fourfold.errors import MediaError, MediaWarning
from fourfold.media.images import ANIMATED, fit, opened_image, resized, rgb
from fourfold.media.limits import Limits
from fourfold.media.sources import Source, because, container, kind_of, name_of

EPSILON = 1e-4  # seconds: by so much do times in whole milliseconds or ticks miss what they mean
SEEKABLE = ("mov", "matroska", "avi")  # formats with an index of key frames; in others a seek may miss them
STILL = 0.1  # seconds that a frame of an animated picture is shown when its file says 0, as in browsers


@dataclass(frozen=True)
class Clip:
    """Frames uint8 [F, 3, H, W], F >= 1, and when each is shown, in seconds since the start that was asked for."""

    frames: Tensor
    seconds: list[float]


class Shown(NamedTuple):
    """One frame of a file: from when to when it is shown (seconds since the start), and how to get its pixels [3, H, W]."""

    begins: float
    ends: float
    picture: Callable[[], Tensor]


@dataclass
class Film:
    """A file being decoded: its frames in order, its length as far as it says, and the last thing that went wrong."""

    frames: Iterator[Shown] = field(default_factory=lambda: iter(()))
    seconds: float | None = None
    error: Exception | None = None


def read_clip(
    source: Source,
    rate: float = 8.0,
    start: float = 0.0,
    most_frames: int = 64,
    limits: Limits = Limits(),
    *,
    stop: float | None = None,
    longest: int | None = None,
    multiple: int = 1,
) -> Clip:
    """What is shown at `start`, `start` + 1/rate, ... before `stop` (None: the end) of a film, animated WebP, GIF, PNG or AVIF.

    A frame that stays longer comes more than once, one between two such times not at all. Where that would make more than
    `most_frames` the rate is lowered, so that they are spread over the whole. Each is turned as the film says, and scaled by `fit`
    when `longest` is given. Frames are decoded one at a time from the key frame before `start`, and only those to return are kept.

    Raises MediaError: not a clip, no frame that can be decoded, or beyond a limit. Where a part of a clip is damaged, as when a
    recording broke off, the rest is returned with a MediaWarning.
    """
    if rate <= 0 or most_frames < 1 or start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"rate {rate}, most_frames {most_frames}, start {start}, stop {stop}: no frame can be meant")
    name = name_of(source, "video")
    with _opened(source, start, limits) as film:
        length = _length(film, start, stop)
        samples = _Samples(name, 1 / rate, most_frames, limits, longest, multiple)
        if length and length * rate > most_frames:
            samples.step = length / most_frames
        if (length or 0) > limits.seconds:
            raise _too_long(name, limits)
        end = _sample(film, samples, stop - start if stop else None, limits)
        _complain(film, name, start, end, length, samples)
    step = samples.step
    return Clip(torch.stack(samples.frames), [step * i for i in range(len(samples.frames))])


class _Samples:
    """What is shown at 0, step, 2 · step, ...; every second one is given up when they become too many."""

    def __init__(self, name: str, step: float, most: int, limits: Limits, longest: int | None, multiple: int):
        self.step, self.frames = step, list[Tensor]()
        self._name, self._most, self._limits, self._longest, self._multiple = name, most, limits, longest, multiple

    def show(self, picture: Callable[[], Tensor], until: float) -> None:
        """This is what is to be seen until then, from where the one before it ended."""
        pixels = None
        while len(self.frames) * self.step < until - EPSILON:
            pixels = self._shaped(picture()) if pixels is None else pixels
            if (len(self.frames) + 1) * pixels[0].numel() > self._limits.clip_pixels:
                raise self._too_many(*pixels.shape[:0:-1])
            self.frames.append(pixels)
            if len(self.frames) > self._most:
                self.frames, self.step = self.frames[::2], self.step * 2

    def _shaped(self, pixels: Tensor) -> Tensor:
        if self._longest:
            pixels = fit(pixels, self._longest, self._multiple)
        if self.frames:  # a film may change its size midway
            pixels = resized(pixels, *self.frames[0].shape[1:])
        return pixels

    def _too_many(self, width: int, height: int) -> MediaError:
        remedy = "ask for fewer or smaller ones (`most_frames`, `longest`) or raise the limit `clip_pixels`"
        return MediaError(f"{self._name}: {len(self.frames) + 1} frames of {width} x {height} are too many pixels; {remedy}")


def _sample(film: Film, samples: _Samples, stop: float | None, limits: Limits) -> float:
    """Let `samples` see the film; returns when it ended."""
    held, end = None, 0.0
    for number, shown in enumerate(film.frames):
        if number >= limits.frames:
            said = f"has more than {limits.frames:,} frames; read a part (`start`, `stop`) or raise the limit `frames`"
            raise MediaError(f"{samples._name}: {said}")
        if held:
            samples.show(held.picture, min(shown.begins, stop or shown.begins))
        held, end = shown, max(end, shown.ends)
        if stop is not None and shown.begins >= stop - EPSILON:
            return stop
        if shown.begins > limits.seconds:
            raise _too_long(samples._name, limits)
    if held and end > 0:
        last = min(end, stop or end, max(limits.seconds, 2 * EPSILON))
        samples.show(held.picture, last if samples.frames else max(last, 2 * EPSILON))
    return end


def _length(film: Film, start: float, stop: float | None) -> float | None:
    """Seconds to read, as far as the file says."""
    ends = [end for end in (film.seconds, stop) if end is not None]
    return min(ends) - start if ends else None


def _too_long(name: str, limits: Limits) -> MediaError:
    return MediaError(f"{name}: lasts more than {limits.seconds:g} s; read a part (`start`, `stop`) or raise the limit `seconds`")


def _complain(film: Film, name: str, start: float, end: float, length: float | None, samples: _Samples) -> None:
    """Say what could not be read: all of it, or a part."""
    if not samples.frames:
        if start:
            raise MediaError(f"{name}: shows nothing from {start:g} s on; start earlier")
        raise MediaError(f"{name}: has no frames that can be decoded{because(film.error)}; export it again")
    if film.error or (length and end < length - 1):
        said = f"is damaged or breaks off; {end:.1f} s were read" + (f" of {length:.1f}" if length else "")
        warnings.warn(f"{name}: {said}{because(film.error)}", MediaWarning, stacklevel=3)


def _opened(source: Source, start: float, limits: Limits) -> AbstractContextManager[Film]:
    return _animation(source, start, limits) if kind_of(source) == "image" else _film(source, start, limits)


@contextmanager
def _animation(source: Source, start: float, limits: Limits) -> Iterator[Film]:
    with opened_image(source, limits, "video") as image:
        count = _count(image, limits.frames)
        if count == 1:
            raise MediaError(f"{name_of(source, 'video')}: is a still picture, not a clip; give it as image")
        film = Film()
        for shown in islice(_turned_over(film, image, count, 0.0, limits), limits.frames):  # only its frames say how long it is
            film.seconds = shown.ends
        film.frames = _turned_over(film, image, count, start, limits)
        yield film


def _count(image: Image.Image, most: int) -> int:
    """How many frames there are; `most` where a broken tail keeps Pillow from counting them, which `_turned_over` then ends at."""
    try:
        return getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
    except Exception:  # damaged files make Pillow raise nearly anything
        return most


def _turned_over(film: Film, image: Image.Image, count: int, start: float, limits: Limits) -> Iterator[Shown]:
    """The frames of an animated picture; one that cannot be decoded ends it."""
    begins = -start
    first = int(getattr(image, "default_image", False))  # a PNG may show another picture to those who cannot animate
    for number in range(first, count):
        try:
            image.seek(number)
            if image.width * image.height > limits.pixels:  # a GIF grows with its frames
                raise ValueError(f"a frame has more than {limits.pixels:,} pixels")
            image.load()
            picture = partial(rgb, image.copy())
        except Exception as error:  # damaged files make Pillow raise nearly anything
            film.error = error
            return
        yield Shown(begins, begins := begins + _lasts(image), picture)


def _lasts(image: Image.Image) -> float:
    return image.info.get("duration", 0) / 1000 or STILL


@contextmanager
def _film(source: Source, start: float, limits: Limits) -> Iterator[Film]:
    name = name_of(source, "video")
    with container(source, "video", limits) as file:
        streams = [s for s in file.streams.video if not s.disposition & av.stream.Disposition.attached_pic]  # a cover
        if not streams:
            raise MediaError(f"{name}: has no pictures" + ("; give it as audio" if file.streams.audio else "; export it again"))
        stream = streams[0]
        if stream.codec_context is None:
            raise MediaError(f"{name}: is in a codec that is not read; convert it to H.264")
        size = stream.width * stream.height  # 0 where probing met with more than `max_pixels`, too
        if not 0 < size <= limits.pixels:
            much = f"more than {limits.pixels:,} pixels"
            said = f"{stream.width} x {stream.height}, {much}" if size else f"{much}, or of no stated size"
            raise MediaError(f"{name}: has frames of {said}; scale it down or raise the limit `pixels`")
        stream.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(limits.pixels)}  # for headers that lie
        alone = len(file.streams) == 1  # else the file's length may be that of its sound
        seconds = stream.duration * stream.time_base if stream.duration else alone and file.duration and file.duration / 1e6
        film = Film(seconds=float(seconds) if seconds else None)
        film.frames = _decoded(film, file, stream, start)
        yield film


def _decoded(film: Film, file: av.container.InputContainer, stream: av.VideoStream, start: float) -> Iterator[Shown]:
    """The frames of a film from the key frame before `start` on; what cannot be decoded is passed over."""
    zero = start + float((stream.start_time or 0) * stream.time_base)
    packets, ends = file.demux(stream), -start
    if start and file.format.name.split(",")[0] in SEEKABLE:
        with suppress(av.FFmpegError):  # then from the beginning
            file.seek(int(zero * av.time_base))
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet else []
        except av.FFmpegError as error:
            film.error, frames = error, []
            continue
        if packet is None:
            return
        for frame in frames:
            begins = ends if frame.time is None else frame.time - zero
            ends = begins + _duration(frame, stream)
            yield Shown(begins, ends, partial(_seen, frame))


def _duration(frame: av.VideoFrame, stream: av.VideoStream) -> float:
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _seen(frame: av.VideoFrame) -> Tensor:
    """Pixels [3, H, W], turned as the file says (its rotation counts against the clock)."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(pixels, round(frame.rotation / 90), (1, 2))
