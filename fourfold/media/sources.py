"""Where media come from: a file or bytes, opened once it is found fit to be read, and what its first bytes say it is."""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from fourfold.errors import MediaError
from fourfold.media.limits import Limits

if TYPE_CHECKING:
    from av.container import InputContainer

Kind = Literal["image", "video", "audio"]
Source = str | os.PathLike | bytes

NOUNS = {"image": "a picture", "video": "a clip", "audio": "sound"}
READ = {
    "image": "PNG, JPEG, WebP, GIF, AVIF, TIFF, BMP",
    "video": "MP4, MOV, WebM, MKV, AVI, animated WebP or GIF",
    "audio": "WAV, FLAC, Ogg, Opus, MP3, M4A, a film's sound",
}
# A container that can name other files or addresses (playlists, concatenations) is not here, nor is any that is a picture.
DEMUXERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mp3,aac,ac3,amr,flac,wav,aiff,caf,m4v,h264,hevc,ivf"

_SIGNS: dict[Kind, bytes] = {
    "image": rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP|.{4}ftyp(avif|avis|heic|mif1)|II\*\0|MM\0\*|BM|P[1-6]\s|.{4}jP  ",
    "audio": rb"RIFF.{4}WAVE|RF64|fLaC|OggS|ID3|\xff[\xe2-\xe7\xf1-\xff]|FORM.{4}AIF|.{4}ftypM4A|\.snd|caff|#!AMR",
    "video": rb".{4}(ftyp|moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF.{4}AVI |FLV\x01|\0\0\x01[\xb3\xba]|G.{187}G",
}


def name_of(source: Source, kind: Kind) -> str:
    """What errors call a source: its path, or for bytes "image data"."""
    return f"{kind} data" if isinstance(source, bytes) else os.fsdecode(source)


def kind_of(source: Source) -> Kind | None:
    """What the first bytes say: image (an animated one too), video or audio; None where they say nothing. Suffixes are ignored.

    Raises MediaError for a file that cannot be opened. An Ogg file counts as audio.
    """
    with opened(source, "image", Limits(bytes=2**62)) as file:
        head = file.read(256)
    return next((kind for kind, sign in _SIGNS.items() if re.match(sign, head, re.DOTALL)), None)


@contextmanager
def opened(source: Source, kind: Kind, limits: Limits) -> Iterator[BinaryIO]:
    """The bytes of a source, without a file name that a decoder could go by.

    Raises MediaError when it is missing, empty, not a file, may not be read, or has more than `limits.bytes`.
    """
    name = name_of(source, kind)
    with _Reader(io.BytesIO(source) if isinstance(source, bytes) else _file(Path(source), kind)) as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise MediaError(f"{name}: is empty; copy it again or name another")
        if size > limits.bytes:
            raise MediaError(f"{name}: has {size:,} bytes, more than {limits.bytes:,}; shorten it or raise the limit `bytes`")
        file.seek(0)
        yield file


@contextmanager
def container(source: Source, kind: Kind, limits: Limits) -> Iterator["InputContainer"]:
    """A film or sound file opened by PyAV: one of `DEMUXERS`, which reads this source and nothing else.

    Raises MediaError as `opened` does, and when it is in no format that is read.
    """
    import av

    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "", "max_pixels": str(limits.pixels)}
    with opened(source, kind, limits) as file:
        try:
            inner = av.open(file, "r", options=options)
        except Exception as error:  # PyAV has many errors, and probing can fail in others
            raise unreadable(source, kind, error) from error
        with inner:
            yield inner


def unreadable(source: Source, kind: Kind, error: Exception | None = None) -> MediaError:
    """Why a decoder gave up: what it was given is another kind of media, or damaged, or in no format that is read."""
    name, found = name_of(source, kind), kind_of(source)
    if found == kind:
        return MediaError(f"{name}: is damaged or cut short{because(error)}; copy or export it again")
    if found:
        return MediaError(f"{name}: is {NOUNS[found]}, not {NOUNS[kind]}; give it as {found}")
    return MediaError(f"{name}: is not {NOUNS[kind]} in a format that is read ({READ[kind]}); convert it")


def because(error: Exception | None) -> str:
    """The first line of what a decoder said, in brackets."""
    said = str(error or "").strip().splitlines()
    return f" ({said[0][:120]})" if said else ""


class _Reader(io.BufferedReader):
    """Damaged files send decoders to before the beginning; an error there would be printed by the C code that calls this."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return super().seek(0)


def _file(path: Path, kind: Kind) -> io.FileIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or device has no end
            raise MediaError(f"{path}: is not a file; name the {kind} file itself")
        raw = io.FileIO(path)
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MediaError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check its permissions") from error
    del raw.name  # else decoders go by the suffix
    return raw
