"""/v1/chat/completions: a chat in, the assistant's message out, whole or as it is made.

A stream has, for each answer, the role first, then thoughts, text, calls and drawings as they come, and its finish reason; then, if
it was asked for, usage, and the end mark.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fourfold import __version__
from fourfold.server.asking import Ask, Reply, begin, merged, thinks, usage_of
from fourfold.server.billing import origin_of
from fourfold.server.chat_body import PLAIN, ChatBody
from fourfold.server.drawn import part_of
from fourfold.server.logprobs import chat_logprobs
from fourfold.server.media import Intake
from fourfold.server.models import Served, Serving, serving_of
from fourfold.server.sse import DONE, JSON, EventStream, data, watched, whole
from fourfold.text.chats import CallArguments, CallStarted, Content, DrawingBegun, DrawingFinished, Event, Reasoning

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a chat."""
    serving = serving_of(request)
    served = serving.models.served(body.model)
    replies = await watched(request, _begun(serving, served, body, request))
    answer = Answer(served, body, replies)
    if body.stream:
        return EventStream(answer.chunks(), serving.settings, replies)
    told = await whole(request, replies)
    choices = await asyncio.to_thread(lambda: [answer.choice(place, events) for place, events in enumerate(told)])
    return JSON(answer.head("chat.completion") | {"choices": choices, "usage": usage_of(replies, len(replies))})


async def _begun(serving: Serving, served: Served, body: ChatBody, request: Request) -> list[Reply]:
    """The question put to the engine."""
    given = [message.ours() for message in body.messages]
    ask = Ask(
        messages=await asyncio.to_thread(Intake(serving.settings, served.model).messages, given),
        origin=origin_of(request, body.user_id),
        tools=body.listed_tools(),
        tool_choice=body.tool_choice,
        parallel=body.parallel_tool_calls is not False,
        response_format=body.response_format,
        thinking=body.thinks(),
        effort=body.reasoning_effort,
        sampling=body.sampling(serving.settings, served.usual),
        n=body.n or 1,
        logprobs=body.likeliest(),
    )
    if "thinking" in served.can and thinks(served, ask):
        ask.sampling = replace(ask.sampling, **{name: served.usual.get(name, value) for name, value in PLAIN.items()})
    return await begin(serving, served, ask)


class Answer:
    """What one request is answered with: choices as a whole, or chunks of them."""

    def __init__(self, served: Served, body: ChatBody, replies: list[Reply]) -> None:
        self.served, self.body, self.replies = served, body, replies
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.has_usage = body.stream_options is not None and body.stream_options.include_usage

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": f"fourfold-{__version__}",
        }

    def choice(self, place: int, events: list[Event]) -> dict[str, Any]:
        """One whole answer."""
        reply, message = self.replies[place], self._message(events)
        logprobs = None
        if self.body.logprobs:
            logprobs = chat_logprobs(self.served.tokenizer, reply.logprobs, reply.reasoning_logprobs)
        return {"index": place, "message": message, "logprobs": logprobs, "finish_reason": reply.finish_reason}

    def _message(self, events: list[Event]) -> dict[str, Any]:
        content, thoughts = list[str](), list[str]()
        calls, images = list[dict[str, Any]](), list[dict[str, Any]]()
        for event in events:
            match event:
                case Reasoning(text):
                    thoughts.append(text)
                case Content(text):
                    content.append(text)
                case CallStarted(_, name):
                    calls.append(_call(name))
                case CallArguments(index, text):
                    calls[index]["function"]["arguments"] += text
                case DrawingFinished():
                    images.append(part_of(event, self.served.model))
        said = "".join(content)
        message: dict[str, Any] = {"role": "assistant", "content": said if said or not calls else None, "refusal": None}
        found = {"reasoning_content": "".join(thoughts), "tool_calls": calls, "images": images}
        return message | {name: value for name, value in found.items() if value}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The whole stream."""
        begun, shown = set[int](), dict[int, tuple[int, int]]()
        async for place, event in merged(self.replies):
            if place not in begun:
                begun.add(place)
                yield self._chunk(place, {"role": "assistant", "content": ""})
            if event is None:
                yield self._chunk(place, {}, self.replies[place].finish_reason, self._new_logprobs(place, shown))
                continue
            delta = await self._delta(event)
            if delta is not None:
                yield self._chunk(place, delta, None, self._new_logprobs(place, shown))
        if self.has_usage:
            usage = usage_of(self.replies, len(self.replies))
            yield data(self.head("chat.completion.chunk") | {"choices": [], "usage": usage})
        yield DONE

    async def _delta(self, event: Event) -> dict[str, Any] | None:
        match event:
            case Reasoning(text):
                return {"reasoning_content": text}
            case Content(text):
                return {"content": text}
            case CallStarted(index, name):
                return {"tool_calls": [{"index": index} | _call(name)]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case DrawingBegun(grid):  # an extension: it may take a while
                return {"drawing": {"grid": grid}}
            case DrawingFinished():
                return {"images": [await asyncio.to_thread(part_of, event, self.served.model)]}
        return None

    def _chunk(self, place: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None) -> bytes:
        choice = {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self.has_usage else {}
        return data(self.head("chat.completion.chunk") | {"choices": [choice]} | usage)

    def _new_logprobs(self, place: int, shown: dict[int, tuple[int, int]]) -> dict[str, Any] | None:
        """Log-probabilities of the tokens since the last chunk."""
        if not self.body.logprobs:
            return None
        reply, (said, thought) = self.replies[place], shown.get(place, (0, 0))
        new = reply.logprobs[said:], reply.reasoning_logprobs[thought:]
        shown[place] = len(reply.logprobs), len(reply.reasoning_logprobs)
        return chat_logprobs(self.served.tokenizer, *new) if any(new) else None


def _call(name: str) -> dict[str, Any]:
    """A call that begins, under an id of its own."""
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": ""}}
