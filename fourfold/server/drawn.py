"""What a model draws as files for its clients, and the codes of files that they send back.

A file carries the codes it was made of, with the name of the codec: in a PNG as a chunk that programs drop when they change the
picture, in an MP4 as a box that players pass over. So a drawing that comes back is read as just what was drawn, and nothing has to
be remembered. Other pictures are encoded by the codec.
"""

import base64
import hashlib
import io
import json
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fourfold.engine.layout import MOST_CODES
from fourfold.errors import MediaError
from fourfold.media.codec import Codec
from fourfold.media.images import fit, read_image
from fourfold.media.limits import Limits
from fourfold.media.spans import FILM_RATE
from fourfold.media.video import read_clip
from fourfold.media.writing import write_clip
from fourfold.model.transformer import Transformer
from fourfold.text.chats.events import DrawingFinished

MARK = b"fourfold codes\0\0"  # 16 bytes, as the name of a box has to have
CHUNK = b"foCD"  # of a PNG: not critical, private, and not to be kept by who changes the picture
MOST_BYTES = 64 + 24 * MOST_CODES  # of the codes as text


def png(pixels: Tensor) -> bytes:
    """uint8 [3, H, W] as a picture, without its codes."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def mp4(frames: Tensor) -> bytes:
    """uint8 [F, 3, H, W] as a clip, without its codes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(frames, path, FILM_RATE)
        return path.read_bytes()


def file_of(drawing: DrawingFinished, model: Transformer) -> bytes:
    """A drawing as PNG or MP4, with its codes. Raises MediaError where the model has no codec, and so nothing to look at."""
    if drawing.pixels is None:
        raise MediaError("the checkpoint has no folder codec, which makes pixels of codes; put its codec there")
    told = {"codec": fingerprint(codec_of(model)), "codes": drawing.codes.tolist()}
    data = MARK + json.dumps(told, separators=(",", ":")).encode()
    if drawing.codes.dim() == 3:
        return mp4(drawing.pixels) + (8 + len(data)).to_bytes(4, "big") + b"uuid" + data
    plain = png(drawing.pixels[0])
    chunk = len(data).to_bytes(4, "big") + CHUNK + data + zlib.crc32(CHUNK + data).to_bytes(4, "big")
    return plain[:-12] + chunk + plain[-12:]  # before IEND


def part_of(drawing: DrawingFinished, model: Transformer) -> dict[str, Any]:
    """A drawing as a part of an answer: image_url or video_url with a data: URL. Raises MediaError without a codec."""
    kind, media_type = ("image_url", "image/png") if drawing.codes.dim() == 2 else ("video_url", "video/mp4")
    data = base64.b64encode(file_of(drawing, model)).decode()
    return {"type": kind, kind: {"url": f"data:{media_type};base64,{data}"}}


def codes_of(raw: bytes, kind: str, model: Transformer, limits: Limits) -> dict[str, Any]:
    """A file that the assistant showed, an image or a video, as what it drew (text/content.py). Raises MediaError."""
    if model.config.media_out is None or kind == "audio":
        raise MediaError(f"{kind} data: the assistant of this model makes none; put it into a message of the user")
    codes = carried(raw, model)
    if codes is None:
        codes = _encoded(raw, kind, model, limits)
    return {"type": "draw" if codes.dim() == 2 else "film", "codes": codes}


def carried(raw: bytes, model: Transformer) -> Tensor | None:
    """The codes [rows, columns] or [frames, rows, columns] in a file that this model's codec made; None in any other."""
    place = raw.rfind(MARK)
    if place < 0:
        return None
    try:
        told, _ = json.JSONDecoder().raw_decode(raw[place + len(MARK) :][:MOST_BYTES].decode("latin-1"))
        codes = torch.tensor(told["codes"])
        own = told["codec"] == fingerprint(codec_of(model))
    except (ValueError, TypeError, KeyError, RecursionError, MediaError):
        return None
    fits = codes.dim() in (2, 3) and codes.dtype == torch.int64 and 0 < codes.numel() <= MOST_CODES
    most = model.config.media_out.image_token_size
    return codes if own and fits and 0 <= int(codes.min()) <= int(codes.max()) < most else None


def codec_of(model: Transformer) -> Codec:
    """Raises MediaError where there is none."""
    codec = getattr(model, "codec", None)
    if codec is None:
        raise MediaError("the checkpoint has no folder codec; put its codec there")
    return codec


@lru_cache(maxsize=8)
def fingerprint(codec: Codec) -> str:
    """Which codec it is: codes of one mean nothing to another."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _encoded(raw: bytes, kind: str, model: Transformer, limits: Limits) -> Tensor:
    """What the codec makes of a picture or clip, no larger than the model draws."""
    codec, sizes = codec_of(model), model.config.media_out
    side = codec.config.downsample
    if kind == "image":
        frames = fit(read_image(raw, limits), min(sizes.image_grid) * side, side)[None]
    else:
        most, *grid = sizes.film_grid
        frames = read_clip(raw, FILM_RATE, most_frames=most, limits=limits, longest=min(grid) * side, multiple=side).frames
    codes = codec.encode(frames[None].float() / 255)[0]
    return codes[0] if kind == "image" else codes
