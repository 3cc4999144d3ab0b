"""/v1/completions: texts or token ids to be continued, many at once; with echo, the log-probabilities of the prompts themselves."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from fourfold import __version__
from fourfold.engine.canvas import Drawing
from fourfold.engine.request import Chosen
from fourfold.engine.request import Request as Asked
from fourfold.server.asking import Reply, merged, sampling_of, seeded, submit, usage_of
from fourfold.server.billing import origin_of
from fourfold.server.chat_body import SampledBody, StreamOptions, UserId
from fourfold.server.errors import bad
from fourfold.server.fields import COMMON
from fourfold.server.logprobs import completion_logprobs
from fourfold.server.models import Served, Serving, serving_of
from fourfold.server.sse import DONE, JSON, EventStream, data, watched, whole
from fourfold.server.tokenize import check_ids
from fourfold.text.chats import Content, Event
from fourfold.text.tokenizer import Tokenizer

router = APIRouter(tags=["completions"])
Ids = list[Annotated[int, Field(ge=0)]]
# Tokens before a text, between it and what follows the gap, and before what goes into the gap.
FILLS = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)


class CompletionBody(SampledBody):
    """A text to be continued, or a list of them; token ids are taken as they are, without a token for the beginning."""

    endpoint: ClassVar = "/v1/completions"
    accepted: ClassVar = COMMON
    model: str
    prompt: str | Ids | list[str] | list[Ids] = Field(min_length=1)
    suffix: str | None = Field(None, description="What follows the gap to be filled, for models with tokens for that.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(16, ge=0, description="0 with echo: only the prompt is scored.")
    best_of: int | None = Field(None, ge=1, description="Only the same as n.")
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    user_id: UserId | None = None

    def prompts(self, served: Served) -> list[list[int]]:
        """Each prompt as ids. Raises ApiError for an id or a suffix that the model has no use for."""
        given: Any = self.prompt
        whole = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        if self.suffix is not None:
            return [_around(served, prompt, self.suffix) for prompt in whole]
        prompts = []
        for i, prompt in enumerate(whole):
            field = "prompt" if whole[0] is given else f"prompt[{i}]"
            if not isinstance(prompt, str):
                check_ids(prompt, served, field)
            ids = served.tokenizer.prefix + served.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            if not ids:
                raise bad(field, "is empty; give at least one token")
            prompts.append(ids)
        return prompts


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue texts. Choices come prompt by prompt, `n` of each."""
    serving = serving_of(request)
    served = serving.models.served(body.model)
    if body.best_of not in (None, body.n or 1):
        raise bad("best_of", "only n answers are made; set it to n or leave it out")
    prompts = await asyncio.to_thread(body.prompts, served)
    replies = await watched(request, _begun(serving, served, body, prompts, request))
    answer = Answer(served, body, prompts, replies)
    if body.stream:
        return EventStream(answer.chunks(), serving.settings, replies)
    told = await whole(request, replies)
    choices = [answer.choice(place, events) for place, events in enumerate(told)]
    return JSON(answer.head() | {"choices": choices, "usage": answer.usage()})


async def _begun(serving: Serving, served: Served, body: CompletionBody, prompts: list[list[int]], request: Request) -> list[Reply]:
    origin, n = origin_of(request, body.user_id), body.n or 1
    sampling = sampling_of(serving.settings, served.usual, body.max_tokens or 1, **body.sampled())
    scored = body.logprobs if body.echo else None
    requests = [
        Asked(prompt, seeded(sampling, place), Drawing(begin=False), None, body.logprobs, scored, origin.namespace)
        for prompt in prompts
        for place in range(n)
    ]
    replies = await submit(serving, served, requests, origin, answers=n)
    for reply in replies:
        reply.is_wanted = body.max_tokens != 0
    return replies


class Answer:
    """What one request is answered with."""

    def __init__(self, served: Served, body: CompletionBody, prompts: list[list[int]], replies: list[Reply]) -> None:
        self.served, self.body, self.prompts, self.replies = served, body, prompts, replies
        self.n, self.none = body.n or 1, body.max_tokens == 0  # of an answer that nobody wants, one token was made
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self.has_usage = body.stream_options is not None and body.stream_options.include_usage

    def head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": f"fourfold-{__version__}",
        }

    def choice(self, place: int, events: list[Event]) -> dict[str, Any]:
        """One whole answer."""
        text = "" if self.none else "".join(event.text for event in events if isinstance(event, Content))
        reason = "length" if self.none else self.replies[place].finish_reason
        return self._choice(place, self._echoed(place) + text, self._echoed_chosen(place) + self._chosen(place), 0, reason)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The whole stream; what is echoed comes first."""
        shown, offsets = dict[int, int](), dict[int, int]()
        async for place, event in merged(self.replies):
            if place not in shown:
                echoed = self._echoed(place)
                shown[place], offsets[place] = 0, len(echoed)
                if self.body.echo:
                    yield self._chunk(self._choice(place, echoed, self._echoed_chosen(place), 0, None))
            chosen = self._chosen(place)[shown[place] :]
            text = event.text if isinstance(event, Content) and not self.none else ""
            reason = ("length" if self.none else self.replies[place].finish_reason) if event is None else None
            if text or event is None:
                yield self._chunk(self._choice(place, text, chosen, offsets[place], reason))
                shown[place] += len(chosen)
                offsets[place] += sum(len(self.served.tokenizer.decode([each.token])) for each in chosen)
        if self.has_usage:
            yield data(self.head() | {"choices": [], "usage": self.usage()})
        yield DONE

    def usage(self) -> dict[str, Any]:
        return usage_of(self.replies, self.n)

    def _choice(self, place: int, text: str, chosen: list[Chosen], offset: int, reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self.body.logprobs is not None:
            logprobs = completion_logprobs(self.served.tokenizer, chosen, self.body.logprobs, offset)
        return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return data(self.head() | {"choices": [choice]} | ({"usage": None} if self.has_usage else {}))

    def _echoed(self, place: int) -> str:
        return self.served.tokenizer.decode(self.prompts[place // self.n]) if self.body.echo else ""

    def _echoed_chosen(self, place: int) -> list[Chosen]:
        return list(self.replies[place].prompt_logprobs or []) if self.body.echo else []

    def _chosen(self, place: int) -> list[Chosen]:
        return [] if self.none else self.replies[place].logprobs


def _around(served: Served, prompt: Any, suffix: str) -> list[int]:
    """A text and what follows its gap, as models with tokens for that were shown them."""
    tokenizer: Tokenizer = served.tokenizer
    marks = next((marks for marks in FILLS if tokenizer.controls.issuperset(marks)), None)
    if marks is None:
        raise bad("suffix", f"{served.name} has no tokens for filling a gap; leave it out, or ask a model that has")
    if not isinstance(prompt, str):
        raise bad("suffix", "needs prompts that are text; leave it out, or put the tokens around the gap yourself")
    before, hole, end = map(tokenizer.special, marks)
    return [*tokenizer.prefix, before, *tokenizer.encode(prompt), hole, *tokenizer.encode(suffix), end]
