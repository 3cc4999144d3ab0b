"""Sound to Ogg Opus: mono, 16 kHz, silence at both ends cut short, at one level."""

import io
from pathlib import Path

import av
import numpy as np

RATE = 16_000  # samples a second
QUIET, PAUSE, PEAK = 0.01, 0.05, 0.6  # of full scale; seconds of silence that stay; of full scale
LIBRARIES = ("libavcodec", "libavformat", "libswresample")


def opus(samples: np.ndarray, rate: int, bits: int, application: str = "voip", shortest: float = 0.0) -> tuple[bytes, float]:
    """Samples int16 or float [n] at `rate` as Ogg Opus of about `bits` a second, and how many seconds it plays.

    What is shorter than `shortest` seconds has silence after it. Without tags and with serial number 0, so that the same samples
    give the same bytes. Always two pages of sound or more: on a single one some readers cannot tell where the count begins.
    """
    level = _levelled(_resampled(samples, rate))
    level = np.pad(level, (0, max(0, round(shortest * RATE) - len(level))))
    seconds = len(level) / RATE
    file = io.BytesIO()
    options = {"fflags": "+bitexact", "page_duration": str(min(1_000_000, round(400_000 * seconds)))}
    with av.open(file, "w", format="ogg", options=options) as container:
        stream = container.add_stream("libopus", RATE)
        stream.codec_context.options = {"application": application, "frame_duration": "60", "vbr": "on"}
        stream.codec_context.layout, stream.codec_context.bit_rate = "mono", bits
        frame = av.AudioFrame.from_ndarray((level * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue(), seconds


def decoded(path: Path) -> tuple[np.ndarray, int]:
    """The first channel of a sound file, float32 [n], and its rate."""
    with av.open(path) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        context = container.streams.audio[0]
        samples = np.concatenate(frames, axis=1)
        first = samples[0] if len(samples) > 1 else samples[0, :: context.channels]
    scale = np.iinfo(first.dtype).max if first.dtype.kind == "i" else 1
    return (first / scale).astype(np.float32), context.rate


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    if samples.dtype == np.int16:
        samples = samples / np.float32(32768)
    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], "flt", "mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler("flt", "mono", RATE)
    return np.concatenate([part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]])


def _levelled(samples: np.ndarray) -> np.ndarray:
    samples = samples * (PEAK / max(float(np.abs(samples).max()), 1e-6))
    loud = np.flatnonzero(np.abs(samples) > QUIET)
    pause = round(PAUSE * RATE)
    return samples[max(0, loud[0] - pause) : loud[-1] + pause]
