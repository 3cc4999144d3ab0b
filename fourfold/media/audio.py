"""Sound: any file to 16 kHz in one channel, and to the log-mel frames that the trunk hears."""

import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain, groupby

import av
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.errors import MediaError, MediaWarning
from fourfold.media.limits import Limits
from fourfold.media.sources import Source, because, container, name_of, opened

RATE = 16_000  # samples a second
WINDOW, HOP = 400, 160  # samples: 25 ms and 10 ms
FLOOR = 1e-8  # of mel power: below what 16-bit sound can say
CENTRE, SPREAD = -9.0, 5.0  # of the logarithms of speech, about: what brings them to mean 0 and deviation 1
BLOCK = 8192  # samples decoded at once, all channels together; so many are lost before a break
# How the files begin that go to soundfile first. Not MP3: soundfile seeks after each block, which changes what it decodes next.
FOR_SOUNDFILE = rb"RIFF.{4}WAVE|RF64|fLaC|OggS|FORM.{4}AIF|\.snd|caff"

Block = tuple[int, np.ndarray]  # samples a second, and fp32 [n] of them


def read_sound(source: Source, limits: Limits = Limits()) -> Tensor:
    """Sound of a file, or of a film's first sound track, fp32 [n] in -1..1: channels averaged, at 16 kHz.

    soundfile reads it (WAV, FLAC, Ogg, AIFF) or PyAV. Values that are no number become 0, those beyond full scale are cut off.
    It is decoded and resampled block by block, and no further than `limits.seconds`.

    Raises MediaError: not sound, none that can be decoded, or beyond a limit. Where sound breaks off or a part of it is damaged,
    the rest is returned with a MediaWarning.
    """
    name, pieces, count = name_of(source, "audio"), list[np.ndarray](), 0
    heard = _Heard(source, limits)
    for piece in _at_rate(heard.blocks(), name):
        pieces.append(piece)
        count += len(piece)
        if count > limits.seconds * RATE:
            raise MediaError(f"{name}: lasts more than {limits.seconds:g} s; cut it or raise the limit `seconds`")
    if not count:
        raise MediaError(f"{name}: has no sound that can be decoded{because(heard.error)}; export it again")
    if heard.error:
        said = f"is damaged or breaks off; {count / RATE:.1f} s were read{because(heard.error)}"
        warnings.warn(f"{name}: {said}", MediaWarning, stacklevel=2)
    return torch.from_numpy(np.concatenate(pieces))


def log_mel(samples: Tensor, bins: int = 80) -> Tensor:
    """fp32 [n] at 16 kHz -> fp32 [ceil(n / 160), bins], a frame each 10 ms, n >= 1.

    Frame k is the 25 ms around the k-th 10 ms (from sample 160 k - 120 on; zeros outside the sound) under a periodic Hann window;
    its power spectrum |DFT|² goes through `mel_filters`, and x becomes (ln max(x, 1e-8) + 9) / 5. So silence is -1.9 throughout,
    speech lies around 0, and a frame depends on its own 25 ms alone: nothing is scaled by the loudest part of the whole.
    """
    if not len(samples):
        raise ValueError("there are no samples")
    count = -(-len(samples) // HOP)
    before = (WINDOW - HOP) // 2
    padded = F.pad(samples, (before, count * HOP - len(samples) + WINDOW - HOP - before))
    frames = padded.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW, device=samples.device)
    power = torch.fft.rfft(frames).abs().square()
    mel = power @ mel_filters(bins).to(samples.device)
    return (mel.clamp(min=FLOOR).log() - CENTRE) / SPREAD


@lru_cache
def mel_filters(bins: int) -> Tensor:
    """fp32 [201, bins]: triangles over 0 to 8 kHz, evenly spaced on the mel scale, each of area 1 Hz.

    The scale (Slaney, Auditory Toolbox, 1998) is linear up to 1 kHz, 3 mels every 200 Hz, and logarithmic above, 27 mels for a
    factor of 6.4.
    """
    corners = torch.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), bins + 2, dtype=torch.float64)
    hertz = torch.where(corners < 15, corners * 200 / 3, 1000 * 6.4 ** ((corners - 15) / 27))
    low, peak, high = hertz[:-2], hertz[1:-1], hertz[2:]
    at = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    triangles = torch.minimum((at - low) / (peak - low), (high - at) / (high - peak)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def windows(samples: Tensor, seconds: float) -> list[Tensor]:
    """Long sound as stretches of at most so many seconds, one after another."""
    return list(samples.split(max(1, round(seconds * RATE))))


class _Heard:
    """A sound file being decoded, and the last thing that went wrong after the first block."""

    def __init__(self, source: Source, limits: Limits):
        self.error: Exception | None = None
        self._source, self._limits = source, limits

    def blocks(self) -> Iterator[Block]:
        with opened(self._source, "audio", self._limits) as file:
            head = file.read(12)
            file.seek(0)
            if re.match(FOR_SOUNDFILE, head, re.DOTALL):
                with suppress(soundfile.LibsndfileError), soundfile.SoundFile(file) as sound:
                    yield from self._by_soundfile(sound)
                    return
        yield from self._by_av()

    def _by_soundfile(self, sound: soundfile.SoundFile) -> Iterator[Block]:
        size = max(256, BLOCK // sound.channels)
        try:
            while len(samples := sound.read(size, dtype="float32", always_2d=True)):
                yield sound.samplerate, _clean(samples).mean(1)
        except soundfile.LibsndfileError as error:
            self.error = error

    def _by_av(self) -> Iterator[Block]:
        with container(self._source, "audio", self._limits) as file:
            tracks = [track for track in file.streams.audio if track.codec_context]
            if not tracks:
                name = name_of(self._source, "audio")
                raise MediaError(f"{name}: has no sound that can be read" + "; give it as video" * bool(file.streams.video))
            packets = file.demux(tracks[0])
            while True:
                try:
                    packet = next(packets, None)
                    frames = packet.decode() if packet else []
                except av.FFmpegError as error:
                    self.error = error
                    continue
                if packet is None:
                    return
                for frame in frames:
                    yield frame.sample_rate, _clean(_samples(frame)).mean(1)


def _samples(frame: av.AudioFrame) -> np.ndarray:
    """fp32 [n, channels], full scale at 1, of a frame in any format."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    full = 2.0 ** (8 * values.itemsize - 1) if values.dtype.kind == "i" else 1.0
    return values.astype(np.float32) / full


def _clean(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1, 1)


def _at_rate(blocks: Iterator[Block], name: str) -> Iterator[np.ndarray]:
    """fp32 at 16 kHz, block by block; the rate may change on the way."""
    for rate, group in groupby(blocks, key=lambda block: block[0]):
        if not 1000 <= rate <= 1_000_000:  # filters grow with the rate, and what comes of a block with its inverse
            raise MediaError(f"{name}: has {rate:,} samples a second, which no sound has; export it again")
        samples = (block[1] for block in group)
        yield from samples if rate == RATE else _resampled(samples, rate)


def _resampled(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """From `rate` to 16 kHz, n samples to ceil(n · 16000 / rate), by libswresample.

    Its windowed sinc of 128 zero crossings leaves what is below 7 kHz as it is, and of what is above 8.2 kHz less than 1/10,000.
    """
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE, options={"filter_size": "128"})
    silence = np.zeros(rate // 100 + 200, np.float32)  # pushes out what the filter still holds
    taken = given = 0
    for block, count in chain(((block, len(block)) for block in blocks), [(silence, 0)]):
        frame = av.AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
        frame.sample_rate = rate
        taken += count
        for resampled in resampler.resample(frame):
            samples = resampled.to_ndarray()[0, : -(-taken * RATE // rate) - given]
            given += len(samples)
            yield samples
