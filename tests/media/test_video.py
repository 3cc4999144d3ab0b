"""Clips: what is shown at even intervals, whatever the file's own frames; broken, hostile and endless ones are met calmly."""

import io
import struct
import warnings
from bisect import bisect_right
from pathlib import Path

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.errors import MediaError, MediaWarning
from fourfold.media.limits import Limits
from fourfold.media.video import Clip, read_clip
from tests.media.files import TICK, animated, encoded, film, little_memory, numbered, pil, png_bomb, slope, sound, tone

EVEN = [i / 25 for i in range(50)]  # two seconds


def numbers(clip: Clip) -> list[int]:
    """Which frames of `numbered` these are."""
    return [round(int(value) / 5) for value in clip.frames[:, 0].float().mean((1, 2))]


@settings(max_examples=20)
@given(
    st.lists(st.integers(10, 700), min_size=2, max_size=12),
    st.sampled_from([1.0, 3.0, 8.0, 25.0]),
    st.floats(0, 0.95),
    st.floats(0.1, 1.0),
)
def test_what_is_shown_at_each_time(gaps: list[int], rate: float, start: float, stop: float) -> None:
    """Frames of any length, in a lossless film and two animated formats, against the definition."""
    begins = [sum(gaps[:i]) / 1000 for i in range(len(gaps))]
    start = round(start * begins[-1], 3)
    stop = max(round(stop * begins[-1], 3), start + 0.003)
    if stop > begins[-1]:
        return
    count = next(k for k in range(10_000) if start + k / rate >= stop - 1e-4)
    expected = [bisect_right(begins, start + k / rate + 1e-4) - 1 for k in range(count)]
    frames = numbered(len(gaps))
    for data in (film(frames, begins), animated(frames, gaps), animated(frames, gaps, "PNG")):
        clip = read_clip(data, rate, start, most_frames=1000, stop=stop)
        assert numbers(clip) == expected and torch.equal(clip.frames, frames[expected])
        assert clip.seconds == pytest.approx([k / rate for k in range(count)])


@pytest.mark.parametrize(
    ("format", "codec"), [("mp4", "libx264"), ("mp4", "mpeg4"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("mpegts", "libx264")]
)
def test_films_of_many_kinds(format: str, codec: str) -> None:
    """To the end, from the middle (after a seek; mpegts has no index and does not begin at 0), and faster than they were made."""
    data = film(numbered(50, 32, 48), EVEN, format, codec)
    whole = read_clip(data, 25)
    assert whole.frames.shape == (50, 3, 32, 48) and whole.seconds == pytest.approx(EVEN)
    assert all(abs(seen - i) <= 3 for i, seen in enumerate(numbers(whole)))  # lossy
    part = read_clip(data, 25, start=1.2)
    assert part.seconds == pytest.approx(EVEN[:20]) and torch.equal(part.frames, whole.frames[30:])
    assert torch.equal(read_clip(data, 25, start=0.4, stop=0.8).frames, whole.frames[10:20])
    double = read_clip(data, 50, most_frames=100)
    assert torch.equal(double.frames[:99], whole.frames.repeat_interleave(2, 0)[:99])  # an AVI's last frame lasts 1 ms
    assert len(read_clip(data).frames) == 16  # 8 a second


def test_animated_pictures() -> None:
    frames = numbered(6)
    for format in ("WEBP", "PNG", "GIF"):
        clip = read_clip(animated(frames, [200, 100, 300, 100, 100, 200], format), 10)
        assert numbers(clip) == [0, 0, 1, 2, 2, 2, 3, 4, 5, 5], format
    assert read_clip(animated(frames, [200] * 6, "AVIF"), 5).frames.shape == (6, 3, 16, 24)
    hidden = [pil(frame) for frame in frames]  # a PNG's picture for those who cannot animate
    data = encoded(hidden[0], "PNG", save_all=True, append_images=hidden[1:], duration=100, default_image=True)
    assert numbers(read_clip(data, 10)) == [1, 2, 3, 4, 5]
    assert numbers(read_clip(animated(frames, [0] * 6, "GIF"), 10)) == list(range(6))  # no durations: 0.1 s, as in browsers
    see_through = [pil(frame).convert("RGBA") for frame in frames[:2]]
    see_through[1].putalpha(0)
    clip = read_clip(encoded(see_through[0], "WEBP", save_all=True, append_images=see_through[1:], duration=100, lossless=True), 10)
    assert torch.equal(clip.frames[0], frames[0]) and bool((clip.frames[1] == 255).all())


def test_long_clips_are_spread_over_the_frames_there_may_be() -> None:
    data = film(numbered(50), EVEN, "mp4", "libx264")
    clip = read_clip(data, 25, most_frames=5)
    assert clip.seconds == pytest.approx([0, 0.4, 0.8, 1.2, 1.6]) and all(
        abs(seen - due) <= 1 for seen, due in zip(numbers(clip), (0, 10, 20, 30, 40), strict=True)
    )
    assert read_clip(data, 25, start=1, most_frames=4).seconds == pytest.approx([0, 0.25, 0.5, 0.75])
    uneven = animated(numbered(9), [2000, *[100] * 8])
    clip = read_clip(uneven, 8, most_frames=10)
    assert clip.seconds == pytest.approx([0.28 * i for i in range(10)]) and numbers(clip) == [0, 0, 0, 0, 0, 0, 0, 0, 3, 6]
    assert len(read_clip(uneven, 8, most_frames=1).frames) == 1


def test_a_film_that_does_not_say_its_length_gives_up_every_second_frame() -> None:
    data = film(numbered(50), EVEN, live="1")
    assert torch.equal(read_clip(data, 25).frames, numbered(50))
    for most, step in ((50, 1), (49, 2), (25, 2), (24, 4), (1, 64)):
        clip = read_clip(data, 25, most_frames=most)
        assert numbers(clip) == list(range(0, 50, step)) and clip.seconds == pytest.approx(EVEN[::step])


def test_size_and_turn() -> None:
    frames = slope(60, 100)[None].repeat(4, 1, 1, 1)
    begins = [0.0, 0.1, 0.2, 0.3]
    assert read_clip(film(frames, begins), longest=32, multiple=8).frames.shape[1:] == (3, 16, 32)  # 19.2 is nearer to 16
    plain = read_clip(film(frames, begins, "mp4", "libx264")).frames
    for turned in (90, 180, 270):  # against the clock
        clip = read_clip(film(frames, begins, "mp4", "libx264", turned=turned))
        assert torch.equal(clip.frames, torch.rot90(plain, turned // 90, (2, 3)))


def test_a_film_that_changes_its_size_midway() -> None:
    small, large = (film(numbered(25, *size), EVEN[:25], "mpegts", "libx264") for size in ((32, 32), (64, 48)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)  # its times begin again
        clip = read_clip(small + large, 25)
    assert clip.frames.shape[1:] == (3, 32, 32) and len(clip.frames) >= 25


def test_broken_tails_keep_what_can_be_decoded() -> None:
    noise = torch.randint(0, 256, (50, 3, 32, 48), dtype=torch.uint8)
    data = film(noise, EVEN, "mp4", "libx264", movflags="frag_keyframe+empty_moov")
    whole = read_clip(data, 25)
    with pytest.warns(MediaWarning, match=r"video data: is damaged or breaks off; 1\.\d s were read"):
        cut = read_clip(data[: len(data) * 2 // 3], 25)
    assert 25 <= len(cut.frames) < 50 and torch.equal(cut.frames[:24], whole.frames[:24])
    lone = film(noise, EVEN)
    with pytest.warns(MediaWarning, match=r"breaks off; \d\.\d s were read of 2\.0"):  # no packet is damaged, but the header knows
        assert len(read_clip(lone[: len(lone) // 3], 25).frames) < 25
    moving = animated(noise[:10], [100] * 10, "GIF")
    with pytest.warns(MediaWarning, match=r"breaks off; 0\.\d s were read"):
        assert 1 <= len(read_clip(moving[: len(moving) * 2 // 3], 10).frames) < 10
    with warnings.catch_warnings():  # wherever it breaks off, be it between two blocks of its coding
        warnings.simplefilter("ignore", MediaWarning)
        counts = [len(read_clip(moving[:size], 10).frames) for size in range(len(moving) // 4, len(moving), 331)]
    assert counts == sorted(counts) and {2, 9} <= set(counts)
    with pytest.raises(MediaError, match="is damaged or cut short"):
        read_clip(animated(noise[:10], [100] * 10)[:-100])  # the decoder of WebP wants the whole file


def test_nothing_to_decode(tmp_path: Path) -> None:
    data = film(numbered(50), EVEN, "mp4", "libx264")  # its index comes last
    silent_film = film(None, heard=tone(440, 48_000), format="mp4")
    pieces = film(numbered(50), EVEN, "mp4", "libx264", movflags="frag_keyframe+empty_moov")
    headers = pieces[: pieces.index(b"moof") - 4]
    for name, content, said in (
        ("cut.mp4", data[: len(data) // 2], "is damaged or cut short"),
        ("empty.mp4", b"", "is empty"),
        ("sound.mp4", silent_film, "has no pictures; give it as audio"),
        ("tone.mp4", sound(tone(440)), "has no pictures; give it as audio"),
        ("header.mp4", headers, "has no frames that can be decoded"),
        ("text.mp4", b"hello\n" * 99, "is not a clip in a format that is read"),
        ("photo.mp4", encoded(pil(slope(9, 9)), "JPEG"), "is a still picture, not a clip; give it as image"),
        ("scan.mp4", encoded(pil(slope(9, 9)), "TIFF", save_all=True, append_images=[pil(slope(9, 9))]), "is a still picture"),
        ("late.mp4", data, "shows nothing from 7 s on; start earlier"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=f"{name}: {said}") as error:
            read_clip(tmp_path / name, start=7 if name == "late.mp4" else 0)
        assert "\n" not in str(error.value)
    with pytest.raises(MediaError, match="no such file"):
        read_clip(tmp_path / "missing.mp4")


def test_the_cover_of_a_song_is_no_clip() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as out:
        track, cover = out.add_stream("libmp3lame", rate=48_000, layout="mono"), out.add_stream("png", rate=1)
        cover.width = cover.height = 16
        cover.pix_fmt, cover.disposition = "rgb24", av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(numbered(1, 16, 16)[0].permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        out.mux([*cover.encode(frame), *cover.encode()])
        heard = av.AudioFrame.from_ndarray(tone(440, 48_000)[None], format="fltp", layout="mono")
        heard.sample_rate = 48_000
        out.mux([*track.encode(heard), *track.encode()])
    with pytest.raises(MediaError, match="has no pictures; give it as audio"):
        read_clip(file.getvalue())


def _bomb_film(width: int, height: int) -> bytes:
    """A film whose header says width x height, and whose one frame is a PNG of 12,000 x 12,000."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as out:
        stream = out.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "monob"
        for number in range(3):
            packet = av.Packet(png_bomb(12_000, 12_000))
            packet.stream, packet.pts, packet.dts, packet.time_base, packet.is_keyframe = stream, number, number, TICK, True
            out.mux(packet)
    return file.getvalue()


def test_huge_frames_are_refused_before_they_are_decoded() -> None:
    wide, lying = _bomb_film(12_000, 12_000), _bomb_film(64, 64)
    flat = bytearray(film(numbered(2, 64, 64), [0, 0.1], "avi", "rawvideo"))
    at = flat.index(b"strf") + 12  # BITMAPINFOHEADER: width and height
    flat[at : at + 8] = struct.pack("<ii", 12_000, 12_000)
    for data in (wide, lying, bytes(flat)):
        said = "video data: has frames of more than 50,000,000 pixels, or of no stated size; scale it down"
        with little_memory(96), pytest.raises(MediaError, match=said):
            read_clip(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_gif_that_grows_is_refused() -> None:
    data = bytearray(animated(numbered(3, 64, 64), [100] * 3, "GIF"))
    last = data.rindex(b"," + struct.pack("<HHHH", 0, 0, 64, 64))
    data[last + 5 : last + 9] = struct.pack("<HH", 12_000, 12_000)
    with little_memory(96), pytest.raises(MediaError, match=r"\(a frame has more than 50,000,000 pixels\)"):
        read_clip(bytes(data), 10)


def test_a_long_film_takes_the_memory_of_what_is_kept() -> None:
    """Fifty frames of 1024 x 1024 are 150 MiB as they are."""
    data = film(numbered(2, 1024, 1024), [0, 2])
    with little_memory(96):
        assert read_clip(data, 25, longest=32).frames.shape == (51, 3, 32, 32)
    with little_memory(96), pytest.raises(MediaError, match="11 frames of 1024 x 1024 are too many pixels"):
        read_clip(data, 25, limits=Limits(clip_pixels=10 * 2**20))


def test_limits_are_settings() -> None:
    data = film(numbered(50), EVEN, "mp4", "libx264")
    for limits, said in (
        (Limits(seconds=1.5), r"lasts more than 1.5 s; read a part \(`start`, `stop`\) or raise the limit `seconds`"),
        (Limits(frames=20), "has more than 20 frames; .* raise the limit `frames`"),
        (Limits(clip_pixels=16 * 24 * 3), "4 frames of 24 x 16 are too many pixels; .*`clip_pixels`"),
        (Limits(pixels=100), "has frames of 24 x 16, more than 100 pixels; .*`pixels`"),
        (Limits(bytes=100), "has .* bytes, more than 100; .*`bytes`"),
    ):
        with pytest.raises(MediaError, match=f"video data: {said}"):
            read_clip(data, limits=limits)
    assert len(read_clip(data, stop=1, limits=Limits(seconds=1.5)).frames) == 8
    assert len(read_clip(data, stop=0.5, limits=Limits(frames=20)).frames) == 4
    endless = film(numbered(9), [30 * i for i in range(9)], live="1")  # nothing in its header says how long it lasts
    for data in (endless, animated(numbered(9), [30_000] * 9)):
        with pytest.raises(MediaError, match="lasts more than 60 s"):
            read_clip(data, limits=Limits(seconds=60))
    for wrong in ({"rate": 0.0}, {"most_frames": 0}, {"start": -1.0}, {"start": 1.0, "stop": 0.5}):
        with pytest.raises(ValueError, match="no frame can be meant"):
            read_clip(data, **wrong)


def test_a_playlist_opens_nothing(tmp_path: Path) -> None:
    """Formats that name other files or addresses are not followed."""
    (tmp_path / "secret.ts").write_bytes(film(numbered(25, 32, 32), EVEN[:25], "mpegts", "libx264"))
    secret = tmp_path / "secret.ts"
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{secret}\n#EXT-X-ENDLIST\n",
        "b.mp4": f"ffconcat version 1.0\nfile '{secret}'\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError, match="is not a clip in a format that is read"):
            read_clip(tmp_path / name)
        with pytest.raises(MediaError, match="is not a clip in a format that is read"):
            read_clip(text.encode())


@given(st.sampled_from([("matroska", "ffv1"), ("mp4", "libx264"), ("avi", "mpeg4"), ("webp", ""), ("gif", "")]), st.data())
def test_damage_anywhere_is_a_clip_or_one_line(kind: tuple[str, str], data: st.DataObject) -> None:
    format, codec = kind
    frames: Tensor = numbered(5, 32, 32)
    whole = film(frames, EVEN[:5], format, codec) if codec else animated(frames, [100] * 5, format.upper())
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, 2**20)) % len(damaged)] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        try:
            clip = read_clip(bytes(damaged), most_frames=8, longest=32, limits=Limits(pixels=10**6))
            assert 1 <= len(clip.frames) <= 8
        except MediaError as error:
            assert "\n" not in str(error)
