"""/v1/audio/transcriptions: the model is asked as in training, a stretch of sound at a time."""

import json
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from fourfold.modality import Modality
from fourfold.model.transformer import Transformer
from fourfold.server.models import Models, serve
from fourfold.server.settings import Settings
from tests.omni import write_tone
from tests.server.conftest import Live, Scripted, running


@pytest.fixture
def hearing(omni: Transformer) -> Callable:
    """Starts servers of the omni model that write down what they are told."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(say: object = "the cat sat", **settings: object) -> Live:
            given = Settings(drain_seconds=1, **settings)
            return stack.enter_context(running(Models([serve(omni, "omni", Scripted(omni, say))], given), given))

        yield start


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    return write_tone(tmp_path / "tone.wav", 0.5)


def test_speech_is_written_down(hearing: Callable[..., Live], tone: Path) -> None:
    live = hearing()
    answer = live.client.audio.transcriptions.create(model="omni", file=tone)
    [request] = live.engine.asked
    assert answer.text == "the cat sat" and answer.usage.type == "tokens"
    assert answer.usage.input_tokens == len(request.prompt) and answer.usage.input_token_details.audio_tokens == 7
    text = live.serving.models.own()[0].tokenizer.decode([t for t in request.prompt.tokens.tolist() if t], skip_special=False)
    assert text == "<|bos|><|user|><|audio|><|/audio|>Transcribe the speech.<|end|><|assistant|>"
    assert request.sampling.temperature == 0 and not request.drawing.begin and request.logprobs is None
    plain = live.client.audio.transcriptions.create(model="omni", file=tone, response_format="text", temperature=0.5)
    assert plain == "the cat sat\n" and live.engine.asked[-1].sampling.temperature == 0.5


def test_long_sound_is_several_questions(hearing: Callable[..., Live], tone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.server.transcriptions.WINDOW", 0.2)
    live = hearing(lambda request: f" {int((request.prompt.modality == Modality.AUDIO).sum())} tokens ")
    answer = live.client.audio.transcriptions.create(
        model="omni", file=tone, response_format="verbose_json", language="en", timestamp_granularities=["segment"]
    )
    assert answer.text == "3 tokens 3 tokens 2 tokens" and answer.language == "en" and answer.duration == pytest.approx(0.5)
    assert [(part.start, part.end) for part in answer.segments] == [(0, 0.2), (0.2, 0.4), (0.4, 0.5)]
    assert all(part.avg_logprob == -0.5 and part.text == f"{n} tokens" for part, n in zip(answer.segments, (3, 3, 2), strict=True))
    parts = list(live.client.audio.transcriptions.create(model="omni", file=tone, stream=True, include=["logprobs"]))
    assert {part.type for part in parts[:-1]} == {"transcript.text.delta"} and parts[-1].type == "transcript.text.done"
    said = "".join(part.delta for part in parts[:-1])
    assert " ".join(said.split()) == parts[-1].text == answer.text and len(parts[-1].logprobs) > 6


def test_the_model_itself(painter: Live, tone: Path) -> None:
    """Greedy, so the same each time."""
    texts = {painter.client.audio.transcriptions.create(model="omni", file=tone).text for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"response_format": "srt"}, 400, "response_format"),
        ({"temperature": "warm"}, 400, "temperature"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities[0]"),
        ({"diarize": "x"}, 400, "diarize"),
        ({"model": "none"}, 404, "model"),
    ],
)
def test_errors_name_the_field(hearing: Callable[..., Live], tone: Path, fields: dict, status: int, field: str) -> None:
    live = hearing()
    answer = live.http.post("/v1/audio/transcriptions", data={"model": "omni", **fields}, files={"file": tone.read_bytes()})
    assert answer.status_code == status and answer.json()["error"]["param"] == field, answer.text


def test_files_that_are_none(hearing: Callable[..., Live], tone: Path, saying: Callable[..., Live]) -> None:
    live = hearing(media_bytes=20_000)
    sound = tone.read_bytes()
    for content, status, said in ((b"", 400, "empty"), (b"x" * 99, 400, "not sound"), (sound + b"x" * 20_000, 413, "20,000 bytes")):
        answer = live.http.post("/v1/audio/transcriptions", data={"model": "omni"}, files={"file": content})
        assert answer.status_code == status and said in answer.json()["error"]["message"], answer.text
        assert answer.json()["error"]["param"] == "file"
    for answer in (
        live.http.post("/v1/audio/transcriptions", data={"model": "omni"}),
        live.http.post("/v1/audio/transcriptions", content=b"x", headers={"content-type": "multipart/form-data; boundary=x"}),
        live.http.post("/v1/audio/transcriptions", json={"model": "omni"}),
    ):
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    with pytest.raises(openai.BadRequestError, match="hears nothing"):
        saying().client.audio.transcriptions.create(model="tiny", file=tone)
    assert json.loads(live.http.get("/v1/fields").text)["/v1/audio/transcriptions"]["prompt"]
