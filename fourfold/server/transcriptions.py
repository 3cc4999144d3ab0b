"""/v1/audio/transcriptions: speech written down. The model is asked as it was in training, a stretch of sound at a time."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from fourfold.data.omni_wordings import READ
from fourfold.engine import request as engine
from fourfold.engine.canvas import Drawing
from fourfold.engine.prompts import prompt_of
from fourfold.errors import MediaError
from fourfold.media import spans
from fourfold.media.audio import RATE, log_mel, read_sound, windows
from fourfold.media.reading import WINDOW
from fourfold.modality import Modality
from fourfold.server.asking import Reply, sampling_of, submit, usage_of
from fourfold.server.billing import Origin, origin_of
from fourfold.server.chat_body import UserId
from fourfold.server.errors import ApiError, bad
from fourfold.server.fields import COMMON, Body
from fourfold.server.forms import documented, form_of
from fourfold.server.logprobs import chat_logprobs
from fourfold.server.media import limits_of
from fourfold.server.models import Served, Serving, serving_of
from fourfold.server.sse import JSON, EventStream, event, watched, whole
from fourfold.text.chats import Content, Event

router = APIRouter(tags=["audio"])
ASKED = READ["speech"][2]  # "Transcribe the speech."
NO_DRAWING = Drawing(begin=False)
TYPE = "transcript.text"


class TranscriptionBody(Body):
    """Speech to be written down; `file` holds it."""

    endpoint: ClassVar = "/v1/audio/transcriptions"
    accepted: ClassVar = COMMON | {
        "prompt": "the model was trained with one question alone",
        "chunking_strategy": f"stretches of {WINDOW:g} s",
    }
    model: str
    language: str | None = Field(None, max_length=64, description="Said back; the model writes what it hears.")
    response_format: Literal["json", "text", "verbose_json"] | None = None
    temperature: float | None = Field(None, ge=0, le=1, description="By default 0: the likeliest words.")
    timestamp_granularities: list[Literal["segment"]] | None = None
    include: list[Literal["logprobs"]] | None = None
    stream: bool | None = None
    user_id: UserId | None = Field(None, description="Prefixes are shared between requests of one user_id only.")


@router.post("/v1/audio/transcriptions", response_model=None, openapi_extra=documented(TranscriptionBody, "file"))
async def transcribe(request: Request) -> Response:
    """Write down speech."""
    body, raw = await form_of(request, TranscriptionBody, "file")
    serving = serving_of(request)
    served, origin = serving.models.served(body.model), origin_of(request, body.user_id)
    if "audio" not in served.can:
        raise bad("model", f"{served.name} hears nothing; choose a model that does, such as nano-omni")
    if not raw:
        raise bad("file", "is missing or empty; send the sound as a file of the form")
    if len(raw) > serving.settings.media_bytes:
        raise ApiError(413, f"file: has more than {serving.settings.media_bytes:,} bytes; shorten it", param="file")
    answer = Answer(served, body, raw)
    replies = await watched(request, answer.begin(serving, origin))
    if body.stream:
        return EventStream(answer.events(), serving.settings, replies)
    told = await whole(request, replies)
    if body.response_format == "text":
        return PlainTextResponse(answer.text(told) + "\n")
    return JSON(answer.verbose(told) if body.response_format == "verbose_json" else answer.plain(told))


class Answer:
    """What one request is answered with: one reply for each stretch of sound."""

    def __init__(self, served: Served, body: TranscriptionBody, raw: bytes) -> None:
        self.served, self.body, self.raw, self.seconds = served, body, raw, 0.0
        self.sound = 0  # tokens of it in the questions
        self.requests: list[engine.Request] = []
        self.replies: list[Reply] = []

    async def begin(self, serving: Serving, origin: Origin) -> list[Reply]:
        """The questions put to the engine. Raises ApiError for what is no sound."""
        await asyncio.to_thread(self._listen, serving, origin.namespace)
        self.replies = await submit(serving, self.served, self.requests, origin, self.served.speaker())
        return self.replies

    def text(self, told: list[list[Event]]) -> str:
        return " ".join(filter(None, map(said, told)))

    def plain(self, told: list[list[Event]]) -> dict[str, Any]:
        answer: dict[str, Any] = {"text": self.text(told), "usage": self.usage()}
        return answer | ({"logprobs": self._logprobs()} if self.body.include else {})

    def verbose(self, told: list[list[Event]]) -> dict[str, Any]:
        """With where each stretch is, and how sure the model was of it."""
        return {
            "task": "transcribe",
            "language": self.body.language,
            "duration": self.seconds,
            "text": self.text(told),
            "segments": [self._segment(place, said(events)) for place, events in enumerate(told)],
            "usage": {"type": "duration", "seconds": self.seconds},
        }

    async def events(self) -> AsyncIterator[bytes]:
        """Text as it comes, then all of it."""
        told = list[list[Event]]()
        for reply in self.replies:
            told.append([])
            between = " " if self.text(told) else ""
            async for heard in reply:
                told[-1].append(heard)
                if isinstance(heard, Content):
                    yield event(f"{TYPE}.delta", {"type": f"{TYPE}.delta", "delta": between + heard.text})
                    between = ""
        whole = {"type": f"{TYPE}.done"} | self.plain(told)
        yield event(f"{TYPE}.done", whole)

    def usage(self) -> dict[str, Any]:
        """What it took, by the names of this API; our own beside them."""
        found, sound = usage_of(self.replies), self.sound
        return {
            "type": "tokens",
            "input_tokens": found["prompt_tokens"],
            "input_token_details": {"audio_tokens": sound, "text_tokens": found["prompt_tokens"] - sound},
            "output_tokens": found["completion_tokens"],
            **{name: found[name] for name in ("total_tokens", "timing", "cost", "currency")},
        }

    def _listen(self, serving: Serving, namespace: str) -> None:
        """The sound as questions, one for each stretch."""
        sampling = sampling_of(serving.settings, {}, None, temperature=self.body.temperature or 0.0)
        logprobs = 0 if self.body.include or self.body.response_format == "verbose_json" else None
        sizes, tokenizer = self.served.model.config.media_in, self.served.tokenizer
        try:
            samples = read_sound(self.raw, limits_of(serving.settings))
        except MediaError as error:
            raise bad("file", str(error).removeprefix("audio data: ")) from error
        self.seconds = len(samples) / RATE
        for stretch in windows(samples, WINDOW):
            sound = spans.sound(log_mel(stretch, sizes.audio_mel_bins), tokenizer, sizes.audio_frames_per_token)
            content = [{"type": "audio", "span": sound}, {"type": "text", "text": ASKED}]
            prompt, _ = prompt_of(self.served.model, [{"role": "user", "content": content}], self.served.speaker())
            self.sound += int((prompt.modality == Modality.AUDIO).sum())
            self.requests.append(engine.Request(prompt, sampling, NO_DRAWING, logprobs=logprobs, namespace=namespace))

    def _segment(self, place: int, text: str) -> dict[str, Any]:
        reply, raw = self.replies[place], text.encode()
        sure = [chosen.logprob for chosen in reply.logprobs if chosen.logprob is not None]
        return {
            "id": place,
            "seek": int(place * WINDOW * 100),
            "start": place * WINDOW,
            "end": min((place + 1) * WINDOW, self.seconds),
            "text": text,
            "tokens": reply.tokens,
            "temperature": self.body.temperature or 0.0,
            "avg_logprob": sum(sure) / max(len(sure), 1),
            "compression_ratio": len(raw) / len(zlib.compress(raw)),
        }

    def _logprobs(self) -> list[dict[str, Any]]:
        chosen = [each for reply in self.replies for each in reply.logprobs]
        return chat_logprobs(self.served.tokenizer, chosen, [])["content"]


def said(events: list[Event]) -> str:
    return "".join(heard.text for heard in events if isinstance(heard, Content)).strip()
