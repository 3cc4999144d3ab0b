"""Pictures of every kind come out as they are meant to be seen; bad ones are one line; none takes more memory than it may."""

import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fourfold.errors import MediaError
from fourfold.media.images import fit, is_animated, read_image
from fourfold.media.limits import Limits
from tests.media.files import animated, encoded, little_memory, numbered, pil, png_bomb, slope, sound, tone

MEMORY = 96  # MiB that refusing a bomb may take; decoded, the smallest here takes 137


def one(image: Image.Image, format: str = "PNG", **options: object) -> list[int]:
    """The colour of the first pixel as read."""
    return read_image(encoded(image, format, **options))[:, 0, 0].tolist()


def filled(mode: str, colour: object, size: tuple[int, int] = (5, 3)) -> Image.Image:
    return Image.new(mode, size, colour)


def test_every_pixel_of_a_picture_arrives_in_its_place() -> None:
    pixels = slope(13, 31)
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {})):
        read = read_image(encoded(pil(pixels), format, **options))
        assert read.dtype == torch.uint8 and torch.equal(read, pixels), format
    for format in ("JPEG", "AVIF", "JPEG2000"):
        off = read_image(encoded(pil(pixels), format, quality=95)).int() - pixels.int()
        assert off.abs().float().mean() < 3, format


def test_every_mode_is_read_as_it_looks_on_white_paper() -> None:
    assert one(filled("1", 1)) == [255] * 3 and one(filled("1", 0)) == [0] * 3
    assert one(filled("L", 77)) == [77] * 3
    assert one(filled("LA", (100, 51))) == [224] * 3  # 100 · 0.2 + 255 · 0.8
    assert one(filled("RGB", (1, 2, 3))) == [1, 2, 3]
    assert one(filled("RGBA", (200, 0, 100, 0))) == [255] * 3
    assert one(filled("RGBA", (200, 0, 100, 255))) == [200, 0, 100]
    assert one(filled("RGBA", (200, 0, 100, 51))) == [244, 204, 224]
    assert one(filled("RGB", (9, 9, 9)), transparency=(9, 9, 9)) == [255] * 3  # one colour of a PNG is the transparent one
    assert one(filled("L", 9), transparency=9) == [255] * 3
    palette = filled("RGB", (9, 80, 200)).quantize(2)
    assert one(palette) == [9, 80, 200]
    assert one(palette, transparency=palette.getpixel((0, 0))) == [255] * 3
    assert one(palette, transparency=bytes([51] * 2)) == [206, 220, 244]  # a palette with degrees of it
    assert one(filled("RGBA", (0, 0, 0, 0)), "WEBP", lossless=True) == [255] * 3


def test_sixteen_bits_and_more_become_eight() -> None:
    deep = Image.fromarray(np.array([[0, 128 * 257, 65535], [257, 100, 40000]], np.uint16))
    for format in ("PNG", "TIFF"):
        assert read_image(encoded(deep, format))[1].tolist() == [[0, 128, 255], [1, 0, 156]]
    unit = Image.fromarray(np.array([[0, 0.5, 1], [np.nan, -3, 0.25]], np.float32))
    assert read_image(encoded(unit, "TIFF"))[2].tolist() == [[0, 128, 255], [0, 0, 64]]
    wide = Image.fromarray(np.array([[0, 50.0, 200]], np.float32))
    assert read_image(encoded(wide, "TIFF"))[0].tolist() == [[0, 50, 200]]
    whole = Image.fromarray(np.array([[0, 2**20, 2**21]], np.int32))
    assert read_image(encoded(whole, "TIFF"))[0].tolist() == [[0, 128, 255]]


def test_ink_becomes_light() -> None:
    """A JPEG of four inks, as printers write it."""
    red = one(filled("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG", quality=95)
    black = one(filled("CMYK", (0, 0, 0, 255), (16, 16)), "JPEG", quality=95)
    assert red[0] > 245 and max(red[1:]) < 10 and max(black) < 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_photograph_is_turned_upright(orientation: int, format: str) -> None:
    """EXIF says where row 0 and column 0 of what is stored lie in the picture (EXIF 2.3, table 6)."""
    upright = slope(24, 40).permute(1, 2, 0).numpy()
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],  # column 0 is at the right
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],  # row 0 is at the bottom
        5: lambda a: a.swapaxes(0, 1),  # row 0 is at the left
        6: lambda a: np.rot90(a),  # row 0 is at the right
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),  # row 0 is at the left, column 0 at the bottom
    }
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    options = {"lossless": True} if format == "WEBP" else {"quality": 98} if format == "JPEG" else {}
    read = read_image(encoded(stored, format, exif=exif, **options)).permute(1, 2, 0).numpy()
    assert read.shape == upright.shape and np.abs(read.astype(int) - upright).mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_says_nothing() -> None:
    pixels = slope(6, 9)
    assert torch.equal(read_image(encoded(pil(pixels), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff")), pixels)


def test_what_moves_is_told_from_what_has_pages() -> None:
    frames, still = numbered(3), pil(numbered(1)[0])
    assert all(is_animated(animated(frames, [100] * 3, format)) for format in ("WEBP", "GIF", "PNG", "AVIF"))
    assert not any(is_animated(encoded(still, format)) for format in ("WEBP", "GIF", "PNG", "AVIF", "JPEG"))
    pages = encoded(still, "TIFF", save_all=True, append_images=[pil(numbered(2)[1])])
    assert not is_animated(pages)
    for data in (pages, animated(frames, [100] * 3)):
        assert torch.equal(read_image(data), frames[0])  # the first of them


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 16), st.integers(1, 12))
def test_a_fitted_picture_is_on_the_grid(height: int, width: int, multiple: int, cells: int) -> None:
    longest = multiple * cells + multiple // 2
    fitted = fit(torch.full((3, height, width), 7, dtype=torch.uint8), longest, multiple)
    assert bool((fitted == 7).all()) and fitted.is_contiguous()
    scale = min(1.0, longest / max(height, width))
    for side, full in zip(fitted.shape[1:], (height, width), strict=True):
        assert side % multiple == 0 and multiple <= side <= longest
        assert abs(side - full * scale) <= multiple / 2 + 1e-9 or side in (multiple, multiple * cells)


def test_small_pictures_stay_and_large_ones_are_averaged() -> None:
    small = slope(16, 24)
    assert torch.equal(fit(small, 64, 8), small)
    large, clip = slope(201, 333), numbered(3, 201, 333)
    assert fit(large, 64, 8).shape == (3, 40, 64) and fit(clip, 64, 8).shape == (3, 3, 40, 64)
    noise = torch.randint(0, 256, (3, 201, 333), dtype=torch.uint8)
    theirs = torch.from_numpy(np.array(pil(noise).resize((64, 40), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert (fit(noise, 64, 8).int() - theirs.int()).abs().max() <= 1
    with pytest.raises(ValueError, match="longest"):
        fit(small, 7, 8)


def test_one_pixel_and_a_thread_of_pixels() -> None:
    dot = read_image(encoded(filled("RGB", (3, 4, 5), (1, 1))))
    assert dot.shape == (3, 1, 1) and fit(dot, 64, 8).shape == (3, 8, 8)
    for size, expected in (((5000, 1), (3, 8, 64)), ((1, 5000), (3, 64, 8))):
        thread = read_image(encoded(filled("RGB", (3, 4, 5), size)))
        assert thread.shape[1:] == size[::-1] and fit(thread, 64, 8).shape == expected


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    pixels = slope(6, 9)
    for name in ("a.jpg", "a.mp4", "a.wav", "a"):
        (tmp_path / name).write_bytes(encoded(pil(pixels)))
        assert torch.equal(read_image(tmp_path / name), pixels) and torch.equal(read_image(str(tmp_path / name)), pixels)


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in (
        ("missing.png", "missing.png: no such file; check the path"),
        ("empty.png", "empty.png: is empty; copy it again"),
        (".", "is not a file; name the image file itself"),
        ("pipe.png", "pipe.png: is not a file"),  # and nobody waits for its writer
        ("a\0b", "cannot be read"),
        ("n" * 300, "cannot be read"),
    ):
        with pytest.raises(MediaError, match=said) as error:
            read_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(MediaError, match="image data: is empty"):
        read_image(b"")


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A picture that may not be read; root, who may read all, becomes nobody meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        file = Path(folder) / "secret.png"
        file.write_bytes(encoded(filled("L", 1)))
        file.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield file
        finally:
            if root:
                os.seteuid(0)


def test_a_file_that_may_not_be_read(forbidden: Path) -> None:
    with pytest.raises(MediaError, match=r"secret.png: cannot be read \(Permission denied\); check its permissions"):
        read_image(forbidden)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_truncated_picture_is_refused(format: str) -> None:
    noise = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    whole = encoded(pil(noise), format)
    for share in (0.5, 0.9):
        with pytest.raises(MediaError, match="image data: is damaged or cut short.*; copy or export it again"):
            read_image(whole[: int(len(whole) * share)])


def test_other_things_given_as_pictures() -> None:
    for data in (encoded(pil(slope(9, 9)))[:20], b"\0\0\0\x18ftypheic" + bytes(99)):
        with pytest.raises(
            MediaError, match=r"data: is damaged or cut short[^<]*; copy or export it again$"
        ):  # no <object at 0x...>
            read_image(data)
    with pytest.raises(MediaError, match="image data: is sound, not a picture; give it as audio"):
        read_image(sound(tone(440, seconds=0.1)))
    for data in (b"hello\n", bytes(1000), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(MediaError, match=r"not a picture in a format that is read \(PNG, JPEG, .*convert it"):
            read_image(data)


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"]), st.data())
def test_damage_anywhere_is_a_picture_or_one_line(format: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(pil(slope(9, 14)), format))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, 2**20)) % len(damaged)] = data.draw(st.integers(0, 255))
    try:
        assert read_image(bytes(damaged), Limits(pixels=10**6)).shape[0] == 3
    except MediaError as error:
        assert "\n" not in str(error)


def _patched(format: str, offset: int, size: bytes) -> bytes:
    """A small picture with a part of its header, its size, put in anew."""
    data = bytearray(encoded(filled("RGB", 0, (64, 64)), format))
    data[offset : offset + len(size)] = size
    return bytes(data)


def _jpeg(width: int, height: int) -> bytes:
    data = encoded(filled("RGB", 0, (64, 64)), "JPEG")
    return data.replace(struct.pack(">HH", 64, 64), struct.pack(">HH", height, width), 1)


def _webp(width: int, height: int) -> bytes:
    data = animated(numbered(2, 64, 64), [100, 100])
    return data[:24] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + data[30:]


def _lossless_webp(width: int, height: int) -> bytes:
    data = encoded(filled("RGB", 0, (64, 64)), "WEBP", lossless=True)
    return data[:21] + (width - 1 | height - 1 << 14).to_bytes(4, "little") + data[25:]


def _lossy_webp(width: int, height: int) -> bytes:
    data = encoded(filled("RGB", 0, (64, 64)), "WEBP")
    return data[:26] + struct.pack("<HH", width, height) + data[30:]


BOMBS = {
    "png": (lambda: png_bomb(20_000, 20_000), "more than 50,000,000 pixels"),
    "png that Pillow would take": (lambda: png_bomb(12_000, 12_000), "is 12000 x 12000, more than 50,000,000 pixels"),
    "jpeg": (lambda: _jpeg(12_000, 12_000), "is 12000 x 12000"),
    "gif": (lambda: _patched("GIF", 6, struct.pack("<HH", 12_000, 12_000)), "is 12000 x 12000"),
    "bmp": (lambda: _patched("BMP", 18, struct.pack("<ii", 12_000, 12_000)), "is 12000 x 12000"),
    "animated webp": (lambda: _webp(16_000, 11_000), "is 16000 x 11000"),
    "lossless webp": (lambda: _lossless_webp(16_000, 11_000), "is 16000 x 11000"),
    "lossy webp": (lambda: _lossy_webp(16_000, 11_000), "is 16000 x 11000"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name: str, tmp_path: Path) -> None:
    make, said = BOMBS[name]
    (tmp_path / "bomb").write_bytes(make())
    with little_memory(MEMORY), pytest.raises(MediaError, match=f"bomb: .*{said}.*; scale it down or raise the limit `pixels`"):
        read_image(tmp_path / "bomb")
    with little_memory(MEMORY), pytest.raises(MediaError, match=said):
        is_animated(tmp_path / "bomb")


def test_without_the_limit_the_memory_would_have_been_taken() -> None:
    """What makes the test above one that can fail."""
    with little_memory(MEMORY), pytest.raises(MediaError, match="takes more memory than there is"):
        read_image(png_bomb(12_000, 12_000), Limits(pixels=150_000_000))


def test_limits_are_settings(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(filled("RGB", 0, (10, 10))))
    assert read_image(tmp_path / "a.png", Limits(pixels=100)).shape == (3, 10, 10)
    with pytest.raises(MediaError, match=r"a.png: is 10 x 10, more than 99 pixels; .*`pixels`"):
        read_image(tmp_path / "a.png", Limits(pixels=99))
    with pytest.raises(MediaError, match=r"a.png: has \d+ bytes, more than 50; .*`bytes`"):
        read_image(tmp_path / "a.png", Limits(bytes=50))
    with pytest.raises(ValueError, match="pixels is 0"):
        Limits(pixels=0)
