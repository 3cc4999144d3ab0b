"""/v1/images/generations: the model's own drawings, the same for the same seed, in every form that clients ask for."""

import base64
import io

import pytest
import torch
from PIL import Image

from fourfold.engine.canvas import Drawing, pixels_of
from fourfold.engine.generate import generate
from fourfold.engine.prompts import prompt_of
from fourfold.engine.sampler import Sampling
from fourfold.media import spans
from fourfold.media.limits import Limits
from fourfold.model.transformer import Transformer
from fourfold.server.drawn import carried, codes_of, file_of
from fourfold.text.chats.events import DrawingFinished
from tests.omni import CLIP, CODES, PICTURE
from tests.server.conftest import Live
from tests.server.grammars import stream


def shown(data: str) -> torch.Tensor:
    """uint8 [3, H, W] of a PNG in base64."""
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == "PNG"
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1)


def drawn_alone(model: Transformer, caption: str, grid: tuple[int, ...], seed: int, guidance: float) -> torch.Tensor:
    """The codes that `fourfold generate --draw` makes of a caption."""
    asked = [{"role": "user", "content": [{"type": "text", "text": f"Draw this: {caption}"}]}]
    span = spans.join([prompt_of(model, asked)[0], spans.draw_opening(model.tokenizer, *grid)])
    sampling, drawing = Sampling(seed=seed, max_tokens=None), Drawing(guidance=guidance)
    for piece in generate(model, span, sampling, model.tokenizer, drawing=drawing):
        if isinstance(piece.drawing, DrawingFinished):
            return piece.drawing.codes
    raise AssertionError("nothing was drawn")


def test_a_picture_is_what_the_model_draws(painter: Live, omni: Transformer) -> None:
    extra = {"seed": 3, "guidance": 2.0}
    answer = painter.client.images.generate(model="omni", prompt="a cat", n=2, size="24x16", extra_body=extra)
    assert (answer.size, answer.output_format, len(answer.data)) == ("24x16", "png", 2)
    for place, picture in enumerate(answer.data):
        codes = drawn_alone(omni, "a cat", (2, 3), 3 + place, 2.0)
        assert torch.equal(carried(base64.b64decode(picture.b64_json), omni), codes)
        assert torch.equal(shown(picture.b64_json), pixels_of(omni, codes)[0])
    assert answer.usage.output_tokens == answer.usage.output_tokens_details.image_tokens >= 2 * 6
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_sizes_and_forms(painter: Live) -> None:
    usual = painter.client.images.generate(prompt="a cat", response_format="url")
    assert usual.size == f"{PICTURE[1] * 8}x{PICTURE[0] * 8}" and usual.data[0].url.startswith("data:image/png;base64,")
    assert shown(usual.data[0].url.partition(",")[2]).shape == (3, PICTURE[0] * 8, PICTURE[1] * 8)
    auto = painter.client.images.generate(prompt="a cat", size="auto", model="omni")
    assert auto.size == usual.size and auto.data[0].b64_json


def test_a_stream_shows_what_is_drawn_so_far(painter: Live) -> None:
    body = {"prompt": "a cat", "seed": 7, "size": "32x24"}
    *parts, whole = stream(painter.http, "/v1/images/generations", partial_images=2, **body)
    assert [part["type"] for part in parts] == ["image_generation.partial_image"] * 2
    assert whole["type"] == "image_generation.completed" and whole["usage"]["output_tokens"] >= 12
    assert [part["partial_image_index"] for part in parts] == [0, 1]
    final = shown(whole["b64_json"])
    for rows, part in zip((8, 16), parts, strict=True):
        so_far = shown(part["b64_json"])
        assert so_far.shape == final.shape == (3, 24, 32)
        assert (so_far[:, rows:] == 127).all() and not (so_far[:, :rows] == 127).all()
    assert painter.post("/v1/images/generations", **body).json()["data"][0]["b64_json"] == whole["b64_json"]
    [alone] = painter.client.images.generate(prompt="a cat", stream=True)
    assert alone.type == "image_generation.completed"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"size": "1024x1024"}, "size"),
        ({"size": "20x16"}, "size"),
        ({"size": "big"}, "size"),
        ({"size": "0x8"}, "size"),
        ({"n": 11}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"output_format": "webp"}, "output_format"),
        ({"guidance": -1}, "guidance"),
        ({"resolution": "x"}, "resolution"),
        ({"model": "none"}, "model"),
    ],
)
def test_errors_name_the_field(painter: Live, body: dict, field: str) -> None:
    answer = painter.post("/v1/images/generations", **{"prompt": "a cat", **body})
    assert answer.status_code == (404 if field == "model" else 400) and answer.json()["error"]["param"] == field


def test_a_model_that_draws_nothing_says_so(saying) -> None:
    live = saying()
    for body in ({}, {"model": "tiny"}):
        answer = live.post("/v1/images/generations", prompt="a cat", **body)
        assert answer.status_code == 400 and "draws" in answer.json()["error"]["message"]


@pytest.mark.parametrize("grid", [PICTURE, (1, 2), CLIP])
def test_drawings_come_back_as_their_codes(omni: Transformer, grid: tuple[int, ...]) -> None:
    """From the file alone; a file that was changed, or is of another codec, is encoded as any picture."""
    codes = torch.randint(CODES, grid, generator=torch.Generator().manual_seed(1))
    kind = "image" if len(grid) == 2 else "video"
    file = file_of(DrawingFinished(codes, pixels_of(omni, codes)), omni)
    part = codes_of(file, kind, omni, Limits())
    assert part["type"] == ("draw" if len(grid) == 2 else "film") and torch.equal(part["codes"], codes)
    for other in (
        file.replace(b'"codec":"', b'"codec":"x'),
        file.replace(b"[[", b"[[[9999],["),
        file[: file.rindex(b"fourfold codes")],
    ):
        assert carried(other, omni) is None
    if len(grid) == 2:
        image = Image.open(io.BytesIO(file))
        resaved = io.BytesIO()
        image.save(resaved, "PNG")
        encoded = codes_of(resaved.getvalue(), kind, omni, Limits())["codes"]
        assert encoded.dim() == 2 and all(own <= most for own, most in zip(encoded.shape, PICTURE, strict=True))
        assert 0 <= int(encoded.min()) <= int(encoded.max()) < CODES
    else:
        from fourfold.media.video import read_clip

        assert len(read_clip(file).frames) >= 1  # players pass over what is behind the film
