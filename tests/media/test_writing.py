"""What is written can be read back; a failed writing leaves what was there."""

from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from torch import Tensor

from fourfold.errors import FourfoldError, MediaError
from fourfold.media import writing
from fourfold.media.images import read_image
from fourfold.media.video import read_clip
from fourfold.media.writing import write_clip, write_image
from tests.media.files import slope


def moving(count: int, height: int, width: int) -> Tensor:
    """uint8 [F, 3, H, W], a smooth picture whose blue changes from frame to frame."""
    return torch.stack([slope(height, width, turn) for turn in range(count)])


@pytest.mark.parametrize("name", ["a.png", "a.webp", "new/B.PNG", "a:b.png"])
def test_pictures_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    for pixels in (slope(32, 48), slope(1, 1), torch.randint(0, 256, (3, 17, 5), dtype=torch.uint8)):
        write_image(pixels, tmp_path / name)
        assert torch.equal(read_image(tmp_path / name), pixels)
    with Image.open(tmp_path / name) as image:
        assert image.format == ("WEBP" if name == "a.webp" else "PNG") and image.mode == "RGB"


@pytest.mark.parametrize("rate", [8.0, 10.0, 25.0, 12.5])
@pytest.mark.parametrize("suffix", ["webp", "gif", "mp4"])
def test_clips_come_back_in_their_time(suffix: str, rate: float, tmp_path: Path) -> None:
    frames = moving(9, 32, 48)
    write_clip(frames, tmp_path / f"a:b.{suffix}", rate)
    clip = read_clip(tmp_path / f"a:b.{suffix}", rate)
    off = (clip.frames.int() - frames.int()).abs().float()
    assert clip.frames.shape == frames.shape and off.mean() < {"webp": 1e-9, "gif": 6, "mp4": 12}[suffix]
    assert clip.seconds == pytest.approx([i / rate for i in range(9)])
    assert [file.name for file in tmp_path.iterdir()] == [f"a:b.{suffix}"]  # and nothing else


def test_odd_and_small_sizes_and_frames_alike(tmp_path: Path) -> None:
    for count, height, width in ((1, 32, 32), (3, 31, 33), (2, 8, 8), (2, 2, 2), (3, 1, 5)):
        for suffix in writing.WRITERS:
            write_clip(moving(count, height, width), tmp_path / f"a{suffix}", 8)
            if count == 1 and suffix != ".mp4":
                assert read_image(tmp_path / f"a{suffix}").shape == (3, height, width)
                continue
            even = (height + height % 2, width + width % 2) if suffix == ".mp4" else (height, width)
            assert read_clip(tmp_path / f"a{suffix}", 8).frames.shape == (count, 3, *even), (suffix, height, width)
    still = slope(16, 16)[None].repeat(5, 1, 1, 1)
    write_clip(torch.cat([still, moving(2, 16, 16)]), tmp_path / "a.gif", 8)
    assert len(read_clip(tmp_path / "a.gif", 8).frames) == 7  # alike frames are one in the file, shown as long


def test_a_film_is_what_players_expect(tmp_path: Path) -> None:
    write_clip(moving(9, 32, 48), tmp_path / "a.mp4", 8)
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name in ("h264", "mpeg4") and stream.pix_fmt == "yuv420p" and stream.average_rate == 8
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is whole


def test_other_names_and_no_frames(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"a.bmp: a picture is written as .png or .webp; choose such a name"):
        write_image(slope(2, 2), tmp_path / "a.bmp")
    with pytest.raises(MediaError, match=r"a.png: a clip is written as .gif, .webp, .mp4; choose such a name"):
        write_clip(moving(2, 2, 2), tmp_path / "a.png")
    with pytest.raises(ValueError, match="are no clip"):
        write_clip(moving(2, 2, 2)[:0], tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(moving(2, 16, 16), tmp_path / "a.mp4")
    before = (tmp_path / "a.mp4").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(writing.WRITERS, ".mp4", full)
    with pytest.raises(FourfoldError, match="no space left on the disk"):
        write_clip(moving(3, 16, 16), tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(FourfoldError, match="cannot be written"):
        write_image(slope(2, 2), tmp_path / "file" / "a.png")
