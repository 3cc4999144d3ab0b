"""From a file to its span: the right kind, the size that the config asks for, and light as long as nothing is read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold.errors import MediaError
from fourfold.media import spans
from fourfold.media.audio import log_mel
from fourfold.media.images import fit
from fourfold.media.limits import Limits
from fourfold.media.reading import as_span
from fourfold.media.sources import kind_of
from fourfold.media.spans import Span
from fourfold.modality import Modality
from fourfold.parts import MediaInConfig
from fourfold.text.tokenizer import Tokenizer
from tests.media.files import animated, encoded, film, numbered, pil, slope, sound, tone

CONFIG = MediaInConfig(
    image_patch_size=8, audio_mel_bins=20, audio_frames_per_token=8, image_longest=48, clip_longest=16, clip_rate=4.0, clip_frames=3
)


def assert_same(actual: Span, expected: Span) -> None:
    for field in ("tokens", "modality", "positions", "pixels", "mel"):
        mine, theirs = getattr(actual, field), getattr(expected, field)
        assert mine is theirs is None or torch.equal(mine, theirs), field


def test_a_picture(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pixels = slope(100, 60)
    (tmp_path / "a.png").write_bytes(encoded(pil(pixels)))
    expected = spans.picture(fit(pixels, 48, 8), tokenizer, 8)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(pil(pixels))):
        assert_same(as_span("image", source, tokenizer, CONFIG), expected)
    assert expected.pixels.shape == (6 * 4, 3 * 8 * 8)  # 48 x 29 pixels are nearest to 6 x 4 patches


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (28, 28), (640, 480)])
def test_any_shape_of_picture_is_a_span(size: tuple[int, int], tokenizer: Tokenizer) -> None:
    span = as_span("image", encoded(pil(slope(*size))), tokenizer, CONFIG)
    assert 1 <= len(span.pixels) <= 36 and len(span.pixels) == int((span.modality == Modality.IMAGE).sum())


def test_a_clip_and_a_picture_that_moves(tokenizer: Tokenizer) -> None:
    frames = numbered(8, 32, 16)
    data = animated(frames, [125] * 8)
    expected = spans.clip(fit(frames[[0, 2, 5]], 16, 8), [0, 1 / 3, 2 / 3], tokenizer, 8)  # 1 s in 3 frames
    for kind in ("video", "image"):
        assert_same(as_span(kind, data, tokenizer, CONFIG), expected)
    short = film(frames, [i / 25 for i in range(8)])
    assert_same(as_span("video", short, tokenizer, CONFIG), spans.clip(fit(frames[[0, 6]], 16, 8), [0, 0.25], tokenizer, 8))
    with pytest.raises(MediaError, match="video data: is a still picture, not a clip; give it as image"):
        as_span("video", encoded(pil(frames[0])), tokenizer, CONFIG)


def test_sound_and_long_sound(tokenizer: Tokenizer) -> None:
    samples = tone(440, seconds=1.005)
    span = as_span("audio", sound(samples), tokenizer, CONFIG)
    assert_same(span, spans.sound(log_mel(torch.from_numpy(samples), 20), tokenizer, 8))
    assert span.mel.shape == (13, 160)  # 101 frames, 8 a token
    long = np.random.default_rng(0).normal(0, 0.1, 65 * 16_000).astype(np.float32)
    span, opening = as_span("audio", sound(long), tokenizer, CONFIG), tokenizer.special("audio")
    starts = (span.tokens == opening) & (span.modality == Modality.TEXT)
    assert starts.nonzero().flatten().tolist() == [0, 377, 754]  # 30 s are 375 tokens between two marks
    last = spans.sound(log_mel(torch.from_numpy(long[60 * 16_000 :]), 20), tokenizer, 8)
    assert torch.equal(span.cut(754, len(span)).mel, last.mel) and torch.equal(span.positions[0], torch.arange(len(span)))


def test_a_film_is_seen_and_heard(tokenizer: Tokenizer) -> None:
    data = film(numbered(8, 32, 32), [i / 8 for i in range(8)], "mp4", "libx264", heard=tone(440, 48_000))
    assert (
        as_span("video", data, tokenizer, CONFIG).pixels is not None and as_span("audio", data, tokenizer, CONFIG).mel is not None
    )


def test_errors_pass_through(tokenizer: Tokenizer, tmp_path: Path) -> None:
    picture, tune = encoded(pil(slope(9, 9))), sound(tone(440, seconds=0.1))
    for kind, source, said in (
        ("image", tune, "image data: is sound, not a picture; give it as audio"),
        ("audio", picture, "audio data: is a picture, not sound; give it as image"),
        ("video", tune, "video data: has no pictures; give it as audio"),
        ("image", tmp_path / "none.png", "none.png: no such file"),
        ("image", b"", "image data: is empty"),
    ):
        with pytest.raises(MediaError, match=said):
            as_span(kind, source, tokenizer, CONFIG)
    for kind in ("image", "video", "audio"):
        with pytest.raises(MediaError, match="this model reads text only; load one with media_in"):
            as_span(kind, picture, tokenizer, None)
        with pytest.raises(MediaError, match="limit `bytes`"):
            as_span(kind, picture, tokenizer, CONFIG, Limits(bytes=10))
    with pytest.raises(ValueError, match="'text' is none of image, video, audio"):
        as_span("text", picture, tokenizer, CONFIG)


def test_first_bytes_say_what_a_file_is() -> None:
    still, frames, begins = pil(numbered(1)[0]), numbered(3, 32, 32), [0.0, 0.1, 0.2]
    for format in ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "PPM", "JPEG2000"):
        assert kind_of(encoded(still, format)) == "image", format
    for format, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_16"), ("MP3", None)):
        assert kind_of(sound(tone(440), format=format, subtype=subtype)) == "audio", format
    for format, codec in (("mp4", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4"), ("mpegts", "mpeg4"), ("flv", "flv")):
        assert kind_of(film(frames, begins, format, codec)) == "video", format
    assert kind_of(b"hello") is None
    with pytest.raises(MediaError, match="is empty"):
        kind_of(b"")


def test_what_reads_media_is_imported_when_it_is_needed() -> None:
    """In a fresh process, with a stand-in for torch, which takes seconds to import and is not what is asked about."""
    program = """if True:
        import sys
        from unittest.mock import MagicMock
        sys.modules.update({"torch": MagicMock(), "torch.nn": MagicMock(), "torch.nn.functional": MagicMock()})
        import fourfold.media.reading
        print(*({"PIL", "av", "soundfile", "numpy"} & sys.modules.keys()))"""
    assert not subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
