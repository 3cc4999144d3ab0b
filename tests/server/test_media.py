"""Media in messages: what clients send becomes what the model is shown, within limits, with errors that name the part."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fourfold.engine.canvas import pixels_of
from fourfold.engine.prompts import shown
from fourfold.errors import MediaError
from fourfold.model.transformer import Transformer
from fourfold.server import media
from fourfold.server.drawn import mp4, part_of, png
from fourfold.server.errors import ApiError
from fourfold.server.fetching import TooLarge
from fourfold.server.media import Intake
from fourfold.server.settings import Settings
from fourfold.text.chats.events import DrawingFinished
from tests.omni import PICTURE, picture, write_tone
from tests.server.conftest import Live

PNG = png(picture(1))


def url(raw: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


FORMS = {
    "chat": {"type": "image_url", "image_url": {"url": url(PNG), "detail": "auto"}},
    "chat, short": {"type": "image_url", "image_url": url(PNG)},
    "responses": {"type": "input_image", "image_url": url(PNG), "detail": "auto"},
    "messages": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(PNG)}},
    "messages, url": {"type": "image", "source": {"type": "url", "url": url(PNG)}},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture(omni: Transformer, form: str) -> None:
    assert Intake(Settings(), omni).parts([FORMS[form]]) == [{"type": "image", "source": PNG}]


def test_other_media_and_texts(omni: Transformer, tmp_path: Path) -> None:
    sound, film = write_tone(tmp_path / "x.wav").read_bytes(), mp4(torch.stack([picture(i) for i in range(3)]))
    parts = [
        {"type": "input_audio", "input_audio": {"data": b64(sound), "format": "wav"}},
        {"type": "video_url", "video_url": {"url": url(film, "video/mp4")}},
        *({"type": kind, "text": kind} for kind in ("text", "input_text", "output_text")),
        {"type": "refusal", "refusal": "no"},
    ]
    made = Intake(Settings(), omni).parts(parts)
    assert made[:2] == [{"type": "audio", "source": sound}, {"type": "video", "source": film}]
    assert [part["text"] for part in made[2:]] == ["text", "input_text", "output_text", "no"]
    assert Intake(Settings(), omni).parts("as it is") == "as it is" and Intake(Settings(), omni).parts(None) is None


WRONG = [
    ({"type": "image_url"}, "c[0].image_url", "must be a data: URL"),
    ({"type": "image_url", "image_url": {}}, "c[0].image_url.url", "must be a data: URL"),
    ({"type": "image_url", "image_url": "http://example.com/x.png"}, "c[0].image_url", "fetches nothing"),
    ({"type": "image_url", "image_url": "file:///etc/passwd"}, "c[0].image_url", "fetches nothing"),
    ({"type": "image_url", "image_url": "/etc/passwd"}, "c[0].image_url", "fetches nothing"),
    ({"type": "image_url", "image_url": "data:image/png,abc"}, "c[0].image_url", "not in base64"),
    ({"type": "image_url", "image_url": "data:image/png;base64,a*b"}, "c[0].image_url", "is not base64"),
    ({"type": "image_url", "image_url": "data:image/png;base64,abc"}, "c[0].image_url", "is not base64"),
    ({"type": "image_url", "image_url": "data:image/png;base64,"}, "c[0].image_url", "must be the bytes"),
    ({"type": "image_url", "image_url": "data:;base64,é"}, "c[0].image_url", "is not base64"),
    ({"type": "input_audio", "input_audio": "x"}, "c[0].input_audio", "must be an object"),
    ({"type": "input_audio", "input_audio": {"format": "wav"}}, "c[0].input_audio.data", "must be the bytes"),
    ({"type": "image", "source": {"type": "file", "file_id": "x"}}, "c[0].source.type", "must be base64 or url"),
    ({"type": "image", "source": "/etc/passwd"}, "c[0].source.type", "must be base64 or url"),
    ({"type": "video", "source": "/etc/passwd"}, "c[0].type", "must be one of"),
    ({"type": "input_file", "file_id": "x"}, "c[0].type", "must be one of"),
    ({"type": ["text"]}, "c[0].type", "must be one of"),
    ({"type": "text"}, "c[0].text", "must be text"),
    ("text", "c[0].type", "must be one of"),
]


@pytest.mark.parametrize(("part", "field", "said"), WRONG)
def test_errors_name_the_part(omni: Transformer, part: object, field: str, said: str) -> None:
    with pytest.raises(ApiError, match=said) as wrong:
        Intake(Settings(), omni).parts([part], "c")
    assert (wrong.value.status, wrong.value.param) == (400, field) and wrong.value.message.startswith(f"{field}: ")


def test_no_path_of_this_machine_is_ever_read(omni: Transformer, saying: Callable[..., Live]) -> None:
    """Our own form of parts, with a source that may be a path, is not one that clients can send."""
    live = saying()
    for part in (
        {"type": "image", "source": "/etc/passwd"},
        {"type": "audio", "source": "/etc/passwd"},
        {"type": "draw", "codes": [[1]]},
    ):
        with pytest.raises(ApiError):
            Intake(Settings(), omni).parts([part])
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}),
            ("/v1/responses", {"input": [{"role": "user", "content": [part]}]}),
            ("/v1/messages", {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}),
        ):
            answer = live.post(path, model="tiny", **body)
            assert answer.status_code == 400 and "content[0]" in answer.json()["error"]["message"]


def test_limits(omni: Transformer) -> None:
    many = Intake(Settings(media_count=2), omni)
    with pytest.raises(ApiError, match="more than the 2 of one request") as wrong:
        many.messages([{"role": "user", "content": [FORMS["chat"]]}] * 3)
    assert wrong.value.param == "messages[2].content[0]"
    for part in FORMS.values():
        with pytest.raises(ApiError, match="more than 50 bytes") as wrong:
            Intake(Settings(media_bytes=50), omni).parts([part])
        assert wrong.value.status == 413


def test_fetching_is_a_setting(omni: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(media, "fetch", lambda *given: asked.append(given) or PNG)
    part = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    with pytest.raises(ApiError, match="fetches nothing"):
        Intake(Settings(), omni).parts([part])
    allowed = Settings(fetch=True, media_bytes=1000)
    assert Intake(allowed, omni).parts([part]) == [{"type": "image", "source": PNG}]
    assert asked == [("https://example.com/x.png", 1000, media.FETCH_SECONDS)]
    for error, status in ((MediaError("does not lead there"), 400), (TooLarge("is large"), 413)):

        def fail(*_: object, error: Exception = error) -> bytes:
            raise error

        monkeypatch.setattr(media, "fetch", fail)
        with pytest.raises(ApiError, match=str(error)) as wrong:
            Intake(allowed, omni).parts([part])
        assert wrong.value.status == status


def test_a_server_that_may_fetch_does_not_fetch_from_inside(saying: Callable[..., Live]) -> None:
    live = saying(fetch=True)
    for inside in (f"{live.url}/health", "http://169.254.169.254/latest", "http://localhost/x", "file:///etc/passwd"):
        part = {"type": "image_url", "image_url": {"url": inside}}
        answer = live.post("/v1/chat/completions", model="tiny", messages=[{"role": "user", "content": [part]}])
        assert answer.status_code == 400 and "address" in answer.json()["error"]["message"]


def test_drawings_that_come_back_are_what_was_drawn(omni: Transformer) -> None:
    codes = torch.arange(12).view(PICTURE)
    part = part_of(DrawingFinished(codes, pixels_of(omni, codes)), omni)
    message = {"role": "assistant", "content": "Here.", "images": [part]}
    [made] = Intake(Settings(), omni).messages([message])
    assert "images" not in made and made["content"][0] == {"type": "text", "text": "Here."}
    assert made["content"][1]["type"] == "draw" and torch.equal(made["content"][1]["codes"], codes)
    [other] = Intake(Settings(), omni).messages([{"role": "assistant", "content": None, "images": [FORMS["chat"]]}])
    assert other["content"][0]["type"] == "draw"
    with pytest.raises(ApiError, match="messages\\[0\\].images\\[0\\]"):
        Intake(Settings(), omni).messages(
            [{"role": "assistant", "images": [{"type": "input_audio", "input_audio": {"data": b64(PNG)}}]}]
        )


def test_the_model_is_shown_what_was_sent(painter: Live, omni: Transformer) -> None:
    """Through all three APIs: as many tokens as the picture has, and the same answer."""
    size = len(shown(omni, "image", PNG))
    words = {"type": "text", "text": "What is it?"}
    said = set()
    for part in (FORMS["chat"], FORMS["responses"], FORMS["messages"]):
        content = [part, words]
        match part["type"]:
            case "input_image":
                body = {"input": [{"role": "user", "content": content}], "max_output_tokens": 4, "temperature": 0}
                answer = painter.post("/v1/responses", model="omni", **body).json()
                text, count = answer["output"][0]["content"][0]["text"], answer["usage"]["input_tokens"]
            case "image":
                body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
                answer = painter.post("/v1/messages", model="omni", **body).json()
                text = "".join(block.get("text", "") for block in answer["content"])
                count = answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"]
            case _:
                body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
                answer = painter.post("/v1/chat/completions", model="omni", **body).json()
                text, count = answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]
        said.add((text, count))
    assert len(said) == 1 and next(iter(said))[1] > size
    broken = {"type": "image_url", "image_url": {"url": url(PNG[:40])}}
    answer = painter.post("/v1/chat/completions", model="omni", messages=[{"role": "user", "content": [broken]}])
    assert answer.status_code == 400 and "damaged" in json.dumps(answer.json())
