"""Sound of any file, rate and number of channels to 16 kHz, and log-mel frames against two other implementations."""

import math
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourfold.errors import MediaError, MediaWarning
from fourfold.media import audio
from fourfold.media.audio import log_mel, mel_filters, read_sound, windows
from fourfold.media.limits import Limits
from tests.compare import assert_close
from tests.media.files import encoded, film, little_memory, numbered, pil, slope, sound, tone

SILENCE = -1.8841  # (ln 1e-8 + 9) / 5


def loudest(samples: Tensor) -> float:
    """The frequency (Hz) with the most power."""
    return float(torch.fft.rfft(samples * torch.hann_window(len(samples))).abs().argmax()) * 16_000 / len(samples)


def level(samples: Tensor) -> float:
    """Decibels below a sine at half of full scale, away from the ends."""
    return 20 * math.log10(float(samples[800:-800].square().mean().sqrt().clamp(min=1e-9)) / (0.5 * 0.5**0.5))


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "DOUBLE"), ("WAV", "ULAW"), ("FLAC", "PCM_16"),
     ("AIFF", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_files_that_soundfile_reads(format: str, subtype: str) -> None:
    heard = read_sound(sound(tone(440, 48_000), 48_000, format, subtype))
    assert heard.dtype == torch.float32 and abs(len(heard) - 16_000) < 1600  # codecs add their own delay
    assert abs(loudest(heard) - 440) < 5 and abs(level(heard)) < 0.5


@pytest.mark.parametrize(
    ("format", "codec"),
    [("mp4", "aac"), ("webm", "libopus"), ("matroska", "pcm_s16le"), ("matroska", "pcm_f64le"), ("mov", "pcm_s32le")],
)
def test_files_that_it_does_not_read_and_films(format: str, codec: str) -> None:
    for frames, begins in ((None, []), (numbered(5, 32, 32), [0, 0.1, 0.2, 0.3, 0.4])):
        if frames is None or format != "webm":
            heard = read_sound(film(frames, begins, format, "mpeg4", tone(440, 48_000), codec))
            assert abs(len(heard) - 16_000) < 1600 and abs(loudest(heard) - 440) < 5 and abs(level(heard)) < 0.5


@given(st.integers(1000, 200_000), st.integers(1, 3000))
def test_any_rate_gives_as_many_samples_as_the_time_takes(rate: int, count: int) -> None:
    heard = read_sound(sound(np.full(count, 0.25, np.float32), rate))
    assert len(heard) == -(-count * 16_000 // rate) and bool(heard.isfinite().all())


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 44_101, 48_000, 96_000, 192_000])
def test_resampling_keeps_what_fits_and_nothing_else(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tones below 7 kHz are the tones they were, sample by sample; those above 8.2 kHz do not come back as other tones."""
    times = np.arange(16_000) / 16_000
    for hertz in (100, 1000, 3400, 6900):
        if hertz < 0.43 * rate:
            data = sound(tone(hertz, rate), rate)
            heard = read_sound(data)
            expected = torch.from_numpy(0.5 * np.sin(2 * np.pi * hertz * times))
            assert (heard - expected)[400:-400].abs().max() < 1e-4
            with monkeypatch.context() as patch:
                patch.setattr(audio, "BLOCK", 1000)
                assert torch.equal(read_sound(data), heard)  # however it is cut
    for hertz in (8200, 9000, 11_000, 20_000, 40_000):
        if rate > 16_000 and hertz < rate / 2:
            assert level(read_sound(sound(tone(hertz, rate), rate))) < -80


def test_channels_are_averaged() -> None:
    left, right = tone(440), tone(880)
    assert_close(read_sound(sound(np.stack([left, right], 1))), torch.from_numpy((left + right) / 2))
    many = np.stack([tone(100 * (i + 1)) for i in range(6)], 1)
    assert_close(read_sound(sound(many)), torch.from_numpy(many.mean(1)))


def test_values_that_are_no_sound() -> None:
    samples = np.array([0.5, np.nan, np.inf, -np.inf, 1e30, -7.0, 0.25, np.nan], np.float32)
    assert read_sound(sound(samples)).tolist() == [0.5, 0, 1, -1, 1, -1, 0.25, 0]
    for data in (sound(np.full(4800, np.nan, np.float32), 48_000), sound(samples.repeat(100), 8000)):
        heard = read_sound(data)
        assert bool(heard.isfinite().all()) and bool(log_mel(heard).isfinite().all())


def test_silence_and_a_click() -> None:
    silence = read_sound(sound(np.zeros(44_100, np.float32), 44_100))
    assert len(silence) == 16_000 and not silence.any()
    mel = log_mel(silence)
    assert mel.shape == (100, 80) and (mel - SILENCE).abs().max() < 1e-3
    for rate in (8000, 16_000, 44_100, 192_000):
        for seconds, frames in ((0.01, 1), (0.0101, 2), (0.001, 1), (1 / rate, 1)):
            short = read_sound(sound(tone(440, rate, seconds) + 0.1, rate))
            assert len(log_mel(short)) == frames and bool(log_mel(short).isfinite().all()) and short.any()
    with pytest.raises(ValueError, match="no samples"):
        log_mel(torch.zeros(0))


def test_log_mel_is_what_its_definition_says() -> None:
    """Written out in numpy, one frame and one bin at a time."""
    samples = np.random.default_rng(3).normal(0, 0.1, 1111)
    bins, frames = 7, 7
    corner = [k * (15 + 27 * np.log(8) / np.log(6.4)) / (bins + 1) for k in range(bins + 2)]
    corner = [m * 200 / 3 if m < 15 else 1000 * np.exp((m - 15) * np.log(6.4) / 27) for m in corner]
    expected = np.zeros((frames, bins))
    for k in range(frames):
        around = [samples[i] if 0 <= i < len(samples) else 0.0 for i in range(160 * k - 120, 160 * k + 280)]
        seen = [x * (0.5 - 0.5 * np.cos(2 * np.pi * n / 400)) for n, x in enumerate(around)]
        power = [abs(sum(x * np.exp(-2j * np.pi * f * n / 400) for n, x in enumerate(seen))) ** 2 for f in range(201)]
        for b in range(bins):
            low, peak, high = corner[b : b + 3]
            rise = [max(0.0, min((40 * f - low) / (peak - low), (high - 40 * f) / (high - peak))) for f in range(201)]
            expected[k, b] = (np.log(max(1e-8, np.dot(rise, power) * 2 / (high - low))) + 9) / 5
    assert_close(log_mel(torch.from_numpy(samples).float(), bins), torch.from_numpy(expected).float())


def test_log_mel_is_what_transformers_computes() -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    for bins in (20, 64, 80, 128):
        filters = mel_filter_bank(201, bins, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
        assert_close(mel_filters(bins), torch.from_numpy(filters).float())
        assert bool((mel_filters(bins).sum(0) > 0).all())  # no bin is deaf
        samples = np.concatenate([tone(440, seconds=0.3), np.random.default_rng(1).normal(0, 0.1, 3217).astype(np.float32)])
        padded = np.pad(samples, (120, -len(samples) % 160 + 120))
        power = spectrogram(
            padded,
            window_function(400, "hann", periodic=True),
            400,
            160,
            power=2.0,
            center=False,
            mel_filters=filters,
            mel_floor=1e-8,
        )
        assert_close(log_mel(torch.from_numpy(samples), bins), torch.from_numpy((np.log(power.T) + 9) / 5).float())


def test_frames_depend_on_their_own_stretch_alone() -> None:
    """So that long sound may be cut into windows, and a loud noise changes nothing elsewhere."""
    samples = torch.randn(16_000) * 0.1
    loud = samples.clone()
    loud[8000:8400] *= 10
    before, after = log_mel(samples), log_mel(loud)
    changed = (before != after).any(1).nonzero().flatten()
    assert changed[0] >= 48 and changed[-1] <= 53
    parts = windows(samples, 0.3)
    assert [len(part) for part in parts] == [4800, 4800, 4800, 1600] and torch.equal(torch.cat(parts), samples)
    assert torch.equal(torch.cat([log_mel(part)[1:-1] for part in parts[:2]]), torch.cat([before[1:29], before[31:59]]))
    assert [len(part) for part in windows(samples, 30.0)] == [16_000]


def test_nothing_to_hear(tmp_path: Path) -> None:
    wav = sound(tone(440), subtype="PCM_16")
    for name, content, said in (
        ("empty.wav", b"", "is empty"),
        ("header.wav", sound(np.zeros(0, np.float32)), "has no sound that can be decoded"),
        ("cut.wav", wav[:30], "is damaged or cut short"),
        ("text.wav", b"hello\n" * 99, "is not sound in a format that is read"),
        ("photo.wav", encoded(pil(slope(9, 9))), "is a picture, not sound; give it as image"),
        ("photo.mp3", encoded(pil(slope(9, 9)), "JPEG"), "is a picture, not sound; give it as image"),
        ("silent.mp4", film(numbered(3, 32, 32), [0, 0.1, 0.2], "mp4", "mpeg4"), "has no sound that can be read; give it as video"),
        ("slow.wav", wav[:24] + struct.pack("<I", 10) + wav[28:], "has 10 samples a second, which no sound has"),
        (
            "fast.wav",
            wav[:24] + struct.pack("<I", 2_000_000_000) + wav[28:],
            "has 2,000,000,000 samples a second, which no sound has",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        with little_memory(256), pytest.raises(MediaError, match=f"{name}: {said}") as error:
            read_sound(tmp_path / name)
        assert "\n" not in str(error.value)
    for place, said in ((tmp_path / "missing.wav", "no such file"), (tmp_path, "is not a file; name the audio file itself")):
        with pytest.raises(MediaError, match=said):
            read_sound(place)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    for name in ("a.raw", "a.png", "a.mp4", "a.flac", "a"):  # .raw has no header, to those who go by names
        (tmp_path / name).write_bytes(sound(tone(440)))
        assert torch.equal(read_sound(tmp_path / name), torch.from_numpy(tone(440)))


def test_sound_that_breaks_off_is_heard_up_to_there() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    wav, flac = sound(noise), sound(noise, format="FLAC", subtype="PCM_16")
    assert 15_000 < len(read_sound(wav[: len(wav) // 2])) < 17_000  # a WAV is as long as it is
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        heard = read_sound(flac[: len(flac) // 2])
    assert 0 < len(heard) < 32_000 and (heard[:4000] - torch.from_numpy(noise[:4000])).abs().max() < 1e-3
    assert all(issubclass(w.category, MediaWarning) for w in said)
    m4a = film(
        None, format="mp4", heard=noise.repeat(3), movflags="frag_keyframe+empty_moov+default_base_moof", frag_duration="200000"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        assert 0 < len(read_sound(m4a[: len(m4a) // 2])) < 32_000


def test_limits_are_settings() -> None:
    second = sound(tone(440, 44_100), 44_100)
    assert len(read_sound(second, Limits(seconds=1))) == 16_000
    with pytest.raises(MediaError, match=r"audio data: lasts more than 0.5 s; cut it or raise the limit `seconds`"):
        read_sound(second, Limits(seconds=0.5))
    with pytest.raises(MediaError, match=r"audio data: has .* bytes, more than 1,000; .*`bytes`"):
        read_sound(second, Limits(bytes=1000))


def test_long_sound_and_many_channels_take_little_memory() -> None:
    """Ten minutes, of which 1 s may be read; and 1,000 channels."""
    long = sound(np.zeros(600 * 8000, np.float32), 8000, "FLAC", "PCM_16")
    wide = sound(np.zeros((16_000, 1000), np.float32), 16_000, subtype="PCM_16")
    read_sound(sound(tone(440, 8000), 8000))
    with little_memory(24), pytest.raises(MediaError, match="lasts more than 1 s"):
        read_sound(long, Limits(seconds=1))
    with little_memory(24):
        assert not read_sound(wide).any()


@given(st.sampled_from(["wav", "flac", "ogg", "mp4"]), st.data())
def test_damage_anywhere_is_sound_or_one_line(format: str, data: st.DataObject) -> None:
    samples = tone(440, 16_000, 0.1)
    whole = {
        "wav": lambda: sound(samples),
        "flac": lambda: sound(samples, format="FLAC", subtype="PCM_16"),
        "ogg": lambda: sound(samples, format="OGG", subtype="VORBIS"),
        "mp4": lambda: film(None, format="mp4", heard=samples),
    }[format]()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, 2**20)) % len(damaged)] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        try:
            assert bool(log_mel(read_sound(bytes(damaged))).isfinite().all())
        except MediaError as error:
            assert "\n" not in str(error)
